//! The log of events: append-only, partitioned, durable.
//!
//! Every implementation of [`EventLog`] keeps the same promises, and the same tests run against each.

pub mod embedded;
pub mod kafka;
pub mod partitioner;
pub mod registry;
pub mod spill;
mod store;
#[cfg(test)]
mod suite;

use crate::event::{Event, Record};
use async_trait::async_trait;
use registry::Registry;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Names one log for ever: made with the log, part of the `appId` of every table commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogId(pub String);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub partition: u32,
    pub offset: u64,
}

/// What a read found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// In order of offset.
    pub records: Vec<Record>,
    /// Where to read on. Often one after the last record, but offsets may have gaps: Kafka's transactions leave some.
    pub next: u64,
    /// The end of the partition as far as it is known: never before `next`.
    pub end: u64,
}

/// Why the log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing of the batch was acknowledged; trying again later may help (disk full, broker away).
    #[error("the log cannot be written: {0}")]
    Unwritable(String),
    /// Reading failed; trying again may help.
    #[error("the log cannot be read: partition {partition}, offset {offset}: {reason}")]
    Unreadable { partition: u32, offset: u64, reason: String },
    /// The client of the brokers has not come back, though it has time limits of its own. Another client helps.
    #[error("the client of the brokers has not come back for {after_s} s: {what}")]
    Stuck { what: String, after_s: u64 },
    /// The position asked for is not in the log (spec §7.6). No retry helps.
    #[error(
        "partition {partition} of log {log} has offsets {start}..{end}, but {wanted} was asked for: it was removed by retention, or this is another log"
    )]
    Gone { log: LogId, partition: u32, wanted: u64, start: u64, end: u64 },
    /// The log was made with another number of partitions. No retry helps.
    #[error(
        "this log was made with {made} partitions, the config asks for {asked}: the number is fixed once made; set [log] partitions = {made}"
    )]
    Partitions { made: u32, asked: u32 },
    /// Another process holds the data directory. Stop it first.
    #[error(
        "{path} is in use by another counterbat process: stop it, or work through it (sql, import and export do so by themselves)"
    )]
    InUse { path: String },
    /// The topic is not as it must be. No retry helps; the text says what to do.
    #[error("topic {topic}: {problem}; {mend}")]
    Topic { topic: String, problem: String, mend: String },
    /// A setting that the client of the brokers does not take. No retry helps.
    #[error("[kafka.properties] {name}: {reason}")]
    Property { name: String, reason: String },
    /// What waits for another log would go astray in this one. No retry helps.
    #[error(
        "{path} holds {events} events that wait for the log {other}, which is not the one of the settings: serve once with the settings of that log, until they are in it, or move the folder away"
    )]
    Spilled { path: String, events: u64, other: LogId },
    /// The log on disk is damaged or of a foreign version.
    #[error("the log in {path} cannot be opened: {reason}")]
    Broken { path: String, reason: String },
}

impl LogError {
    /// Whether the same request may succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Unwritable(_) | LogError::Unreadable { .. } | LogError::Stuck { .. })
    }
}

/// An append-only partitioned log of events.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// The id made with the log.
    fn id(&self) -> &LogId;

    /// Number of partitions, fixed when the log was made.
    fn partitions(&self) -> u32;

    /// Appends the events, each to the partition named with it, in order. When this returns `Ok` all of them are
    /// durable and readable; positions are in the order given. On `Err` none was acknowledged, though some may be
    /// there: the fold drops repeats. Once polled it runs to its end even when the caller is dropped.
    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError>;

    /// Reads records of a partition from `from` on, at most `max_records` and about `max_bytes` of data. Without records
    /// where `from` is the end, or where what comes next is still on its way: [`EventLog::appended`] tells of it.
    async fn read(&self, partition: u32, from: u64, max_records: usize, max_bytes: usize) -> Result<Fetched, LogError>;

    /// First offset still held, and the offset the next record will get.
    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError>;

    /// A value that changes whenever a read may find more than the one before.
    fn appended(&self) -> watch::Receiver<u64>;

    /// Whether an append would now be accepted; writes nothing the fold can see.
    async fn check_writable(&self) -> Result<(), LogError>;

    /// Joins those that share the partitions of this log, under a name that is this process's for good. `None` where the
    /// log is one process's alone, which then has all of it.
    async fn join(&self, _instance: &str) -> Result<Option<Arc<dyn Group>>, LogError> {
        Ok(None)
    }

    /// What the processes of this log tell each other. `None`: this log is one process's alone.
    async fn registry(&self) -> Result<Option<Arc<dyn Registry>>, LogError> {
        Ok(None)
    }

    /// Removes what retention says may go, never a record at or after `keep_from` of its partition (indexed by
    /// partition). Does nothing where retention is off.
    async fn retain(&self, keep_from: &[u64], now_us: i64) -> Result<(), LogError>;
}

/// The partitions that are this process's to fold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    /// Grows with every change.
    pub number: u64,
    /// In order.
    pub partitions: Vec<u32>,
    /// The newest change by which partitions were lost before they were let go: others may have them, so nothing that
    /// began before it may be committed. 0: none.
    pub lost: u64,
}

/// A change of the fold's state: a value that is set, or taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// Of the log.
    pub partition: u32,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// How far the state of a partition was stored for whoever takes it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed {
    pub partition: u32,
    /// The next offset to fold.
    pub position: u64,
    /// Names the run of changes that the position belongs to.
    pub basis: String,
}

/// The processes that share the partitions of a log, and the state they hand to each other.
#[async_trait]
pub trait Group: Send + Sync + 'static {
    /// What is assigned to this process; changes as others come and go.
    fn assignment(&self) -> watch::Receiver<Assignment>;

    /// Tells that no assignment before this one is worked on any more. Partitions that are taken away stay until then.
    fn enter(&self, number: u64);

    /// What was stored last of a partition, by whomever.
    async fn handed(&self, partition: u32) -> Result<Option<Handed>, LogError>;

    /// Stores changes and positions, all or nothing. Fails where a partition is no longer this process's.
    async fn store(&self, changes: Vec<StateChange>, positions: Vec<Handed>) -> Result<(), LogError>;

    /// Reads the stored changes of a partition, oldest first, until `each` says false; a key may come many times.
    async fn restore(&self, partition: u32, each: Box<dyn FnMut(StateChange) -> bool + Send>) -> Result<(), LogError>;
}

/// The end of every partition.
pub async fn ends(log: &dyn EventLog) -> Result<Vec<u64>, LogError> {
    let bounds = (0..log.partitions()).map(|partition| log.bounds(partition));
    Ok(futures::future::try_join_all(bounds).await?.into_iter().map(|(_, end)| end).collect())
}

/// So often a reader that waits looks again although nothing has told of more: what tells may be missed, and a client of
/// Kafka that stands still tells nothing at all.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// So long nothing may come of what is there.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads on in what lies before `end`, an offset the log is known to reach, and waits for what is on its way: there are
/// records, or `next` is `end`.
pub async fn read_before(
    log: &dyn EventLog,
    partition: u32,
    from: u64,
    end: u64,
    max_records: usize,
    max_bytes: usize,
) -> Result<Fetched, LogError> {
    let mut appended = log.appended();
    let mut next = from;
    // Whatever else comes in wakes this up as well, so the time is kept apart from that.
    let mut deadline = Instant::now() + PATIENCE;
    while next < end {
        let mut fetched = log.read(partition, next, max_records, max_bytes).await?;
        fetched.records.retain(|record| record.offset < end);
        fetched.next = fetched.next.min(end);
        if !fetched.records.is_empty() {
            return Ok(fetched);
        }
        if fetched.next > next {
            deadline = Instant::now() + PATIENCE;
        } else if Instant::now() > deadline {
            let reason = format!("nothing has come for {} s, though the partition ends at {end}", PATIENCE.as_secs());
            return Err(LogError::Unreadable { partition, offset: next, reason });
        } else {
            // In time or not: it is looked at again.
            let _ = tokio::time::timeout(LOOK_EVERY, appended.changed()).await;
        }
        next = fetched.next;
    }
    Ok(Fetched { records: Vec::new(), next: next.max(from), end })
}
