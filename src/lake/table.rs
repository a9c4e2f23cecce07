//! One Delta table: files in, commits with positions.
//!
//! Commits are written (`commit`) and read (`catch_up`) here, as the JSON that the Delta protocol asks for, and the list of
//! live files is kept from them. So a commit costs what it changes, however many files there are. Opening, checkpoints,
//! log clean-up, and what our own commits never say, are `deltalake`'s.

use super::data_file::{encode, file_path, with_partition_column};
use super::snapshot::Step;
use super::store::Store;
use super::{FileEntry, LakeError, Span, TableName, TableSnapshot, schema};
use crate::log::LogId;
use arrow::array::RecordBatch;
use deltalake::DeltaTable;
use deltalake::kernel::StructType;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::logstore::{StorageConfig, default_logstore};
use deltalake::operations::create::CreateBuilder;
use object_store::path::Path as ObjectPath;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a table's commits lie.
pub(super) const LOG_FOLDER: &str = "_delta_log";
/// The property that names the log a table belongs to.
const LOG_PROPERTY: &str = "counterbat.logId";

/// A Delta table.
pub struct Table {
    name: TableName,
    pub(super) store: Store,
    /// Below the store's root.
    pub(super) folder: String,
    pub(super) log: LogId,
    pub(super) partitions: u32,
    pub(super) current: Mutex<TableSnapshot>,
    foreign_log: Option<String>,
    /// One commit at a time.
    pub(super) committing: tokio::sync::Mutex<()>,
    /// Commits that failed without an answer: they may have been written, or still be.
    pub(super) unanswered: Mutex<HashSet<u64>>,
    /// By partition, the owner number that this process committed; none is looked at for a partition that is not there.
    pub(super) held: Mutex<BTreeMap<u32, i64>>,
    /// Files written but not committed yet: no orphans.
    pub(super) pending: Mutex<HashSet<String>>,
    /// Folders of generations that are being built below it: none of their files is an orphan.
    pub(super) building: Mutex<HashSet<String>>,
    /// Files that are no longer live, since when (ms).
    pub(super) dead: Mutex<BTreeMap<String, i64>>,
    /// The version of the last checkpoint this process knows of.
    pub(super) checkpointed: Mutex<u64>,
}

impl Table {
    pub(super) async fn open(
        name: TableName,
        store: Store,
        folder: String,
        log: &LogId,
        partitions: u32,
    ) -> Result<Self, LakeError> {
        let exists = delta(&store, &folder)?.verify_deltatable_existence().await;
        if !exists.map_err(|error| store.failed(&error))? {
            create(name, &store, &folder, log).await?;
        }
        let mut table = Self {
            name,
            store,
            folder,
            log: log.clone(),
            partitions,
            current: Mutex::default(),
            foreign_log: None,
            committing: tokio::sync::Mutex::new(()),
            unanswered: Mutex::default(),
            held: Mutex::default(),
            pending: Mutex::default(),
            building: Mutex::default(),
            dead: Mutex::default(),
            checkpointed: Mutex::default(),
        };
        let loaded = table.load().await?;
        table.foreign_log = table.check(&loaded)?;
        table.take(Step::from(table.read_whole(&loaded).await?));
        table.note_tombstones(&loaded).await?;
        Ok(table)
    }

    /// The table's name.
    pub fn name(&self) -> TableName {
        self.name
    }

    /// The id of the log this table was made for, where it is not ours.
    pub fn foreign_log(&self) -> Option<String> {
        self.foreign_log.clone()
    }

    /// The table as committed last.
    pub fn snapshot(&self) -> TableSnapshot {
        lock(&self.current).clone()
    }

    /// A handle that has nothing loaded yet.
    pub(super) fn handle(&self) -> Result<DeltaTable, LakeError> {
        delta(&self.store, &self.folder)
    }

    pub(super) async fn load(&self) -> Result<DeltaTable, LakeError> {
        let mut table = self.handle()?;
        table.load().await.map_err(|error| self.store.failed(&error))?;
        Ok(table)
    }

    fn check(&self, table: &DeltaTable) -> Result<Option<String>, LakeError> {
        let state = table.snapshot().map_err(|error| self.store.failed(&error))?;
        let ours = delta_schema(self.name).map_err(|error| LakeError::Damaged(error.to_string()))?;
        let theirs = state.schema();
        let describe = |schema: &StructType| -> Vec<String> {
            schema.fields().map(|field| format!("{} {}", field.name(), field.data_type())).collect()
        };
        let (ours, theirs) = (describe(&ours), describe(&theirs));
        if ours != theirs {
            let missing = ours.iter().filter(|column| !theirs.contains(column));
            let other = theirs.iter().filter(|column| !ours.contains(column));
            let list = |columns: &mut dyn Iterator<Item = &String>| columns.cloned().collect::<Vec<_>>().join(", ");
            return Err(LakeError::Schema {
                table: self.name.as_str(),
                place: self.folder.clone(),
                difference: format!(
                    "missing [{}], unknown [{}]",
                    list(&mut missing.into_iter()),
                    list(&mut other.into_iter())
                ),
            });
        }
        let log = state.metadata().configuration().get(LOG_PROPERTY).cloned();
        Ok(log.filter(|log| *log != self.log.0))
    }

    pub(super) fn object_path(&self, path: &str) -> ObjectPath {
        ObjectPath::from_iter(self.folder.split('/').chain(path.split('/')))
    }

    pub(super) fn rebuilt_app(&self, partition: u32) -> String {
        format!("counterbat/{}/{partition}/rebuilt", self.log)
    }

    /// Writes rows as one Parquet file, durably; it is not part of the table until it is committed. Files of `events`
    /// have a date and rows of that date only, files of the others a span.
    pub async fn write(
        &self,
        span: Option<Span>,
        date: Option<i32>,
        batches: Vec<RecordBatch>,
    ) -> Result<FileEntry, LakeError> {
        let name = self.name;
        let encoded = tokio::task::spawn_blocking(move || encode(name, batches)).await;
        let encoded = encoded.map_err(|error| self.store.failed(&error))?;
        let (bytes, rows, stats) = encoded.map_err(|error| LakeError::Damaged(error.to_string()))?;
        let path = file_path(span, date);
        lock(&self.pending).insert(path.clone());
        let size = bytes.len() as u64;
        self.store.put(&self.object_path(&path), bytes).await?;
        Ok(FileEntry { path, size, rows, span, date, stats: Some(stats) })
    }

    /// Reads a file whole, with all columns of the table.
    pub async fn read(&self, file: &FileEntry) -> Result<Vec<RecordBatch>, LakeError> {
        let bytes = self.store.get(&self.object_path(&file.path)).await?;
        let (name, path, date) = (self.name, file.path.clone(), file.date);
        let read = move || -> Result<Vec<RecordBatch>, LakeError> {
            let damaged =
                |error: &dyn std::fmt::Display| LakeError::Damaged(format!("{}/{path}: {error}", name.as_str()));
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
                .and_then(|builder| builder.with_batch_size(8192).build())
                .map_err(|error| damaged(&error))?;
            reader.map(|batch| with_partition_column(name, date, batch.map_err(|error| damaged(&error))?)).collect()
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| self.store.failed(&error))?
    }
}

/// Locks a mutex whose content is whole at any time, so that a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle for what `deltalake` does.
fn delta(store: &Store, folder: &str) -> Result<DeltaTable, LakeError> {
    let (objects, url) = store.whole(folder)?;
    // Not through its builder, which finds a store by the URL's scheme among those it was built with.
    let config = StorageConfig::default();
    let table = config.decorate_store(objects.clone(), &url).map_err(|error| store.failed(&error))?;
    Ok(DeltaTable::new(default_logstore(Arc::new(table), objects, &url, &config)))
}

fn delta_schema(name: TableName) -> Result<StructType, arrow::error::ArrowError> {
    schema::of(name).as_ref().try_into_kernel()
}

/// Commits the first version, unless there is one.
async fn create(name: TableName, store: &Store, folder: &str, log: &LogId) -> Result<(), LakeError> {
    let columns = delta_schema(name).map_err(|error| LakeError::Damaged(error.to_string()))?;
    // Made in memory and copied, so that it is written like every commit: by whoever is first, and once.
    let draft = Store::in_memory()?;
    CreateBuilder::new()
        .with_log_store(delta(&draft, folder)?.log_store())
        .with_table_name(name.as_str())
        .with_columns(columns.fields().cloned())
        .with_partition_columns(schema::partition_columns(name).iter().copied())
        .with_configuration([
            ("delta.checkpointInterval", Some("100")),
            ("delta.logRetentionDuration", Some("interval 1 day")),
            ("delta.deletedFileRetentionDuration", Some("interval 1 day")),
            (LOG_PROPERTY, Some(log.0.as_str())),
        ])
        .with_raise_if_key_not_exists(false)
        .await
        .map_err(|error| store.failed(&error))?;
    let first = ObjectPath::from(format!("{folder}/{LOG_FOLDER}/{:020}.json", 0));
    store.create(&first, draft.get(&first).await?).await.map(drop)
}
