//! `compare`: totals and differing rows are those of the golden rows of two policies.

use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines};
use super::golden::import;
use super::harness::{Home, golden};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

type Row = Map<String, Value>;

fn rows(table: &str, policy: &str) -> Vec<Row> {
    let bytes = golden(&format!("busy/{table}.{policy}.ndjson.gz"));
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// Account, country, month.
type Key = (String, Option<String>, String);

fn key(row: &Row, at: &str) -> Key {
    let text = |column: &str| row[column].as_str().map(str::to_owned);
    (text("account").unwrap(), text("country"), row[at].as_str().unwrap()[..7].to_owned())
}

fn counted(rows: &[Row], at: &str) -> BTreeMap<Key, i64> {
    let mut counts = BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(key(row, at)).or_default() += 1);
    counts
}

/// How many rows are in one only, or not the same but for the policy's name.
fn differing(a: &[Row], b: &[Row], name: impl Fn(&Row) -> String) -> i64 {
    let by_name = |rows: &[Row]| -> BTreeMap<String, Row> {
        let without_policy = |row: &Row| {
            let mut row = row.clone();
            row.remove("policy");
            row
        };
        rows.iter().map(|row| (name(row), without_policy(row))).collect()
    };
    let (a, b) = (by_name(a), by_name(b));
    let of_a = a.iter().filter(|(name, row)| b.get(*name) != Some(row)).count();
    (of_a + b.keys().filter(|name| !a.contains_key(*name)).count()) as i64
}

#[test]
fn two_policies_differ_as_their_golden_rows_do() {
    let home = Home::new(&[]);
    import(&home, "busy");
    let server = home.serve();
    home.ok(&["rebuild", "--as", "g", "--policy", "gupshup"]);
    let text = home.ok(&["compare", "live", "g", "--format", "json", "--rows", "5"]);
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));

    let sessions = (rows("sessions", "counterbat"), rows("sessions", "gupshup"));
    let messages = (rows("messages", "counterbat"), rows("messages", "gupshup"));
    let charged = |rows: &[Row]| -> Vec<Row> {
        rows.iter().filter(|row| row["billing_status"].as_i64() == Some(5)).cloned().collect()
    };
    let wanted = [
        ("sessions_a", counted(&sessions.0, "opened_at")),
        ("sessions_b", counted(&sessions.1, "opened_at")),
        ("charged_a", counted(&charged(&messages.0), "sent_at")),
        ("charged_b", counted(&charged(&messages.1), "sent_at")),
    ];
    let totals = found["totals"].as_array().unwrap();
    for (column, wanted) in &wanted {
        let mine: BTreeMap<Key, i64> = totals
            .iter()
            .map(|row| {
                let text = |column: &str| row[column].as_str().map(str::to_owned);
                let key = (text("account").unwrap(), text("country"), text("month").unwrap());
                (key, row[*column].as_i64().unwrap())
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(&mine, wanted, "{column}");
    }
    let sum = |column: &str| totals.iter().map(|row| row[column].as_i64().unwrap()).sum::<i64>();
    assert_eq!(sum("sessions_diff"), sessions.1.len() as i64 - sessions.0.len() as i64);

    let id = |row: &Row| row["session_id"].to_string();
    assert_eq!(found["sessions"]["differing"], differing(&sessions.0, &sessions.1, id));
    let name = |row: &Row| format!("{} {} {}", row["account"], row["user_id"], row["message_token"]);
    assert_eq!(found["messages"]["differing"], differing(&messages.0, &messages.1, name));
    let shown = found["sessions"]["rows"].as_array().unwrap();
    assert_eq!(shown.len(), 5);
    for row in shown {
        let difference = row["difference"].as_str().unwrap();
        assert!(difference.starts_with("only in ") || difference.contains(" -> "), "{row}");
    }

    let one = home.ok(&["compare", "live", "g", "--accounts", "bot2", "--format", "csv", "--rows", "0"]);
    assert!(one.contains("bot2") && !one.contains("bot1"), "{one}");
    assert_eq!(one.matches("\n\n").count(), 2, "{one}");
    let table = home.ok(&["compare", "live", "g"]);
    assert!(table.contains(&format!("sessions that differ: {}", found["sessions"]["differing"])), "{table}");
    server.stop_in_order();
    assert_eq!(home.ok(&["compare", "live", "g", "--format", "json", "--rows", "5"]), text, "without a server");
    assert!(home.fails_with(&["compare", "live", "none"], b"").contains("no generation named none"));
    let unknown = |home: &Home| home.fails_with(&["compare", "live", "g", "--accounts", "bot1,bto2"], b"");
    assert!(unknown(&home).contains("there is no account `bto2`; there are: bot1, bot2"), "{}", unknown(&home));
    let server = home.serve();
    assert!(unknown(&home).contains("there is no account `bto2`; there are: bot1, bot2"), "{}", unknown(&home));
    server.stop_in_order();
    assert!(home.fails_with(&["compare", "live", "live"], b"").contains("differs in nothing"));
}

/// Sums of money in micro-units, as text has them with six digits after the point.
fn micros(rows: &Value, column: &str) -> i64 {
    let texts = rows.as_array().unwrap().iter().map(|row| row[column].as_str().unwrap_or_else(|| panic!("{row}")));
    texts.map(|text| text.replace('.', "").parse::<i64>().unwrap()).sum()
}

#[test]
fn another_tariff_has_its_price() {
    let home = Home::new(&[]);
    std::fs::write(home.path("flat.csv"), "country,currency,price,valid_from\n*,EUR,0.0123,\n").unwrap();
    home.configure(&[r#"fold.policy = "viber-2022""#, r#"fold.prices = "flat.csv""#, r#"log.tick_every = "0s""#]);
    import(&home, "busy");
    home.ok(&["rebuild", "--as", "g", "--policy", "viber-2024"]);
    let found: Value = serde_json::from_str(&home.ok(&["compare", "live", "g", "--format", "json"])).unwrap();
    // The free messages of 2022 do for this history; since 2024 there are none, and those delivered are charged.
    let outside = rows("messages", "viber-2024").into_iter().filter(|row| row["expected"] == "out_of_session");
    let delivered = outside.filter(|row| !row["delivered_at"].is_null()).count() as i64;
    assert!(delivered > 0);
    assert_eq!(micros(&found["totals"], "predicted_a"), 0);
    assert_eq!(micros(&found["totals"], "predicted_b"), delivered * 12_300);
    assert_eq!(micros(&found["totals"], "predicted_diff"), delivered * 12_300);
    let audited = |schema: &str| home.number(&format!("select count(*) from {schema}.billing_audit('2020-01-01')"));
    let wrong = |policy| rows("messages", policy).iter().filter(|row| row["verdict"] != "agreed").count() as i64;
    assert_eq!((audited("public"), audited("g")), (wrong("viber-2022"), wrong("viber-2024")));
    // Viber's own charges are what they are, but for those that were not delivered.
    let charged = rows("messages", "viber-2022").into_iter().filter(|row| row["billing_status"] == 5);
    let charged: Vec<Row> = charged.collect();
    let delivered = charged.iter().filter(|row| !row["delivered_at"].is_null()).count();
    assert_eq!(micros(&found["totals"], "cost_a"), charged.len() as i64 * 12_300);
    assert_eq!(micros(&found["totals"], "cost_b"), delivered as i64 * 12_300);
}

#[test]
fn what_has_no_price_is_counted_and_the_rest_summed() {
    let home = Home::new(&[]);
    std::fs::write(home.path("one.csv"), "country,currency,price,valid_from\nUA,EUR,0.0123,\n").unwrap();
    home.configure(&[r#"fold.prices = "one.csv""#]);
    import(&home, "busy");
    home.ok(&["rebuild", "--as", "g", "--policy", "viber-2022"]);
    let found: Value = serde_json::from_str(&home.ok(&["compare", "live", "g", "--format", "json"])).unwrap();
    let charged = rows("messages", "viber-2022").into_iter().filter(|row| row["billing_status"] == 5);
    let (priced, unpriced): (Vec<Row>, Vec<Row>) = charged.partition(|row| row["country"] == "UA");
    assert!(!priced.is_empty() && !unpriced.is_empty());
    // Of those of 2022 all are charged when sent, and the free ones do for what the policy says.
    assert_eq!(micros(&found["totals"], "cost_b"), priced.len() as i64 * 12_300);
    assert_eq!(micros(&found["totals"], "predicted_b"), 0);
    let totals = found["totals"].as_array().unwrap();
    assert_eq!(totals.iter().map(|row| row["unpriced_b"].as_i64().unwrap()).sum::<i64>(), unpriced.len() as i64);
    for row in totals {
        let diff = row["unpriced_b"].as_i64().unwrap() - row["unpriced_a"].as_i64().unwrap();
        assert_eq!(row["unpriced_diff"], diff, "{row}");
        assert!(row["country"] != "UA" || row["unpriced_b"] == 0, "{row}");
    }
}

#[test]
fn the_same_policy_differs_in_nothing() {
    let home = Home::new(&[]);
    import(&home, "busy");
    home.ok(&["rebuild", "--as", "same"]);
    let found: Value = serde_json::from_str(&home.ok(&["compare", "live", "same", "--format", "json"])).unwrap();
    assert_eq!((&found["sessions"]["differing"], &found["messages"]["differing"]), (&0.into(), &0.into()), "{found}");
    assert!(found["totals"].as_array().unwrap().iter().all(|row| row["sessions_diff"] == 0), "{found}");
}

#[test]
fn more_rows_than_can_be_joined_at_once() {
    let home = Home::new(&[r#"fold.policy = "viber-2022""#]);
    let plan = Plan { seed: 11, events: 400_000, users: 6_000, start_ms: MARCH_MS, span_ms: 61 * DAY_MS };
    home.ok_with(&["import", "--wait", "-"], &lines(&history(&plan)));
    home.ok(&["rebuild", "--as", "g", "--policy", "gupshup"]);
    let compared = |format: &str| home.ok(&["compare", "live", "g", "--rows", "30", "--format", format]);
    let whole = (compared("json"), compared("table"));
    home.configure(&[r#"fold.policy = "viber-2022""#, r#"sql.memory = "24MiB""#]);
    let at_once = "select count(concat(a.session_id, a.method, a.message_type, a.expected, a.billing_status, a.verdict, \
        a.sent_at, a.delivered_at, a.seen_at, a.failed_at, a.country, a.cost, a.state, a.policy, b.session_id, b.cost)) \
        from messages a full join g.messages b \
        on a.account = b.account and a.user_id = b.user_id and a.message_token = b.message_token";
    let refused = home.fails_with(&["sql", at_once], b"");
    assert!(refused.contains("memory"), "{refused}");
    let sliced = (compared("json"), compared("table"));
    assert_eq!(sliced, whole);
    let found: Value = serde_json::from_str(&whole.0).unwrap();
    for table in ["sessions", "messages"] {
        assert!(found[table]["differing"].as_i64().unwrap() > 30, "{table}");
        assert_eq!(found[table]["rows"].as_array().unwrap().len(), 30, "{table}");
    }
}
