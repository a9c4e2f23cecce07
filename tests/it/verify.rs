//! `counterbat verify` finds nothing on sound data, and each thing that is wrong.

use super::generate::{DAY_MS, MARCH_MS, Plan, Random, history, lines, tick_line};
use super::golden::import;
use super::harness::{Home, golden, kill_after, message_body, text};
use super::viber::seed;
use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use counterbat::lake::{FileEntry, Lake, TableName};
use counterbat::log::LogId;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What `verify` tells; it must end with exit code 0 where all is sound, else with 1.
fn verify(home: &Home) -> Value {
    let output = home.run(&["verify", "--format", "json"]);
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
    let code = if told["sound"] == true { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{told:#}{}", text(&output.stderr));
    assert!(!home.data().join("verify").exists(), "the fold's own state is still there");
    told
}

fn assert_sound(home: &Home, when: &str) -> Value {
    let told = verify(home);
    assert_eq!(told["sound"], true, "{when}: {told:#}");
    for table in ["events", "sessions", "messages"] {
        let rows = home.number(&format!("select count(*) from {table}"));
        let of = &told["summary"]["tables"][table];
        assert_eq!(
            (of["rows"].as_i64(), of["compared"].as_i64()),
            (Some(rows), Some(rows)),
            "{when}: {table}: {told:#}"
        );
    }
    told
}

/// The findings of one kind; there must be some, and of no other kinds than these.
fn found(told: &Value, kind: &str, others: &[&str]) -> Vec<Value> {
    let findings = told["findings"].as_array().unwrap();
    for finding in findings {
        let of = finding["kind"].as_str().unwrap();
        assert!(of == kind || others.contains(&of), "{finding:#}");
        assert!(!finding["text"].as_str().unwrap().is_empty() && !finding["remedy"].as_str().unwrap().is_empty());
    }
    let found: Vec<Value> = findings.iter().filter(|finding| finding["kind"] == kind).cloned().collect();
    assert!(!found.is_empty(), "no finding of kind {kind}: {told:#}");
    found
}

fn busy() -> Home {
    let home = Home::new(&[]);
    import(&home, "busy");
    home
}

/// The files of a table, with its version.
fn files(home: &Home, table: TableName) -> (u64, Vec<FileEntry>) {
    let lake = home.data().join("lake").display().to_string();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Whose log it is does not matter for the files.
    let lake = runtime.block_on(Lake::open(&lake, &LogId("any".into()), 4)).unwrap();
    let snapshot = lake.table(table).snapshot();
    (snapshot.version, snapshot.files.values().cloned().collect())
}

fn path(home: &Home, table: TableName, file: &str) -> PathBuf {
    home.data().join("lake").join(table.as_str()).join(file)
}

/// Another writer's commit: a file comes, and one goes.
fn commit(home: &Home, table: TableName, version: u64, add: &FileEntry, remove: Option<&FileEntry>) {
    let size = std::fs::metadata(path(home, table, &add.path)).unwrap().len();
    let dated = add.path.split_once('/').and_then(|(folder, _)| folder.strip_prefix("date="));
    let values = dated.map_or_else(|| json!({}), |date| json!({"date": date}));
    let mut lines = vec![json!({"add": {"path": add.path, "partitionValues": values, "size": size,
        "modificationTime": 1, "dataChange": true, "stats": add.stats}})];
    lines.extend(remove.map(|file| json!({"remove": {"path": file.path, "deletionTimestamp": 1, "dataChange": true}})));
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let name = format!("_delta_log/{:020}.json", version + 1);
    std::fs::write(path(home, table, &name), lines.join("\n")).unwrap();
}

/// The file's name with another last letter.
fn renamed(file: &FileEntry) -> FileEntry {
    let stem = file.path.strip_suffix(".parquet").unwrap();
    let last = if stem.ends_with('0') { '1' } else { '0' };
    FileEntry { path: format!("{}{last}.parquet", &stem[..stem.len() - 1]), ..file.clone() }
}

/// Writes a file anew with another text in the first row of a column.
fn alter(from: PathBuf, to: PathBuf, column: &str, value: &str) {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(from).unwrap()).unwrap();
    let mut batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let first = &batches[0];
    let (at, _) = first.schema().column_with_name(column).unwrap();
    let texts = first.column(at).as_string::<i32>().iter().enumerate();
    let texts: StringArray = texts.map(|(row, text)| if row == 0 { Some(value) } else { text }).collect();
    let mut columns = first.columns().to_vec();
    columns[at] = Arc::new(texts) as ArrayRef;
    batches[0] = RecordBatch::try_new(first.schema(), columns).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(to).unwrap(), batches[0].schema(), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

#[test]
fn sound_tables_are_found_sound() {
    let home = busy();
    assert_sound(&home, "imported");
    let table = home.ok(&["verify"]);
    assert!(table.contains("the tables are what the log folds to") && table.contains("compared"), "{table}");
    std::fs::remove_dir_all(home.data().join("state")).unwrap();
    assert_sound(&home, "state deleted");
    home.ok(&["rebuild"]);
    assert_sound(&home, "rebuilt");
}

#[test]
fn rows_that_time_alone_has_changed_are_sound() {
    let home = Home::new(&[]);
    let plan = Plan { seed: 3, events: 400, users: 50, start_ms: MARCH_MS, span_ms: DAY_MS };
    home.ok_with(&["import", "--wait", "-"], &lines(&history(&plan)));
    // Ticks are not archived, and rows change by them.
    let open = "select count(*) from sessions where state <> 'settled'";
    assert!(home.number(open) > 0);
    home.ok_with(&["import", "--wait", "-"], tick_line(MARCH_MS + 90 * DAY_MS).as_bytes());
    assert_eq!(home.number(open), 0);
    assert_sound(&home, "settled");
}

#[test]
fn tables_are_sound_after_kills() {
    let seed = seed();
    let home = Home::new(&[]);
    let plan = Plan { seed, events: 20_000, users: 2_500, start_ms: MARCH_MS, span_ms: 40 * DAY_MS };
    let file = home.path("history.ndjson");
    std::fs::write(&file, lines(&history(&plan))).unwrap();
    let import = ["import", "--wait", "--late", file.to_str().unwrap()];
    let mut random = Random(seed ^ 0x7665_7269);
    for _ in 0..3 {
        kill_after(&mut home.command(&import).spawn().unwrap(), Duration::from_millis(20 + random.below(900)));
        let server = home.serve();
        kill_after(&mut home.command(&import).spawn().unwrap(), Duration::from_millis(20 + random.below(900)));
        server.kill();
    }
    home.ok(&import);
    assert_sound(&home, "after kills");
}

#[test]
fn a_server_verifies_while_it_goes_on() {
    let home = Home::new(&[]);
    let server = home.serve();
    std::thread::scope(|scope| {
        let posting = scope.spawn(|| {
            for n in 0..400 {
                let body = message_body(&format!("user-{}==", n % 50), 6_150_000_000_000_000_000 + n);
                assert_eq!(server.callback(&body).status, 200);
            }
        });
        let mut times = 0;
        while !posting.is_finished() || times == 0 {
            assert_eq!(verify(&home)["sound"], true);
            times += 1;
        }
    });
    assert_sound(&home, "through the server");
    assert!(server.stop().success());
    assert_sound(&home, "offline");
}

#[test]
fn what_came_too_late_is_told_apart() {
    let home = Home::new(&[]);
    let few = |seed| lines(&history(&Plan { seed, events: 40, users: 5, start_ms: MARCH_MS, span_ms: DAY_MS }));
    home.ok_with(&["import", "--wait", "-"], &[few(3), tick_line(MARCH_MS + 30 * DAY_MS).into_bytes()].concat());
    home.ok_with(&["import", "--wait", "--late", "-"], &few(4));
    let late = home.sql("select partition, \"offset\", event_id from events where disposition = 'too_late'");
    assert!(!late.is_empty());
    let told = assert_sound(&home, "with late events");
    assert_eq!(told["summary"]["too_late"].as_u64(), Some(late.len() as u64));
    assert_eq!(told["too_late"].as_array().unwrap().len(), late.len());
    assert!(told["too_late"].as_array().unwrap().contains(&late[0]), "{told:#}");
    assert!(home.ok(&["verify"]).contains("`counterbat rebuild` folds them in"));

    home.ok(&["rebuild"]);
    let told = assert_sound(&home, "rebuilt");
    assert_eq!(told["summary"]["too_late"], 0, "the rebuild has folded them in");
    home.ok_with(&["import", "--wait", "--late", "-"], &few(5));
    let told = assert_sound(&home, "late events after a rebuild");
    assert!(told["summary"]["too_late"].as_u64() > Some(0), "{told:#}");
}

#[test]
fn a_changed_row_is_named() {
    let home = busy();
    let (version, all) = files(&home, TableName::Messages);
    let (old, new) = (&all[0], renamed(&all[0]));
    let at = |file: &FileEntry| path(&home, TableName::Messages, &file.path);
    alter(at(old), at(&new), "verdict", "no verdict");
    commit(&home, TableName::Messages, version, &new, Some(old));
    let told = verify(&home);
    let row = &found(&told, "row", &["day"])[0];
    assert_eq!((&row["table"], &row["difference"]), (&"messages".into(), &"changed".into()), "{row:#}");
    assert_eq!(row["columns"]["verdict"]["table"], "no verdict", "{row:#}");
    assert_eq!(row["columns"].as_object().unwrap().len(), 1, "{row:#}");
    let day = &found(&told, "day", &["row"])[0];
    assert_eq!((&day["changed"], &day["rows"]["table"]), (&1.into(), &day["rows"]["fold"]), "{day:#}");
    assert!(row["remedy"].as_str().unwrap().contains("counterbat rebuild"));
    home.ok(&["rebuild"]);
    assert_sound(&home, "rebuilt");
}

#[test]
fn a_file_that_was_written_over_is_named() {
    let home = busy();
    let (_, all) = files(&home, TableName::Sessions);
    let file = path(&home, TableName::Sessions, &all[0].path);
    alter(file.clone(), file, "policy", "a tariff that never was");
    let told = verify(&home);
    let fault = &found(&told, "file", &["day", "row"])[0];
    assert_eq!((&fault["table"], &fault["path"]), (&"sessions".into(), &all[0].path.clone().into()));
    assert!(fault["fault"].as_str().unwrap().contains("bytes"), "{fault:#}");
}

#[test]
fn statistics_by_which_rows_would_be_skipped_are_named() {
    let home = busy();
    let (_, all) = files(&home, TableName::Messages);
    let file = &all[0];
    let retell = |stats: &Value| {
        let (version, _) = files(&home, TableName::Messages);
        commit(
            &home,
            TableName::Messages,
            version,
            &FileEntry { stats: Some(stats.to_string()), ..file.clone() },
            None,
        );
    };
    let fault = || found(&verify(&home), "file", &[])[0]["fault"].as_str().unwrap().to_owned();
    let stats: Value = serde_json::from_str(file.stats.as_deref().unwrap()).unwrap();
    let mut narrow = stats.clone();
    narrow["maxValues"]["sent_at"] = stats["minValues"]["sent_at"].clone();
    retell(&narrow);
    assert_eq!(fault(), "sent_at lies outside of what its statistics say");
    let mut more = stats.clone();
    more["numRecords"] = json!(file.rows + 1);
    retell(&more);
    assert_eq!(fault(), format!("it has {} rows, and {} in the table's log", file.rows, file.rows + 1));
    retell(&stats);
    assert_sound(&home, "with its own statistics again");

    // The least token in the footer, so much greater that no row of the file could be found by its token.
    let place = path(&home, TableName::Messages, &file.path);
    let mut bytes = std::fs::read(&place).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&place).unwrap()).unwrap();
    let column = reader.parquet_schema().columns().iter().position(|column| column.name() == "message_token").unwrap();
    let group = reader.metadata().row_group(0);
    let least = group.column(column).statistics().unwrap().min_bytes_opt().unwrap().to_vec();
    let footer =
        bytes.len() - 8 - u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap()) as usize;
    // It is told twice, for old readers too.
    let told: Vec<usize> = (footer..bytes.len() - 8).filter(|at| bytes[*at..].starts_with(&least)).collect();
    told.iter().for_each(|at| bytes[*at..*at + 8].copy_from_slice(&i64::MAX.to_le_bytes()));
    std::fs::write(&place, bytes).unwrap();
    assert_eq!(fault(), "message_token lies outside of what the statistics of row group 0 in the file say");
    home.ok(&["rebuild"]);
    assert_sound(&home, "rebuilt");
}

#[test]
fn a_removed_file_is_named() {
    let home = busy();
    let (_, sessions) = files(&home, TableName::Sessions);
    std::fs::remove_file(path(&home, TableName::Sessions, &sessions[0].path)).unwrap();
    let told = verify(&home);
    assert_eq!(found(&told, "file", &["day", "row"])[0]["fault"], "it is not there");
    let missing: u64 = found(&told, "day", &["file", "row"]).iter().map(|day| day["missing"].as_u64().unwrap()).sum();
    assert_eq!(missing, sessions[0].rows, "{told:#}");

    let home = busy();
    let (_, events) = files(&home, TableName::Events);
    std::fs::remove_file(path(&home, TableName::Events, &events[0].path)).unwrap();
    let told = verify(&home);
    assert_eq!(found(&told, "file", &["missing"])[0]["table"], "events");
    let span = |finding: &Value| 1 + finding["last"].as_u64().unwrap() - finding["first"].as_u64().unwrap();
    let missing: u64 = found(&told, "missing", &["file"]).iter().map(span).sum();
    assert_eq!(missing, events[0].rows, "the log still has what is missing: {told:#}");
}

#[test]
fn tables_that_cannot_be_brought_up_to_date_are_looked_at_all_the_same() {
    let home = Home::new(&[]);
    home.ok_with(&["import", "--wait", "-"], &golden("small/events.ndjson.gz"));
    let (_, sessions) = files(&home, TableName::Sessions);
    sessions.iter().for_each(|file| std::fs::remove_file(path(&home, TableName::Sessions, &file.path)).unwrap());
    // Time moves on, so rows change whose files are gone.
    home.ok_with(&["import", "-"], tick_line(MARCH_MS + 90 * DAY_MS).as_bytes());
    let told = verify(&home);
    let stalled = found(&told, "stalled", &["file"]);
    assert!(stalled[0]["error"].as_str().unwrap().contains("cannot be read"), "{told:#}");
    assert_eq!(found(&told, "file", &["stalled"]).len(), sessions.len());
}

#[test]
fn events_archived_twice_are_named() {
    let home = busy();
    let (version, all) = files(&home, TableName::Events);
    let (old, new) = (&all[0], renamed(&all[0]));
    std::fs::copy(path(&home, TableName::Events, &old.path), path(&home, TableName::Events, &new.path)).unwrap();
    commit(&home, TableName::Events, version, &new, None);
    let told = verify(&home);
    let span = |finding: &Value| 1 + finding["last"].as_u64().unwrap() - finding["first"].as_u64().unwrap();
    // Their fold is the same: a repeat changes nothing.
    let repeated: u64 = found(&told, "repeated", &[]).iter().map(span).sum();
    assert_eq!(repeated, old.rows, "{told:#}");
}

#[test]
fn a_changed_record_is_named() {
    let home = busy();
    let (version, all) = files(&home, TableName::Events);
    let (old, new) = (&all[0], renamed(&all[0]));
    let at = |file: &FileEntry| path(&home, TableName::Events, &file.path);
    alter(at(old), at(&new), "event_id", "another id");
    commit(&home, TableName::Events, version, &new, Some(old));
    let told = verify(&home);
    let record = &found(&told, "record", &[])[0];
    assert_eq!(record["columns"], json!(["event_id"]), "{record:#}");
}

#[test]
fn a_changed_policy_is_named() {
    let home = busy();
    home.configure(&[r#"fold.policy = "vbm""#]);
    let told = verify(&home);
    let policies: Vec<Value> = found(&told, "row", &["day"])
        .iter()
        .map(|row| row["columns"]["policy"].clone())
        .filter(|p| !p.is_null())
        .collect();
    assert_eq!(policies[0], json!({"table": "counterbat", "fold": "vbm"}), "{told:#}");
    let days = found(&told, "day", &["row"]);
    let counted = |what: &str, table: &str| -> i64 {
        days.iter().filter(|day| day["table"] == table).map(|day| day[what].as_i64().unwrap()).sum()
    };
    let sessions = home.number("select count(*) from sessions");
    assert_eq!(
        counted("changed", "sessions") + counted("surplus", "sessions"),
        sessions,
        "paid sessions are not of vbm"
    );
    assert_eq!(counted("changed", "messages"), home.number("select count(*) from messages"));
    home.ok(&["rebuild"]);
    assert_sound(&home, "rebuilt");
}
