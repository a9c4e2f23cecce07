//! Buckets of `sessions` and `messages`: finding the file of an hour, and rewriting it.

use super::rows::keys;
use super::{FileEntry, LakeError, Table, TableName, TableSnapshot, schema};
use arrow::array::{Array, BooleanArray, Date32Array, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{SortColumn, concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch};
use arrow::datatypes::DataType;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use super::Span;

/// The live files of a table by span.
pub struct Index<'a> {
    /// By partition and start; spans of one partition do not overlap.
    files: BTreeMap<(u32, i64), &'a FileEntry>,
}

/// An index of a table's files.
pub fn index(snapshot: &TableSnapshot) -> Index<'_> {
    let files = snapshot
        .files
        .values()
        .filter_map(|file| file.span.map(|span| ((span.partition, span.start_hour), file)))
        .collect();
    Index { files }
}

impl<'a> Index<'a> {
    /// The file that holds an hour.
    pub fn covering(&self, partition: u32, hour: i64) -> Option<&'a FileEntry> {
        let (_, file) = self.files.range((partition, i64::MIN)..=(partition, hour)).next_back()?;
        file.span.filter(|span| hour < span.end_hour).map(|_| *file)
    }

    /// The files that share an hour with a span.
    pub fn overlapping(&self, span: Span) -> impl Iterator<Item = &'a FileEntry> + '_ {
        let first = self.covering(span.partition, span.start_hour);
        let later = self.files.range((span.partition, span.start_hour + 1)..(span.partition, span.end_hour));
        first.into_iter().chain(later.map(|(_, file)| *file))
    }
}

/// Writes the new file of a span: the rows of the old files but for those replaced, and the new rows, in order of user
/// and time. `None` when no row is left.
pub async fn rewrite(
    table: &Table,
    span: Span,
    old: &[FileEntry],
    replaced: Arc<HashSet<Box<[u8]>>>,
    rows: Vec<RecordBatch>,
) -> Result<Option<FileEntry>, LakeError> {
    let mut batches = rows;
    for file in old {
        for batch in table.read(file).await? {
            batches.push(without(table.name(), &batch, &replaced)?);
        }
    }
    let name = table.name();
    let sorted = tokio::task::spawn_blocking(move || sorted(name, &batches)).await;
    let sorted = sorted.map_err(|error| LakeError::Damaged(error.to_string()))?;
    let sorted = sorted.map_err(|error| LakeError::Damaged(error.to_string()))?;
    if sorted.num_rows() == 0 {
        return Ok(None);
    }
    table.write(Some(span), None, vec![sorted]).await.map(Some)
}

/// The rows of a batch whose keys are not among those replaced.
fn without(name: TableName, batch: &RecordBatch, replaced: &HashSet<Box<[u8]>>) -> Result<RecordBatch, LakeError> {
    if replaced.is_empty() {
        return Ok(batch.clone());
    }
    let keep: BooleanArray = keys(name, batch)?.iter().map(|key| Some(!replaced.contains(key))).collect();
    filter_record_batch(batch, &keep).map_err(|error| LakeError::Damaged(error.to_string()))
}

/// All rows in one batch, in the table's order.
pub(super) fn sorted(name: TableName, batches: &[RecordBatch]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let all = concat_batches(&schema::of(name), batches)?;
    let columns: Vec<SortColumn> = schema::order(name)
        .iter()
        .filter_map(|column| all.column_by_name(column))
        .map(|values| SortColumn { values: values.clone(), options: None })
        .collect();
    let indices = lexsort_to_indices(&columns, None)?;
    take_record_batch(&all, &indices)
}

/// Delta's statistics of a file, gathered batch by batch.
pub(super) struct Statistics {
    rows: u64,
    columns: Vec<Extent>,
}

/// What the statistics tell of one column.
struct Extent {
    column: &'static str,
    is_time: bool,
    range: Option<(i64, i64)>,
    nulls: u64,
}

impl Statistics {
    pub fn new(name: TableName) -> Self {
        let schema = schema::of(name);
        let is_time = |column: &str| {
            schema.field_with_name(column).is_ok_and(|field| matches!(field.data_type(), DataType::Timestamp(..)))
        };
        let extent = |column: &&'static str| Extent { column, is_time: is_time(column), range: None, nulls: 0 };
        Self { rows: 0, columns: schema::statistics(name).iter().map(extent).collect() }
    }

    pub fn add(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows() as u64;
        for extent in &mut self.columns {
            let Some(array) = batch.column_by_name(extent.column) else { continue };
            extent.nulls += array.null_count() as u64;
            if let Some((low, high)) = bounds(array.as_ref()) {
                extent.range = Some(extent.range.map_or((low, high), |(least, most)| (least.min(low), most.max(high))));
            }
        }
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn to_json(&self) -> String {
        let (mut least, mut most, mut nulls) = (Map::new(), Map::new(), Map::new());
        for Extent { column, is_time, range, nulls: null_count } in &self.columns {
            nulls.insert((*column).to_owned(), json!(null_count));
            let Some((low, high)) = range else { continue };
            // Delta gives times in statistics as text with whole ms, the greatest rounded up.
            let value = |number: i64, up: bool| -> Value {
                if *is_time { json!(time_text(number, up)) } else { json!(number) }
            };
            least.insert((*column).to_owned(), value(*low, false));
            most.insert((*column).to_owned(), value(*high, true));
        }
        json!({"numRecords": self.rows, "minValues": least, "maxValues": most, "nullCount": nulls}).to_string()
    }
}

fn time_text(us: i64, up: bool) -> Option<String> {
    let ms = us.div_euclid(1000) + i64::from(up && us.rem_euclid(1000) != 0);
    let time = chrono::DateTime::from_timestamp_millis(ms)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

fn bounds(array: &dyn Array) -> Option<(i64, i64)> {
    fn range(values: impl Iterator<Item = i64>) -> Option<(i64, i64)> {
        values.fold(None, |range: Option<(i64, i64)>, value| {
            Some(range.map_or((value, value), |(least, most)| (least.min(value), most.max(value))))
        })
    }
    let any = array.as_any();
    if let Some(array) = any.downcast_ref::<Int64Array>() {
        range(array.iter().flatten())
    } else if let Some(array) = any.downcast_ref::<TimestampMicrosecondArray>() {
        range(array.iter().flatten())
    } else if let Some(array) = any.downcast_ref::<Date32Array>() {
        range(array.iter().flatten().map(i64::from))
    } else {
        any.downcast_ref::<Int32Array>().and_then(|array| range(array.iter().flatten().map(i64::from)))
    }
}
