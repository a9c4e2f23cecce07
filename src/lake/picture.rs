//! One consistent picture of a table: its files at a version, and the rows that stand in for or beside them.

use super::{FileEntry, TableSnapshot};
use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What a query reads of one table.
#[derive(Debug, Clone, Default)]
pub struct TableView {
    /// Files none of whose rows changed since they were written.
    pub clean: Vec<FileEntry>,
    /// Files with rows whose key may be in `replaced`.
    pub dirty: Vec<FileEntry>,
    /// Keys ([`super::rows::session_key`], [`super::rows::message_key`]) of rows in `dirty` that no longer hold.
    pub replaced: Arc<HashSet<Box<[u8]>>>,
    /// Rows to be read besides the files, in the table's schema.
    pub rows: Vec<RecordBatch>,
}

/// How far a table had come as somebody read it: what is to be laid over it depends on nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub version: u64,
    /// See [`TableSnapshot::owners`].
    pub owners: BTreeMap<u32, i64>,
    /// See [`TableSnapshot::positions`].
    pub positions: BTreeMap<u32, u64>,
}

/// What is to be laid over one table: rows that are not in its files yet, or no longer as they are there.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// In the table's schema.
    pub rows: Vec<RecordBatch>,
    /// Keys of the rows in files that no longer hold; those of `rows` are among them.
    pub replaced: HashSet<Box<[u8]>>,
    /// Log partition and hour since the epoch of every bucket that has a row in `replaced`.
    pub hours: HashSet<(u32, i64)>,
}

impl Overlay {
    /// Takes in what is laid over the same table by another.
    pub fn join(&mut self, other: Overlay) {
        self.rows.extend(other.rows);
        self.hours.extend(other.hours);
        if self.replaced.is_empty() {
            self.replaced = other.replaced;
        } else {
            self.replaced.extend(other.replaced);
        }
    }

    fn touches(&self, file: &FileEntry) -> bool {
        // Nothing is ever replaced in `events`, whose files have no span.
        let Some(span) = file.span else { return !self.replaced.is_empty() };
        if span.end_hour - span.start_hour <= 48 {
            (span.start_hour..span.end_hour).any(|hour| self.hours.contains(&(span.partition, hour)))
        } else {
            self.hours.iter().any(|(partition, hour)| {
                *partition == span.partition && (span.start_hour..span.end_hour).contains(hour)
            })
        }
    }
}

impl TableSnapshot {
    /// Where the table stands.
    pub fn standing(&self) -> Standing {
        Standing { version: self.version, owners: self.owners.clone(), positions: self.positions.clone() }
    }
}

impl TableView {
    /// A table with what is laid over this very version of it.
    pub fn of(snapshot: &TableSnapshot, overlay: Overlay) -> Self {
        let (dirty, clean) = snapshot.files.values().cloned().partition(|file| overlay.touches(file));
        Self { clean, dirty, replaced: Arc::new(overlay.replaced), rows: overlay.rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::Span;

    #[test]
    fn only_files_with_laid_rows_are_dirty() {
        let file = |path: &str, partition, start_hour, end_hour| {
            let span = Some(Span { partition, start_hour, end_hour });
            let file = FileEntry { path: path.to_owned(), size: 1, rows: 1, span, date: None, stats: None };
            (path.to_owned(), file)
        };
        let files = [file("hour", 1, 5, 6), file("next", 1, 6, 7), file("other", 2, 5, 6), file("month", 1, 0, 720)];
        let snapshot = TableSnapshot { files: Arc::new(files.into_iter().collect()), ..TableSnapshot::default() };
        let mut overlay = Overlay { hours: HashSet::from([(1, 5)]), ..Overlay::default() };
        overlay.join(Overlay { replaced: HashSet::from([Box::from([7])]), ..Overlay::default() });
        let view = TableView::of(&snapshot, overlay);
        let paths = |files: &[FileEntry]| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&view.dirty), ["hour", "month"]);
        assert_eq!(paths(&view.clean), ["next", "other"]);
        assert!(view.replaced.contains(&[7][..]));
    }
}
