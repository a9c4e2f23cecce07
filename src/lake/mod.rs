//! The tables: Delta Lake over Parquet (spec §5).
//!
//! [`Table`] writes Parquet files, commits them with log positions in one Delta commit, and keeps the list of live
//! files. `events` is partitioned by date; `sessions` and `messages` lie in *buckets*: one file holds the rows of one
//! log partition whose reference time (`opened_at`, `sent_at`) falls into a [`Span`] of whole hours.

pub mod archive;
pub mod bucket;
mod event_rows;
mod generation;
mod merge;
pub mod picture;
pub mod rows;
pub mod schema;
mod store;
mod stub;
mod table;
#[cfg(test)]
mod tests;
mod tidy;

pub use table::{Change, Table};

use crate::log::LogId;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::Store;
use url::Url;

/// The three tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TableName {
    Events,
    Sessions,
    Messages,
}

impl TableName {
    /// All of them, in the order they are committed.
    pub const ALL: [TableName; 3] = [TableName::Events, TableName::Messages, TableName::Sessions];

    /// The table's name in SQL and its folder.
    pub fn as_str(self) -> &'static str {
        match self {
            TableName::Events => "events",
            TableName::Sessions => "sessions",
            TableName::Messages => "messages",
        }
    }

    /// The table of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.as_str() == name)
    }
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
    /// Delta's statistics of the file, as JSON.
    pub stats: Option<String>,
}

/// A table at one version.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    pub version: u64,
    /// By path.
    pub files: Arc<BTreeMap<String, FileEntry>>,
    /// Next offset to be folded, by log partition, of this log (the `txn` actions).
    pub positions: BTreeMap<u32, u64>,
    /// The watermark in ms at that position, by log partition; ticks are not archived, so rows alone do not tell it.
    pub watermarks: BTreeMap<u32, i64>,
    pub appended_us: BTreeMap<u32, i64>,
}

/// Why the tables did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The store refused: no room, no network, no rights. Trying again may help.
    #[error("the tables at {place} cannot be read or written: {reason}")]
    Store { place: String, reason: String },
    /// Another process committed this partition. It owns the partition now.
    #[error("partition {partition} of {table} stands at {found:?}, not at {expected:?}: another process commits it")]
    Conflict { table: &'static str, partition: u32, expected: Option<u64>, found: Option<u64> },
    /// A table has other columns than this program writes.
    #[error("table {table} at {place} has other columns than this program writes: {difference}")]
    Schema { table: &'static str, place: String, difference: String },
    /// The location is of a kind that is not supported.
    #[error("[lake] url is {0:?}: supported are a path, file:///path and memory:///")]
    Location(String),
    /// What is in a file or log cannot be understood.
    #[error("the tables are damaged: {0}")]
    Damaged(String),
}

impl LakeError {
    /// Whether the same request may succeed later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        matches!(self, LakeError::Store { .. })
    }
}

/// The three tables in one place.
pub struct Lake {
    store: Store,
    log: LogId,
    partitions: u32,
    tables: BTreeMap<TableName, Table>,
    /// Path prefix below the store's root for a generation's tables.
    generation: Option<String>,
}

impl Lake {
    /// Opens the tables at `url` (a path, `file://…` or `memory:///`), or makes them, for a log of `partitions` partitions.
    pub async fn open(url: &str, log: &LogId, partitions: u32) -> Result<Self, LakeError> {
        Self::open_in(Store::open(url)?, log, partitions, None).await
    }

    async fn open_in(
        store: Store,
        log: &LogId,
        partitions: u32,
        generation: Option<String>,
    ) -> Result<Self, LakeError> {
        let mut tables = BTreeMap::new();
        for name in TableName::ALL {
            if generation.is_some() && name == TableName::Events {
                continue;
            }
            let folder = match &generation {
                Some(generation) => format!("{}/{}", name.as_str(), generation::folder(generation)),
                None => name.as_str().to_owned(),
            };
            tables.insert(name, Table::open(name, store.clone(), folder, log, partitions).await?);
        }
        Ok(Self { store, log: log.clone(), partitions, tables, generation })
    }

    /// A table.
    pub fn table(&self, name: TableName) -> &Table {
        // A generation has no events of its own, and nobody asks it for them.
        self.tables.get(&name).unwrap_or(&self.tables[&TableName::Sessions])
    }

    /// Reads the tables anew from the store.
    pub async fn refresh(&self) -> Result<(), LakeError> {
        for table in self.tables.values() {
            table.refresh().await?;
        }
        Ok(())
    }

    /// The store that holds the tables, and the URL to register it under.
    pub fn object_store(&self) -> (Url, Arc<dyn ObjectStore>) {
        (self.store.registration(), self.store.objects())
    }

    /// Where a file lies in that store.
    pub fn location(&self, name: TableName, file: &FileEntry) -> ObjectPath {
        self.table(name).object_path(&file.path)
    }
}
