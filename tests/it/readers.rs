//! Other engines read the Delta tables: the same rows, the same sums.

use super::generate::{DAY_MS, MARCH_MS, Plan, history, lines};
use super::harness::{Home, golden};
use super::tools::python;
use serde_json::Value;

/// Opens the tables by their Delta logs, and counts in DuckDB over exactly the files of the snapshot.
const SCRIPT: &str = r#"
import json, sys, duckdb
from deltalake import DeltaTable
found = {}
for name, query in json.loads(sys.argv[2]).items():
    table = DeltaTable(f"{sys.argv[1]}/{name}")
    files = table.file_uris()
    if not files:
        found[name] = None
        continue
    rows = duckdb.sql(query.replace("FILES", f"read_parquet({files!r}, hive_partitioning=false)"))
    found[name] = [str(value) for value in rows.fetchone()]
    assert table.to_pyarrow_dataset().count_rows() == int(found[name][0]), name
    found[name + " columns"] = sorted(field.name for field in table.schema().fields)
print(json.dumps(found))
"#;

fn compare(home: &Home) {
    let queries = serde_json::json!({
        "events": r#"select count(*) as a, sum("offset") as b, count(distinct event_id) as c, max(received_at)::varchar as d from FILES"#,
        "sessions": "select count(*) as a, sum(inbound) + sum(outbound) as b, count(distinct session_id) as c, max(opened_at)::varchar as d from FILES",
        "messages": "select count(*) as a, sum(billing_status) as b, count(distinct user_id) as c, max(sent_at)::varchar as d from FILES",
    });
    let output =
        python().args(["-c", SCRIPT]).arg(lake(home)).arg(queries.to_string()).output().expect("python can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (table, query) in queries.as_object().unwrap() {
        // The time is compared as the number that both write it from.
        let query = query.as_str().unwrap().replace("FILES", table).replace("::varchar", "");
        let mine = home.sql(&query).remove(0);
        let theirs = found[table].as_array().unwrap_or_else(|| panic!("{table} has no file: {found}"));
        // The columns by position: an object's members come sorted by name.
        let names = ["a", "b", "c", "d"];
        for (mine, theirs) in names.iter().map(|name| &mine[*name]).zip(theirs) {
            let (mine, theirs) = (mine.to_string().replace('"', ""), theirs.as_str().unwrap());
            assert_eq!(comparable(&mine), comparable(theirs), "{table}: {found}");
        }
    }
}

/// Digits and the point of a time or number, without what depends on who writes it.
fn comparable(value: &str) -> String {
    let value = value.trim_end_matches("+00").trim_end_matches('Z').replace('T', " ");
    if value.contains('.') { value.trim_end_matches('0').trim_end_matches('.').to_owned() } else { value }
}

fn lake(home: &Home) -> std::path::PathBuf {
    let default = home.data().join("lake");
    assert!(default.join("events/_delta_log").is_dir(), "no tables in {}", default.display());
    default
}

#[test]
fn duckdb_and_delta_rs_count_the_same() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("busy/events.ndjson.gz"));
    compare(&home);
    home.ok(&["rebuild"]);
    compare(&home);
}

#[test]
fn tables_written_in_many_commits_are_whole() {
    let home = Home::new(&[]);
    let plan = Plan { seed: 21, events: 12_000, users: 900, start_ms: MARCH_MS, span_ms: 12 * DAY_MS };
    let events = history(&plan);
    for part in events.chunks(2000) {
        home.ok_with(&["import", "--wait", "-"], &lines(part));
    }
    assert_eq!(home.number("select count(*) from events"), 12_000);
    compare(&home);
}
