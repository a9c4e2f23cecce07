//! Whether a file is what the table's log says of it.

use super::bucket::Statistics;
use super::event_rows::date_of;
use super::rows::strings;
use super::table::batches;
use super::{FileEntry, LakeError, Span, Table, TableName};
use crate::log::partitioner;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use serde_json::Value;

const HOUR_US: i64 = 3_600_000_000;

/// What a look at a file has shown.
#[derive(Debug, Default)]
pub struct Audited {
    /// What is wrong with it, in words.
    pub faults: Vec<String>,
    pub is_readable: bool,
}

impl Table {
    /// Reads a file and holds it against its entry in the log: rows, statistics, date or span. `each` gets its rows, some
    /// thousand at a time, with all columns of the table. Fails where the store cannot be asked.
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
        let mut statistics = Statistics::new(self.name());
        let mut strays = 0;
        let read = || {
            batches(self.name(), &file.path, file.date, bytes)?.try_for_each(|batch| {
                let batch = batch?;
                statistics.add(&batch);
                strays += self.strays(file, &batch)?;
                each(&batch)
            })
        };
        match tokio::task::block_in_place(read) {
            Ok(()) => {}
            Err(LakeError::Damaged(reason)) => return Ok(unreadable(reason)),
            Err(error) => return Err(error),
        }
        let mut faults = against_statistics(&statistics, file);
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

/// What a file's statistics say that its rows do not.
fn against_statistics(found: &Statistics, file: &FileEntry) -> Vec<String> {
    let mut faults = Vec::new();
    let told: Value = file.stats.as_deref().and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_default();
    if found.rows() != file.rows {
        faults.push(format!("it has {} rows, and {} in the table's log", found.rows(), file.rows));
    }
    for (column, is_time, (low, high)) in found.ranges() {
        // In statistics times are whole ms.
        let (low, high) =
            if is_time { (low.div_euclid(1000), high.saturating_add(999).div_euclid(1000)) } else { (low, high) };
        let bound = |of: &str| number(&told[of][column], is_time);
        if bound("minValues").is_some_and(|least| least > low) || bound("maxValues").is_some_and(|most| most < high) {
            faults.push(format!("{column} lies outside of what its statistics say"));
        }
    }
    faults
}

/// A bound of the statistics: a number, or ms of a time.
fn number(value: &Value, is_time: bool) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if is_time => crate::event::time::parse_rfc3339_us(text).map(|us| us.div_euclid(1000)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::SessionRows;
    use super::super::tests::session;
    use super::*;
    use crate::lake::Lake;
    use crate::log::LogId;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_file_is_held_against_its_entry() {
        let lake = Lake::open("memory:///", &LogId("l".into()), 1).await.unwrap();
        let table = lake.table(TableName::Sessions);
        let span = Span { partition: 0, start_hour: 5, end_hour: 6 };
        let mut rows = SessionRows::default();
        rows.push("bot", "ann", &session(7, 5));
        let file = table.write(Some(span), None, vec![rows.finish()]).await.unwrap();
        let faults = async |file: &FileEntry| table.audit(file, &mut |_| Ok(())).await.unwrap().faults;
        assert_eq!(faults(&file).await, Vec::<String>::new());

        let stray = FileEntry { span: Some(Span { start_hour: 6, end_hour: 7, ..span }), ..file.clone() };
        assert_eq!(faults(&stray).await, ["rows that are not of partition 0 and hours 6 to 7: 1"]);
        let stats = file.stats.clone().map(|stats| stats.replace("05:00:00.000", "05:01:00.000"));
        let narrow = FileEntry { stats, rows: 2, ..file.clone() };
        let found = faults(&narrow).await;
        assert_eq!(found[0], "it has 1 rows, and 2 in the table's log");
        assert_eq!(found[1], "opened_at lies outside of what its statistics say");
        let gone = FileEntry { path: "p000/none.parquet".into(), ..file };
        let audited = table.audit(&gone, &mut |_| Ok(())).await.unwrap();
        assert_eq!((audited.faults, audited.is_readable), (vec!["it is not there".to_owned()], false));
    }
}
