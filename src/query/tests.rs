//! Queries over real Parquet files with rows laid over them.

mod views;

use super::output::{Format, Writer};
use super::{Engine, Freshness, Limits, Picture, Pictures, QueryError, Reference};
use crate::event::user_key;
use crate::lake;
use crate::lake::picture::TableView;
use crate::lake::{FileEntry, Span, TableName};
use crate::log::partitioner::partition;
use crate::session::{Policies, Policy};
use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const DAY: i32 = 20_454; // 2026-01-01
const HOUR: i64 = DAY as i64 * 24;

/// The table's columns, all of which may be NULL here.
fn schema(table: TableName) -> SchemaRef {
    let columns = lake::schema::of(table);
    let columns = columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(columns.collect::<Vec<Field>>()))
}

/// Rows of the named columns, as text; an empty text is NULL, other columns are.
fn rows(table: TableName, names: &[&str], values: &[&[&str]]) -> RecordBatch {
    let schema = schema(table);
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| match names.iter().position(|name| name == field.name()) {
            None => new_null_array(field.data_type(), values.len()),
            Some(at) => {
                let texts = values.iter().map(|row| Some(row[at]).filter(|text| !text.is_empty()));
                let texts: ArrayRef = Arc::new(texts.collect::<arrow::array::StringArray>());
                cast(&texts, field.data_type()).unwrap()
            }
        })
        .collect();
    RecordBatch::try_new(schema, columns).unwrap()
}

struct Fixture {
    dir: TempDir,
    views: BTreeMap<TableName, TableView>,
    policy: Arc<Policy>,
    policies: Policies,
    watermarks_ms: Vec<Option<i64>>,
    partitions: u32,
}

impl Fixture {
    fn file(&self, table: TableName, batch: &RecordBatch, date: Option<i32>, span: Option<Span>) -> FileEntry {
        self.file_with(table, batch, date, span, WriterProperties::default())
    }

    fn file_with(
        &self,
        table: TableName,
        batch: &RecordBatch,
        date: Option<i32>,
        span: Option<Span>,
        properties: WriterProperties,
    ) -> FileEntry {
        let files = std::fs::read_dir(self.dir.path()).unwrap().count();
        let path = format!("{files} é%20.parquet");
        let batch = match date {
            Some(_) => batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>()).unwrap(),
            None => batch.clone(),
        };
        assert!(date.is_some() == (table == TableName::Events));
        let target = self.dir.path().join(&path);
        let mut writer =
            ArrowWriter::try_new(File::create(&target).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let size = target.metadata().unwrap().len();
        FileEntry { path, size, rows: batch.num_rows() as u64, span, date, stats: None }
    }

    /// Has these rows, and no others, in a table.
    fn lay(&mut self, table: TableName, names: &[&str], values: &[&[&str]]) {
        let rows = vec![rows(table, names, values)];
        self.views.insert(table, TableView { rows, ..TableView::default() });
    }

    fn empty() -> Fixture {
        let views = TableName::ALL.map(|table| (table, TableView::default()));
        let policy = Policy::named("counterbat").unwrap();
        let (dir, policies) = (TempDir::new().unwrap(), Policies::default());
        Fixture { dir, views: views.into(), policy, policies, watermarks_ms: Vec::new(), partitions: 1 }
    }

    fn new() -> Fixture {
        let mut fixture = Fixture::empty();
        use TableName::{Events, Messages, Sessions};
        let names = [
            "offset",
            "origin",
            "type",
            "account",
            "user_id",
            "message_token",
            "event_time",
            "country",
            "disposition",
            "date",
        ];
        let first = rows(
            Events,
            &names,
            &[
                &["0", "callback", "message", "shop", "ann", "-1", "2026-01-01T10:00:00Z", "DE", "fact", ""],
                &["1", "call", "send_message", "shop", "ann", "7", "2026-01-01T10:00:01.000001Z", "", "fact", ""],
                &["2", "call", "send_message", "shop", "ann", "", "2026-01-01T10:00:02Z", "", "info", ""],
            ],
        );
        let second = rows(
            Events,
            &names,
            &[&["3", "callback", "unsubscribed", "shop", "ann", "9", "2026-01-02T10:00:00Z", "AT", "fact", ""]],
        );
        let live = rows(
            Events,
            &names,
            &[&["4", "callback", "delivered", "shop", "bob", "7", "2026-02-03T10:00:00Z", "", "fact", "2026-02-03"]],
        );
        let clean =
            vec![fixture.file(Events, &first, Some(DAY), None), fixture.file(Events, &second, Some(DAY + 1), None)];
        fixture.views.insert(Events, TableView { clean, rows: vec![live], ..TableView::default() });

        let names = [
            "session_id",
            "account",
            "user_id",
            "kind",
            "state",
            "opened_at",
            "expires_at",
            "closed_at",
            "close_reason",
            "opened_by_token",
            "inbound",
            "cost",
        ];
        let (a, b, c) = ("00".repeat(16), "ab".repeat(16), "cd".repeat(16));
        let settled: &[&str] = &[
            &c,
            "shop",
            "cid",
            "service",
            "settled",
            "2026-01-01T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "2026-01-02T00:00:00Z",
            "expired",
            "1",
            "1",
            "0.5",
        ];
        let old: &[&str] = &[
            &a,
            "shop",
            "ann",
            "service",
            "open",
            "2026-01-01T10:00:00Z",
            "2026-01-02T10:00:00Z",
            "",
            "",
            "-1",
            "1",
            "",
        ];
        let kept: &[&str] =
            &[&b, "shop", "bob", "paid", "open", "2026-01-01T11:00:00Z", "2999-01-01T00:00:00Z", "", "", "3", "0", ""];
        let new: &[&str] = &[
            &a,
            "shop",
            "ann",
            "service",
            "closed",
            "2026-01-01T10:00:00Z",
            "2026-01-02T10:00:00Z",
            "2026-01-02T10:00:00Z",
            "expired",
            "-1",
            "5",
            "1.25",
        ];
        let span = |start: i64, end: i64| Some(Span { partition: 0, start_hour: HOUR + start, end_hour: HOUR + end });
        let clean = vec![fixture.file(Sessions, &rows(Sessions, &names, &[settled]), None, span(0, 1))];
        let dirty = vec![fixture.file(Sessions, &rows(Sessions, &names, &[old, kept]), None, span(10, 12))];
        let replaced = Arc::new(HashSet::from([vec![0; 16].into_boxed_slice()]));
        let over = vec![rows(Sessions, &names, &[new])];
        fixture.views.insert(Sessions, TableView { clean, dirty, replaced, rows: over });

        let names = ["account", "user_id", "message_token", "sent_at", "verdict"];
        let at = "2026-01-01T10:00:01Z";
        let dirty =
            rows(Messages, &names, &[&["shop", "ann", "7", at, "unreported"], &["shop", "ann", "-8", at, "agreed"]]);
        let dirty = vec![fixture.file(Messages, &dirty, None, None)];
        let key = [b"shop\0ann\0".as_slice(), &7u64.to_be_bytes()].concat();
        let replaced = Arc::new(HashSet::from([key.into_boxed_slice()]));
        let over = vec![rows(Messages, &names, &[&["shop", "ann", "7", at, "overcharged"]])];
        fixture.views.insert(Messages, TableView { clean: vec![], dirty, replaced, rows: over });
        fixture
    }

    fn engine(self, limits: Limits) -> Engine {
        let days = |days: i64| days * 86_400_000;
        let reference = Reference::new(self.policies.clone(), self.policy.clone(), days(3), days(14)).unwrap();
        Engine::new(Arc::new(self), reference, limits).unwrap()
    }
}

#[async_trait]
impl Pictures for Fixture {
    async fn take(&self, tables: &[TableName]) -> Result<Picture, String> {
        let tables = tables.iter().map(|table| (*table, self.views[table].clone())).collect();
        Ok(Picture { tables, freshness: Freshness::default(), watermarks_ms: self.watermarks_ms.clone() })
    }

    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn schema(&self, table: TableName) -> SchemaRef {
        schema(table)
    }

    fn object_store(&self) -> (url::Url, Arc<dyn ObjectStore>) {
        (url::Url::parse("file:///").unwrap(), Arc::new(LocalFileSystem::new()))
    }

    fn location(&self, _table: TableName, file: &FileEntry) -> Path {
        Path::from_absolute_path(self.dir.path().join(&file.path)).unwrap()
    }
}

const LIMITS: Limits = Limits { max_rows: 1000, timeout: Duration::from_secs(60), memory_bytes: 64 << 20 };

pub(crate) fn engine() -> Engine {
    Fixture::new().engine(LIMITS)
}

async fn written(engine: &Engine, format: Format, sql: &str) -> Result<Vec<u8>, QueryError> {
    let mut answer = engine.query(sql).await?;
    let mut writer = Writer::new(format, answer.schema(), Vec::new()).unwrap();
    while let Some(batch) = answer.try_next().await? {
        writer.write(&batch).unwrap();
    }
    Ok(writer.finish().unwrap())
}

async fn csv(engine: &Engine, sql: &str) -> String {
    let csv = written(engine, Format::Csv, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let csv = String::from_utf8(csv).unwrap();
    // Without the head line.
    csv.lines().skip(1).collect::<Vec<_>>().join("|")
}

#[tokio::test]
async fn files_and_rows_over_them_are_one_table() {
    let engine = engine();
    assert_eq!(
        csv(&engine, "SELECT user_id, state, inbound FROM sessions ORDER BY 1").await,
        "ann,closed,5|bob,open,0|cid,settled,1"
    );
    assert_eq!(csv(&engine, "SELECT count(*) FROM sessions").await, "3");
    assert_eq!(
        csv(&engine, "SELECT message_token, verdict FROM messages ORDER BY verdict").await,
        "18446744073709551608,agreed|7,overcharged"
    );
    assert_eq!(csv(&engine, "SELECT user_id FROM sessions WHERE state = 'open'").await, "bob");
    assert_eq!(
        csv(&engine, "SELECT max(opened_at) FROM sessions WHERE opened_at < TIMESTAMP '2026-01-01T10:30:00Z'").await,
        "2026-01-01T10:00:00.000Z"
    );
    assert_eq!(
        csv(&engine, "SELECT \"offset\", date FROM events WHERE date >= '2026-01-02' ORDER BY 1").await,
        "3,2026-01-02|4,2026-02-03"
    );
    assert_eq!(
        csv(&engine, "SELECT date, count(*) FROM events GROUP BY date ORDER BY date").await,
        "2026-01-01,3|2026-01-02,1|2026-02-03,1"
    );
    let joined =
        "SELECT s.user_id, m.verdict FROM sessions s JOIN public.messages m USING (account, user_id) ORDER BY 2";
    assert_eq!(csv(&engine, joined).await, "ann,agreed|ann,overcharged");
    assert_eq!(csv(&engine, "WITH sessions AS (SELECT 1 AS x) SELECT * FROM sessions").await, "1");
}

#[tokio::test]
async fn files_of_other_hours_and_days_are_not_opened() {
    let mut fixture = Fixture::new();
    for (table, told) in [
        (TableName::Events, r#"{"event_time":"2026-01-01T10:00:02.000Z"}"#),
        (TableName::Sessions, r#"{"expires_at":"2026-01-02T00:00:00.000Z"}"#),
    ] {
        let stats = format!(r#"{{"minValues":{told},"maxValues":{told}}}"#);
        fixture.views.get_mut(&table).unwrap().clean[0].stats = Some(stats);
    }
    for (table, file) in [(TableName::Events, 0), (TableName::Sessions, 0)] {
        let path = &fixture.views[&table].clean[file].path;
        std::fs::write(fixture.dir.path().join(path), b"no Parquet").unwrap();
    }
    let span = Some(Span { partition: 0, start_hour: HOUR, end_hour: HOUR + 24 });
    let sent = rows(TableName::Messages, &["account"], &[&["shop"]]);
    let sent = fixture.file(TableName::Messages, &sent, None, span);
    std::fs::write(fixture.dir.path().join(&sent.path), b"no Parquet").unwrap();
    fixture.views.get_mut(&TableName::Messages).unwrap().clean.push(sent);
    let engine = fixture.engine(LIMITS);
    assert_eq!(csv(&engine, "SELECT count(*) FROM events WHERE date > '2026-01-01'").await, "2");
    assert_eq!(
        csv(&engine, "SELECT count(*) FROM sessions WHERE opened_at >= TIMESTAMP '2026-01-01T02:00:00Z'").await,
        "2"
    );
    for of_later_days in [
        "events WHERE received_at >= TIMESTAMP '2026-01-02T00:00:00Z'",
        "events WHERE event_time + INTERVAL '1 day' > TIMESTAMP '2026-01-03T10:01:00Z'",
        "events WHERE date_trunc('month', date) = '2026-02-01'",
        "processed_monthly WHERE month > '2026-01-01'",
        "usage_hourly WHERE hour > TIMESTAMP '2026-01-03T00:00:00Z'",
        "usage_daily('America/New_York') WHERE day > '2026-01-02' AND account = 'shop'",
        "usage_monthly WHERE month = '2026-02-01'",
        "completeness('2026-03-01') WHERE account = 'shop'",
        "open_sessions",
        "expiring_sessions",
    ] {
        written(&engine, Format::Csv, &format!("SELECT * FROM {of_later_days}")).await.expect(of_later_days);
    }
    assert!(matches!(
        written(&engine, Format::Csv, "SELECT * FROM events").await,
        Err(QueryError::Internal(_) | QueryError::Execution(_))
    ));
}

#[tokio::test]
async fn files_of_other_partitions_are_not_opened() {
    let mut fixture = Fixture { partitions: 12, ..Fixture::empty() };
    let of = |user: &str| partition(user_key("shop", user).as_bytes(), 12);
    assert_ne!(of("ann"), of("eve"));
    let sent = rows(TableName::Messages, &["account", "user_id"], &[&["shop", "ann"]]);
    let span = |partition| Some(Span { partition, start_hour: HOUR, end_hour: HOUR + 24 });
    for partition in 0..12 {
        let file = fixture.file(TableName::Messages, &sent, None, span(partition));
        if partition != of("ann") {
            std::fs::write(fixture.dir.path().join(&file.path), b"no Parquet").unwrap();
        }
        fixture.views.get_mut(&TableName::Messages).unwrap().clean.push(file);
    }
    let engine = fixture.engine(LIMITS);
    for (condition, rows) in [
        ("account = 'shop' AND user_id = 'ann'", "1"),
        ("'ann' = user_id AND account IN ('shop') AND sent_at IS NULL", "1"),
        ("(user_id = 'ann' OR user_id = 'ann') AND account = 'shop' AND user_id <> 'eve'", "1"),
        ("user_id = 'ann' AND account = 'shop' AND user_id = 'eve'", "0"),
        ("account IN ('shop', 'shop') AND user_id IN ('ann', 'ann')", "1"),
        (&format!("partition_of(account, user_id) = {}", of("ann")), "1"),
        (&format!("partition_of(account, user_id) IN ({0}, {0}, {0}, {0}, {0})", of("ann")), "1"),
        (&format!("partition_of(account, user_id) IN ({}, 13)", of("ann")), "1"),
        (&format!("partition_of(account, user_id) = {} AND slice_of(user_id, 1) = 0", of("ann")), "1"),
    ] {
        assert_eq!(
            csv(&engine, &format!("SELECT count(*) FROM messages WHERE {condition}")).await,
            rows,
            "{condition}"
        );
    }
    for of_others in [
        "account = 'shop' AND user_id IN ('ann', 'eve')",
        "account = 'shop' AND user_id NOT IN ('ann')",
        "account = 'shop' AND user_id <> 'ann'",
        "user_id = 'ann'",
        "partition_of(account, user_id) <> 0",
        "partition_of(user_id, account) = 0",
        "partition_of(account, user_id) = 0 OR account = 'shop'",
        "partition_of(account, user_id) IN (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)",
        "account = 'shop' AND user_id LIKE 'ann%'",
    ] {
        let asked = format!("SELECT count(*) FROM messages WHERE {of_others}");
        assert!(written(&engine, Format::Csv, &asked).await.is_err(), "{of_others}");
    }
}

#[tokio::test]
async fn files_that_tell_they_have_not_the_user_are_not_read() {
    let mut fixture = Fixture::empty();
    for users in [&["ann", "bob"][..], &["eve"]] {
        let values: Vec<[&str; 2]> = users.iter().map(|user| ["shop", user]).collect();
        let values: Vec<&[&str]> = values.iter().map(|row| &row[..]).collect();
        let sent = rows(TableName::Messages, &["account", "user_id"], &values);
        let properties =
            WriterProperties::builder().set_column_bloom_filter_enabled(ColumnPath::from("user_id"), true).build();
        let file = fixture.file_with(TableName::Messages, &sent, None, None, properties);
        // All that is before its first filter are values.
        let path = fixture.dir.path().join(&file.path);
        let mut bytes = std::fs::read(&path).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
        let columns = reader.metadata().row_group(0).columns();
        let filter = columns.iter().find_map(|column| column.bloom_filter_offset()).unwrap();
        bytes[4..usize::try_from(filter).unwrap()].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        fixture.views.get_mut(&TableName::Messages).unwrap().clean.push(file);
    }
    let engine = fixture.engine(LIMITS);
    for of_nobody in [
        "user_id = 'max'",
        "'max' = user_id AND sent_at IS NULL",
        "user_id IN ('max', 'moe')",
        "user_id IN ('a', 'b', 'c', 'd', 'e')",
        "account = 'shop' AND (user_id = 'max' OR user_id = 'moe')",
    ] {
        let asked = format!("SELECT count(*) FROM messages WHERE {of_nobody}");
        assert_eq!(csv(&engine, &asked).await, "0", "{of_nobody}");
    }
    for of_somebody in [
        "user_id = 'ann'",
        "user_id IN ('max', 'eve')",
        "user_id = 'max' OR user_id <> 'moe'",
        "user_id = 'max' OR account = 'shop'",
        "NOT (user_id = 'max')",
        "user_id NOT IN ('max', 'moe')",
        "upper(user_id) = 'MAX'",
        "user_id = 'max' OR user_id IS NULL OR user_id LIKE '%n'",
    ] {
        let asked = format!("SELECT count(*) FROM messages WHERE {of_somebody}");
        assert!(written(&engine, Format::Csv, &asked).await.is_err(), "{of_somebody}");
    }
}

#[tokio::test]
async fn views_answer() {
    let engine = engine();
    assert_eq!(
        csv(
            &engine,
            "SELECT user_id, country, subscribed, first_activity, last_activity, sessions FROM users ORDER BY user_id"
        )
        .await,
        "ann,AT,false,2026-01-01T10:00:00.000Z,2026-01-02T10:00:00.000Z,1|bob,,,2026-02-03T10:00:00.000Z,2026-02-03T10:00:00.000Z,1"
    );
    assert_eq!(csv(&engine, "SELECT user_id FROM users WHERE user_id = 'ann'").await, "ann");
    assert_eq!(csv(&engine, "SELECT user_id, kind FROM open_sessions").await, "bob,paid");
    assert_eq!(
        csv(&engine, "SELECT what, message_token, detail FROM user_timeline WHERE user_id = 'ann' ORDER BY at, step")
            .await,
        "inbound,18446744073709551615,|session_opened,18446744073709551615,service|outbound,7,send_message|session_closed,,expired|unsubscribed,9,"
    );
    assert_eq!(
        csv(&engine, "SELECT * FROM processed_monthly ORDER BY month").await,
        "shop,2026-01-01,2,2|shop,2026-02-01,0,1"
    );
}

#[tokio::test]
async fn the_catalog_is_described() {
    let engine = engine();
    let tables = csv(&engine, "SHOW TABLES").await;
    for name in [
        "counterbat,public,events,BASE TABLE",
        "counterbat,public,policies,BASE TABLE",
        "counterbat,public,users,VIEW",
        "counterbat,public,usage_daily,VIEW",
    ] {
        assert!(tables.contains(name), "{tables}");
    }
    assert!(csv(&engine, "SHOW COLUMNS FROM processed_monthly").await.contains("month"));
    assert!(csv(&engine, "DESCRIBE messages").await.contains("verdict"));
    assert!(csv(&engine, "DESCRIBE users").await.contains("subscribed"));
    assert!(csv(&engine, "EXPLAIN SELECT * FROM sessions").await.contains("row_holds"));
    assert!(csv(&engine, "EXPLAIN ANALYZE SELECT * FROM sessions").await.contains("output_rows"));
    let columns =
        "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'users'";
    assert_eq!(csv(&engine, columns).await, "7");
}

#[tokio::test]
async fn errors_say_what_and_where() {
    let engine = engine();
    let failed = async |sql: &str| written(&engine, Format::Csv, sql).await.unwrap_err();
    let error = failed("SELECT account,\n  usr_id FROM sessions").await;
    assert!(
        matches!(&error, QueryError::Plan { message, .. } if message.contains("did you mean user_id?")),
        "{error:?}"
    );
    assert_eq!(error.position(), Some((2, 3)), "{error:?}");
    let error = failed("SELECT *\nFROM session").await;
    assert!(
        matches!(&error, QueryError::Plan { message, .. } if message.contains("did you mean sessions?")),
        "{error:?}"
    );
    assert_eq!(error.position(), Some((2, 6)), "{error:?}");
    let error = failed("SELECT nothing(1)").await;
    assert!(matches!(error, QueryError::Plan { .. }), "{error:?}");
    let error = failed("SELECT 1 / (inbound - inbound) FROM sessions").await;
    assert!(matches!(error, QueryError::Execution(_)), "{error:?}");
}

#[tokio::test]
async fn limits_hold() {
    let few = Fixture::new().engine(Limits { max_rows: 3, ..LIMITS });
    assert!(written(&few, Format::Csv, "SELECT * FROM sessions").await.is_ok());
    assert!(matches!(written(&few, Format::Csv, "SELECT * FROM events").await, Err(QueryError::Limit(_))));
    let hasty = Fixture::new().engine(Limits { timeout: Duration::from_millis(50), ..LIMITS });
    let endless =
        "SELECT count(*) FROM generate_series(1, 50000) a, generate_series(1, 50000) b WHERE a.value + b.value < 0";
    assert!(matches!(written(&hasty, Format::Csv, endless).await, Err(QueryError::Timeout(_))));
    let small = Fixture::new().engine(Limits { memory_bytes: 1 << 20, ..LIMITS });
    // What a join holds cannot rest on disk; what is counted can.
    let wide =
        "SELECT count(*) FROM generate_series(1, 300000) a JOIN generate_series(1, 300000) b ON a.value = b.value";
    assert!(matches!(written(&small, Format::Csv, wide).await, Err(QueryError::Limit(_))));
    let many =
        "SELECT count(DISTINCT a.value * 1003 + b.value) FROM generate_series(1, 500) a, generate_series(1, 500) b";
    assert_eq!(csv(&small, many).await, "250000");
}

#[tokio::test]
async fn times_are_read_and_written_in_postgresqls_words_too() {
    let engine = engine();
    let at = "TIMESTAMP '2026-01-01T10:07:31Z'";
    let five = format!("date_trunc('hour', {at}) + INTERVAL '5 MINUTES' * FLOOR(EXTRACT(MINUTE FROM {at}) / 5)");
    for (sql, wanted) in [
        (five.as_str(), "2026-01-01T10:05:00.000Z"),
        ("2 * INTERVAL '1 day 12 hours' = INTERVAL '2 days 24 hours'", "true"),
        ("(INTERVAL '1 month') * 2.3 = INTERVAL '2 months 9 days'", "true"),
        ("to_char(TIMESTAMP '2026-03-05T10:07:31Z', 'FMDD. FMMonth YYYY \"Q\"Q')", "5. March 2026 Q1"),
        ("to_char(TIMESTAMP '2026-01-01T10:07:31.5Z', 'DD.MM.YYYY HH24:MI:SS.MS')", "01.01.2026 10:07:31.500"),
        (
            "to_timestamp('2026-01-01 10:07:31.25', 'YYYY-MM-DD HH24:MI:SS.US') > TIMESTAMP '2026-01-01T10:07:31Z'",
            "true",
        ),
    ] {
        assert_eq!(csv(&engine, &format!("SELECT {sql}")).await, wanted, "{sql}");
    }
    for wrong in [format!("to_char({at}, 'SSSS')"), "INTERVAL '1 day' * 'nan'::double".to_owned()] {
        assert!(written(&engine, Format::Csv, &format!("SELECT {wrong}")).await.is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn values_are_written_as_promised() {
    let engine = engine();
    let sql = "SELECT opened_by_token, inbound, cost, opened_at, closed_at, unsigned_token(opened_by_token) AS t \
               FROM sessions WHERE user_id = 'ann'";
    let json = String::from_utf8(written(&engine, Format::Json, sql).await.unwrap()).unwrap();
    let expected = r#"{"opened_by_token":"18446744073709551615","inbound":5,"cost":"1.250000","opened_at":"2026-01-01T10:00:00.000Z","closed_at":"2026-01-02T10:00:00.000Z","t":"18446744073709551615"}"#;
    assert_eq!(json, format!("[{expected}]\n"));
    assert_eq!(written(&engine, Format::Ndjson, sql).await.unwrap(), format!("{expected}\n").into_bytes());
    let micro = "SELECT event_time, country, [1, 2] AS l, 'a\"b,c' AS q, date FROM events WHERE message_token = 7 AND origin = 'call'";
    assert_eq!(csv(&engine, micro).await, "2026-01-01T10:00:01.000001Z,,\"[1,2]\",\"a\"\"b,c\",2026-01-01");
    assert_eq!(written(&engine, Format::Json, "SELECT 1 AS a WHERE false").await.unwrap(), b"[]\n");
    let table =
        String::from_utf8(written(&engine, Format::Table, "SELECT user_id FROM sessions WHERE false").await.unwrap());
    assert!(table.unwrap().contains("user_id"));
    let table = String::from_utf8(written(&engine, Format::Table, sql).await.unwrap()).unwrap();
    assert!(table.contains("| 18446744073709551615 |") && table.contains("2026-01-01T10:00:00.000Z"), "{table}");
    let parquet = bytes::Bytes::from(written(&engine, Format::Parquet, sql).await.unwrap());
    let read = parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(parquet, 100).unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 1);
    let stream = written(&engine, Format::Arrow, sql).await.unwrap();
    let read = arrow::ipc::reader::StreamReader::try_new(stream.as_slice(), None).unwrap();
    assert_eq!(read.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 1);
}
