//! What messages and sessions cost: golden months under every policy and price list, with sums computed by a program that
//! shares no code with this one; prices and policies that change; policies of one's own.

use super::harness::{Home, TOKEN, golden, http, message_body, request, sign, text, until};
use super::tools::python;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MESSAGES: &str = "select account, to_char(sent_at, '%Y-%m') as month, country, policy, currency, count(*) as messages, \
    sum(case when billing_status = 5 then 1 else 0 end) as charged, count(*) - count(cost) as unpriced, \
    sum(price) as price, sum(cost) as cost from messages group by 1, 2, 3, 4, 5";
const SESSIONS: &str = "select account, to_char(opened_at, '%Y-%m') as month, country, policy, currency, \
    count(*) as sessions, count(*) - count(cost) as unpriced, sum(cost) as cost from sessions group by 1, 2, 3, 4, 5";

fn list(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/prices").join(name)
}

/// The setting that names a price list.
fn prices(list: &Path) -> String {
    format!("fold.prices = {:?}", list.to_str().unwrap())
}

/// The sums of a golden history under a price list, of messages and of sessions.
fn computed(history: &str, policy: &str, list: &Path) -> [Vec<Value>; 2] {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = python();
    command.arg(tests.join("it/money/money.py")).arg(tests.join("golden").join(history)).arg(policy).arg(list);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    ["messages", "sessions"].map(|table| sorted(found[table].as_array().unwrap().clone()))
}

fn sorted(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_key(Value::to_string);
    rows
}

/// The rows of an answer in CSV, as JSON has them: numbers where the column is a count, NULL for nothing.
fn of_csv(answer: &str) -> Vec<Value> {
    let mut lines = answer.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let head = lines.next().unwrap();
    let value = |column: &str, cell: &str| match (column, cell) {
        (_, "") => Value::Null,
        ("messages" | "sessions" | "charged" | "unpriced", count) => json!(count.parse::<i64>().unwrap()),
        (_, text) => json!(text),
    };
    lines
        .map(|cells| head.iter().zip(cells).map(|(column, cell)| (column.to_string(), value(column, cell))).collect())
        .collect()
}

fn assert_computed(home: &Home, history: &str, policy: &str, list: &Path, when: &str) {
    for (query, wanted) in [MESSAGES, SESSIONS].iter().zip(computed(history, policy, list)) {
        let found = sorted(home.sql(query));
        for (mine, wanted) in found.iter().zip(&wanted) {
            assert_eq!(mine, wanted, "{history}, {policy}, {}, {when}", list.display());
        }
        assert_eq!(found.len(), wanted.len(), "{history}, {policy}, {when}");
        let csv = home.ok(&["sql", "--format", "csv", query]);
        assert_eq!(sorted(of_csv(&csv)), wanted, "{history}, {policy}, {when}, as CSV");
    }
}

fn check(policy: &str, name: &str) {
    let list = list(name);
    let home = Home::new(&[&format!("fold.policy = {policy:?}"), &prices(&list)]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    assert_computed(&home, "busy", policy, &list, "imported");
    home.ok(&["rebuild"]);
    assert_computed(&home, "busy", policy, &list, "rebuilt");
}

macro_rules! golden_months {
    ($($name:ident: $policy:literal $list:literal),+ $(,)?) => {$(
        #[test]
        fn $name() {
            check($policy, $list);
        }
    )+};
}

golden_months! {
    counterbat_at_dated_prices: "counterbat" "dated.csv",
    counterbat_with_countries_missing: "counterbat" "gaps.csv",
    viber_2022_at_dated_prices: "viber-2022" "dated.csv",
    viber_2022_with_countries_missing: "viber-2022" "gaps.csv",
    viber_2024_at_dated_prices: "viber-2024" "dated.csv",
    viber_2024_with_countries_missing: "viber-2024" "gaps.csv",
    gupshup_at_dated_prices: "gupshup" "dated.csv",
    gupshup_with_countries_missing: "gupshup" "gaps.csv",
    vbm_at_dated_prices: "vbm" "dated.csv",
    vbm_with_countries_missing: "vbm" "gaps.csv",
}

/// Adds up in DuckDB, over exactly the files of the snapshot of a table.
const OTHER_ENGINE: &str = r#"
import json, sys, duckdb
from deltalake import DeltaTable
files = DeltaTable(sys.argv[1]).file_uris()
query = f"select currency, sum(price)::varchar, sum(cost)::varchar from read_parquet({files!r}) group by 1 order by 1"
print(json.dumps(duckdb.sql(query).fetchall()))
"#;

#[test]
fn other_engines_add_up_the_same_money() {
    let home = Home::new(&[&prices(&list("gaps.csv"))]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    let output = python().args(["-c", OTHER_ENGINE]).arg(home.data().join("lake/messages")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let theirs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mine = home.sql("select currency, sum(price) as price, sum(cost) as cost from messages group by 1 order by 1");
    let mine: Vec<Value> = mine.iter().map(|row| json!([row["currency"], row["price"], row["cost"]])).collect();
    assert_eq!(sorted(mine), sorted(theirs));
}

/// Events of one user, as lines of a file: a callback or call, when (ms), and what its data says.
fn line(kind: &str, t_ms: i64, token: u64, data: &Value) -> String {
    let time = chrono::DateTime::from_timestamp_millis(t_ms).unwrap().to_rfc3339();
    let event = json!({ "specversion": "1.0", "id": format!("{kind}/{token}/u=="), "source": "/accounts/bot1",
        "type": format!("com.viber.{kind}"), "subject": "u==", "time": time, "data": data });
    format!("{event}\n")
}

const START: i64 = 1_770_000_000_000;

fn country(t_ms: i64) -> String {
    let data =
        json!({ "event": "message", "timestamp": t_ms, "message_token": 1, "sender": {"id": "u==", "country": "UA"} });
    line("callback.message", t_ms, 1, &data)
}

fn sent(t_ms: i64, token: u64, billing_status: i64) -> String {
    let response = json!({ "status": 0, "message_token": token, "billing_status": billing_status });
    line(
        "api.send_message",
        t_ms,
        token,
        &json!({ "request": {"receiver": "u==", "type": "text"}, "response": response }),
    )
}

fn delivered(t_ms: i64, token: u64) -> String {
    line(
        "callback.delivered",
        t_ms,
        token,
        &json!({ "event": "delivered", "timestamp": t_ms, "message_token": token, "user_id": "u==" }),
    )
}

#[test]
fn money_is_spent_when_a_charged_message_is_delivered() {
    let home = Home::new(&[]);
    std::fs::write(home.path("p.csv"), "country,currency,price,valid_from\nUA,EUR,0.1,\n").unwrap();
    home.configure(&[r#"fold.prices = "p.csv""#]);
    let server = home.serve();
    let spent = || server.metric(r#"counterbat_spend_total{account="bot1",currency="EUR"}"#);
    let day = 86_400_000;
    let events: String = [country(START), sent(START + 2 * day, 2, 5), sent(START + 2 * day + 1, 3, 5)].concat();
    home.ok_with(&["import", "--wait", "-"], events.as_bytes());
    let rows = "select message_token, price, cost, currency, state from messages order by message_token";
    let row = |token: &str, cost: &str| json!({ "message_token": token, "price": "0.100000", "cost": cost, "currency": "EUR", "state": "provisional" });
    assert_eq!(server.sql(rows), [row("2", "0.000000"), row("3", "0.000000")]);
    assert_eq!(spent(), 0.0);

    let receipts =
        [delivered(START + 2 * day + 5, 2), delivered(START + 2 * day + 6, 3), delivered(START + 2 * day + 9, 3)];
    home.ok_with(&["import", "--wait", "-"], receipts.concat().as_bytes());
    assert_eq!(server.sql(rows), [row("2", "0.100000"), row("3", "0.100000")]);
    let paid = "select kind, cost, currency from sessions where kind = 'paid'";
    assert_eq!(server.sql(paid), [json!({ "kind": "paid", "cost": "0.200000", "currency": "EUR" })]);
    assert_eq!(spent(), 0.2);
    assert_eq!(server.metric(r#"counterbat_charged_messages_total{account="bot1",country="UA"}"#), 2.0);
    assert_eq!(server.metric(r#"counterbat_unpriced_messages_total{account="bot1"}"#), 0.0);

    let more: String = (0..8).map(|n| sent(START + 3 * day + n, 10 + n as u64, 5)).collect();
    let seen: String = (0..8).map(|n| delivered(START + 3 * day + 10 + n, 10 + n as u64)).collect();
    home.ok_with(&["import", "--wait", "-"], (more + &seen).as_bytes());
    assert_eq!(spent(), 1.0, "ten times a tenth, which no sum of floats is");
    let table = home.ok(&["sql", "select sum(cost) as cost from messages"]);
    assert!(table.contains("| 1.000000 |"), "{table}");
}

#[test]
fn charged_messages_without_a_price_are_told() {
    let home = Home::new(&[]);
    let server = home.serve();
    let events: String = [sent(START, 2, 5), sent(START + 1, 3, 0), sent(START + 2, 4, 5)].concat();
    home.ok_with(&["import", "--wait", "-"], events.as_bytes());
    let row = |cost: Value| json!({ "price": null, "cost": cost, "currency": null });
    let rows = server.sql("select price, cost, currency from messages order by message_token");
    assert_eq!(rows, [row(Value::Null), row(json!("0.000000")), row(Value::Null)]);
    assert_eq!(server.metric(r#"counterbat_unpriced_messages_total{account="bot1"}"#), 2.0);
    let paid = server.sql("select cost, currency from sessions where kind = 'paid'");
    assert_eq!(paid, [json!({ "cost": null, "currency": null })]);
}

/// Whether the server says that a rebuild is needed: by its readiness, which it keeps, and by the gauge.
fn rebuild_needed(home: &Home) -> bool {
    let server = home.serve();
    let ready = until("readiness", || server.get("/readyz"), |reply| reply.status == 200);
    let ready: Value = serde_json::from_slice(&ready.body).unwrap();
    let needed = ready["rebuild_needed"].as_bool().unwrap();
    assert_eq!(server.metric("counterbat_rebuild_needed"), f64::from(u8::from(needed)));
    assert_eq!(server.log().contains("until `counterbat rebuild`"), needed && server.log().contains("bot2"));
    assert!(server.stop().success());
    needed
}

#[test]
fn changed_prices_wait_for_a_rebuild() {
    let home = Home::new(&[]);
    let file = home.path("p.csv");
    let dated = std::fs::read_to_string(list("dated.csv")).unwrap();
    std::fs::write(&file, &dated).unwrap();
    home.configure(&[r#"fold.prices = "p.csv""#]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    assert!(!rebuild_needed(&home));
    // What begins after all that was folded changes nothing of it.
    std::fs::write(&file, format!("{dated}UA,EUR,0.5,2027-01-01\n")).unwrap();
    assert!(!rebuild_needed(&home));

    std::fs::write(&file, dated.replace("0.0155", "0.0156")).unwrap();
    assert!(rebuild_needed(&home));
    assert_computed(&home, "busy", "counterbat", &list("dated.csv"), "not rebuilt yet");
    home.configure(&[r#"fold.prices = "p.csv""#, r#"fold.policy = "viber-2024""#]);
    assert!(rebuild_needed(&home));
    home.ok(&["rebuild"]);
    assert_computed(&home, "busy", "viber-2024", &file, "rebuilt");
    assert!(!rebuild_needed(&home));
}

/// Settings, and lines that belong to `bot2`, whose account comes last in the config.
fn configure_with(home: &Home, settings: &[&str], of_bot2: &str) {
    home.configure(settings);
    let config = std::fs::read_to_string(home.config()).unwrap();
    std::fs::write(home.config(), format!("{config}{of_bot2}\n")).unwrap();
}

#[test]
fn an_account_has_prices_and_dates_of_its_own() {
    let home = Home::new(&[]);
    std::fs::write(home.path("p.csv"), "country,currency,price,valid_from\n*,EUR,0.1,\n").unwrap();
    std::fs::write(home.path("two.csv"), "country,currency,price,valid_from\n*,USD,0.2,\n").unwrap();
    let all = [r#"fold.prices = "p.csv""#];
    let own = r#"prices = "two.csv""#;
    configure_with(&home, &all, own);
    let events = [sent(START, 2, 5), delivered(START + 1, 2)].concat();
    let events = events.clone() + &events.replace("/accounts/bot1", "/accounts/bot2");
    home.ok_with(&["import", "--wait", "-"], events.as_bytes());
    let rows = "select account, cost, currency from messages order by account";
    let row =
        |account: &str, cost: &str, currency: &str| json!({ "account": account, "cost": cost, "currency": currency });
    assert_eq!(home.sql(rows), [row("bot1", "0.100000", "EUR"), row("bot2", "0.200000", "USD")]);

    let chain = |start: &str| {
        format!("{own}\npolicies = [{{policy = \"counterbat\"}}, {{policy = \"vbm\", valid_from = \"{start}\"}}]")
    };
    configure_with(&home, &all, &chain("2027-01-01"));
    assert!(!rebuild_needed(&home));
    configure_with(&home, &all, &chain("2026-02-01"));
    assert!(rebuild_needed(&home));
    home.ok(&["rebuild"]);
    let policies = home.sql("select policy from messages order by account");
    assert_eq!(policies, [json!({ "policy": "counterbat" }), json!({ "policy": "vbm" })]);
    configure_with(&home, &all, "");
    assert!(rebuild_needed(&home));
}

const OWN: &str = r#"
name = "mine"
free_out_of_session_per_month = 0
charged_on = "sent"
monthly_fee_eur = "12.50"

[service]
length = "1h"
anchor = "first"
"#;

#[test]
fn accounts_are_folded_under_policies_of_ones_own() {
    let key = r#"gateway.key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f""#;
    let home = Home::new(&[key]);
    std::fs::create_dir(home.path("tariffs")).unwrap();
    std::fs::write(home.path("tariffs/mine.toml"), OWN).unwrap();
    std::fs::write(home.path("tariffs/other.toml"), OWN.replace("mine", "other")).unwrap();
    let files = r#"fold.policy_files = ["tariffs/mine.toml"]"#;
    home.configure(&[key, files, r#"fold.policy = "tariffs/other.toml""#]);
    let token = format!("three-{TOKEN}");
    let added = home.ok_with(&["account", "add", "shop", "--policy", "mine"], token.as_bytes());
    assert!(added.contains("mine"), "{added}");
    let error = home.fails_with(&["account", "add", "bar", "--policy", "yours"], format!("x-{TOKEN}").as_bytes());
    assert!(error.contains("\"yours\"") && error.contains("policy_files"), "{error}");

    let server = home.serve();
    let body = message_body("user-1==", 1);
    let signed = http().post(format!("{}/webhooks/shop", server.gateway)).body(body.clone());
    assert_eq!(request(signed.header("X-Viber-Content-Signature", sign(&token, &body))).status, 200);
    assert_eq!(server.callback(&body).status, 200);
    let rows = "select account, policy, (cast(expires_at as bigint) - cast(opened_at as bigint)) / 3600000000 as hours \
        from sessions order by account";
    let wanted = [("bot1", "other"), ("shop", "mine")]
        .map(|(account, policy)| json!({ "account": account, "policy": policy, "hours": 1 }));
    until("both sessions", || server.sql(rows), |found| *found == wanted);
    assert!(server.stop().success());

    // Without its policy, what the account's rows are made by is not known.
    home.configure(&[key]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("account `shop`") && error.contains("\"mine\""), "{error}");
    std::fs::write(home.path("tariffs/mine.toml"), OWN.replace("1h", "1 hour")).unwrap();
    home.configure(&[key, files]);
    let error = home.fails_with(&["serve"], b"");
    assert!(error.contains("tariffs/mine.toml: line 8, length: \"1 hour\""), "{error}");
    home.configure(&[key, r#"fold.prices = "none.csv""#]);
    let error = home.fails_with(&["config"], b"");
    assert!(error.contains("[fold] prices: ") && error.contains("none.csv: No such file"), "{error}");
}
