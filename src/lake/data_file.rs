//! Data files: Parquet bytes, statistics, and paths that tell what a file covers.

use super::bucket::Statistics;
use super::{LakeError, Span, TableName, schema};
use arrow::array::{Date32Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use std::sync::Arc;

const ROW_GROUP: usize = 131_072;
/// Where rows of one user are side by side, a reader of them reads so many and not a whole column.
const PAGE: usize = 2_048;
/// Of users that a file has no row of, so many are told to be there perhaps.
const MISTAKEN: f64 = 0.01;
/// Files with fewer rows are compressed by what is cheap to set up.
const SMALL_ROWS: usize = 20_000;

/// Parquet bytes, number of rows, and Delta statistics.
pub(super) fn encode(name: TableName, batches: Vec<RecordBatch>) -> Result<(Bytes, u64, String), ParquetError> {
    // Zstandard sets up a large context for every column of every file, which costs more than a small file itself.
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let compression = if rows < SMALL_ROWS { Compression::SNAPPY } else { Compression::ZSTD(ZstdLevel::try_new(1)?) };
    let looked_up = ColumnPath::from(schema::LOOKED_UP);
    let most_users = rows.clamp(1, ROW_GROUP) as u64;
    let mut properties = WriterProperties::builder()
        .set_compression(compression)
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_bloom_filter_fpp(looked_up.clone(), MISTAKEN)
        .set_column_bloom_filter_max_ndv(looked_up, most_users);
    // Ends of every page are worth their bytes only where they leave pages out.
    for column in schema::order(name).iter().chain(schema::statistics(name)) {
        properties = properties.set_column_statistics_enabled(ColumnPath::from(*column), EnabledStatistics::Page);
    }
    if schema::order(name).contains(&schema::LOOKED_UP) {
        properties = properties.set_data_page_row_count_limit(PAGE);
    }
    for column in schema::distinct(name) {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), false);
    }
    let properties = properties.build();
    let file_schema = schema::in_files(name);
    let mut writer = ArrowWriter::try_new(Vec::new(), file_schema.clone(), Some(properties))?;
    let mut stats = Statistics::new(name);
    for batch in &batches {
        stats.add(batch);
        let columns = file_schema.fields().iter().filter_map(|field| batch.column_by_name(field.name()).cloned());
        writer.write(&RecordBatch::try_new(file_schema.clone(), columns.collect())?)?;
    }
    let bytes = writer.into_inner()?;
    Ok((bytes.into(), stats.rows(), stats.to_json()))
}

pub(super) fn with_partition_column(
    name: TableName,
    date: Option<i32>,
    batch: RecordBatch,
) -> Result<RecordBatch, LakeError> {
    if schema::partition_columns(name).is_empty() {
        return Ok(batch);
    }
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(Date32Array::from(vec![date.unwrap_or(0); batch.num_rows()])));
    RecordBatch::try_new(schema::of(name), columns).map_err(|error| LakeError::Damaged(error.to_string()))
}

pub(super) fn format_date(days: i32) -> String {
    chrono::DateTime::from_timestamp(i64::from(days) * 86_400, 0)
        .map_or_else(|| "1970-01-01".to_owned(), |time| time.format("%Y-%m-%d").to_string())
}

pub(super) fn parse_date(text: &str) -> Option<i32> {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from(date.signed_duration_since(chrono::NaiveDate::default()).num_days()).ok()
}

/// A new file's path below the table: it tells date or span.
pub(super) fn file_path(span: Option<Span>, date: Option<i32>) -> String {
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
pub(super) fn span_of(path: &str) -> Option<Span> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
    use parquet::file::metadata::PageIndexPolicy;

    #[test]
    fn a_file_tells_its_users_and_where_they_are() {
        let rows = 3 * PAGE as u64;
        let (bytes, _, _) = encode(TableName::Events, vec![crate::lake::tests::events(0, 0..rows)]).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let column = schema::names(TableName::Events).iter().position(|name| *name == schema::LOOKED_UP).unwrap();
        let filter = reader.get_row_group_column_bloom_filter(0, column).unwrap().unwrap();
        assert!(filter.check("user") && !filter.check("nobody"));
        // One user takes a block, not as much as all rows could.
        assert_eq!(filter.num_blocks(), 1);

        let (bytes, _, _) = encode(TableName::Messages, vec![messages(3 * PAGE)]).unwrap();
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).unwrap();
        let metadata = reader.metadata();
        let pages = |name: &str| {
            let column = schema::names(TableName::Messages).iter().position(|column| *column == name).unwrap();
            metadata.offset_index().unwrap()[0][column].page_locations().len()
        };
        assert_eq!((pages("user_id"), pages("verdict"), pages("cost")), (3, 3, 3));
    }

    /// Messages of as many users, of which only what cannot be NULL is told.
    fn messages(rows: usize) -> RecordBatch {
        use arrow::array::{ArrayRef, Int64Array, StringArray, new_null_array};
        let number = || Arc::new(Int64Array::from_iter_values(0..rows as i64)) as ArrayRef;
        let text = || Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{row:08}")))) as ArrayRef;
        let fields = schema::of(TableName::Messages);
        let column = |field: &Arc<arrow::datatypes::Field>| match field.is_nullable() {
            true => new_null_array(field.data_type(), rows),
            false if field.data_type() == &arrow::datatypes::DataType::Utf8 => text(),
            false => arrow::compute::cast(&number(), field.data_type()).unwrap(),
        };
        RecordBatch::try_new(fields.clone(), fields.fields().iter().map(column).collect()).unwrap()
    }
}
