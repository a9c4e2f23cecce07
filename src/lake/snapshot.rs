//! A table at one version, and what one more commit makes of it; pure.

use super::data_file::{parse_date, span_of};
use super::{FileEntry, TableSnapshot};
use crate::log::LogId;
use deltalake::kernel::{Action, Add};
use serde::Deserialize;
use std::sync::Arc;

/// What a table's `txn` actions tell of a log partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Position,
    Watermark,
    Appended,
    Owner,
}

impl Mark {
    pub const ALL: [Mark; 4] = [Mark::Position, Mark::Watermark, Mark::Appended, Mark::Owner];

    fn suffix(self) -> &'static str {
        match self {
            Mark::Position => "",
            Mark::Watermark => "/watermark",
            Mark::Appended => "/appended",
            Mark::Owner => "/owner",
        }
    }

    /// The name it is written under.
    pub fn app_id(self, log: &LogId, partition: u32) -> String {
        format!("counterbat/{log}/{partition}{}", self.suffix())
    }

    /// What a name written by [`Mark::app_id`] for this log stands for.
    pub fn from_app_id(log: &LogId, app_id: &str) -> Option<(Mark, u32)> {
        let rest = app_id.strip_prefix("counterbat/")?.strip_prefix(&*log.0)?.strip_prefix('/')?;
        let (partition, suffix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mark = Self::ALL.into_iter().find(|mark| mark.suffix() == suffix)?;
        Some((mark, partition.parse().ok()?))
    }
}

/// The name under which a table tells the rebuild that its rows come from.
pub(super) fn rebuild_app(log: &LogId) -> String {
    format!("counterbat/{log}/rebuild")
}

impl TableSnapshot {
    pub(super) fn mark(&mut self, mark: Mark, partition: u32, value: i64) {
        match mark {
            Mark::Position => {
                self.positions.insert(partition, u64::try_from(value).unwrap_or(0));
            }
            Mark::Watermark => {
                self.watermarks.insert(partition, value);
            }
            Mark::Appended => {
                self.appended_us.insert(partition, value);
            }
            Mark::Owner => {
                self.owners.insert(partition, value);
            }
        }
    }
}

/// A snapshot that commits were applied to, and what came and went by them.
pub(super) struct Step {
    pub snapshot: TableSnapshot,
    pub added: Vec<String>,
    /// With the time in ms when they were removed, where the commit tells it.
    pub removed: Vec<(String, Option<i64>)>,
}

impl Step {
    /// Nothing happened yet.
    pub fn from(snapshot: TableSnapshot) -> Self {
        Self { snapshot, added: Vec::new(), removed: Vec::new() }
    }

    /// Applies the commit of the next version, for a log of `partitions` partitions. `None` when it says something that
    /// only a full load can take in: other columns, another protocol, deletion vectors, anything unknown.
    pub fn follow(mut self, commit: &[u8], log: &LogId, partitions: u32) -> Option<Self> {
        let files = Arc::make_mut(&mut self.snapshot.files);
        let (mut marks, rebuild) = (Vec::new(), rebuild_app(log));
        for line in commit.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            match serde_json::from_slice::<Action>(line).ok()? {
                Action::Add(add) if add.deletion_vector.is_none() => {
                    let entry = file_entry(add);
                    self.added.push(entry.path.clone());
                    files.insert(entry.path.clone(), entry);
                }
                Action::Remove(remove) if remove.deletion_vector.is_none() => {
                    files.remove(&remove.path);
                    self.removed.push((remove.path, remove.deletion_timestamp));
                }
                Action::Txn(txn) if txn.app_id == rebuild => self.snapshot.rebuild = txn.version,
                Action::Txn(txn) => marks.extend(
                    Mark::from_app_id(log, &txn.app_id)
                        .filter(|(_, partition)| *partition < partitions)
                        .map(|(mark, partition)| (mark, partition, txn.version)),
                ),
                Action::CommitInfo(_) => {}
                _ => return None,
            }
        }
        for (mark, partition, value) in marks {
            self.snapshot.mark(mark, partition, value);
        }
        self.snapshot.version += 1;
        Some(self)
    }
}

fn file_entry(add: Add) -> FileEntry {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rows {
        num_records: u64,
    }
    let rows = add.stats.as_deref().and_then(|stats| serde_json::from_str::<Rows>(stats).ok());
    FileEntry {
        span: span_of(&add.path),
        date: add.partition_values.get("date").and_then(Option::as_deref).and_then(parse_date),
        size: u64::try_from(add.size).unwrap_or(0),
        rows: rows.map_or(0, |rows| rows.num_records),
        stats: add.stats,
        path: add.path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_mark() {
        let log = LogId("topic/1".into());
        for mark in Mark::ALL {
            assert_eq!(Mark::from_app_id(&log, &mark.app_id(&log, 12)), Some((mark, 12)));
        }
        for other in
            ["counterbat/topic/2/12", "counterbat/topic/1/12/rebuilt", "counterbat/topic/1/x", "counterbat/topic/1"]
        {
            assert_eq!(Mark::from_app_id(&log, other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_guessed() {
        let follow = |line: &str| Step::from(TableSnapshot::default()).follow(line.as_bytes(), &LogId("l".into()), 2);
        for line in [
            r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}"#,
            r#"{"add":{"path":"a","partitionValues":{},"size":1,"modificationTime":1,"dataChange":true,"deletionVector":{"storageType":"u","pathOrInlineDv":"x","sizeInBytes":1,"cardinality":1}}}"#,
            r#"{"novelty":{}}"#,
            "{",
        ] {
            assert!(follow(line).is_none(), "{line}");
        }
        let step =
            follow("{\"txn\":{\"appId\":\"counterbat/l/1/owner\",\"version\":7}}\n\n{\"commitInfo\":{}}").unwrap();
        assert_eq!((step.snapshot.version, step.snapshot.owners.get(&1)), (1, Some(&7)));
    }
}
