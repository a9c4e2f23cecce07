//! One Delta table: files in, commits with positions.
//!
//! Commits are written here, as the JSON that the Delta protocol asks for, under a name that must be new; the list of
//! live files is kept from our own commits. So a commit costs what it changes, however many files there are. Opening,
//! reading a foreign commit, checkpoints and log clean-up are `deltalake`'s.

use super::store::{Created, Store};
use super::{FileEntry, LakeError, Span, TableName, TableSnapshot, schema};
use crate::log::LogId;
use arrow::array::RecordBatch;
use bytes::Bytes;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, Add, Remove, StructType, Transaction};
use deltalake::operations::create::CreateBuilder;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableBuilder};
use object_store::path::Path as ObjectPath;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a table's commits lie.
const LOG_FOLDER: &str = "_delta_log";
/// The property that names the log a table belongs to.
const LOG_PROPERTY: &str = "counterbat.logId";
const ROW_GROUP: usize = 131_072;
/// Files with fewer rows are compressed by what is cheap to set up.
const SMALL_ROWS: usize = 20_000;
/// How often a commit is tried on the next version when others take the names.
const TRIES: usize = 20;

/// What a commit changes.
#[derive(Debug, Default)]
pub struct Change {
    pub add: Vec<FileEntry>,
    pub remove: Vec<FileEntry>,
    /// By partition: the position expected in the table, and the new one.
    pub positions: BTreeMap<u32, (Option<u64>, u64)>,
    /// By partition, in ms.
    pub watermarks: BTreeMap<u32, i64>,
    pub appended_us: BTreeMap<u32, i64>,
    /// What is being done, for the commit's information.
    pub operation: &'static str,
}

/// A Delta table.
pub struct Table {
    name: TableName,
    pub(super) store: Store,
    /// Below the store's root.
    pub(super) folder: String,
    log: LogId,
    partitions: u32,
    current: Mutex<TableSnapshot>,
    foreign_log: Option<String>,
    /// One commit at a time.
    committing: tokio::sync::Mutex<()>,
    /// Files written but not committed yet: no orphans.
    pub(super) pending: Mutex<HashSet<String>>,
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
        let handle = delta(&store, &folder)?;
        if !handle.verify_deltatable_existence().await.map_err(|error| store.failed(&error))? {
            create(name, &store, &folder, log).await?;
        }
        let empty = TableSnapshot {
            version: 0,
            files: Arc::default(),
            positions: BTreeMap::new(),
            watermarks: BTreeMap::new(),
            appended_us: BTreeMap::new(),
        };
        let mut table = Self {
            name,
            store,
            folder,
            log: log.clone(),
            partitions,
            current: Mutex::new(empty),
            foreign_log: None,
            committing: tokio::sync::Mutex::new(()),
            pending: Mutex::default(),
            dead: Mutex::default(),
            checkpointed: Mutex::default(),
        };
        let loaded = table.load().await?;
        table.foreign_log = table.check(&loaded)?;
        table.refresh().await?;
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

    pub(super) async fn load(&self) -> Result<DeltaTable, LakeError> {
        let mut table = delta(&self.store, &self.folder)?;
        table.load().await.map_err(|error| self.store.failed(&error))?;
        Ok(table)
    }

    /// Reads the table anew from the store.
    pub async fn refresh(&self) -> Result<(), LakeError> {
        let table = self.load().await?;
        let failed = |error: deltalake::DeltaTableError| self.store.failed(&error);
        let state = table.snapshot().map_err(failed)?;
        let mut files = BTreeMap::new();
        for view in state.log_data() {
            let path = view.path().into_owned();
            let date = view.partition_values_map().get("date").cloned().flatten();
            let entry = FileEntry {
                span: span_of(&path),
                date: date.as_deref().and_then(parse_date),
                size: u64::try_from(view.size()).unwrap_or(0),
                rows: view.num_records().unwrap_or(0) as u64,
                stats: view.stats(),
                path: path.clone(),
            };
            files.insert(path, entry);
        }
        let (mut positions, mut watermarks) = (BTreeMap::new(), BTreeMap::new());
        let log_store = table.log_store();
        for partition in 0..self.partitions {
            let version = |app_id: String| state.transaction_version(log_store.as_ref(), app_id);
            if let Some(position) = version(self.position_app(partition)).await.map_err(failed)? {
                positions.insert(partition, u64::try_from(position).unwrap_or(0));
            }
            if let Some(watermark_ms) = version(self.watermark_app(partition)).await.map_err(failed)? {
                watermarks.insert(partition, watermark_ms);
            }
        }
        let version = state.version();
        *lock(&self.current) = TableSnapshot { version, files: Arc::new(files), positions, watermarks, appended_us: BTreeMap::new() };
        Ok(())
    }

    /// The version of the application transaction of that name that was committed last.
    pub(super) async fn transaction(&self, app_id: &str) -> Result<Option<i64>, LakeError> {
        let table = self.load().await?;
        let state = table.snapshot().map_err(|error| self.store.failed(&error))?;
        let version = state.transaction_version(table.log_store().as_ref(), app_id).await;
        version.map_err(|error| self.store.failed(&error))
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

    fn position_app(&self, partition: u32) -> String {
        format!("counterbat/{}/{partition}", self.log)
    }

    pub(super) fn rebuilt_app(&self, partition: u32) -> String {
        format!("counterbat/{}/{partition}/rebuilt", self.log)
    }

    fn watermark_app(&self, partition: u32) -> String {
        format!("counterbat/{}/{partition}/watermark", self.log)
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

    /// Commits a change: all of it, or nothing. The expected positions are held against the very snapshot the commit is
    /// built on.
    pub async fn commit(&self, change: Change) -> Result<TableSnapshot, LakeError> {
        self.commit_with(change, true, Vec::new()).await
    }

    /// [`Table::commit`]; `data_change` is false where rows are only laid out anew.
    pub(super) async fn commit_with(
        &self,
        change: Change,
        data_change: bool,
        extra: Vec<Transaction>,
    ) -> Result<TableSnapshot, LakeError> {
        let _one = self.committing.lock().await;
        for _ in 0..TRIES {
            let base = self.snapshot();
            self.check_base(&base, &change)?;
            let version = base.version + 1;
            let bytes = self.commit_bytes(&change, data_change, &extra)?;
            let path = self.object_path(&format!("{LOG_FOLDER}/{version:020}.json"));
            match self.store.create(&path, bytes).await? {
                Created::Yes => return Ok(self.apply(base, version, change)),
                Created::Exists => self.refresh().await?,
            }
        }
        Err(self.store.failed(&"others commit faster than this process"))
    }

    fn check_base(&self, base: &TableSnapshot, change: &Change) -> Result<(), LakeError> {
        for (partition, (expected, _)) in &change.positions {
            let found = base.positions.get(partition).copied();
            if found != *expected {
                let (table, partition, expected) = (self.name.as_str(), *partition, *expected);
                return Err(LakeError::Conflict { table, partition, expected, found });
            }
        }
        match change.remove.iter().find(|file| !base.files.contains_key(&file.path)) {
            Some(file) => {
                let partition = file.span.map_or(0, |span| span.partition);
                Err(LakeError::Conflict { table: self.name.as_str(), partition, expected: None, found: None })
            }
            None => Ok(()),
        }
    }

    fn commit_bytes(&self, change: &Change, data_change: bool, extra: &[Transaction]) -> Result<Bytes, LakeError> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let partition_values = |file: &FileEntry| -> HashMap<String, Option<String>> {
            file.date.map(|date| ("date".to_owned(), Some(format_date(date)))).into_iter().collect()
        };
        let removes = change.remove.iter().map(|file| {
            Action::Remove(Remove {
                path: file.path.clone(),
                data_change,
                deletion_timestamp: Some(now_ms),
                extended_file_metadata: Some(true),
                partition_values: Some(partition_values(file)),
                size: Some(i64::try_from(file.size).unwrap_or(i64::MAX)),
                ..Remove::default()
            })
        });
        let adds = change.add.iter().map(|file| {
            Action::Add(Add {
                path: file.path.clone(),
                partition_values: partition_values(file),
                size: i64::try_from(file.size).unwrap_or(i64::MAX),
                modification_time: now_ms,
                data_change,
                stats: file.stats.clone(),
                ..Add::default()
            })
        });
        let mut transactions = extra.to_vec();
        for (partition, (_, position)) in &change.positions {
            let version = i64::try_from(*position).unwrap_or(i64::MAX);
            transactions.push(Transaction::new_with_last_update(self.position_app(*partition), version, Some(now_ms)));
        }
        for (partition, watermark_ms) in &change.watermarks {
            transactions.push(Transaction::new_with_last_update(
                self.watermark_app(*partition),
                *watermark_ms,
                Some(now_ms),
            ));
        }
        let partition_by = match schema::partition_columns(self.name) {
            [] => None,
            columns => Some(columns.iter().map(|column| (*column).to_owned()).collect()),
        };
        let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
        let metadata = HashMap::from([("counterbat".to_owned(), serde_json::Value::from(change.operation))]);
        CommitData::new(removes.chain(adds).collect(), operation, metadata, transactions)
            .get_bytes()
            .map_err(|error| LakeError::Damaged(error.to_string()))
    }

    fn apply(&self, base: TableSnapshot, version: u64, change: Change) -> TableSnapshot {
        let mut snapshot = base;
        snapshot.version = version;
        let files = Arc::make_mut(&mut snapshot.files);
        let now_ms = chrono::Utc::now().timestamp_millis();
        let mut dead = lock(&self.dead);
        for file in change.remove {
            files.remove(&file.path);
            dead.insert(file.path, now_ms);
        }
        let mut pending = lock(&self.pending);
        for file in change.add {
            pending.remove(&file.path);
            dead.remove(&file.path);
            files.insert(file.path.clone(), file);
        }
        for (partition, (_, position)) in change.positions {
            snapshot.positions.insert(partition, position);
        }
        snapshot.watermarks.extend(change.watermarks);
        *lock(&self.current) = snapshot.clone();
        snapshot
    }
}

/// Locks a mutex whose content is whole at any time, so that a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle for what `deltalake` does.
fn delta(store: &Store, folder: &str) -> Result<DeltaTable, LakeError> {
    let (objects, url) = store.whole(folder)?;
    DeltaTableBuilder::from_url(url.clone())
        .map(|builder| builder.with_storage_backend(objects, url))
        .and_then(DeltaTableBuilder::build)
        .map_err(|error| store.failed(&error))
}

fn delta_schema(name: TableName) -> Result<StructType, arrow::error::ArrowError> {
    schema::of(name).as_ref().try_into_kernel()
}

async fn create(name: TableName, store: &Store, folder: &str, log: &LogId) -> Result<(), LakeError> {
    let columns = delta_schema(name).map_err(|error| LakeError::Damaged(error.to_string()))?;
    let handle = delta(store, folder)?;
    CreateBuilder::new()
        .with_log_store(handle.log_store())
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
    store.sync_folder(folder).await
}

/// Parquet bytes, number of rows, and Delta statistics.
fn encode(name: TableName, batches: Vec<RecordBatch>) -> Result<(Bytes, u64, String), parquet::errors::ParquetError> {
    // Zstandard sets up a large context for every column of every file, which costs more than a small file itself.
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let compression = if rows < SMALL_ROWS { Compression::SNAPPY } else { Compression::ZSTD(ZstdLevel::try_new(1)?) };
    let mut properties =
        WriterProperties::builder().set_compression(compression).set_max_row_group_row_count(Some(ROW_GROUP));
    for column in schema::distinct(name) {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), false);
    }
    let properties = properties.build();
    let file_schema = schema::in_files(name);
    let mut writer = ArrowWriter::try_new(Vec::new(), file_schema.clone(), Some(properties))?;
    let mut stats = super::bucket::Statistics::new(name);
    for batch in &batches {
        stats.add(batch);
        let columns = file_schema.fields().iter().filter_map(|field| batch.column_by_name(field.name()).cloned());
        writer.write(&RecordBatch::try_new(file_schema.clone(), columns.collect())?)?;
    }
    let bytes = writer.into_inner()?;
    Ok((bytes.into(), stats.rows(), stats.to_json()))
}

fn with_partition_column(name: TableName, date: Option<i32>, batch: RecordBatch) -> Result<RecordBatch, LakeError> {
    if schema::partition_columns(name).is_empty() {
        return Ok(batch);
    }
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(arrow::array::Date32Array::from(vec![date.unwrap_or(0); batch.num_rows()])));
    RecordBatch::try_new(schema::of(name), columns).map_err(|error| LakeError::Damaged(error.to_string()))
}

fn format_date(days: i32) -> String {
    chrono::DateTime::from_timestamp(i64::from(days) * 86_400, 0)
        .map_or_else(|| "1970-01-01".to_owned(), |time| time.format("%Y-%m-%d").to_string())
}

fn parse_date(text: &str) -> Option<i32> {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from(date.signed_duration_since(chrono::NaiveDate::default()).num_days()).ok()
}

/// A new file's path below the table: it tells date or span.
fn file_path(span: Option<Span>, date: Option<i32>) -> String {
    let id = uuid::Uuid::now_v7();
    match (span, date) {
        (Some(span), _) => {
            let start = chrono::DateTime::from_timestamp(span.start_hour.saturating_mul(3600), 0)
                .map_or_else(|| "0".to_owned(), |time| time.format("%Y%m%dT%H").to_string());
            let hours = span.end_hour - span.start_hour;
            format!("p{:03}/{start}-{}-{hours}h-{id}.parquet", span.partition, span.start_hour)
        }
        (None, Some(date)) => format!("date={}/{id}.parquet", format_date(date)),
        (None, None) => format!("{id}.parquet"),
    }
}

/// The span that a path made by [`file_path`] tells, below whatever folder.
fn span_of(path: &str) -> Option<Span> {
    let mut parts = path.rsplit('/');
    let file = parts.next()?;
    let partition = parts.next()?.strip_prefix('p')?.parse().ok()?;
    // The start may be negative, so its minus sign must not be taken for a separator.
    let rest = &file[file.find('-')? + 1..];
    let sign = usize::from(rest.starts_with('-'));
    let end = rest[sign..].find('-')? + sign;
    let start_hour: i64 = rest[..end].parse().ok()?;
    let hours: i64 = rest[end + 1..].split_once('h')?.0.parse().ok()?;
    Some(Span { partition, start_hour, end_hour: start_hour + hours })
}
