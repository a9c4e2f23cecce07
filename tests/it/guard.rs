//! SQL over HTTP and by the command line: formats, errors and what is refused.

use super::harness::{Home, Server, golden};
use arrow::ipc::reader::StreamReader;
use serde_json::Value;
use std::io::Cursor;

fn loaded() -> (Home, Server) {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("small/events.ndjson.gz"));
    let server = home.serve();
    (home, server)
}

#[test]
fn the_three_formats_hold_the_same_rows() {
    let (_home, server) = loaded();
    let query = "select account, user_id, message_token, sent_at from messages order by message_token";
    let rows = server.sql(query);
    assert_eq!(rows.len(), 63);
    let token = rows[0]["message_token"].as_str().expect("a token is text in JSON");
    assert!(token.parse::<u64>().is_ok());

    let csv = server.sql_as(query, "text/csv");
    assert!(csv.content_type.starts_with("text/csv"), "{}", csv.content_type);
    let csv = csv.text();
    assert_eq!(csv.lines().count(), 64);
    assert_eq!(csv.lines().next(), Some("account,user_id,message_token,sent_at"));

    let arrow = server.sql_as(query, "application/vnd.apache.arrow.stream");
    assert_eq!(arrow.content_type, "application/vnd.apache.arrow.stream");
    let batches = StreamReader::try_new(Cursor::new(arrow.body), None).unwrap();
    assert_eq!(batches.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 63);
}

#[test]
fn writing_and_files_are_refused() {
    let (home, server) = loaded();
    let before = home.tables();
    for query in [
        "drop table sessions",
        "create table t as select 1",
        "insert into sessions select * from sessions",
        "delete from events",
        "update messages set verdict = 'agreed'",
        "copy sessions to '/tmp/out.csv'",
        "create external table t stored as csv location '/etc/passwd'",
        "select * from '/etc/passwd'",
        "set datafusion.execution.batch_size = 1",
    ] {
        let reply = server.sql_as(query, "application/json");
        assert_eq!(reply.status / 100, 4, "{query}: {}", reply.text());
        assert!(!reply.problem().is_empty(), "{query}");
    }
    before.assert_equal(&home.tables(), "after refused queries");
}

#[test]
fn an_error_names_its_place() {
    let (home, server) = loaded();
    let reply = server.sql_as("select *\nfrom sessions wher x = 1", "application/json");
    assert_eq!(reply.status, 400);
    let problem: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(problem["line"], 2, "{problem}");
    assert!(problem["column"].as_i64().unwrap() > 1, "{problem}");
    assert!(home.fails_with(&["sql", "select *\nfrom sessions wher x = 1"], b"").contains("line 2"));
    let missing = server.sql_as("select nonsense from sessions", "application/json");
    assert_eq!(missing.status, 422);
    assert!(missing.problem().contains("nonsense"), "{}", missing.problem());
    assert!(home.fails_with(&["sql", "select nonsense from sessions"], b"").contains("nonsense"));
}

#[test]
fn the_views_answer() {
    let (home, server) = loaded();
    for view in ["users", "open_sessions", "user_timeline", "processed_monthly"] {
        let over_http = server.number(&format!("select count(*) from {view}"));
        assert_eq!(over_http, home.number(&format!("select count(*) from {view}")), "{view}");
    }
    assert_eq!(
        server.number("select count(*) from users"),
        server.number("select count(*) from (select distinct account, user_id from events where user_id is not null)",)
    );
    assert_eq!(server.number("select sum(sessions) from users"), server.number("select count(*) from sessions"));
}

#[test]
fn the_command_line_writes_every_format() {
    let (home, server) = loaded();
    assert!(server.stop().success());
    let query = "select count(*) as n from sessions";
    let n = home.number(query);
    assert!(home.ok(&["sql", "--format", "table", query]).contains(&n.to_string()));
    assert_eq!(home.ok(&["sql", "--format", "csv", query]), format!("n\n{n}\n"));
    let json: Value = serde_json::from_str(&home.ok(&["sql", "--format", "json", query])).unwrap();
    assert_eq!(json, serde_json::json!([{ "n": n }]));
    let file = home.path("out.parquet");
    home.ok(&["sql", "--format", "parquet", "--output", file.to_str().unwrap(), "select * from sessions"]);
    let bytes = bytes::Bytes::from(std::fs::read(file).unwrap());
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    assert_eq!(reader.build().unwrap().map(|batch| batch.unwrap().num_rows() as i64).sum::<i64>(), n);
}
