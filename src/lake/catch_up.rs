//! Taking in what other processes committed: commit by commit where that will do, else the whole table anew.

use super::commit::fingerprint;
use super::data_file::{parse_date, span_of};
use super::snapshot::{Mark, Step, rebuild_app};
use super::table::{LOG_FOLDER, lock};
use super::{FileEntry, LakeError, Table, TableSnapshot};
use deltalake::DeltaTable;
use object_store::path::Path as ObjectPath;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A table that is more versions behind is read whole, from its checkpoint.
const FAR_BEHIND: usize = 300;

impl Table {
    /// Brings the snapshot up to the newest version in the store.
    pub async fn refresh(&self) -> Result<(), LakeError> {
        self.follow().await.map(drop)
    }

    /// [`Table::refresh`]; says whether a commit of this process was found that had no answer.
    pub(super) async fn follow(&self) -> Result<bool, LakeError> {
        let mut step = Step::from(self.snapshot());
        let mut found_own = false;
        for _ in 0..FAR_BEHIND {
            let version = step.snapshot.version;
            let Some(commit) = self.store.find(&self.commit_path(version + 1)).await? else {
                if !self.is_newest(version).await? {
                    break;
                }
                self.take(step);
                return Ok(found_own);
            };
            found_own |= lock(&self.unanswered).remove(&fingerprint(&commit));
            match step.follow(&commit, &self.log, self.partitions) {
                Some(next) => step = next,
                None => break,
            }
        }
        self.load_whole().await?;
        Ok(found_own)
    }

    /// Whether a version that no other follows is the newest. The log of a table is cleaned up from its start, never its
    /// newest commit: where this one's is gone, those after it are too, and the version after it is long past.
    pub(super) async fn is_newest(&self, version: u64) -> Result<bool, LakeError> {
        self.store.exists(&self.commit_path(version)).await
    }

    pub(super) fn commit_path(&self, version: u64) -> ObjectPath {
        self.object_path(&format!("{LOG_FOLDER}/{version:020}.json"))
    }

    /// Takes over a snapshot, unless there is a newer one already.
    pub(super) fn take(&self, step: Step) -> TableSnapshot {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let (mut dead, mut pending) = (lock(&self.dead), lock(&self.pending));
        dead.extend(step.removed.into_iter().map(|(path, since_ms)| (path, since_ms.unwrap_or(now_ms))));
        for path in step.added {
            pending.remove(&path);
            dead.remove(&path);
        }
        let mut current = lock(&self.current);
        if step.snapshot.version >= current.version {
            *current = step.snapshot.clone();
        }
        step.snapshot
    }

    /// Reads the table anew from the store, whole.
    pub(super) async fn load_whole(&self) -> Result<(), LakeError> {
        let before = self.snapshot();
        let after = self.read_whole(&self.load().await?).await?;
        if after.version < before.version {
            let (name, old, new) = (self.name().as_str(), before.version, after.version);
            return Err(LakeError::Damaged(format!("table {name} was at version {old} and now is at {new}")));
        }
        let gone = before.files.keys().filter(|path| !after.files.contains_key(*path));
        let removed = gone.map(|path| (path.clone(), None)).collect();
        self.take(Step { added: after.files.keys().cloned().collect(), removed, snapshot: after });
        Ok(())
    }

    /// What a table that was loaded holds.
    pub(super) async fn read_whole(&self, table: &DeltaTable) -> Result<TableSnapshot, LakeError> {
        let mut snapshot = self.read_files(table)?;
        let names = (0..self.partitions).flat_map(|partition| Mark::ALL.map(|mark| mark.app_id(&self.log, partition)));
        let rebuild = rebuild_app(&self.log);
        for (app_id, value) in self.values(table, names.chain([rebuild.clone()]).collect()).await? {
            if app_id == rebuild {
                snapshot.rebuild = value;
            } else if let Some((mark, partition)) = Mark::from_app_id(&self.log, &app_id) {
                snapshot.mark(mark, partition, value);
            }
        }
        Ok(snapshot)
    }

    /// The files of a table that was loaded, without what its `txn` actions tell.
    pub(super) fn read_files(&self, table: &DeltaTable) -> Result<TableSnapshot, LakeError> {
        let failed = |error: deltalake::DeltaTableError| self.store.failed(&error);
        let state = table.snapshot().map_err(failed)?;
        let mut files = BTreeMap::new();
        for view in state.log_data() {
            let path = view.path().into_owned();
            let date = view.partition_values_map().get("date").cloned().flatten();
            let entry = FileEntry {
                span: span_of(&path),
                date: date.as_deref().and_then(parse_date),
                size: u64::try_from(view.size()).unwrap_or(0),
                rows: view.num_records().unwrap_or(0) as u64,
                stats: view.stats(),
                path: path.clone(),
            };
            files.insert(path, entry);
        }
        Ok(TableSnapshot { version: state.version(), files: Arc::new(files), ..TableSnapshot::default() })
    }
}
