//! A running server: callbacks, signatures, one process at a time, orderly stop.

use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines};
use super::harness::{Home, Reply, Server, TOKEN, http, message_body, request, runtime, sign, until};
use reqwest::Method;
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
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

/// All that the console answers, and an address where there is nothing.
const CLOSED: [(&str, &str); 13] = [
    ("POST", "/api/v1/sql"),
    ("POST", "/api/v1/import?wait=1"),
    ("GET", "/api/v1/export"),
    ("POST", "/api/v1/redeliver"),
    ("GET", "/api/v1/accounts"),
    ("POST", "/api/v1/accounts"),
    ("GET", "/api/v1/accounts/bot1"),
    ("PATCH", "/api/v1/accounts/bot1"),
    ("DELETE", "/api/v1/accounts/bot1"),
    ("POST", "/api/v1/accounts/bot1/rotate"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/healthz/x"),
];

/// Asks the console as somebody with this `Authorization`, who knows it by another name.
fn ask(server: &Server, method: &str, path: &str, authorization: Option<&str>) -> Reply {
    let port = server.console.rsplit(':').next().unwrap();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut asked = http().request(method, format!("http://127.0.0.1:{port}{path}"));
    asked = asked.header("host", "counterbat.example").body(r#"{"sql":"select 'hush' as asked"}"#);
    if let Some(authorization) = authorization {
        asked = asked.header("authorization", authorization);
    }
    request(asked)
}

#[test]
fn a_console_with_tokens_lets_nobody_else_in() {
    let everywhere = r#"console.listen = "0.0.0.0:0""#;
    let home = Home::new(&[everywhere]);
    let refused = home.fails_with(&["serve"], b"");
    assert!(refused.contains("0.0.0.0:0") && refused.contains("counterbat token new NAME"), "{refused}");
    assert!(!home.data().exists());

    // It is made where nothing else works yet.
    let made: Value = serde_json::from_str(&home.ok(&["token", "new", "grafana", "--json"])).unwrap();
    let token = made["token"].as_str().unwrap();
    let tokens = format!("console.tokens = [{{ name = \"grafana\", sha256 = {} }}]", made["sha256"]);
    home.configure(&[everywhere, &tokens]);
    let server = home.serve();
    until("readiness, told to everybody", || ask(&server, "GET", "/readyz", None).status, |status| *status == 200);
    assert_eq!(ask(&server, "GET", "/healthz", None).status, 200);

    let info = home.data().join("server.json");
    assert_eq!(std::fs::metadata(&info).unwrap().permissions().mode() & 0o777, 0o600);
    let info: Value = serde_json::from_slice(&std::fs::read(info).unwrap()).unwrap();
    let local = info["token"].as_str().unwrap();
    let wrong =
        ["Bearer cbt_", &format!("Bearer {token}0"), &format!("Basic {token}"), token, &format!("Bearer {TOKEN}")];
    for (method, path) in CLOSED {
        for authorization in std::iter::once(None).chain(wrong.map(Some)) {
            let reply = ask(&server, method, path, authorization);
            assert_eq!(reply.status, 401, "{method} {path} with {authorization:?}: {}", reply.text());
            assert!(reply.problem().contains("[console] tokens"), "{}", reply.text());
        }
    }
    let console = server.console.replace("0.0.0.0", "127.0.0.1");
    let refused = runtime().block_on(async { http().get(console).send().await }).unwrap();
    assert_eq!(refused.headers()["www-authenticate"], "Bearer");

    for token in [token, local] {
        let right = format!("Bearer {token}");
        assert_eq!(ask(&server, "POST", "/api/v1/sql", Some(&right)).text(), "[{\"asked\":\"hush\"}]\n");
        assert!(ask(&server, "GET", "/metrics", Some(&right)).text().contains("counterbat_http_request_seconds"));
        assert_eq!(ask(&server, "GET", "/", Some(&right)).status, 404);
    }
    // Commands find the token of this machine by themselves, and nothing was changed by the others.
    assert_eq!(home.number("select count(*) from events"), 0);
    assert!(home.ok(&["account", "list"]).contains("bot1"));
    home.ok_with(&["import", "--wait", "-"], b"");
    home.ok(&["export", "-"]);

    let told = |log: &str, name: &str, what: &str| {
        let of = |line: &&str| line.contains("counterbat::access") && line.contains(name) && line.contains(what);
        log.lines().filter(of).count()
    };
    let log = until("the last visit", || server.log(), |log| told(log, "(local)", "/api/v1/export") == 1);
    assert_eq!((told(&log, "grafana", "/api/v1/sql"), told(&log, "grafana", "\"status\":200")), (1, 2), "{log}");
    assert_eq!((told(&log, "(local)", "/api/v1/sql"), told(&log, "grafana", "\"status\":404")), (2, 1), "{log}");
    assert!(![token, local, "cbt_", "hush"].iter().any(|secret| log.contains(secret)), "{log}");

    // On this machine alone they hold as well.
    assert!(server.stop().success());
    home.configure(&[&tokens]);
    let server = home.serve();
    assert_eq!(ask(&server, "GET", "/metrics", None).status, 401);
    assert_eq!(
        ask(&server, "GET", "/metrics", Some(&format!("Bearer {local}"))).status,
        401,
        "it ends with its server"
    );
    assert_eq!(ask(&server, "GET", "/metrics", Some(&format!("Bearer {token}"))).status, 200);
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
