//! Tables on a disk: what a commit, a merge, a checkpoint and a clean-up leave.

use super::rows::{EventRow, EventRows, SessionRows};
use super::*;
use crate::event::{Disposition, Event, Record, read};
use crate::session::row::{Kind, SessionRow, SessionState};
use arrow::array::RecordBatch;
use futures::TryStreamExt;
use std::path::Path;

pub(super) fn log_id() -> LogId {
    LogId("log-1".into())
}

pub(super) async fn open(dir: &Path) -> Lake {
    Lake::open(&dir.display().to_string(), &log_id(), 2).await.unwrap()
}

pub(super) fn events(partition: u32, offsets: std::ops::Range<u64>) -> RecordBatch {
    rows_of(
        partition,
        offsets.map(|offset| {
            let data = if offset % 3 == 0 { vec![0xff, 0xfe] } else { format!("{{\"n\": {offset}}}").into_bytes() };
            (offset, 1_770_000_000_000_000 + offset as i64, data)
        }),
    )
}

/// Rows of events by offset, time in µs, and data.
fn rows_of(partition: u32, events: impl Iterator<Item = (u64, i64, Vec<u8>)>) -> RecordBatch {
    let mut rows = EventRows::default();
    for (offset, time_us, data) in events {
        let event = Event {
            id: format!("id-{offset}"),
            source: "/accounts/bot".into(),
            kind: "com.viber.callback.seen".into(),
            subject: Some("user".into()),
            time_us: Some(time_us),
            content_type: Some("application/json".into()),
            data,
            ..Event::default()
        };
        let record = Record { offset, appended_at_us: 1_780_000_000_000_000, event };
        let reading = read(&record.event, record.appended_at_us);
        rows.push(&EventRow { partition, record: &record, reading: &reading, disposition: Disposition::Fact });
    }
    rows.finish().unwrap()
}

pub(super) async fn archive(lake: &Lake, partition: u32, from: u64, to: u64) -> Result<TableSnapshot, LakeError> {
    archive_rows(lake, events(partition, from..to), partition, from, to).await
}

async fn archive_rows(
    lake: &Lake,
    rows: RecordBatch,
    partition: u32,
    from: u64,
    to: u64,
) -> Result<TableSnapshot, LakeError> {
    let add = lake.write_events(vec![rows]).await?;
    let positions = BTreeMap::from([(partition, ((from > 0).then_some(from), to))]);
    let watermarks = BTreeMap::from([(partition, i64::try_from(to).unwrap())]);
    let change = Change { add, positions, watermarks, operation: "archive", ..Change::default() };
    lake.table(TableName::Events).commit(change).await
}

pub(super) async fn offsets(lake: &Lake, partition: u32) -> Vec<u64> {
    let batches: Vec<RecordBatch> = lake.archive(partition).await.unwrap().try_collect().await.unwrap();
    let mut offsets = Vec::new();
    for batch in batches {
        let archived = rows::ArchivedEvents::new(&batch).unwrap();
        for row in 0..batch.num_rows() {
            let (record, disposition) = archived.record(row).unwrap();
            assert_eq!(disposition, Disposition::Fact);
            assert_eq!(record.event.kind, "com.viber.callback.seen");
            assert_eq!(record.event.data == [0xff, 0xfe], record.offset % 3 == 0, "data is kept byte for byte");
            offsets.push(record.offset);
        }
    }
    offsets
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_merged_and_dead_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(dir.path()).await;
    for n in 0..20 {
        archive(&lake, n % 2, u64::from(n / 2) * 5, u64::from(n / 2) * 5 + 5).await.unwrap();
    }
    let table = lake.table(TableName::Events);
    assert_eq!(table.snapshot().files.len(), 20);
    assert_eq!(lake.small_files(), 20);
    assert_eq!((lake.merge_events().await.unwrap(), lake.small_files()), (20, 0));
    let merged = table.snapshot();
    assert_eq!((merged.files.len(), merged.positions.clone()), (1, BTreeMap::from([(0, 50), (1, 50)])));
    for partition in 0..2 {
        assert_eq!(offsets(&lake, partition).await, (0..50).collect::<Vec<_>>());
    }
    let pending = lake.write_events(vec![events(0, 50..51)]).await.unwrap();
    let count = || walk(dir.path()).len();
    assert_eq!(count(), 22);
    assert_eq!(table.delete_dead(i64::MAX / 2, 1).await.unwrap(), 20, "all but the live and the pending one");
    assert_eq!(count(), 2);
    let change = Change { add: pending, operation: "archive", ..Change::default() };
    table.commit(change).await.unwrap();
    let again = open(dir.path()).await.table(TableName::Events).snapshot();
    assert_eq!(again.files, table.snapshot().files);
    assert_eq!((again.positions, again.watermarks), (merged.positions, merged.watermarks));
}

pub(super) fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet")
            && !path.to_string_lossy().contains("checkpoint")
        {
            files.push(path);
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_stands_for_the_commits_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(dir.path()).await;
    for n in 0..101 {
        archive(&lake, 0, n, n + 1).await.unwrap();
    }
    lake.table(TableName::Events).checkpoint().await.unwrap();
    assert!(dir.path().join("events/_delta_log/_last_checkpoint").exists());
    archive(&lake, 0, 101, 102).await.unwrap();
    // The commits that the checkpoint stands for may go.
    for version in 0..100 {
        std::fs::remove_file(dir.path().join(format!("events/_delta_log/{version:020}.json"))).unwrap();
    }
    let again = open(dir.path()).await.table(TableName::Events).snapshot();
    assert_eq!((again.files.len(), again.positions), (102, BTreeMap::from([(0, 102)])));
}

/// How far, in ms, the latest of these events, received and told of at these times, came behind the newest before it.
fn latest_of(events: &[(i64, i64)]) -> i64 {
    let received = |before: usize| events[..before].iter().map(|(received_ms, _)| *received_ms).max();
    let late = events.iter().enumerate().filter_map(|(n, (_, told_ms))| Some(received(n)? - told_ms));
    late.max().unwrap_or(0).max(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn how_late_events_came_is_known_however_their_files_lie() {
    const HOUR_MS: i64 = 3_600_000;
    let mut random = 7u64;
    let mut below = |limit: i64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as i64 % limit
    };
    for case in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let lake = open(dir.path()).await;
        let (mut now_ms, mut told) = (1_770_000_000_000, [Vec::new(), Vec::new()]);
        for n in 0..8 {
            let events = &mut told[n % 2];
            let from = events.len();
            for _ in 0..20 {
                now_ms += below(6 * HOUR_MS);
                // Every second time the clock is not always the same, and files of one date do not follow each other.
                let received_ms = now_ms - if case % 2 == 0 { 0 } else { below(48 * HOUR_MS) };
                events.push((received_ms, received_ms - below((1 + case) * 12 * HOUR_MS)));
            }
            let rows = events.iter().zip(0..).skip(from).map(|((received_ms, told_ms), offset)| {
                (offset, received_ms * 1000, format!(r#"{{"timestamp":{told_ms},"message_token":1}}"#).into_bytes())
            });
            let (partition, from, to) = ((n % 2) as u32, from as u64, events.len() as u64);
            archive_rows(&lake, rows_of(partition, rows), partition, from, to).await.unwrap();
        }
        let all = BTreeMap::from([(0, 80), (1, 80)]);
        let widest_ms = latest_of(&told[0]).max(latest_of(&told[1]));
        assert_eq!(lake.widest_lateness(&all).await.unwrap(), widest_ms, "case {case}");
        let some = BTreeMap::from([(1, 33)]);
        assert_eq!(lake.widest_lateness(&some).await.unwrap(), latest_of(&told[1][..33]), "case {case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_never_commit_one_partition_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()).await, open(dir.path()).await);
    archive(&one, 0, 0, 5).await.unwrap();
    let late = archive(&two, 0, 0, 5).await.unwrap_err();
    let clash = Clash::Position { expected: None, found: Some(5) };
    assert!(matches!(&late, LakeError::Conflict { partition: Some(0), clash: found, .. } if *found == clash), "{late}");
    assert!(late.to_string().contains("another process has taken over partition 0"), "{late}");
    assert!(!late.is_transient());
    let other = archive(&two, 1, 0, 3).await.unwrap();
    assert_eq!(other.positions, BTreeMap::from([(0, 5), (1, 3)]), "another partition is nobody else's");
    assert_eq!(offsets(&two, 0).await, (0..5).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_another_log_or_place_is_told() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).await);
    let other = Lake::open(&dir.path().display().to_string(), &LogId("log-2".into()), 2).await.unwrap();
    assert_eq!(other.table(TableName::Events).foreign_log().as_deref(), Some("log-1"));
    let error = Lake::open("ftp://somewhere/", &log_id(), 2).await.err().unwrap();
    assert!(error.to_string().contains("ftp://somewhere/"), "{error}");
}

pub(crate) fn session_at(opened_at_ms: i64) -> SessionRow {
    SessionRow { opened_at_ms, ..session(1, 0) }
}

pub(super) fn session(n: u8, hour: i64) -> SessionRow {
    SessionRow {
        session_id: [n; 16],
        country: None,
        kind: Kind::Paid,
        state: SessionState::Open,
        opened_at_ms: hour * 3_600_000,
        expires_at_ms: hour * 3_600_000 + 1,
        closed: None,
        opened_by_token: u64::MAX,
        inbound: 0,
        outbound: 1,
        delivered: 0,
        seen: 0,
        failed: 0,
        charged: 0,
        overcharged: 0,
        first_response_ms: None,
        cost: None,
        currency: None,
        last_event_at_ms: 0,
        policy: "counterbat".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_hours_become_days() {
    let dir = tempfile::tempdir().unwrap();
    let lake = open(dir.path()).await;
    let table = lake.table(TableName::Sessions);
    let mut add = Vec::new();
    for hour in 480_000..480_036 {
        let mut rows = SessionRows::default();
        rows.push("bot", "user", &session((hour - 480_000) as u8, hour));
        let span = Span { partition: 1, start_hour: hour, end_hour: hour + 1 };
        add.push(table.write(Some(span), None, vec![rows.finish()]).await.unwrap());
    }
    table.commit(Change { add, operation: "test", ..Change::default() }).await.unwrap();
    assert_eq!(lake.merge_days(&BTreeMap::from([(1, 480_030)])).await.unwrap(), 24);
    let snapshot = table.snapshot();
    assert_eq!(snapshot.files.len(), 13);
    let index = bucket::index(&snapshot);
    let day = index.covering(1, 480_007).unwrap();
    assert_eq!((day.rows, day.span), (24, Some(Span { partition: 1, start_hour: 480_000, end_hour: 480_024 })));
    assert!(index.covering(0, 480_007).is_none() && index.covering(1, 480_036).is_none());
    let overlapping = index.overlapping(Span { partition: 1, start_hour: 480_020, end_hour: 480_026 });
    assert_eq!(overlapping.count(), 3);
    drop(index);
    let again = open(dir.path()).await.table(TableName::Sessions).snapshot();
    assert_eq!(again.files, snapshot.files, "spans are read back from the paths");
}
