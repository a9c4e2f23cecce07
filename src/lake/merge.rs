//! Merging small files: the table of a busy month must not rot.

use super::bucket::sorted;
use super::{Change, FileEntry, Lake, LakeError, Span, Table, TableName};
use std::collections::BTreeMap;

/// A date of `events` with more small files than this is merged.
const SMALL_FILES: usize = 16;
/// Files of `events` under this many bytes are small.
const SMALL_BYTES: u64 = 32 << 20;
/// Merged files have about this many bytes.
const TARGET_BYTES: u64 = 128 << 20;
const DAY_HOURS: i64 = 24;

impl Lake {
    /// Merges the small files of each date of `events` where there are many; returns how many files went.
    pub async fn merge_events(&self) -> Result<usize, LakeError> {
        let table = self.table(TableName::Events);
        let mut merged = 0;
        for (date, files) in self.crowded_dates() {
            let mut group: Vec<FileEntry> = Vec::new();
            for file in files {
                let bytes: u64 = group.iter().map(|file| file.size).sum();
                if bytes + file.size > TARGET_BYTES && group.len() > 1 {
                    merged += merge(table, std::mem::take(&mut group), None, Some(date)).await?;
                }
                group.push(file);
            }
            if group.len() > 1 {
                merged += merge(table, group, None, Some(date)).await?;
            }
        }
        Ok(merged)
    }

    /// By date, the small files of `events` where they are many.
    fn crowded_dates(&self) -> BTreeMap<i32, Vec<FileEntry>> {
        let mut by_date: BTreeMap<i32, Vec<FileEntry>> = BTreeMap::new();
        let files = self.table(TableName::Events).snapshot().files;
        for file in files.values().filter(|file| file.size < SMALL_BYTES) {
            by_date.entry(file.date.unwrap_or(0)).or_default().push(file.clone());
        }
        by_date.retain(|_, files| files.len() > SMALL_FILES);
        by_date
    }

    /// How many files of `events` [`Lake::merge_events`] would merge.
    pub fn small_files(&self) -> usize {
        self.crowded_dates().values().map(Vec::len).sum()
    }

    /// Merges the hour files of whole days before the given hour of each partition into day files; returns how many files
    /// went.
    pub async fn merge_days(&self, days_before: &BTreeMap<u32, i64>) -> Result<usize, LakeError> {
        let mut merged = 0;
        for name in [TableName::Messages, TableName::Sessions] {
            let table = self.table(name);
            let mut days: BTreeMap<(u32, i64), Vec<FileEntry>> = BTreeMap::new();
            for file in table.snapshot().files.values() {
                let Some(span) = file.span else { continue };
                let day = span.start_hour.div_euclid(DAY_HOURS) * DAY_HOURS;
                let old = days_before.get(&span.partition).is_some_and(|hour| day + DAY_HOURS <= *hour);
                if old && span.end_hour <= day + DAY_HOURS {
                    days.entry((span.partition, day)).or_default().push(file.clone());
                }
            }
            for ((partition, day), files) in days.into_iter().filter(|(_, files)| files.len() > 1) {
                let span = Span { partition, start_hour: day, end_hour: day + DAY_HOURS };
                merged += merge(table, files, Some(span), None).await?;
            }
        }
        Ok(merged)
    }
}

/// Writes the rows of some files as one, in one commit that changes no data.
async fn merge(
    table: &Table,
    files: Vec<FileEntry>,
    span: Option<Span>,
    date: Option<i32>,
) -> Result<usize, LakeError> {
    let mut batches = Vec::new();
    for file in &files {
        batches.extend(table.read(file).await?);
    }
    let name = table.name();
    let sorted = tokio::task::spawn_blocking(move || sorted(name, &batches)).await;
    let sorted = sorted.map_err(|error| LakeError::Damaged(error.to_string()))?;
    let sorted = sorted.map_err(|error| LakeError::Damaged(error.to_string()))?;
    let file = table.write(span, date, vec![sorted]).await?;
    let gone = files.len();
    let change = Change { add: vec![file], remove: files, operation: "merge files", ..Change::default() };
    table.commit_with(change, false, Vec::new()).await?;
    Ok(gone)
}
