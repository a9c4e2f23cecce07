//! The tables: Delta Lake over Parquet (spec §5).
//!
//! [`Table`] writes Parquet files, commits them with log positions in one Delta commit, and keeps the list of live
//! files. `events` is partitioned by date; `sessions` and `messages` lie in *buckets*: one file holds the rows of one
//! log partition whose reference time (`opened_at`, `sent_at`) falls into a [`Span`] of whole hours.

pub mod archive;
mod audit;
mod bounds;
pub mod bucket;
mod catch_up;
mod chain;
mod claim;
mod commit;
mod data_file;
mod event_rows;
mod generation;
pub mod kept;
mod kept_state;
mod location;
mod merge;
mod past;
pub mod picture;
mod probe;
pub mod rows;
mod s3;
pub mod schema;
#[cfg(test)]
mod shared_tests;
mod snapshot;
mod store;
#[cfg(test)]
mod store_tests;
mod switch;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod tidy;
mod transactions;

pub use archive::{EventsLayout, one_by_one};
pub use audit::Audited;
pub use claim::{Claim, Claimed};
pub use commit::Change;
pub use generation::{LONGEST_BUILD, rebuild_name, rebuild_number};
pub use kept::{GenerationInfo, Kept, is_generation_name};
pub use kept_state::KeptState;
pub use location::{Location, S3Settings};
pub use past::AsOf;
pub use switch::{Heard, Stage, Switch};
pub use table::Table;

use crate::log::LogId;
use generation::Place;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableSnapshot {
    pub version: u64,
    /// By path.
    pub files: Arc<BTreeMap<String, FileEntry>>,
    /// Next offset to be folded, by log partition, of this log (the `txn` actions).
    pub positions: BTreeMap<u32, u64>,
    /// The watermark in ms at that position, by log partition; ticks are not archived, so rows alone do not tell it.
    pub watermarks: BTreeMap<u32, i64>,
    /// When the record before that position was appended to the log, in µs, by log partition.
    pub appended_us: BTreeMap<u32, i64>,
    /// How often each log partition was claimed by a process, see [`Lake::claim`]: the newest claimant owns it.
    pub owners: BTreeMap<u32, i64>,
    /// Names the rebuild that the rows come from, see [`rebuild_name`]; 0 where there was none.
    pub rebuild: i64,
}

/// How a commit of this process does not fit what another has committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Clash {
    #[error("this process claimed it with number {held}, and {} is the newest", found.map_or("none".to_owned(), |found| found.to_string()))]
    Owner { held: i64, found: Option<i64> },
    #[error("it is committed up to position {}, and this process was to go on from {}", found.unwrap_or(0), expected.unwrap_or(0))]
    Position { expected: Option<u64>, found: Option<u64> },
    #[error("file {0} was replaced")]
    File(String),
    #[error("its rows are those of rebuild {found:x}")]
    Rebuilt { found: i64 },
}

/// Why the tables did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// The store refused: no room, no network, no rights. Trying again may help.
    #[error("the tables at {place} cannot be read or written: {reason}")]
    Store { place: String, reason: String },
    /// Another process commits what this one would. Where it concerns a partition, that process owns it now: what this one
    /// holds of it is to be dropped.
    #[error("another process has taken over {what}: {clash} in table {table}", what = partition.map_or("the work on this table".to_owned(), |partition| format!("partition {partition}")))]
    Conflict { table: &'static str, partition: Option<u32>, clash: Clash },
    /// A table has other columns than this program writes.
    #[error("table {table} at {place} has other columns than this program writes: {difference}")]
    Schema { table: &'static str, place: String, difference: String },
    /// The location is of a kind that is not supported.
    #[error("[lake] url is {0:?}: supported are a path, file:///path, s3://bucket/prefix and memory:///")]
    Location(String),
    /// The settings of the object store do not fit together, or are incomplete.
    #[error("the object store at {place} cannot be used: {reason}; see [lake.s3]")]
    Settings { place: String, reason: String },
    /// The object store does not keep its word, on which commits rely.
    #[error("the tables cannot be kept in the object store at {place}: {reason}")]
    Unfit { place: String, reason: String },
    /// A version of a table that is not there, or no longer.
    #[error("table {table} cannot be read {asked}: {reason}")]
    Past { table: &'static str, asked: String, reason: String },
    /// A generation's name cannot be one, or is taken, or there is none of it.
    #[error("{0}")]
    Generation(String),
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
    /// Kept generations that were opened.
    kept: Mutex<BTreeMap<String, Kept>>,
    /// The number of the newest word on a switch, and since when it is.
    heard: Mutex<Option<(u64, Instant)>>,
}

impl Lake {
    /// Opens the tables, or makes them, for a log of `partitions` partitions. An object store is tried out first:
    /// [`LakeError::Unfit`] where commits would get lost in it.
    pub async fn open(location: impl Into<Location>, log: &LogId, partitions: u32) -> Result<Self, LakeError> {
        Self::open_in(Store::open(&location.into()).await?, log, partitions, None).await
    }

    /// Opens them in a store that a test has made.
    #[cfg(test)]
    pub(crate) async fn over(objects: Arc<dyn ObjectStore>, log: &LogId, partitions: u32) -> Result<Self, LakeError> {
        let url = Url::parse("memory:///").map_err(|_| LakeError::Location("memory:///".to_owned()))?;
        Self::open_in(Store::over(objects, url), log, partitions, None).await
    }

    async fn open_in(store: Store, log: &LogId, partitions: u32, generation: Option<Place>) -> Result<Self, LakeError> {
        let mut tables = BTreeMap::new();
        for name in TableName::ALL {
            if generation.is_some() && name == TableName::Events {
                continue;
            }
            let folder = match &generation {
                Some(place) => place.folder(name),
                None => name.as_str().to_owned(),
            };
            tables.insert(name, Table::open(name, store.clone(), folder, log, partitions).await?);
        }
        let (kept, heard) = (Mutex::default(), Mutex::default());
        Ok(Self { store, log: log.clone(), partitions, tables, kept, heard })
    }

    /// A table.
    pub fn table(&self, name: TableName) -> &Table {
        // A generation has no events of its own, and nobody asks it for them.
        self.tables.get(&name).unwrap_or(&self.tables[&TableName::Sessions])
    }

    /// The tables as they were told, whatever is committed since. Only for reading.
    pub fn pinned(&self, snapshots: BTreeMap<TableName, TableSnapshot>) -> Self {
        let pin = |(name, snapshot)| (name, self.table(name).pinned(snapshot));
        Self {
            store: self.store.clone(),
            log: self.log.clone(),
            partitions: self.partitions,
            tables: snapshots.into_iter().map(pin).collect(),
            kept: Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// Brings the tables up to their newest versions in the store.
    pub async fn refresh(&self) -> Result<(), LakeError> {
        futures::future::try_join_all(self.tables.values().map(Table::refresh)).await.map(drop)
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
