//! The archive of one partition against the log, offset by offset; what the log no longer has against its own data.

use super::report::{Finding, TooLate};
use super::{ProjectorError, Telling};
use crate::event::{Disposition, Event, Reading, Record, read};
use crate::lake::rows::{ArchivedEvents, EventRow, EventRows};
use crate::lake::{Lake, TableName, schema};
use crate::log::{EventLog, partitioner, read_before};
use arrow::array::{Array, RecordBatch};
use futures::TryStreamExt;
use std::collections::VecDeque;

/// Records read from the log at once.
const READ_RECORDS: usize = 8192;
const READ_BYTES: usize = 8 << 20;
/// Columns that are not in files.
const NOT_IN_FILES: &str = "date";

/// What there was to look at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Looked {
    pub archived: u64,
    pub log_records: u64,
    pub too_late: u64,
    /// Whether each record is there once, so that the archive can be folded.
    pub is_whole: bool,
}

/// Holds what is archived of a partition before `end` against the log. Records that came too late before `rebuilt` were
/// folded in by a rebuild.
pub(super) async fn check(
    log: &dyn EventLog,
    lake: &Lake,
    partition: u32,
    end: u64,
    rebuilt: u64,
    telling: &Telling<'_>,
) -> Result<Looked, ProjectorError> {
    let (start, _) = log.bounds(partition).await?;
    let mut held = Held { log, partition, next: start, end, records: VecDeque::new() };
    let mut walk = Walk { partition, rebuilt, last: None, runs: Runs::default(), looked: Looked::default() };
    let mut archive = lake.archive(partition).await?;
    while let Some(batch) = archive.try_next().await? {
        let mut rows = Vec::with_capacity(batch.num_rows());
        let archived = ArchivedEvents::new(&batch)?;
        for row in 0..batch.num_rows() {
            let (record, disposition) = archived.record(row)?;
            let offset = record.offset;
            while let Some(before) = held.take_before(offset).await? {
                walk.only_in_log(&before, telling);
            }
            let of_log = held.take_at(offset).await?;
            walk.archived(&record, disposition, of_log.is_some(), offset >= start, telling);
            rows.push((of_log.unwrap_or(record), disposition));
        }
        for (row, columns) in tokio::task::block_in_place(|| differences(partition, &rows, &batch, log.partitions())) {
            telling.find(Finding::Record { partition, offset: rows[row].0.offset, columns });
        }
        telling.advance(batch.num_rows() as u64);
    }
    while let Some(rest) = held.take_before(u64::MAX).await? {
        walk.only_in_log(&rest, telling);
    }
    walk.runs.end(partition, telling);
    Ok(Looked { is_whole: walk.runs.is_whole, ..walk.looked })
}

/// The records of the log from its start to the end that is looked at.
struct Held<'a> {
    log: &'a dyn EventLog,
    partition: u32,
    next: u64,
    end: u64,
    records: VecDeque<Record>,
}

impl Held<'_> {
    async fn peek(&mut self) -> Result<Option<u64>, ProjectorError> {
        if self.records.is_empty() && self.next < self.end {
            let (from, end) = (self.next, self.end);
            let fetched = read_before(self.log, self.partition, from, end, READ_RECORDS, READ_BYTES).await?;
            self.next = fetched.next;
            self.records = fetched.records.into();
        }
        Ok(self.records.front().map(|record| record.offset))
    }

    /// The next record, where it lies before this offset.
    async fn take_before(&mut self, offset: u64) -> Result<Option<Record>, ProjectorError> {
        Ok(if self.peek().await?.is_some_and(|next| next < offset) { self.records.pop_front() } else { None })
    }

    async fn take_at(&mut self, offset: u64) -> Result<Option<Record>, ProjectorError> {
        Ok(if self.peek().await? == Some(offset) { self.records.pop_front() } else { None })
    }
}

/// The way through both, in order of offset.
struct Walk {
    partition: u32,
    rebuilt: u64,
    last: Option<u64>,
    runs: Runs,
    looked: Looked,
}

impl Walk {
    fn only_in_log(&mut self, record: &Record, telling: &Telling<'_>) {
        self.looked.log_records += 1;
        if !record.event.is_tick() {
            self.runs.add(self.partition, Fault::Missing, record.offset, telling);
        }
    }

    fn archived(
        &mut self,
        record: &Record,
        disposition: Disposition,
        is_in_log: bool,
        must_be_in_log: bool,
        telling: &Telling<'_>,
    ) {
        self.looked.archived += 1;
        self.looked.log_records += u64::from(is_in_log);
        if self.last == Some(record.offset) {
            self.runs.add(self.partition, Fault::Repeated, record.offset, telling);
        } else if must_be_in_log && !is_in_log {
            self.runs.add(self.partition, Fault::Unknown, record.offset, telling);
        } else if disposition == Disposition::TooLate && record.offset >= self.rebuilt {
            self.looked.too_late += 1;
            let event_id = record.event.id.clone();
            telling.too_late(TooLate { partition: self.partition, offset: record.offset, event_id });
        }
        self.last = Some(record.offset);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Missing,
    Repeated,
    Unknown,
}

/// Offsets with the same fault, one after the other, are one finding.
struct Runs {
    open: Option<(Fault, u64, u64)>,
    is_whole: bool,
}

impl Default for Runs {
    fn default() -> Self {
        Self { open: None, is_whole: true }
    }
}

impl Runs {
    fn add(&mut self, partition: u32, fault: Fault, offset: u64, telling: &Telling<'_>) {
        self.is_whole &= fault == Fault::Repeated;
        match &mut self.open {
            Some((of, _, last)) if *of == fault && (*last + 1 == offset || *last == offset) => *last = offset,
            _ => {
                self.end(partition, telling);
                self.open = Some((fault, offset, offset));
            }
        }
    }

    fn end(&mut self, partition: u32, telling: &Telling<'_>) {
        let Some((fault, first, last)) = self.open.take() else { return };
        telling.find(match fault {
            Fault::Missing => Finding::Missing { partition, first, last },
            Fault::Repeated => Finding::Repeated { partition, first, last },
            Fault::Unknown => Finding::Unknown { partition, first, last },
        });
    }
}

/// The rows of an archived batch that differ from what these records give, with the columns.
fn differences(
    partition: u32,
    rows: &[(Record, Disposition)],
    batch: &RecordBatch,
    partitions: u32,
) -> Vec<(usize, Vec<String>)> {
    let mut wanted = EventRows::default();
    let mut classes = Vec::with_capacity(rows.len());
    for (record, disposition) in rows {
        let reading = reading(record, partition, partitions);
        let class = match (&reading.malformed, &reading.fact) {
            (Some(_), _) => *disposition == Disposition::Malformed,
            (None, None) => *disposition == Disposition::Info,
            (None, Some(_)) => !matches!(disposition, Disposition::Malformed | Disposition::Info),
        };
        classes.push(class);
        wanted.push(&EventRow { partition, record, reading: &reading, disposition: *disposition });
    }
    let Some(wanted) = wanted.finish() else { return Vec::new() };
    let mut found: Vec<(usize, Vec<String>)> = Vec::new();
    let mut note = |row: usize, column: &str| match found.iter_mut().find(|(at, _)| *at == row) {
        Some((_, columns)) => columns.push(column.to_owned()),
        None => found.push((row, vec![column.to_owned()])),
    };
    for field in schema::of(TableName::Events).fields().iter().filter(|field| field.name() != NOT_IN_FILES) {
        let (Some(is), Some(must)) = (batch.column_by_name(field.name()), wanted.column_by_name(field.name())) else {
            continue;
        };
        if is.as_ref() != must.as_ref() {
            (0..rows.len())
                .filter(|row| is.slice(*row, 1).as_ref() != must.slice(*row, 1).as_ref())
                .for_each(|row| note(row, field.name()));
        }
    }
    classes.iter().enumerate().filter(|(_, fits)| !**fits).for_each(|(row, _)| note(row, "disposition"));
    found.sort_by_key(|(row, _)| *row);
    found
}

/// What the fold reads of a record: of one in a wrong partition nothing.
fn reading(record: &Record, partition: u32, partitions: u32) -> Reading<'_> {
    let mut reading = read(&record.event, record.appended_at_us);
    if wanted_partition(&record.event, partitions) != partition {
        reading.malformed = Some("the record is in a wrong partition");
        reading.fact = None;
        reading.country = None;
    }
    reading
}

fn wanted_partition(event: &Event, partitions: u32) -> u32 {
    partitioner::partition(event.key().as_bytes(), partitions)
}

#[cfg(test)]
mod tests {
    use super::super::report::Told;
    use super::*;
    use crate::lake::Change;
    use crate::log::embedded::{EmbeddedLog, Options, Retention};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    fn record(offset: u64, status: i32) -> Record {
        let data = format!(r#"{{"request":{{}},"response":{{"status":{status},"message_token":7}}}}"#).into_bytes();
        let event = Event {
            id: format!("e{offset}"),
            source: "/accounts/bot".into(),
            kind: "com.viber.api.send_message".into(),
            subject: Some("ann".into()),
            time_us: Some(1_770_000_000_000_000),
            data,
            ..Event::default()
        };
        Record { offset, appended_at_us: 1_770_000_000_000_000, event }
    }

    fn batch(rows: &[(Record, Disposition)]) -> RecordBatch {
        let mut events = EventRows::default();
        for (record, disposition) in rows {
            let reading = read(&record.event, record.appended_at_us);
            events.push(&EventRow { partition: 0, record, reading: &reading, disposition: *disposition });
        }
        events.finish().unwrap()
    }

    #[test]
    fn columns_that_say_something_else_are_named() {
        let told = [(record(0, 0), Disposition::Fact), (record(1, 6), Disposition::Info)];
        assert_eq!(differences(0, &told, &batch(&told), 1), []);
        let other = [told[0].clone(), (record(1, 0), Disposition::Fact)];
        let found = differences(0, &told, &batch(&other), 1);
        assert_eq!(found, [(1, vec!["status".to_owned(), "disposition".into(), "data".into()])]);
        let wrong = [(told[0].0.clone(), Disposition::Info), told[1].clone()];
        assert_eq!(differences(0, &wrong, &batch(&wrong), 1), [(0, vec!["disposition".to_owned()])]);
    }

    #[test]
    fn of_a_misplaced_record_nothing_is_read() {
        let misplaced = record(0, 0);
        let partitions = (2..).find(|partitions| wanted_partition(&misplaced.event, *partitions) != 0).unwrap();
        let rows = |disposition| [(misplaced.clone(), disposition)];
        let mut archived = EventRows::default();
        let reading = reading(&misplaced, 0, partitions);
        let disposition = Disposition::Malformed;
        archived.push(&EventRow { partition: 0, record: &misplaced, reading: &reading, disposition });
        let archived = archived.finish().unwrap();
        assert_eq!(differences(0, &rows(disposition), &archived, partitions), []);
        let found = differences(0, &rows(disposition), &archived, 1);
        assert!(found[0].1.contains(&"disposition".to_owned()), "in its own partition it is a fact: {found:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn offsets_that_log_and_archive_do_not_have_in_common_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { partitions: 1, cache_bytes: 1 << 20, retention: Retention::default() };
        let clock = Arc::new(|| 1_770_000_000_000_000);
        let log = EmbeddedLog::open(&dir.path().join("log"), options, clock).unwrap();
        log.append((0..6).map(|offset| (0, record(offset, 0).event)).collect()).await.unwrap();
        let lake = Lake::open("memory:///", log.id(), 1).await.unwrap();
        // The third is missing, and there are some that the log never had.
        let rows: Vec<_> = [0, 1, 3, 4, 5, 6, 7].map(|offset| (record(offset, 0), Disposition::Fact)).into();
        let add = lake.write_events(vec![batch(&rows)]).await.unwrap();
        let positions = BTreeMap::from([(0, (None, 8))]);
        lake.table(TableName::Events).commit(Change { add, positions, ..Change::default() }).await.unwrap();
        let told = Mutex::new(Vec::new());
        let tell = |finding: Told| told.lock().unwrap().push(finding);
        let looked = check(&log, &lake, 0, 6, 0, &Telling::new(&tell)).await.unwrap();
        assert!(!looked.is_whole, "what is missing cannot be folded");
        assert_eq!((looked.archived, looked.log_records), (7, 6));
        let found: Vec<(&str, u64, u64)> = told.lock().unwrap().iter().map(offsets).collect();
        assert_eq!(found, [("missing", 2, 2), ("unknown", 6, 7)]);
    }

    fn offsets(told: &Told) -> (&'static str, u64, u64) {
        match told {
            Told::Finding(Finding::Missing { first, last, .. }) => ("missing", *first, *last),
            Told::Finding(Finding::Unknown { first, last, .. }) => ("unknown", *first, *last),
            other => panic!("{other:?}"),
        }
    }
}
