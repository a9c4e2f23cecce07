//! `counterbat explain` tells what the golden histories say, in the words of `explain/golden.txt`, which were written by hand.

use super::golden;
use super::harness::Home;
use serde_json::Value;

/// A case: which history under which policy, of which account what, and the words of each record.
struct Case {
    head: [&'static str; 4],
    words: Vec<Vec<&'static str>>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("explain/golden.txt").lines().filter(|line| !line.is_empty()) {
        match line.strip_prefix("= ") {
            Some(head) => {
                let head: Vec<&str> = head.split(' ').collect();
                cases.push(Case { head: head.try_into().unwrap(), words: vec![Vec::new()] });
            }
            None if line == "--" => cases.last_mut().unwrap().words.push(Vec::new()),
            None => cases.last_mut().unwrap().words.last_mut().unwrap().push(line),
        }
    }
    cases
}

/// Words without what depends on where the log has a record, and without the price.
fn plain(words: &Value) -> String {
    let words = words.as_str().unwrap();
    let words = match words.split_once(" (partition ") {
        Some((before, after)) => format!("{before}{}", after.split_once(')').unwrap().1),
        None => words.to_owned(),
    };
    let priced = ["; no price known", "; costs nothing"].iter().find_map(|price| words.strip_suffix(price));
    priced.unwrap_or(&words).to_owned()
}

fn told(home: &Home, account: &str, id: &str) -> Vec<Vec<String>> {
    let told: Value =
        serde_json::from_str(&home.ok(&["explain", "--format", "json", "--account", account, id])).unwrap();
    let steps = told["stories"][0]["steps"].as_array().unwrap();
    steps.iter().map(|step| step["words"].as_array().unwrap().iter().map(plain).collect()).collect()
}

#[test]
fn the_golden_histories_are_explained() {
    let cases = cases();
    assert!(cases.len() >= 20);
    for (history, policy) in [("busy", "counterbat"), ("chatty", "vbm"), ("chatty", "gupshup")] {
        let settings = golden::settings(history, policy);
        let home = Home::new(&settings.iter().map(String::as_str).collect::<Vec<_>>());
        golden::import(&home, history);
        // Through the server: a command of its own would fold all anew each time.
        let server = home.serve();
        let of_this = cases.iter().filter(|case| case.head[..2] == [history, policy]);
        for Case { head: [.., account, id], words } in of_this {
            assert_eq!(told(&home, account, id), *words, "{history}, {policy}: {id}");
        }
        assert!(server.stop().success());
    }
}

#[test]
fn sessions_and_users_are_explained_as_a_whole() {
    let home = Home::new(&[]);
    golden::import(&home, "busy");
    let session = "eb86dae291c13a3027e0d9db2fb7f741";
    let text = home.ok(&["explain", session]);
    let whole = format!("paid session {session}, [2026-02-26T15:29:58.501Z, 2026-02-26T23:13:10.651Z)");
    for part in [
        "user MjItMC0wMDAwMDIteA== of account bot1",
        "opens paid session",
        "message 4 of it",
        "callback delivered 6156996474750411409",
        "closes paid session",
        &format!(
            "\n{whole}\n  opened by message 6156996474748925619, under policy counterbat; closed as the user unsubscribed\n"
        ),
        "0 inbound, 4 outbound, of these 3 charged, 0 overcharged",
    ] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(!text.contains("conversation_started"), "{text}");

    let user = "MjItMC0wMDAwMDIteA==";
    let events = home.number(&format!("select count(*) from events where user_id = '{user}' and account = 'bot1'"));
    let sessions = home.number(&format!("select count(*) from sessions where user_id = '{user}' and account = 'bot1'"));
    let server = home.serve();
    let story: Value = serde_json::from_str(&home.ok(&["explain", "--format", "json", user])).unwrap();
    let of = |what: &str| story["stories"][0][what].as_array().unwrap().len() as i64;
    assert_eq!((of("steps"), of("sessions")), (events, sessions));
    // Every session that the table has is told as it is there.
    for row in server.sql(&format!("select * from sessions where user_id = '{user}' and account = 'bot1'")) {
        let told = story["stories"][0]["sessions"].as_array().unwrap();
        let told = told.iter().find(|told| told["session_id"] == row["session_id"]).unwrap_or_else(|| panic!("{row}"));
        for (ours, theirs) in [
            ("opened_at", "opened_at"),
            ("ends_at", "closed_at"),
            ("close_reason", "close_reason"),
            ("kind", "kind"),
            ("inbound", "inbound"),
            ("outbound", "outbound"),
            ("charged", "charged"),
            ("opened_by_token", "opened_by_token"),
        ] {
            assert_eq!(told[ours], row[theirs], "{ours} of {row}");
        }
    }
    assert!(server.stop().success());
}

#[test]
fn what_is_not_known_or_not_clear_is_said() {
    let home = Home::new(&[]);
    let line = |account: &str| {
        serde_json::json!({"specversion": "1.0", "id": "message/7/a/b==", "source": format!("/accounts/{account}"),
            "type": "com.viber.callback.message", "subject": "a/b==", "time": "2026-03-01T10:00:00Z",
            "data": {"event": "message", "timestamp": 1_772_359_200_000_i64, "message_token": 7, "message": {"type": "text"}}})
        .to_string()
    };
    home.ok_with(&["import", "--wait", "-"], format!("{}\n{}\n", line("bot1"), line("bot2")).as_bytes());
    for offline in [true, false] {
        let server = (!offline).then(|| home.serve());
        let error = home.fails_with(&["explain", "it's nobody"], b"");
        assert!(error.contains("nothing is known of `it's nobody`"), "{error}");
        for id in ["a/b==", "message/7/a/b==", "7"] {
            let error = home.fails_with(&["explain", id], b"");
            assert!(error.contains("bot1, bot2"), "{error}");
            let text = home.ok(&["explain", "--account", "bot2", id]);
            assert!(text.contains("user a/b== of account bot2") && text.contains("opens service session"), "{text}");
        }
        let error = home.fails_with(&["explain", "--account", "no'body", "7"], b"");
        assert!(error.contains("is not of the form"), "{error}");
        let error = home.fails_with(&["explain", "--account", "bto1", "7"], b"");
        assert!(error.contains("there is no account `bto1`; there are: bot1, bot2"), "{error}");
        if let Some(server) = server {
            let reply = server.get("/api/v1/explain?q=7");
            assert_eq!((reply.status, reply.problem().contains("bot1, bot2")), (409, true));
            assert_eq!(server.get("/api/v1/explain?q=8").status, 404);
            assert_eq!(server.get("/api/v1/explain?q=7&account=bto1").status, 422);
            let reply = server.get("/api/v1/explain");
            assert_eq!((reply.status, reply.problem().contains("`q`")), (400, true), "{}", reply.problem());
            assert!(server.stop().success());
        }
    }
}
