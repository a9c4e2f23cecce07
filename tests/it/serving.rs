//! A running server: callbacks, signatures, one process at a time, orderly stop.

use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines};
use super::harness::{Home, TOKEN, message_body, sign, until};
use std::process::Stdio;

#[test]
fn a_signed_callback_is_in_sql_and_in_the_metrics() {
    let home = Home::new(&[]);
    let server = home.serve();
    let body = message_body("user-1==", 6_150_000_000_000_000_001);
    assert_eq!(server.callback(&body).status, 200);
    let rows = until(
        "the session",
        || server.sql("select account, user_id, opened_by_token, inbound, state, country from sessions"),
        |rows| !rows.is_empty(),
    );
    let wanted = serde_json::json!({"account": "bot1", "user_id": "user-1==", "opened_by_token": "6150000000000000001",
        "inbound": 1, "state": "open", "country": "UA"});
    assert_eq!(rows, [wanted]);
    assert_eq!(server.sql("select data from events")[0]["data"], body);
    let series = r#"counterbat_callbacks_total{account="bot1",event="message"}"#;
    until("the counter", || server.metric(series), |value| *value == 1.0);
    until(
        "the session counter",
        || server.metric(r#"counterbat_sessions_opened_total{account="bot1",kind="service"}"#),
        |value| *value == 1.0,
    );
}

#[test]
fn a_wrong_signature_gets_403_and_leaves_no_trace() {
    let home = Home::new(&[]);
    let server = home.serve();
    let body = message_body("user-1==", 7);
    for signature in [sign("another token", &body), sign(TOKEN, "another body"), String::new(), "zz".repeat(32)] {
        assert_eq!(server.callback_signed(&body, &signature).status, 403, "{signature}");
    }
    // A good one behind it shows that time was given to the bad ones.
    assert_eq!(server.callback(&message_body("user-2==", 8)).status, 200);
    until("the good one", || server.number("select count(*) from events"), |n| *n > 0);
    assert_eq!(server.number("select count(*) from events"), 1);
    let rejected = server.get("/metrics").text();
    assert!(rejected.lines().any(|line| line.starts_with("counterbat_rejected_total{")), "{rejected}");
    drop(server);
    assert!(!home.ok(&["export", "-"]).contains("user-1=="));
}

#[test]
fn no_secret_is_told() {
    let home = Home::new(&[]);
    let server = home.serve();
    assert_eq!(server.callback(&message_body("user-1==", 9)).status, 200);
    server.callback_signed(&message_body("user-1==", 10), "00");
    let metrics = server.get("/metrics").text();
    let log = server.log();
    assert!(server.stop().success());
    for (name, text) in [("metrics", &metrics), ("log", &log), ("export", &home.ok(&["export", "-"]))] {
        assert!(!text.contains(TOKEN), "the token is in the {name}");
    }
}

#[test]
fn a_second_process_is_refused() {
    let home = Home::new(&[]);
    let server = home.serve();
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("in use"), "{error}");
    // Commands work through the server instead.
    assert_eq!(home.number("select count(*) from events"), 0);
    assert!(server.stop().success());
}

#[test]
fn sigterm_drains_and_exits_0() {
    let home = Home::new(&[]);
    let server = home.serve();
    for n in 0..20 {
        assert_eq!(server.callback(&message_body("user-1==", 100 + n)).status, 200);
    }
    let status = server.stop();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!home.data().join("server.json").exists());
    assert_eq!(home.number("select count(*) from events"), 20);
}

#[test]
fn health_is_told() {
    let home = Home::new(&[]);
    let server = home.serve();
    assert_eq!(server.get("/healthz").status, 200);
    until("readiness", || server.get("/readyz").status, |status| *status == 200);
    assert_eq!(server.get("/no/such/path").status, 404);
}

#[test]
fn an_import_through_the_server_is_in_its_tables() {
    let home = Home::new(&[]);
    let server = home.serve();
    let plan = Plan { seed: 11, events: 5000, users: 300, start_ms: MARCH_MS, span_ms: 20 * DAY_MS };
    let printed = home.ok_with(&["import", "--wait", "-"], &lines(&history(&plan)));
    assert!(printed.contains("\"appended\":5000"), "{printed}");
    assert_eq!(server.number("select count(*) from events"), 5000);
    assert!(server.stop().success());
    assert_eq!(home.number("select count(*) from events"), 5000);
}

#[test]
fn a_command_whose_reader_leaves_ends() {
    let home = Home::new(&[]);
    let plan = Plan { seed: 12, events: 5000, users: 300, start_ms: MARCH_MS, span_ms: DAY_MS };
    home.ok_with(&["import", "-"], &lines(&history(&plan)));
    let mut child = home.command(&["export", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    super::harness::wait_exit(&mut child);
}
