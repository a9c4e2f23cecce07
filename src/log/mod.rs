//! The log of events: append-only, partitioned, durable.
//!
//! Every implementation of [`EventLog`] keeps the same promises, and the same tests run against each.

pub mod embedded;
pub mod partitioner;
mod store;
#[cfg(test)]
mod suite;

use crate::event::{Event, Record};
use async_trait::async_trait;
use std::fmt;
use tokio::sync::watch;

/// Names one log for ever: made with the log, part of the `appId` of every table commit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// Why the log did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Nothing of the batch was acknowledged; trying again later may help (disk full, broker away).
    #[error("the log cannot be written: {0}")]
    Unwritable(String),
    /// Reading failed; trying again may help.
    #[error("the log cannot be read: partition {partition}, offset {offset}: {reason}")]
    Unreadable { partition: u32, offset: u64, reason: String },
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
    /// The log on disk is damaged or of a foreign version.
    #[error("the log in {path} cannot be opened: {reason}")]
    Broken { path: String, reason: String },
}

impl LogError {
    /// Whether the same request may succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, LogError::Unwritable(_) | LogError::Unreadable { .. })
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

    /// Reads records of a partition from `from` on, at most `max_records` and about `max_bytes` of data (at least
    /// one record if there is one). Empty at the end of the log.
    async fn read(
        &self,
        partition: u32,
        from: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError>;

    /// First offset still held, and the offset the next record will get.
    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError>;

    /// A value that changes whenever something was appended.
    fn appended(&self) -> watch::Receiver<u64>;

    /// Whether an append would now be accepted; writes nothing the fold can see.
    async fn check_writable(&self) -> Result<(), LogError>;

    /// Removes what retention says may go, never a record at or after `keep_from` of its partition (indexed by
    /// partition). Does nothing where retention is off.
    async fn retain(&self, keep_from: &[u64], now_us: i64) -> Result<(), LogError>;
}
