//! Writing and reading `events` as an archive of the log.

use super::{FileEntry, Lake, LakeError, TableName, TableSnapshot, schema};
use arrow::array::{Array, Date32Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{binary, col, lit};
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Memory for putting a partition's archive in order; the rest goes to a temporary folder.
const SORT_BYTES: usize = 256 << 20;

/// Batches with fewer rows are joined: each costs by itself.
const FEW_ROWS: usize = 1000;

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
        let damaged = |error: datafusion::error::DataFusionError| LakeError::Damaged(error.to_string());
        let stream = self.ordered(files.into_iter(), partition, from, columns).map_err(damaged)?;
        let place = self.store.failed(&"").to_string();
        Ok(stream.map(move |batch| batch.map_err(|error| read_error(&place, &error))).boxed())
    }

    fn ordered<'a>(
        &self,
        files: impl Iterator<Item = &'a FileEntry>,
        partition: u32,
        from: u64,
        columns: Option<&[&str]>,
    ) -> datafusion::error::Result<datafusion::execution::SendableRecordBatchStream> {
        let runtime =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(SORT_BYTES))).build_arc()?;
        let (url, objects) = self.object_store();
        runtime.register_object_store(&url, objects);
        let context = SessionContext::new_with_config_rt(SessionConfig::new().with_target_partitions(1), runtime);
        let schema = schema::in_files(TableName::Events);
        // Files are in order of partition and offset, so the pages of other partitions are not even read.
        let source = ParquetSource::new(schema.clone()).with_predicate(wanted(&schema, partition, from)?);
        let files = files.map(|file| PartitionedFile::new(self.location(TableName::Events, file).as_ref(), file.size));
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::parse(&url)?, Arc::new(source));
        let scan = scan.with_file_group(files.collect());
        let indices = columns.map(|names| names.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>());
        let scan = scan.with_projection_indices(indices.transpose()?)?.build();
        let scan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan);
        let schema = scan.schema();
        let filtered = Arc::new(FilterExec::try_new(wanted(&schema, partition, from)?, scan)?);
        let order = LexOrdering::new([PhysicalSortExpr::new_default(col("offset", &schema)?)]);
        let plan: Arc<dyn ExecutionPlan> = match order {
            Some(order) => Arc::new(SortExec::new(order, filtered)),
            None => filtered,
        };
        execute_stream(plan, context.task_ctx())
    }

    /// How far, in ms, the event that came latest to a partition lay behind the newest time before it, of those before
    /// offset `before`.
    pub async fn widest_lateness(&self, partition: u32, before: u64) -> Result<i64, LakeError> {
        let columns = ["partition", "offset", "appended_at", "event_time", "received_at"];
        let mut rows = self.rows(&self.table(TableName::Events).snapshot(), partition, 0, Some(&columns))?;
        let (mut newest_ms, mut widest_ms) = (None::<i64>, 0);
        while let Some(batch) = rows.try_next().await? {
            for row in 0..batch.num_rows() {
                let (offset, time_ms, t_ms) = super::rows::times(&batch, row)?;
                if offset >= before {
                    return Ok(widest_ms);
                }
                widest_ms = newest_ms.map_or(0, |newest_ms| newest_ms.saturating_sub(t_ms)).max(widest_ms);
                newest_ms = newest_ms.max(Some(time_ms));
            }
        }
        Ok(widest_ms)
    }
}

/// The condition that a row is of a partition, at an offset or after it.
fn wanted(schema: &Schema, partition: u32, from: u64) -> datafusion::error::Result<Arc<dyn PhysicalExpr>> {
    let (partition, from) = (i32::try_from(partition).unwrap_or(i32::MAX), i64::try_from(from).unwrap_or(i64::MAX));
    let ours = binary(col("partition", schema)?, Operator::Eq, lit(partition), schema)?;
    let later = binary(col("offset", schema)?, Operator::GtEq, lit(from), schema)?;
    binary(ours, Operator::And, later, schema)
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
