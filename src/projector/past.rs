//! What was taken off the overlay lately: for those whose tables are some commits older than this process's.
//!
//! What is laid over a partition depends on the commits of its owner alone, so tables are as good as any other as long as
//! they have the claim of this owner, and as nothing was forgotten that it has taken off since. Tables with commits that
//! this process has not seen are always good: its own it has made from rows that are still laid, and those of others do
//! not touch its partitions.

use crate::lake::TableName;
use crate::lake::picture::Standing;
use arrow::array::RecordBatch;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// So many rows of `sessions` and `messages` are kept.
pub(super) const ROWS_KEPT: usize = 50_000;
/// So many bytes of `events` are kept.
const BYTES_KEPT: usize = 16 << 20;

/// Bytes of keys and of rows, as they were in the state.
pub(super) type LiftedRows = Arc<Vec<(Vec<u8>, Vec<u8>)>>;

/// Whether tables can be laid over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Fits,
    /// They are older than what is kept.
    TooOld,
    /// They say that another process has taken over the partition.
    TakenOver,
}

/// Where this process begins: its claims, and the tables as they were when it had the claimed partitions' state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ground {
    /// By table, the number this process claimed each partition with; none where nobody shares the partitions.
    pub held: BTreeMap<TableName, BTreeMap<u32, i64>>,
    pub versions: BTreeMap<TableName, u64>,
    /// By partition, the position in `events`.
    pub archived: BTreeMap<u32, u64>,
    /// Whether anybody else reads the tables.
    pub is_shared: bool,
}

/// Rows that one commit made part of the files.
struct Lifted {
    table: TableName,
    version: u64,
    rows: LiftedRows,
}

/// Rows of `events` that one commit made part of the files.
struct Archived {
    partition: u32,
    /// The next offset after them.
    position: u64,
    rows: RecordBatch,
}

/// What was taken off, within limits.
#[derive(Default)]
pub(super) struct Past {
    ground: Ground,
    lifted: VecDeque<Lifted>,
    lifted_rows: usize,
    archived: VecDeque<Archived>,
    archived_bytes: usize,
}

impl Past {
    /// Nothing yet.
    pub fn from(ground: Ground) -> Self {
        Self { ground, ..Self::default() }
    }

    /// Whether a partition's overlay can be told for this standing of a table.
    pub fn fit(&self, table: TableName, partition: u32, theirs: &Standing) -> Fit {
        if let Some(ours) = self.ground.held.get(&table).and_then(|held| held.get(&partition)) {
            let found = theirs.owners.get(&partition).copied().unwrap_or(0);
            if found > *ours {
                return Fit::TakenOver;
            }
            if found < *ours {
                return Fit::TooOld;
            }
        }
        let reaches = match table {
            TableName::Events => {
                let from = self.ground.archived.get(&partition).copied().unwrap_or(0);
                theirs.positions.get(&partition).copied().unwrap_or(0) >= from
            }
            _ => theirs.version >= self.ground.versions.get(&table).copied().unwrap_or(0),
        };
        if reaches { Fit::Fits } else { Fit::TooOld }
    }

    /// Whether rows are kept at all.
    pub fn keeps(&self) -> bool {
        self.ground.is_shared
    }

    /// Notes what a commit to `sessions` or `messages` takes off the overlay; `None` where that is too much to be kept.
    pub fn lift(&mut self, table: TableName, version: u64, rows: Option<LiftedRows>) {
        let Some(rows) = rows.filter(|_| self.keeps()) else {
            self.lifted.retain(|lifted| lifted.table != table);
            self.lifted_rows = self.lifted.iter().map(|lifted| lifted.rows.len()).sum();
            self.ground.versions.insert(table, version);
            return;
        };
        self.lifted_rows += rows.len();
        self.lifted.push_back(Lifted { table, version, rows });
        while self.lifted_rows > ROWS_KEPT {
            let Some(oldest) = self.lifted.pop_front() else { break };
            self.lifted_rows -= oldest.rows.len();
            self.ground.versions.insert(oldest.table, oldest.version);
        }
    }

    /// Notes rows that a commit to `events` holds now, up to `position`.
    pub fn archive(&mut self, partition: u32, position: u64, rows: Option<RecordBatch>) {
        let Some(rows) = rows.filter(|_| self.keeps()) else {
            if !self.keeps() {
                self.forget(partition, position);
            }
            return;
        };
        self.archived_bytes += rows.get_array_memory_size();
        self.archived.push_back(Archived { partition, position, rows });
        while self.archived_bytes > BYTES_KEPT {
            let Some(oldest) = self.archived.pop_front() else { break };
            self.archived_bytes -= oldest.rows.get_array_memory_size();
            self.forget(oldest.partition, oldest.position);
        }
    }

    fn forget(&mut self, partition: u32, position: u64) {
        let from = self.ground.archived.entry(partition).or_insert(position);
        *from = position.max(*from);
    }

    /// What the commits after a version have taken off, the newest first.
    pub fn lifted_since(&self, table: TableName, version: u64) -> Vec<LiftedRows> {
        let newer = self.lifted.iter().rev().filter(|lifted| lifted.table == table && lifted.version > version);
        newer.map(|lifted| lifted.rows.clone()).collect()
    }

    /// Rows of `events` that lie after these positions.
    pub fn archived_since(&self, positions: &BTreeMap<u32, u64>) -> Vec<RecordBatch> {
        let is_newer = |archived: &&Archived| {
            positions.get(&archived.partition).is_some_and(|position| archived.position > *position)
        };
        self.archived.iter().filter(is_newer).map(|archived| archived.rows.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};

    fn ground() -> Ground {
        Ground {
            held: TableName::ALL.into_iter().map(|table| (table, BTreeMap::from([(1, 7)]))).collect(),
            versions: TableName::ALL.into_iter().map(|table| (table, 20)).collect(),
            archived: BTreeMap::from([(1, 100)]),
            is_shared: true,
        }
    }

    fn standing(version: u64, owner: i64, position: u64) -> Standing {
        Standing { version, owners: BTreeMap::from([(1, owner)]), positions: BTreeMap::from([(1, position)]) }
    }

    fn rows(n: usize) -> Option<LiftedRows> {
        Some(Arc::new(vec![(vec![1], vec![2]); n]))
    }

    fn batch(bytes: usize) -> Option<RecordBatch> {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![0; bytes / 8]));
        Some(RecordBatch::try_from_iter([("offset", column)]).unwrap())
    }

    #[test]
    fn the_claim_and_the_commits_since_decide() {
        let past = Past::from(ground());
        for (theirs, sessions, events) in [
            (standing(20, 7, 100), Fit::Fits, Fit::Fits),
            // Newer than anything that is known here.
            (standing(90, 7, 900), Fit::Fits, Fit::Fits),
            (standing(19, 7, 99), Fit::TooOld, Fit::TooOld),
            (standing(19, 7, 100), Fit::TooOld, Fit::Fits),
            (standing(20, 6, 100), Fit::TooOld, Fit::TooOld),
            (standing(20, 8, 100), Fit::TakenOver, Fit::TakenOver),
        ] {
            assert_eq!(past.fit(TableName::Sessions, 1, &theirs), sessions, "{theirs:?}");
            assert_eq!(past.fit(TableName::Events, 1, &theirs), events, "{theirs:?}");
        }
        // A log of one process is claimed by nobody.
        let alone = Past::from(Ground::default());
        assert_eq!(alone.fit(TableName::Sessions, 1, &Standing::default()), Fit::Fits);
    }

    #[test]
    fn the_last_commits_are_kept_and_older_tables_refused() {
        let mut past = Past::from(ground());
        past.lift(TableName::Sessions, 25, rows(3));
        past.lift(TableName::Messages, 40, rows(4));
        past.lift(TableName::Sessions, 30, rows(5));
        let counts = |past: &Past, table, version| -> Vec<usize> {
            past.lifted_since(table, version).iter().map(|rows| rows.len()).collect()
        };
        assert_eq!(counts(&past, TableName::Sessions, 20), [5, 3]);
        assert_eq!(counts(&past, TableName::Sessions, 25), [5]);
        assert_eq!(counts(&past, TableName::Messages, 40), [0; 0]);
        let fit = |past: &Past, table, version| past.fit(table, 1, &standing(version, 7, 100));

        past.lift(TableName::Messages, 45, rows(ROWS_KEPT - 10));
        // The oldest commit had to go: only tables that have it can be laid over.
        assert_eq!(fit(&past, TableName::Sessions, 24), Fit::TooOld);
        assert_eq!(fit(&past, TableName::Sessions, 25), Fit::Fits);
        assert_eq!(fit(&past, TableName::Messages, 20), Fit::Fits);
        past.lift(TableName::Messages, 50, None);
        assert_eq!(fit(&past, TableName::Messages, 49), Fit::TooOld);
        assert_eq!(fit(&past, TableName::Messages, 50), Fit::Fits);
        assert_eq!(counts(&past, TableName::Sessions, 20), [5]);
    }

    #[test]
    fn events_are_kept_by_position() {
        let mut past = Past::from(ground());
        past.archive(1, 110, batch(8));
        past.archive(2, 500, batch(16));
        past.archive(1, 115, None);
        past.archive(1, 120, batch(24));
        let since = |past: &Past, position| -> Vec<usize> {
            let positions = BTreeMap::from([(1, position)]);
            past.archived_since(&positions).iter().map(RecordBatch::num_rows).collect()
        };
        assert_eq!(since(&past, 100), [1, 3]);
        assert_eq!(since(&past, 110), [3]);
        assert_eq!(since(&past, 120), [0; 0]);
        // With this one all but the oldest are kept.
        let size = |bytes| batch(bytes).unwrap().get_array_memory_size();
        past.archive(2, 600, batch((BYTES_KEPT - size(16) - size(24) - (size(8) - 8)) / 8 * 8));
        let fit = |past: &Past, position| past.fit(TableName::Events, 1, &standing(20, 7, position));
        assert_eq!((fit(&past, 109), fit(&past, 110)), (Fit::TooOld, Fit::Fits));
        assert_eq!(since(&past, 110), [3]);
    }

    #[test]
    fn a_process_of_its_own_keeps_nothing() {
        let mut past = Past::from(Ground { is_shared: false, ..ground() });
        past.lift(TableName::Sessions, 25, rows(3));
        past.archive(1, 110, batch(8));
        assert_eq!(past.fit(TableName::Sessions, 1, &standing(24, 7, 110)), Fit::TooOld);
        assert_eq!(past.fit(TableName::Events, 1, &standing(25, 7, 109)), Fit::TooOld);
        assert!(past.lifted_since(TableName::Sessions, 0).is_empty());
    }
}
