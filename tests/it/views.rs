//! The views: of golden histories against what a program of its own makes of them, and of small ones against what was
//! written down by hand.

use super::generate::{DAY_MS, HOUR_MS, tick_line};
use super::golden::{import, settings};
use super::harness::{Home, text};
use super::tools::python;
use counterbat::event::time::{format_ms, parse_rfc3339_us};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

const VIEWS: [&str; 18] = [
    "usage_hourly",
    "usage_hourly('Asia/Kolkata')",
    "usage_daily",
    "usage_daily('Europe/Kyiv')",
    "usage_monthly",
    "usage_monthly('America/New_York')",
    "spend_daily",
    "spend_daily('Europe/Kyiv')",
    "predictions",
    "quota_monthly",
    "billing_accuracy",
    "billing_audit",
    "completeness",
    "first_response",
    "delivery_funnel",
    "avoidable_cost",
    "avoidable_cost(600)",
    "statement_monthly",
];

/// Holds all views against what `views.py` computes; time has come to `watermark` in the history.
fn check(history: &str, policy: &str, lateness_days: i64, watermark: &str, prices: Option<&Path>) {
    let mut settings = settings(history, policy);
    settings.extend(prices.map(|list| format!("fold.prices = {:?}", list.to_str().unwrap())));
    let home = Home::new(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    import(&home, history);
    let server = home.serve();
    let answer = |view: &&str| ((*view).to_owned(), Value::Array(server.sql(&format!("select * from {view}"))));
    let answers: Map<String, Value> = VIEWS.iter().map(answer).collect();
    let watermark_ms = parse_rfc3339_us(watermark).unwrap() / 1000;
    let mut child = python()
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/views.py"))
        .args([history, policy, &lateness_days.to_string(), &watermark_ms.to_string()])
        .args(prices)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(Value::Object(answers).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{history}, {policy}: {}", text(&output.stderr));
}

#[test]
fn views_of_a_busy_month() {
    check("busy", "counterbat", 3, "2026-04-15T22:17:56.080Z", None);
}

#[test]
fn views_under_a_free_quota() {
    check("busy", "viber-2022", 3, "2026-04-15T22:17:56.080Z", None);
}

#[test]
fn views_of_a_history_out_of_order() {
    check("tangled", "viber-2024", 30, "2026-06-01T00:00:00Z", None);
}

#[test]
fn views_of_long_chats() {
    check("chatty", "vbm", 3, "2026-04-12T22:21:05.773Z", None);
}

#[test]
fn views_while_a_month_is_not_settled() {
    check("small", "gupshup", 3, "2026-03-31T23:33:20Z", None);
}

#[test]
fn views_of_what_messages_cost() {
    let lists = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prices");
    check("busy", "counterbat", 3, "2026-04-15T22:17:56.080Z", Some(&lists.join("dated.csv")));
    check("tangled", "viber-2024", 30, "2026-06-01T00:00:00Z", Some(&lists.join("gaps.csv")));
}

/// 2026-03-10T12:00:00Z
const NOON_MS: i64 = 1_773_144_000_000;

/// Lines of an import file, with times in ms from [`NOON_MS`].
#[derive(Default)]
struct Story {
    lines: String,
    tokens: u64,
}

impl Story {
    fn line(&mut self, account: &str, kind: &str, id: &str, user: Option<&str>, at_ms: i64, data: &Value) {
        let mut event = json!({
            "specversion": "1.0", "id": id, "source": format!("/accounts/{account}"), "type": kind,
            "time": format_ms(NOON_MS + at_ms), "datacontenttype": "application/json", "data": data,
        });
        if let Some(user) = user {
            event["subject"] = json!(user);
        }
        self.lines.push_str(&format!("{event}\n"));
    }

    fn token(&mut self) -> u64 {
        self.tokens += 1;
        6_150_000_000_000_000_000 + self.tokens
    }

    fn callback(&mut self, event: &str, account: &str, user: &str, told_ms: i64, at_ms: i64) {
        let token = self.token();
        let data = json!({
            "event": event, "timestamp": NOON_MS + told_ms, "message_token": token, "user_id": user,
            "sender": {"id": user}, "message": {"type": "text", "text": "hi"},
        });
        let (kind, id) = (format!("com.viber.callback.{event}"), format!("{event}/{token}/{user}"));
        self.line(account, &kind, &id, Some(user), at_ms, &data);
    }

    fn inbound(&mut self, account: &str, user: &str, at_ms: i64) {
        self.callback("message", account, user, at_ms, at_ms);
    }

    fn send(&mut self, account: &str, user: &str, at_ms: i64, status: impl Into<Option<i32>>) {
        let token = self.token();
        self.told(account, user, at_ms, token, "send_message", status.into());
    }

    fn told(&mut self, account: &str, user: &str, at_ms: i64, token: u64, method: &str, status: Option<i32>) {
        let data = json!({
            "request": {"type": "text"}, "http_status": 200, "receiver": user, "receiver_status": 0,
            "response": {"status": 0, "message_token": token, "billing_status": status},
        });
        let (kind, id) = (format!("com.viber.api.{method}"), format!("{method}/{token}/{user}"));
        self.line(account, &kind, &id, Some(user), at_ms, &data);
    }
}

fn reasons(home: &Home) -> BTreeMap<String, String> {
    let rows =
        home.sql("select user_id, verdict, split_part(reason, ':', 1) as reason from billing_audit('2026-03-01')");
    let told = |row: &Value, column: &str| row[column].as_str().unwrap().to_owned();
    rows.iter()
        .map(|row| (told(row, "user_id"), format!("{}, {}", told(row, "verdict"), told(row, "reason"))))
        .collect()
}

fn by_user(wanted: &[(&str, &str)]) -> BTreeMap<String, String> {
    wanted.iter().map(|(user, told)| ((*user).to_owned(), (*told).to_owned())).collect()
}

#[test]
fn the_audit_tells_the_reason() {
    let (minute, hour) = (60_000, HOUR_MS);
    let mut story = Story::default();
    for account in ["shop", "deaf"] {
        story.inbound(account, "old", -9 * DAY_MS);
    }
    story.inbound("shop", "two_messages", -30 * hour);
    story.inbound("shop", "just_ended", -24 * hour);
    story.inbound("shop", "two_messages", -10 * hour);
    story.send("fresh", "first_day", 0, 1);
    story.send("deaf", "unheard", 0, 1);
    story.send("shop", "two_messages", 0, 1);
    for user in ["no_status", "list", "twice", "missed"] {
        story.inbound("shop", user, 1000);
    }
    story.callback("message", "shop", "odd_clock", -31 * DAY_MS, 1000);
    story.send("shop", "just_ended", 2000, 1);
    story.inbound("shop", "edge", 3000);
    story.send("shop", "edge", 5000, 5);
    story.send("shop", "no_status", minute, None);
    let token = story.token();
    story.told("shop", "list", minute, token, "broadcast_message", Some(5));
    let token = story.token();
    story.told("shop", "twice", minute, token, "send_message", Some(5));
    story.told("shop", "twice", minute + 1000, token, "send_message", Some(1));
    story.send("shop", "missed", minute, 3);
    story.send("shop", "odd_clock", minute, 5);
    story.send("shop", "late", minute, 5);
    story.callback("message", "shop", "late", 1000, 2 * minute);
    story.send("shop", "nothing_known", 10 * minute, 1);
    story.send("shop", "too_late", 10 * minute, 1);
    story.send("shop", "paid", 11 * minute, 5);
    story.inbound("shop", "old", hour);
    story.send("shop", "paid", hour + minute, 5);
    story.lines.push_str(&tick_line(NOON_MS + 5 * DAY_MS));
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    let mut late = Story { tokens: 1000, ..Story::default() };
    late.inbound("shop", "too_late", -hour);
    home.ok_with(&["import", "--wait", "--late", "-"], late.lines.as_bytes());
    let wanted = [
        ("no_status", "unreported, unreported"),
        ("list", "overcharged, billing_inferred"),
        ("twice", "overcharged, repeat"),
        ("odd_clock", "overcharged, clock skew"),
        ("late", "overcharged, late inbound"),
        ("too_late", "unseen_session, late inbound"),
        ("edge", "overcharged, edge"),
        ("just_ended", "unseen_session, edge"),
        ("paid", "recharged, policy"),
        ("two_messages", "unseen_session, policy"),
        ("first_day", "unseen_session, first day"),
        ("unheard", "unseen_session, missed callbacks"),
        ("missed", "missed_session, unexplained"),
        ("nothing_known", "unseen_session, unexplained"),
    ];
    assert_eq!(reasons(&home), by_user(&wanted));
    let none = home.sql("select * from billing_audit('2026-03-11')");
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn the_audit_tells_which_policy_would_agree() {
    let mut story = Story::default();
    story.inbound("shop", "old", -9 * DAY_MS);
    story.inbound("shop", "capped", 0);
    for nth in 1..=61 {
        story.send("shop", "capped", nth * 10_000, 1);
    }
    let home = Home::new(&[r#"fold.policy = "vbm""#]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    assert_eq!(reasons(&home), by_user(&[("capped", "unseen_session, policy")]));

    let mut story = Story::default();
    story.inbound("shop", "slides", 0);
    story.inbound("shop", "slides", 20 * HOUR_MS);
    story.send("shop", "slides", 30 * HOUR_MS, 5);
    let home = Home::new(&[r#"fold.policy = "gupshup""#]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    assert_eq!(reasons(&home), by_user(&[("slides", "overcharged, policy")]));
}

#[test]
fn what_is_missing_is_told_by_the_hour() {
    let mut story = Story::default();
    let gap = "0193a8a5-0000-7000-8000-000000000001";
    story.line("shop", "counterbat.gap.opened", &format!("{gap}/opened"), None, 1000, &json!({"gap_id": gap}));
    let closed = json!({"calls": {"get_account_info": 9, "send_message": 21, "broadcast_message": 2}, "gap_id": gap, "opened_at": "x"});
    story.line("shop", "counterbat.gap.closed", &format!("{gap}/closed"), None, 2 * HOUR_MS, &closed);
    let call = "0193a8a5-0000-7000-8000-000000000002";
    let started = json!({"call_id": call, "method": "send_message", "receivers": ["u"], "digest": "00"});
    story.line("shop", "counterbat.call.started", call, Some("u"), 2000, &started);
    story.callback("delivered", "shop", "u", 3000, 3000);
    story.send("shop", "u", 3 * HOUR_MS, 1);
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    let wanted = [
        json!({
            "account": "shop", "hour": "2026-03-10T12:00:00.000Z", "sends": 0, "callbacks": 1, "receipts": 1,
            "is_silent": false, "unsent": 1, "unknown_calls": 1, "gap_sends": 23, "gap_until": "2026-03-10T14:00:00.000Z",
        }),
        json!({
            "account": "shop", "hour": "2026-03-10T15:00:00.000Z", "sends": 1, "callbacks": 0, "receipts": 0,
            "is_silent": true, "unsent": 0, "unknown_calls": 0, "gap_sends": 0, "gap_until": null,
        }),
    ];
    let query = "select * from completeness where account = 'shop' order by hour";
    assert_eq!(home.sql(query), wanted);
    assert_eq!(home.sql("select * from completeness('2026-03-10T15:00:00Z')"), wanted[1..]);
    assert_eq!(home.number("select count(*) from unknown_calls('2026-03-10T12:00:03Z')"), 0);
}

#[test]
fn sessions_that_end_soon_are_listed() {
    let now_ms = chrono::Utc::now().timestamp_millis();
    let mut story = Story::default();
    for (user, age_ms) in
        [("soon", 24 * HOUR_MS - 10 * 60_000), ("later", 24 * HOUR_MS - 90 * 60_000), ("gone", 25 * HOUR_MS)]
    {
        story.inbound("shop", user, now_ms - age_ms - NOON_MS);
    }
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    let users = |view: &str| -> Vec<String> {
        let rows = home.sql(&format!("select user_id from {view} where seconds_left > 0 order by seconds_left"));
        rows.iter().map(|row| row["user_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(users("expiring_sessions"), ["soon"]);
    assert_eq!(users("expiring_sessions(120)"), ["soon", "later"]);
    assert!(users("expiring_sessions(1)").is_empty());
}

#[test]
fn a_quota_that_is_nearly_used_up_has_its_end_told() {
    let now_ms = chrono::Utc::now().timestamp_millis();
    let month = chrono::Utc::now().format("%Y-%m-01").to_string();
    let start_us = parse_rfc3339_us(&format!("{month}T00:00:00Z")).unwrap();
    let mut story = Story::default();
    for _ in 0..9_900 {
        story.send("shop", "u", now_ms.min(start_us / 1000 + 1000) - NOON_MS, 3);
    }
    let home = Home::new(&[r#"fold.policy = "viber-2022""#]);
    home.ok_with(&["import", "--wait", "-"], story.lines.as_bytes());
    let rows = home.sql("select * from quota_monthly");
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((&row["month"], &row["used"], &row["free_left"]), (&json!(month), &json!(9_900), &json!(100)));
    let us = |column: &str| row[column].as_str().map(|text| parse_rfc3339_us(text).unwrap());
    let as_of_us = us("as_of").unwrap();
    let elapsed_us = as_of_us - start_us;
    let per_day = 9_900.0 * 86_400e6 / elapsed_us as f64;
    assert!((row["per_day"].as_f64().unwrap() / per_day - 1.0).abs() < 1e-6, "{row}");
    let ends_us = as_of_us + elapsed_us / 99;
    match us("exhausts_at") {
        Some(told_us) => assert!((told_us - ends_us).abs() < 1_000_000, "{row}"),
        // In the last hours of a month it lasts.
        None => assert!(elapsed_us + elapsed_us / 99 >= 28 * 86_400_000_000, "{row}"),
    }
}
