//! What the archived events of one partition say, user by user.
//!
//! They are read in order of offset, reduced to what they tell of their user, and put in order of user and offset: in
//! bounded memory, the rest in a temporary folder.

use super::ProjectorError;
use crate::event::{self, Fact};
use crate::lake::rows::ArchivedReadings;
use crate::lake::{EventsLayout, Lake, LakeError, one_by_one};
use crate::log::partitioner;
use crate::state::{PartitionMark, user_key};
use arrow::array::{ArrayRef, BinaryArray, BinaryBuilder, RecordBatch, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use borsh::{BorshDeserialize, BorshSerialize};
use compact_str::CompactString;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream::{BoxStream, StreamExt};
use rustc_hash::FxHashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// Memory for putting a partition's facts in order.
const SORT_BYTES: usize = 128 << 20;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let column = |name: &str, of: DataType| Field::new(name, of, false);
    let columns = [("user", DataType::Binary), ("offset", DataType::UInt64), ("told", DataType::Binary)];
    Arc::new(Schema::new(columns.map(|(name, of)| column(name, of)).to_vec()))
});

/// What an event tells of its user.
#[derive(Debug, BorshSerialize, BorshDeserialize)]
pub(super) struct Told {
    /// The watermark of the partition before the event.
    pub watermark_ms: Option<i64>,
    pub t_ms: i64,
    pub token: Option<u64>,
    pub fact: Option<Fact>,
    pub country: Option<CompactString>,
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub partition: u32,
    /// How many the log has.
    pub partitions: u32,
    /// An event this late is not folded in: nothing is then.
    pub lateness_ms: Option<i64>,
}

/// Where the reading stands. Complete once the first of what was put in order is there.
#[derive(Default)]
pub(super) struct Reading {
    /// Position, watermark and append time behind what was read.
    pub mark: PartitionMark,
    /// Accounts of which something was told.
    pub accounts: FxHashSet<String>,
    /// Why it has ended early.
    stopped: Option<Stopped>,
}

enum Stopped {
    TooLate,
    Failed(LakeError),
}

/// What comes of a partition's archive, in order of user and offset.
pub(super) struct ByUser {
    reading: Arc<Mutex<Reading>>,
    sorted: SendableRecordBatchStream,
    dir: PathBuf,
}

/// One step of [`ByUser::next`].
pub(super) enum Next {
    Batch(RecordBatch),
    End,
    /// An event was later than is folded in.
    TooLate,
}

/// Told now and then how many more records were read.
pub(super) type TellRead = Arc<dyn Fn(u64) + Send + Sync>;

impl ByUser {
    /// Begins to read. Nothing is done until [`ByUser::next`] is called.
    /// What memory does not hold goes to `dir`.
    pub fn new(
        lake: &Lake,
        layout: &EventsLayout,
        part: Part,
        dir: &Path,
        tell: TellRead,
    ) -> Result<Self, ProjectorError> {
        let reading = Arc::new(Mutex::new(Reading::default()));
        let archive = lake.archive_in(layout, part.partition)?;
        let reduced = reduced(archive, part, reading.clone(), tell);
        let sorted = sorted(reduced, dir).map_err(|error| broken(dir, &error))?;
        Ok(Self { reading, sorted, dir: dir.to_owned() })
    }

    pub async fn next(&mut self) -> Result<Next, ProjectorError> {
        let next = self.sorted.next().await;
        match (self.reading().stopped.take(), next) {
            (Some(Stopped::TooLate), _) => Ok(Next::TooLate),
            (Some(Stopped::Failed(error)), _) => Err(error.into()),
            (None, Some(Ok(batch))) => Ok(Next::Batch(batch)),
            (None, Some(Err(error))) => Err(broken(&self.dir, &error)),
            (None, None) => Ok(Next::End),
        }
    }

    /// Where the reading stands.
    pub fn reading(&self) -> MutexGuard<'_, Reading> {
        lock(&self.reading)
    }
}

/// What is in a batch: users, and what was told of them.
pub(super) fn columns(batch: &RecordBatch) -> Option<(&BinaryArray, &BinaryArray)> {
    let column = |name: &str| batch.column_by_name(name)?.as_any().downcast_ref::<BinaryArray>();
    Some((column("user")?, column("told")?))
}

fn broken(dir: &Path, error: &DataFusionError) -> ProjectorError {
    match error.find_root() {
        // The folder has no room, most likely.
        DataFusionError::IoError(_) | DataFusionError::ArrowError(..) | DataFusionError::ResourcesExhausted(_) => {
            super::recover::io(dir, &std::io::Error::other(error.to_string())).into()
        }
        error => ProjectorError::Halted(format!("archived events cannot be put in order by user: {error}")),
    }
}

fn lock(reading: &Mutex<Reading>) -> MutexGuard<'_, Reading> {
    // It is changed a whole batch at a time.
    reading.lock().unwrap_or_else(PoisonError::into_inner)
}

type Reduced = BoxStream<'static, Result<RecordBatch, DataFusionError>>;

fn reduced(
    archive: BoxStream<'static, Result<RecordBatch, LakeError>>,
    part: Part,
    reading: Arc<Mutex<Reading>>,
    tell: TellRead,
) -> Reduced {
    let reduce = move |batch: Result<RecordBatch, LakeError>| {
        let rows = batch.as_ref().map_or(0, RecordBatch::num_rows);
        let mut reading = lock(&reading);
        let reduced = batch.map_err(Stopped::Failed);
        let reduced = reduced.and_then(|batch| tokio::task::block_in_place(|| reading.reduce(&batch, part)));
        tell(rows as u64);
        reduced.map_err(|stopped| {
            reading.stopped = Some(stopped);
            // Its place is taken by what is noted.
            DataFusionError::Execution("the archive was not read to its end".into())
        })
    };
    archive.map(reduce).boxed()
}

impl Reading {
    fn reduce(&mut self, batch: &RecordBatch, part: Part) -> Result<RecordBatch, Stopped> {
        let events = ArchivedReadings::new(batch).map_err(Stopped::Failed)?;
        let (mut users, mut tellings) = (BinaryBuilder::new(), BinaryBuilder::new());
        let (mut offsets, mut bytes) = (UInt64Builder::new(), Vec::new());
        for row in 0..batch.num_rows() {
            let reading = events.read(row).map_err(Stopped::Failed)?;
            let watermark_ms = self.mark.watermark_ms;
            let late_ms = watermark_ms.map_or(0, |watermark_ms| watermark_ms.saturating_sub(reading.t_ms));
            if watermark_ms.is_some() && part.lateness_ms.is_some_and(|limit_ms| late_ms >= limit_ms) {
                return Err(Stopped::TooLate);
            }
            self.mark.watermark_ms = watermark_ms.max(Some(reading.time_ms));
            self.mark.position = events.offset(row) + 1;
            self.mark.appended_us = events.appended_at_us(row);
            let is_telling = reading.fact.is_some() || reading.country.is_some();
            let (Some(account), Some(user), true) = (reading.account, reading.user, is_telling) else { continue };
            if partitioner::partition(event::user_key(account, user).as_bytes(), part.partitions) != part.partition {
                continue;
            }
            if !self.accounts.contains(account) {
                self.accounts.insert(account.to_owned());
            }
            users.append_value(user_key(account, user));
            offsets.append_value(events.offset(row));
            let (t_ms, token) = (reading.t_ms, reading.token);
            let told = Told { watermark_ms, t_ms, token, fact: reading.fact, country: reading.country };
            bytes.clear();
            // Writing to memory fails only when memory runs out, which aborts by itself.
            let _ = told.serialize(&mut bytes);
            tellings.append_value(&bytes);
        }
        let columns: Vec<ArrayRef> =
            vec![Arc::new(users.finish()), Arc::new(offsets.finish()), Arc::new(tellings.finish())];
        RecordBatch::try_new(SCHEMA.clone(), columns)
            .map_err(|error| Stopped::Failed(LakeError::Damaged(error.to_string())))
    }
}

/// The stream that the sort reads, once.
struct Once(Mutex<Option<Reduced>>);

impl std::fmt::Debug for Once {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Once")
    }
}

impl PartitionStream for Once {
    fn schema(&self) -> &SchemaRef {
        &SCHEMA
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(RecordBatchStreamAdapter::new(
            SCHEMA.clone(),
            stream.unwrap_or_else(|| futures::stream::empty().boxed()),
        ))
    }
}

fn sorted(reduced: Reduced, dir: &Path) -> Result<SendableRecordBatchStream, DataFusionError> {
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(SORT_BYTES)));
    let runtime = runtime.with_temp_file_path(dir).build_arc()?;
    let source: Arc<dyn PartitionStream> = Arc::new(Once(Mutex::new(Some(reduced))));
    let source = StreamingTableExec::try_new(SCHEMA.clone(), vec![source], None, [], false, None)?;
    let by = |column| Ok::<_, DataFusionError>(PhysicalSortExpr::new_default(col(column, &SCHEMA)?));
    let order = LexOrdering::new([by("user")?, by("offset")?])
        .ok_or_else(|| DataFusionError::Internal("an order of two columns is one".into()))?;
    execute_stream(Arc::new(SortExec::new(order, Arc::new(source))), one_by_one(runtime))
}
