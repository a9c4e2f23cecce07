//! The tables: Delta Lake over Parquet (spec §5).
//!
//! [`Table`] writes Parquet files, commits them with log positions in one Delta commit, and keeps the list of live
//! files. `events` is partitioned by date; `sessions` and `messages` lie in *buckets*: one file holds the rows of one
//! log partition whose reference time (`opened_at`, `sent_at`) falls into a [`Span`] of whole hours.

pub mod picture;

use std::collections::BTreeMap;
use std::sync::Arc;

/// The three tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableName {
    Events,
    Sessions,
    Messages,
}

/// The hours since the epoch `[start, end)` that a file of `sessions` or `messages` covers, in one log partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub partition: u32,
    pub start_hour: i64,
    pub end_hour: i64,
}

/// A live file of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct FileEntry {
    /// Relative to the table's root, as in the Delta log (decoded).
    pub path: String,
    pub size: u64,
    pub rows: u64,
    /// `None` for files of `events`.
    pub span: Option<Span>,
    /// Days since the epoch: the `date` partition value of a file of `events`.
    pub date: Option<i32>,
}

/// A table at one version.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    pub version: u64,
    /// By path.
    pub files: Arc<BTreeMap<String, FileEntry>>,
    /// Next offset to be folded, by log partition, of this log (the `txn` actions).
    pub positions: BTreeMap<u32, u64>,
}
