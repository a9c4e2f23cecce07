//! Whether a file is what the table's log says of it.

use super::bounds::{Bounds, rows_of};
use super::data_file::with_partition_column;
use super::event_rows::date_of;
use super::rows::strings;
use super::{FileEntry, LakeError, Span, Table, TableName, schema};
use crate::log::partitioner;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::ChunkReader;

const HOUR_US: i64 = 3_600_000_000;
/// Rows that are looked at together.
const BATCH_ROWS: usize = 8192;

/// What a look at a file has shown.
#[derive(Debug, Default)]
pub struct Audited {
    /// What is wrong with it, in words.
    pub faults: Vec<String>,
    pub is_readable: bool,
}

impl Table {
    /// Reads a file and holds it against its entry in the log, and against what it tells of itself: rows, statistics, date or
    /// span. `each` gets its rows, some thousand at a time, with all columns of the table. Fails where the store cannot be
    /// asked.
    pub async fn audit(
        &self,
        file: &FileEntry,
        each: &mut (dyn FnMut(&RecordBatch) -> Result<(), LakeError> + Send),
    ) -> Result<Audited, LakeError> {
        let unreadable = |fault: String| Audited { faults: vec![fault], ..Audited::default() };
        let bytes = match self.bytes(file).await {
            Ok(bytes) => bytes,
            Err(LakeError::Store { .. }) if !self.store.exists(&self.object_path(&file.path)).await? => {
                return Ok(unreadable("it is not there".to_owned()));
            }
            Err(error) => return Err(error),
        };
        if bytes.len() as u64 != file.size {
            // Readers find its end by the size that the log tells.
            return Ok(unreadable(format!("it has {} bytes, and {} in the table's log", bytes.len(), file.size)));
        }
        let mut faults = Vec::new();
        let mut of_log = None;
        match file.stats.as_deref().map(|stats| Bounds::of_log(self.name(), stats)) {
            Some(Ok(bounds)) => of_log = Some(bounds),
            Some(Err(fault)) => faults.push(fault),
            None => {}
        }
        let (mut rows, mut strays) = (0, 0);
        let read = || {
            let damaged = |error: &dyn std::fmt::Display| {
                LakeError::Damaged(format!("{}/{}: {error}", self.name().as_str(), file.path))
            };
            let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
            let parquet = ArrowReaderMetadata::load(&bytes, options).map_err(|error| damaged(&error))?;
            for group in 0..parquet.metadata().num_row_groups() {
                let mut bounds = Bounds::of_group(&parquet, group).map_err(|error| damaged(&error))?;
                let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), parquet.clone());
                let filter = filter(&builder, group).map_err(|error| damaged(&error))?;
                let reader = builder.with_batch_size(BATCH_ROWS).with_row_groups(vec![group]).build();
                let (mut at, mut denied) = (0, 0);
                for batch in reader.map_err(|error| damaged(&error))? {
                    let batch = batch.map_err(|error| damaged(&error))?;
                    for bounds in bounds.iter_mut() {
                        bounds.add(at, &batch).map_err(|error| damaged(&error))?;
                    }
                    if let Some(bounds) = &mut of_log {
                        bounds.add(rows + at, &batch).map_err(|error| damaged(&error))?;
                    }
                    if let Some(filter) = &filter {
                        let users = strings(&batch, schema::LOOKED_UP)?;
                        denied += users
                            .iter()
                            .flatten()
                            .filter(|user| filter.num_blocks() == 0 || !filter.check(*user))
                            .count();
                    }
                    at += batch.num_rows();
                    let batch = with_partition_column(self.name(), file.date, batch)?;
                    strays += self.strays(file, &batch)?;
                    each(&batch)?;
                }
                rows += at;
                let told = rows_of(&parquet, group);
                if at != told {
                    faults.push(format!("row group {group} has {at} rows, and {told} by the file itself"));
                }
                faults.extend(bounds.iter().flat_map(Bounds::faults));
                if denied > 0 {
                    faults.push(format!(
                        "rows of users that the filter of row group {group} says are not there: {denied}"
                    ));
                }
            }
            Ok(())
        };
        match tokio::task::block_in_place(read) {
            Ok(()) => {}
            Err(LakeError::Damaged(reason)) => return Ok(unreadable(reason)),
            Err(error) => return Err(error),
        }
        if rows as u64 != file.rows {
            faults.push(format!("it has {rows} rows, and {} in the table's log", file.rows));
        }
        faults.extend(of_log.iter().flat_map(Bounds::faults));
        if strays > 0 {
            let place = match file.span {
                Some(Span { partition, start_hour, end_hour }) => {
                    format!("partition {partition} and hours {start_hour} to {end_hour}")
                }
                None => "its date".to_owned(),
            };
            faults.push(format!("rows that are not of {place}: {strays}"));
        }
        Ok(Audited { faults, is_readable: true })
    }

    /// How many rows of a batch belong into another file.
    fn strays(&self, file: &FileEntry, batch: &RecordBatch) -> Result<usize, LakeError> {
        let times = |column: &str| {
            let array =
                batch.column_by_name(column).and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
            array.ok_or_else(|| LakeError::Damaged(format!("column {column} is missing or of another type")))
        };
        let reference = match self.name() {
            TableName::Events => {
                let dates = times("received_at")?.values().iter().map(|us| date_of(*us));
                return Ok(dates.filter(|date| Some(*date) != file.date).count());
            }
            TableName::Sessions => times("opened_at")?,
            TableName::Messages => times("sent_at")?,
        };
        let Some(span) = file.span else { return Ok(batch.num_rows()) };
        let (accounts, users) = (strings(batch, "account")?, strings(batch, "user_id")?);
        let is_stray = |row: &usize| {
            let key = format!("{}/{}", accounts.value(*row), users.value(*row));
            let hour = reference.value(*row).div_euclid(HOUR_US);
            !(span.start_hour..span.end_hour).contains(&hour)
                || partitioner::partition(key.as_bytes(), self.partitions) != span.partition
        };
        Ok((0..batch.num_rows()).filter(is_stray).count())
    }
}

/// What a row group tells of its users; engines skip it by that.
fn filter<T: ChunkReader + 'static>(
    file: &ParquetRecordBatchReaderBuilder<T>,
    group: usize,
) -> Result<Option<Sbbf>, ParquetError> {
    let columns = file.parquet_schema().columns();
    let Some(column) = columns.iter().position(|column| column.name() == schema::LOOKED_UP) else { return Ok(None) };
    file.get_row_group_column_bloom_filter(group, column)
}

#[cfg(test)]
mod tests {
    use super::super::rows::SessionRows;
    use super::super::tests::session;
    use super::*;
    use crate::lake::Lake;
    use crate::log::LogId;
    use bytes::Bytes;
    use serde_json::{Value, json};

    const SPAN: Span = Span { partition: 0, start_hour: 5, end_hour: 6 };

    /// Tables, and a file of sessions with one row.
    async fn written() -> (Lake, FileEntry) {
        let lake = Lake::open("memory:///", &LogId("l".into()), 1).await.unwrap();
        let mut rows = SessionRows::default();
        rows.push("bot", "ann", &session(7, 5));
        let file = lake.table(TableName::Sessions).write(Some(SPAN), None, vec![rows.finish()]).await.unwrap();
        (lake, file)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_is_held_against_its_entry() {
        let (lake, file) = written().await;
        let table = lake.table(TableName::Sessions);
        let faults = async |file: &FileEntry| table.audit(file, &mut |_| Ok(())).await.unwrap().faults;
        assert_eq!(faults(&file).await, Vec::<String>::new());

        let stray = FileEntry { span: Some(Span { start_hour: 6, end_hour: 7, ..SPAN }), ..file.clone() };
        assert_eq!(faults(&stray).await, ["rows that are not of partition 0 and hours 6 to 7: 1"]);
        let stats = file.stats.clone().map(|stats| stats.replace("05:00:00.000", "05:01:00.000"));
        let narrow = FileEntry { stats, rows: 2, ..file.clone() };
        let found = faults(&narrow).await;
        assert_eq!(found[0], "it has 1 rows, and 2 in the table's log");
        assert_eq!(found[1], "opened_at lies outside of what its statistics say");
        for (of, column, value, fault) in [
            ("nullCount", "expires_at", json!(7), "expires_at is NULL in 0 rows, and its statistics say 7"),
            ("minValues", "kind", json!("paid!"), "kind lies outside of what its statistics say"),
            ("maxValues", "outbound", json!(0), "outbound lies outside of what its statistics say"),
            ("maxValues", "inbound", json!("many"), "its statistics of inbound are no values of that column"),
        ] {
            let mut stats: Value = serde_json::from_str(file.stats.as_deref().unwrap()).unwrap();
            stats[of][column] = value;
            let other = FileEntry { stats: Some(stats.to_string()), ..file.clone() };
            assert_eq!(faults(&other).await, [fault]);
        }
        let none = FileEntry { stats: Some("no JSON".to_owned()), ..file.clone() };
        assert!(faults(&none).await[0].starts_with("its statistics cannot be read: "));
        let gone = FileEntry { path: "p000/none.parquet".into(), ..file };
        let audited = table.audit(&gone, &mut |_| Ok(())).await.unwrap();
        assert_eq!((audited.faults, audited.is_readable), (vec!["it is not there".to_owned()], false));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_file_tells_of_itself_is_held_against_its_rows() {
        let (lake, file) = written().await;
        let table = lake.table(TableName::Sessions);
        let bytes = table.bytes(&file).await.unwrap().to_vec();
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes.clone())).unwrap();
        let opened_at = reader.schema().index_of("opened_at").unwrap();
        let column = reader.metadata().row_group(0).column(opened_at);
        let pages = usize::try_from(column.column_index_offset().unwrap()).unwrap();
        let pages = pages..pages + usize::try_from(column.column_index_length().unwrap()).unwrap();
        // The footer comes last, and after it its length and a mark.
        let length = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
        let footer = bytes.len() - 8 - length as usize..bytes.len() - 8;
        let (opened, later) = ((5 * HOUR_US).to_le_bytes(), (5 * HOUR_US + 1).to_le_bytes());
        for (whose, place) in [("statistics", footer), ("page statistics", pages)] {
            let mut altered = bytes.clone();
            let told: Vec<usize> = place.filter(|at| altered[*at..].starts_with(&opened)).collect();
            told.iter().for_each(|at| altered[*at..*at + 8].copy_from_slice(&later));
            assert_ne!(altered, bytes, "{whose}");
            let other = FileEntry { path: format!("p000/{}.parquet", whose.len()), ..file.clone() };
            table.store.put(&table.object_path(&other.path), altered.into()).await.unwrap();
            let found = table.audit(&other, &mut |_| Ok(())).await.unwrap().faults;
            assert!(
                found.contains(&format!("opened_at lies outside of what the {whose} of row group 0 in the file say")),
                "{whose}: {found:?}"
            );
        }
    }
    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_file_tells_of_its_users_is_held_against_its_rows() {
        let (lake, file) = written().await;
        let table = lake.table(TableName::Sessions);
        let mut bytes = table.bytes(&file).await.unwrap().to_vec();
        let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes.clone())).unwrap();
        let user_id = reader.schema().index_of("user_id").unwrap();
        let column = reader.metadata().row_group(0).column(user_id);
        let start = usize::try_from(column.bloom_filter_offset().unwrap()).unwrap();
        let end = start + usize::try_from(column.bloom_filter_length().unwrap()).unwrap();
        // The bits are its last 32 bytes, of few users.
        bytes[end - 32..end].fill(0);
        let other = FileEntry { path: "p000/filter.parquet".into(), ..file.clone() };
        table.store.put(&table.object_path(&other.path), bytes.into()).await.unwrap();
        let audited = table.audit(&other, &mut |_| Ok(())).await.unwrap();
        let fault = format!("rows of users that the filter of row group 0 says are not there: {}", file.rows);
        assert_eq!((audited.faults, audited.is_readable), (vec![fault], true));
        assert_eq!(table.audit(&file, &mut |_| Ok(())).await.unwrap().faults, Vec::<String>::new());
    }
}
