//! `schemas/` and the code agree.

use super::harness::{Home, golden};
use super::tools::python;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use counterbat::lake::{TableName, schema};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Utf8 => "STRING".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC" => "TIMESTAMP".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        other => format!("{other:?}"),
    }
}

fn read(table: &str) -> Value {
    let text = std::fs::read(schemas().join(format!("tables/{table}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn told(table: &str) -> Vec<(String, String, bool)> {
    let schema = read(table);
    assert_eq!(schema["table"], table);
    let column = |column: &Value| {
        let name = column["name"].as_str().unwrap().to_owned();
        (name, column["type"].as_str().unwrap().to_owned(), column["nullable"].as_bool().unwrap())
    };
    schema["columns"].as_array().unwrap().iter().map(column).collect()
}

fn coded(schema: &SchemaRef) -> Vec<(String, String, bool)> {
    schema.fields().iter().map(|f| (f.name().clone(), sql_type(f.data_type()), f.is_nullable())).collect()
}

#[test]
fn the_tables_have_the_columns_told() {
    for table in TableName::ALL {
        assert_eq!(coded(&schema::of(table)), told(table.as_str()), "{}", table.as_str());
        let partition_by = read(table.as_str())["partition_by"].clone();
        assert_eq!(partition_by, serde_json::json!(schema::partition_columns(table)));
    }
}

#[test]
fn every_view_told_answers_and_no_other_is_there() {
    let home = Home::new(&[]);
    home.ok(&["import", "-"]);
    let mut told: Vec<String> = std::fs::read_dir(schemas().join("views"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    told.sort();
    assert!(told.contains(&"users".to_owned()), "{told:?}");
    for view in &told {
        home.sql(&format!("select * from {view} limit 1"));
    }
}

/// Columns and types as the head of a view tells them.
fn told_by(view: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(schemas().join(format!("views/{view}.sql"))).unwrap();
    let head = text.lines().map_while(|line| line.strip_prefix("--"));
    // Columns stand between the first empty line and the next.
    let columns = head.skip_while(|line| !line.is_empty()).skip(1).take_while(|line| !line.is_empty());
    let words = columns.filter_map(|line| line.strip_prefix(' ').filter(|line| !line.starts_with(' ')));
    words
        .map(|line| {
            let mut words = line.split_whitespace().map(str::to_owned);
            (words.next().unwrap(), words.next().unwrap())
        })
        .collect()
}

#[test]
fn every_view_has_the_columns_told_at_its_head() {
    let home = Home::new(&[]);
    home.ok(&["import", "-"]);
    let query = "select table_name, column_name, data_type from information_schema.columns \
                 where table_schema = 'public' order by table_name, ordinal_position";
    let mut found: std::collections::BTreeMap<String, Vec<(String, String)>> = Default::default();
    for row in home.sql(query) {
        let text = |column: &str| row[column].as_str().unwrap().to_owned();
        let kind = match text("data_type").as_str() {
            "Utf8" => "TEXT".to_owned(),
            "Int32" => "INT".to_owned(),
            "Int64" => "BIGINT".to_owned(),
            "Float64" => "DOUBLE".to_owned(),
            "Date32" => "DATE".to_owned(),
            "Boolean" => "BOOLEAN".to_owned(),
            "Timestamp(µs, \"UTC\")" => "TIMESTAMP".to_owned(),
            other => other.replace("Decimal128", "DECIMAL").replace(", ", ","),
        };
        found.entry(text("table_name")).or_default().push((text("column_name"), kind));
    }
    for file in std::fs::read_dir(schemas().join("views")).unwrap() {
        let view = file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(found.get(&view), Some(&told_by(&view)), "{view}");
    }
}

/// Checks each event against its envelope and the schema of its type; prints the types it met.
const SCRIPT: &str = r#"
import json, pathlib, sys
from jsonschema import Draft202012Validator
folder = pathlib.Path(sys.argv[1])
schemas = {}
for path in folder.glob("*.json"):
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == path.name, path
    schemas[path.stem] = Draft202012Validator(schema)
met, wrong = set(), []
for number, line in enumerate(sys.stdin, 1):
    event = json.loads(line)
    schemas["envelope"].validate(event)
    kind = event["type"]
    met.add(kind)
    if not schemas[kind].is_valid(event.get("data")):
        wrong.append(event["id"])
print(json.dumps({"met": sorted(met), "wrong": wrong}))
"#;

/// Holds events, one a line, against their schemas: the types that there are, and the ids of those that do not follow.
pub fn validate(events: &[u8]) -> Value {
    let mut child = python()
        .args(["-c", SCRIPT])
        .arg(schemas().join("events"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut stdin, events).ok());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "a schema is no JSON Schema, or an envelope is wrong");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_follows_its_schema_is_not_malformed() {
    let home = Home::new(&[]);
    let events = golden("busy/events.ndjson.gz");
    home.ok_with(&["import", "--wait", "-"], &events);
    let found = validate(&events);
    assert!(found["met"].as_array().unwrap().len() > 8, "{found}");
    let wrong: Vec<&str> = found["wrong"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert!(wrong.len() < 100, "real events do not follow the schemas: {wrong:?}");
    let malformed = home.sql("select event_id from events where disposition = 'malformed'");
    assert!(!malformed.is_empty());
    for row in malformed {
        let id = row["event_id"].as_str().unwrap();
        assert!(wrong.contains(&id), "{id} follows its schema, but is malformed");
    }
}

#[test]
fn an_export_follows_the_schemas() {
    let home = Home::new(&[]);
    let plan = super::generate::Plan {
        seed: 31,
        events: 3000,
        users: 200,
        start_ms: super::generate::MARCH_MS,
        span_ms: super::generate::DAY_MS,
    };
    let events = super::generate::lines(&super::generate::history(&plan));
    home.ok_with(&["import", "-"], &events);
    let found = validate(home.ok(&["export", "-"]).as_bytes());
    assert_eq!(found["wrong"], serde_json::json!([]), "{found}");
}
