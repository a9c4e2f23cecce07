//! Every golden history under every policy: imported, with the state lost, and rebuilt, gives the golden rows.

use super::generate::tick_line;
use super::harness::{Home, golden, only_number};
use counterbat::event::time::parse_rfc3339_us;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

type Rows = BTreeMap<String, Map<String, Value>>;

fn key(row: &Map<String, Value>, table: &str) -> String {
    match table {
        "sessions" => row["session_id"].as_str().unwrap().to_owned(),
        _ => format!("{} {} {}", row["account"], row["user_id"], normal("message_token", &row["message_token"])),
    }
}

fn by_key(rows: impl Iterator<Item = Value>, table: &str) -> Rows {
    let mut by_key = Rows::new();
    for row in rows {
        let Value::Object(row) = row else { panic!("no object: {row}") };
        let key = key(&row, table);
        assert!(by_key.insert(key.clone(), row).is_none(), "{table}: two rows for {key}");
    }
    by_key
}

/// One form for both sides: tokens as unsigned numbers in text, times in µs.
fn normal(column: &str, value: &Value) -> Value {
    match value {
        Value::Number(n) if column.ends_with("_token") => n.to_string().into(),
        Value::String(text) if column.ends_with("_at") => {
            parse_rfc3339_us(text).unwrap_or_else(|| panic!("{column} is no time: {text}")).into()
        }
        other => other.clone(),
    }
}

pub fn golden_rows(history: &str, table: &str, policy: &str) -> Rows {
    let bytes = golden(&format!("{history}/{table}.{policy}.ndjson.gz"));
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    by_key(lines.map(|line| serde_json::from_slice(line).unwrap()), table)
}

/// Holds the tables against the golden ones; `ask` answers a query.
pub fn assert_golden(ask: impl Fn(&str) -> Vec<Value>, history: &str, policy: &str, when: &str) {
    for table in ["sessions", "messages"] {
        let wanted = golden_rows(history, table, policy);
        let found = by_key(ask(&format!("select * from {table}")).into_iter(), table);
        for (key, row) in &wanted {
            let Some(mine) = found.get(key) else { panic!("{history}, {policy}, {when}: {table} lacks {key}") };
            for (column, value) in row {
                let mine = mine.get(column).unwrap_or(&Value::Null);
                let same = normal(column, mine) == normal(column, value);
                assert!(same, "{history}, {policy}, {when}: {table} {key}: {column} is {mine}, golden is {value}");
            }
        }
        let extra = found.keys().find(|key| !wanted.contains_key(*key));
        assert_eq!(extra, None, "{history}, {policy}, {when}: {table} has a row too many");
    }
}

/// Holds what became of the events against what it must be.
pub fn assert_totals(ask: impl Fn(&str) -> Vec<Value>, history: &str, policy: &str) {
    let path = format!("{}/tests/golden/{history}/totals.{policy}.json", env!("CARGO_MANIFEST_DIR"));
    let totals: BTreeMap<String, i64> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut wanted: BTreeMap<String, i64> = totals
        .iter()
        .filter_map(|(name, count)| Some((name.strip_prefix("disposition.")?.to_owned(), *count)))
        .collect();
    let rows = ask("select disposition, count(*) as n from events group by disposition");
    for row in &rows {
        let name = row["disposition"].as_str().unwrap();
        assert_eq!(wanted.remove(name), row["n"].as_i64(), "{history}, {policy}: disposition {name}");
    }
    assert!(wanted.is_empty(), "{history}, {policy}: no event with disposition {wanted:?}");
    let events = only_number(&ask("select count(*) from events"));
    assert_eq!(events, totals["events"], "{history}, {policy}: events");
}

/// The settings a history is folded under.
pub fn settings(history: &str, policy: &str) -> Vec<String> {
    let mut settings = vec![format!("fold.policy = {policy:?}")];
    if history == "tangled" {
        settings.push(r#"fold.allowed_lateness = "30d""#.to_owned());
    }
    settings
}

/// Imports a history and waits until it is in the tables.
pub fn import(home: &Home, history: &str) {
    home.ok_with(&["import", "--wait", "-"], &golden(&format!("{history}/events.ndjson.gz")));
    if history == "small" {
        // The golden rows show every session as it ends once time has moved on; this history has no tick to do so.
        home.ok_with(&["import", "--wait", "-"], tick_line(1_775_000_000_000).as_bytes());
    }
}

fn check(history: &str, policy: &str) {
    let settings = settings(history, policy);
    let home = Home::new(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    let ask = |query: &str| home.sql(query);
    import(&home, history);
    assert_golden(ask, history, policy, "imported");
    assert_totals(ask, history, policy);

    remove_state(&home.data());
    assert_golden(ask, history, policy, "state deleted");

    home.ok(&["rebuild"]);
    assert_golden(ask, history, policy, "rebuilt");
    assert_totals(ask, history, policy);

    remove_state(&home.data());
    assert_golden(ask, history, policy, "rebuilt, state deleted");
}

fn remove_state(data: &Path) {
    let state = data.join("state");
    assert!(state.is_dir(), "{} is not there", state.display());
    std::fs::remove_dir_all(state).unwrap();
}

macro_rules! histories {
    ($($name:ident: $history:literal $policy:literal),+ $(,)?) => {$(
        #[test]
        fn $name() {
            check($history, $policy);
        }
    )+};
}

histories! {
    small_counterbat: "small" "counterbat",
    small_gupshup: "small" "gupshup",
    small_vbm: "small" "vbm",
    small_viber_2022: "small" "viber-2022",
    small_viber_2024: "small" "viber-2024",
    busy_counterbat: "busy" "counterbat",
    busy_gupshup: "busy" "gupshup",
    busy_vbm: "busy" "vbm",
    busy_viber_2022: "busy" "viber-2022",
    busy_viber_2024: "busy" "viber-2024",
    tangled_counterbat: "tangled" "counterbat",
    tangled_gupshup: "tangled" "gupshup",
    tangled_vbm: "tangled" "vbm",
    tangled_viber_2022: "tangled" "viber-2022",
    tangled_viber_2024: "tangled" "viber-2024",
    chatty_counterbat: "chatty" "counterbat",
    chatty_gupshup: "chatty" "gupshup",
    chatty_vbm: "chatty" "vbm",
    chatty_viber_2022: "chatty" "viber-2022",
    chatty_viber_2024: "chatty" "viber-2024",
}

#[test]
fn sessions_are_open_until_time_has_passed_their_end() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("small/events.ndjson.gz"));
    let rows = home.sql("select state, closed_at, close_reason from sessions");
    let (open, ended): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| row["state"] == "open");
    assert!(!open.is_empty() && !ended.is_empty(), "{} open, {} ended", open.len(), ended.len());
    assert!(open.iter().all(|row| row["closed_at"].is_null() && row["close_reason"].is_null()), "{open:?}");
    assert!(ended.iter().all(|row| row["closed_at"].is_string() && row["close_reason"].is_string()), "{ended:?}");
}
