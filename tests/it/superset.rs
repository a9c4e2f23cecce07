//! Apache Superset, the real one, with a database of ours: what it asks to show the tables, a dataset, SQL Lab, charts.

use super::golden::{golden_rows, import};
use super::harness::{Home, text};
use super::tools::superset_python;
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn superset_has_tables_datasets_and_charts() {
    let home = Home::new(&[r#"postgres.listen = "127.0.0.1:0""#]);
    import(&home, "small");
    let server = home.serve();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/superset/superset.py");
    let url = format!("postgresql+psycopg2://analyst@{}/counterbat", server.postgres);
    let mut command = superset_python();
    command.arg(script).arg(home.path("superset")).arg(url);
    command.args(["--key", "session_id", "--sum", "outbound", "--time", "opened_at"]);
    command.args(["--range", "2026-02-20T00:00:00 : 2026-04-01T00:00:00"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();

    let lists = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|listed| listed == name);
    assert_eq!(found["schemas"], json!(["public"]));
    assert!(lists(&found["tables"]["table"], "sessions") && lists(&found["tables"]["view"], "usage_daily"), "{found}");
    for (column, data_type, is_time) in [
        ("session_id", "TEXT", "false"),
        ("opened_at", "TIMESTAMP WITH TIME ZONE", "true"),
        ("opened_by_token", "NUMERIC", "false"),
        ("inbound", "INTEGER", "false"),
        ("first_response_ms", "BIGINT", "false"),
        ("cost", "NUMERIC", "false"),
    ] {
        let shown = &found["columns"][column];
        assert!(
            shown["type"].as_str().unwrap().starts_with(data_type) && shown["is_dttm"] == is_time,
            "{column}: {shown}"
        );
    }
    assert_eq!(found["main_time"], "opened_at");
    assert!(found["sql_error"][0].as_str().unwrap().contains("no column named no_such_column"), "{found}");

    // The rows are the golden ones, in SQL Lab and as samples of the dataset.
    let golden = golden_rows("small", "sessions", "counterbat");
    let outbound: i64 = golden.values().map(|row| row["outbound"].as_i64().unwrap()).sum();
    assert_eq!(found["sql_count"]["rows"][0]["n"], golden.len().to_string());
    assert_eq!(found["sql"]["rows"].as_array().unwrap().len(), 5);
    for shown in ["sql", "samples"].into_iter().flat_map(|name| found[name]["rows"].as_array().unwrap()) {
        let row = golden.values().find(|row| row["session_id"] == shown["session_id"]).expect("a golden session");
        for column in ["account", "user_id", "kind", "opened_by_token", "inbound", "outbound", "first_response_ms"] {
            let wanted = match row.get(column).unwrap_or(&Value::Null) {
                Value::Number(number) => Value::from(number.to_string()),
                other => other.clone(),
            };
            // pandas makes doubles of integers with NULL among them.
            let is_same = shown[column] == wanted
                || shown[column].as_str().zip(wanted.as_str()).is_some_and(|(a, b)| a.trim_end_matches(".0") == b);
            assert!(is_same, "{column}: {shown}, golden is {row:?}");
        }
    }

    // Charts sum to what the golden sessions do, however they are grouped.
    let sum = |name: &str, column: &str| -> i64 {
        let rows = found[name]["rows"].as_array().unwrap().iter();
        rows.map(|row| row[column].as_str().unwrap().parse::<f64>().unwrap() as i64).sum()
    };
    for name in [
        "chart_groups",
        "chart_groups_of_query",
        "chart_aggregates",
        "chart_days",
        "chart_best",
        "chart_offset",
        "saved",
    ] {
        assert_eq!(sum(name, "SUM(outbound)"), outbound, "{name}");
    }
    let grains =
        ["PT1S", "PT5S", "PT30S", "PT1M", "PT5M", "PT10M", "PT15M", "PT30M", "PT1H", "P1D", "P1W", "P1M", "P3M", "P1Y"];
    for grain in grains {
        assert_eq!(sum(&format!("chart_grain {grain}"), "count"), golden.len() as i64, "{grain}");
    }
    assert!(!server.log().contains("has no answer"), "{}", server.log());
}
