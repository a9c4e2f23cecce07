//! Writing and reading `events` as an archive of the log.

use super::rows::{ArchivedReadings, ArchivedTimes};
use super::{FileEntry, Lake, LakeError, TableName, TableSnapshot, schema};
use arrow::array::{Array, Date32Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{binary, col, lit};
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// Memory for putting a partition's archive in order; the rest goes to a temporary folder.
const SORT_BYTES: usize = 256 << 20;

/// Batches with fewer rows are joined: each costs by itself.
const FEW_ROWS: usize = 1000;

/// Files looked into at the same time.
const FILES_AT_ONCE: usize = 4;

impl Lake {
    /// Writes rows of `events` as one file per date. The batches are in order of partition and offset, and so are the files.
    pub async fn write_events(&self, batches: Vec<RecordBatch>) -> Result<Vec<FileEntry>, LakeError> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let by_date = tokio::task::spawn_blocking(move || split_by_date(&batches)).await;
        let by_date = by_date.map_err(|error| LakeError::Damaged(error.to_string()))?;
        let by_date = by_date.map_err(|error| LakeError::Damaged(error.to_string()))?;
        let table = self.table(TableName::Events);
        let writes = by_date.into_iter().map(|(date, rows)| table.write(None, Some(date), rows));
        futures::stream::iter(writes).buffer_unordered(2).collect::<Vec<_>>().await.into_iter().collect()
    }

    /// All archived rows of a partition in order of offset, with all columns, in bounded memory.
    pub async fn archive(
        &self,
        partition: u32,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        self.rows(&self.table(TableName::Events).snapshot(), partition, 0, None)
    }

    /// [`Lake::archive`] of a version of `events`, from an offset on.
    pub async fn archive_from(
        &self,
        events: &TableSnapshot,
        partition: u32,
        from: u64,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        self.rows(events, partition, from, None)
    }

    /// Archived rows of a partition in order of offset, from one on, with these columns (`None`: all), in bounded memory.
    fn rows(
        &self,
        events: &TableSnapshot,
        partition: u32,
        from: u64,
        columns: Option<&[&str]>,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        let files: Vec<&FileEntry> = events.files.values().filter(|file| reaches(file, from)).collect();
        if files.is_empty() {
            return Ok(futures::stream::empty().boxed());
        }
        self.read_rows(files, Wanted { partition, from, columns, sorted: true })
    }

    /// All archived rows of a partition in order of offset, with the columns that a reading is made of.
    pub fn archive_in(
        &self,
        layout: &EventsLayout,
        partition: u32,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        let Some(runs) = layout.runs.get(&partition) else { return Ok(futures::stream::empty().boxed()) };
        let files = runs.iter().map(|run| &run.file).collect();
        let columns = Some(&ArchivedReadings::COLUMNS[..]);
        self.read_rows(files, Wanted { partition, from: 0, columns, sorted: !are_in_order(runs) })
    }

    /// Looks where the rows of each partition lie in a version of `events`.
    pub async fn events_layout(&self, events: &TableSnapshot) -> Result<EventsLayout, LakeError> {
        let looks = events.files.values().map(|file| self.runs_in(file));
        let looks: Vec<_> = looks.collect();
        let found: Vec<BTreeMap<u32, Run>> =
            futures::stream::iter(looks).buffer_unordered(FILES_AT_ONCE).try_collect().await?;
        let mut runs: BTreeMap<u32, Vec<Run>> = BTreeMap::new();
        for (partition, run) in found.into_iter().flatten() {
            runs.entry(partition).or_default().push(run);
        }
        runs.values_mut().for_each(|runs| runs.sort_by_key(|run| run.first));
        Ok(EventsLayout { runs })
    }

    async fn runs_in(&self, file: &FileEntry) -> Result<BTreeMap<u32, Run>, LakeError> {
        let mut rows = self.scanned(vec![file], Some(&ArchivedTimes::COLUMNS))?;
        let mut runs: BTreeMap<u32, Run> = BTreeMap::new();
        while let Some(batch) = rows.try_next().await? {
            let times = ArchivedTimes::new(&batch)?;
            for row in 0..batch.num_rows() {
                let (partition, offset) = (times.partition(row), times.offset(row));
                let run = match runs.entry(partition) {
                    Entry::Occupied(run) => run.into_mut(),
                    Entry::Vacant(place) => place.insert(Run::new(file.clone(), offset)),
                };
                run.add(offset, times.times_ms(row));
            }
        }
        Ok(runs)
    }

    /// All rows of files, one file after the other.
    fn scanned(
        &self,
        files: Vec<&FileEntry>,
        columns: Option<&[&str]>,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        self.executed(self.scan(files, columns, None))
    }

    fn read_rows(
        &self,
        files: Vec<&FileEntry>,
        wanted: Wanted<'_>,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        self.executed(self.ordered(files, wanted))
    }

    fn executed(
        &self,
        plan: datafusion::error::Result<Arc<dyn ExecutionPlan>>,
    ) -> Result<BoxStream<'static, Result<RecordBatch, LakeError>>, LakeError> {
        let damaged = |error: datafusion::error::DataFusionError| LakeError::Damaged(error.to_string());
        let pool = Arc::new(FairSpillPool::new(SORT_BYTES));
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().map_err(damaged)?;
        let (url, objects) = self.object_store();
        runtime.register_object_store(&url, objects);
        let stream = plan.and_then(|plan| execute_stream(plan, one_by_one(runtime))).map_err(damaged)?;
        let place = self.store.failed(&"").to_string();
        Ok(stream.map(move |batch| batch.map_err(|error| read_error(&place, &error))).boxed())
    }

    fn scan(
        &self,
        files: Vec<&FileEntry>,
        columns: Option<&[&str]>,
        wanted: Option<&Wanted<'_>>,
    ) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let (url, _) = self.object_store();
        let schema = schema::in_files(TableName::Events);
        let mut source = ParquetSource::new(schema.clone());
        if let Some(wanted) = wanted {
            // Files are in order of partition and offset, so the pages of other partitions are not even read.
            source = source.with_predicate(wanted.condition(&schema)?);
        }
        let files = files.into_iter();
        let files = files.map(|file| PartitionedFile::new(self.location(TableName::Events, file).as_ref(), file.size));
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::parse(&url)?, Arc::new(source));
        let scan = scan.with_file_group(files.collect());
        let indices = columns.map(|names| names.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>());
        Ok(DataSourceExec::from_data_source(scan.with_projection_indices(indices.transpose()?)?.build()))
    }

    fn ordered(&self, files: Vec<&FileEntry>, wanted: Wanted<'_>) -> datafusion::error::Result<Arc<dyn ExecutionPlan>> {
        let scan = self.scan(files, wanted.columns, Some(&wanted))?;
        let schema = scan.schema();
        let filtered = Arc::new(FilterExec::try_new(wanted.condition(&schema)?, scan)?);
        let order = LexOrdering::new([PhysicalSortExpr::new_default(col("offset", &schema)?)]);
        Ok(match order.filter(|_| wanted.sorted) {
            Some(order) => Arc::new(SortExec::new(order, filtered)),
            None => filtered,
        })
    }

    /// How far, in ms, the event that came latest to its partition lay behind the newest time before it, of those before
    /// these offsets.
    pub async fn widest_lateness(&self, before: &BTreeMap<u32, u64>) -> Result<i64, LakeError> {
        let events = self.table(TableName::Events).snapshot();
        // One look at all rows is less than one at each partition's, but more than one at some.
        let is_all = events.positions.iter().all(|(partition, end)| before.get(partition) == Some(end));
        let layout = if is_all { self.events_layout(&events).await? } else { EventsLayout::default() };
        let mut widest_ms = 0;
        for (partition, before) in before {
            let lateness_ms = match layout.runs.get(partition).filter(|runs| are_in_order(runs)) {
                Some(runs) => lateness_of(runs),
                None => self.lateness_before(&events, *partition, *before).await?,
            };
            widest_ms = lateness_ms.max(widest_ms);
        }
        Ok(widest_ms)
    }

    /// [`Lake::widest_lateness`] of one partition, whatever its rows' order.
    async fn lateness_before(&self, events: &TableSnapshot, partition: u32, before: u64) -> Result<i64, LakeError> {
        let mut rows = self.rows(events, partition, 0, Some(&ArchivedTimes::COLUMNS))?;
        let mut all = Times::default();
        while let Some(batch) = rows.try_next().await? {
            let times = ArchivedTimes::new(&batch)?;
            for row in 0..batch.num_rows() {
                if times.offset(row) >= before {
                    return Ok(all.widest_ms);
                }
                all.add(times.times_ms(row));
            }
        }
        Ok(all.widest_ms)
    }
}

/// What a plan without parallel parts is executed in. A whole session would register hundreds of functions every time.
pub fn one_by_one(runtime: Arc<RuntimeEnv>) -> Arc<TaskContext> {
    let config = SessionConfig::new().with_target_partitions(1);
    Arc::new(TaskContext::default().with_session_config(config).with_runtime(runtime))
}

/// Which rows of `events` are read.
struct Wanted<'a> {
    partition: u32,
    /// The first offset.
    from: u64,
    /// `None`: all.
    columns: Option<&'a [&'a str]>,
    /// Whether they are to be put in order of offset; else they come as they lie.
    sorted: bool,
}

impl Wanted<'_> {
    /// The condition that a row is one of them.
    fn condition(&self, schema: &Schema) -> datafusion::error::Result<Arc<dyn PhysicalExpr>> {
        let partition = i32::try_from(self.partition).unwrap_or(i32::MAX);
        let from = i64::try_from(self.from).unwrap_or(i64::MAX);
        let ours = binary(col("partition", schema)?, Operator::Eq, lit(partition), schema)?;
        let later = binary(col("offset", schema)?, Operator::GtEq, lit(from), schema)?;
        binary(ours, Operator::And, later, schema)
    }
}

/// Where the rows of each partition lie in the files of a version of `events`.
#[derive(Default)]
pub struct EventsLayout {
    /// By partition, in order of their first offsets.
    runs: BTreeMap<u32, Vec<Run>>,
}

/// The rows of one partition in one file.
struct Run {
    file: FileEntry,
    first: u64,
    last: u64,
    /// Whether they lie in order of offset, each offset once.
    in_order: bool,
    times: Times,
}

impl Run {
    fn new(file: FileEntry, offset: u64) -> Self {
        Self { file, first: offset, last: offset, in_order: true, times: Times::default() }
    }

    /// Takes in another row; the first one too.
    fn add(&mut self, offset: u64, times_ms: (i64, i64)) {
        self.in_order &= offset > self.last || self.times.newest_ms.is_none();
        (self.first, self.last) = (self.first.min(offset), self.last.max(offset));
        self.times.add(times_ms);
    }
}

/// Whether rows that are read run by run come in order of offset: mostly the log was archived so, and nothing is left to be
/// sorted.
fn are_in_order(runs: &[Run]) -> bool {
    runs.iter().all(|run| run.in_order) && runs.windows(2).all(|pair| pair[0].last < pair[1].first)
}

/// How late the events of runs in order were at most, in ms.
fn lateness_of(runs: &[Run]) -> i64 {
    runs.iter().fold(Times::default(), |before, run| before.then(&run.times)).widest_ms
}

/// Times of rows in order, in ms.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Times {
    /// The newest that a record counts with.
    newest_ms: Option<i64>,
    /// The oldest event time.
    oldest_ms: Option<i64>,
    /// How far an event time lay at most behind the newest before it.
    widest_ms: i64,
}

impl Times {
    fn add(&mut self, (time_ms, event_ms): (i64, i64)) {
        *self = self.then(&Times { newest_ms: Some(time_ms), oldest_ms: Some(event_ms), widest_ms: 0 });
    }

    /// Of these rows and those that follow.
    fn then(&self, next: &Times) -> Times {
        let behind = self.newest_ms.zip(next.oldest_ms).map_or(0, |(newest, oldest)| newest.saturating_sub(oldest));
        Times {
            newest_ms: self.newest_ms.max(next.newest_ms),
            oldest_ms: self.oldest_ms.into_iter().chain(next.oldest_ms).min(),
            widest_ms: self.widest_ms.max(next.widest_ms).max(behind),
        }
    }
}

/// Whether a file of `events` may have a row at an offset or after it, by its statistics.
fn reaches(file: &FileEntry, from: u64) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statistics {
        max_values: Greatest,
    }
    #[derive(serde::Deserialize)]
    struct Greatest {
        offset: u64,
    }
    let greatest = file.stats.as_deref().and_then(|stats| serde_json::from_str::<Statistics>(stats).ok());
    from == 0 || greatest.is_none_or(|stats| stats.max_values.offset >= from)
}

fn read_error(place: &str, error: &datafusion::error::DataFusionError) -> LakeError {
    match error.find_root() {
        datafusion::error::DataFusionError::ObjectStore(error) => {
            LakeError::Store { place: place.to_owned(), reason: error.to_string() }
        }
        error => LakeError::Damaged(error.to_string()),
    }
}

/// The rows of each date, in the order they come in. Large batches of one date, or of one after the other, are not copied.
fn split_by_date(batches: &[RecordBatch]) -> Result<BTreeMap<i32, Vec<RecordBatch>>, ArrowError> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let joined = (rows < batches.len() * FEW_ROWS).then(|| concat_batches(&schema::of(TableName::Events), batches));
    let joined = joined.transpose()?;
    let mut by_date: BTreeMap<i32, Vec<RecordBatch>> = BTreeMap::new();
    for batch in joined.as_ref().map_or(batches, std::slice::from_ref) {
        let (batch, dates) = ordered_by_date(batch)?;
        let mut start = 0;
        for run in dates.chunk_by(|one, next| one == next) {
            by_date.entry(run[0]).or_default().push(batch.slice(start, run.len()));
            start += run.len();
        }
    }
    Ok(by_date)
}

/// A batch by date, rows of one date in the order they had, and the dates.
fn ordered_by_date(batch: &RecordBatch) -> Result<(RecordBatch, Vec<i32>), ArrowError> {
    let dates = batch.column_by_name("date").and_then(|array| array.as_any().downcast_ref::<Date32Array>());
    let mut dates = dates.map_or_else(|| vec![0; batch.num_rows()], |dates| dates.values().to_vec());
    if dates.is_sorted() {
        return Ok((batch.clone(), dates));
    }
    let mut rows: Vec<u32> = (0..).take(dates.len()).collect();
    rows.sort_by_key(|row| dates[*row as usize]);
    dates.sort_unstable();
    Ok((take_record_batch(batch, &UInt32Array::from(rows))?, dates))
}
