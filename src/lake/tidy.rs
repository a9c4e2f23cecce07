//! Hygiene: checkpoints, retention of the Delta log, deletion of files that nobody needs.

use super::table::{LOG_FOLDER, lock};
use super::{Lake, LakeError, Table, TableSnapshot, generation};
use futures::TryStreamExt;
use object_store::ObjectStore;
use std::collections::BTreeMap;

/// A checkpoint at least every so many commits.
const CHECKPOINT_EVERY: u64 = 100;
/// Files are deleted this long after they left the table: readers of older versions have as long.
const KEEP_MS: i64 = 86_400_000;

impl Lake {
    /// Merges small files, writes checkpoints, expires the log, deletes dead files. `days_before` is the hour, by
    /// partition, before which rows lie in files of whole days.
    pub async fn tidy(&self, now_ms: i64, days_before: &BTreeMap<u32, i64>) -> Result<(), LakeError> {
        self.refresh().await?;
        unless_forestalled(self.merge_events().await)?;
        unless_forestalled(self.merge_days(days_before).await)?;
        for table in self.tables.values() {
            table.checkpoint().await?;
            table.delete_dead(now_ms, KEEP_MS).await?;
        }
        Ok(())
    }

    /// Merges the small files of `events`: what must not wait for [`Lake::tidy`].
    pub async fn merge_small_files(&self) -> Result<(), LakeError> {
        self.refresh().await?;
        unless_forestalled(self.merge_events().await)
    }

    /// Forgets which files have left the tables: for a process that never deletes any, as they would be ever more.
    pub fn forget_dead(&self) {
        for table in self.tables.values() {
            lock(&table.dead).clear();
        }
    }
}

/// That another process has merged the same files, or taken over their partition, is no failure.
fn unless_forestalled(merged: Result<usize, LakeError>) -> Result<(), LakeError> {
    match merged {
        Err(error @ LakeError::Conflict { .. }) => {
            tracing::debug!(%error, "files are merged by another process");
            Ok(())
        }
        merged => merged.map(drop),
    }
}

impl Table {
    /// Writes a checkpoint where one is due, and lets go of expired log entries.
    pub(super) async fn checkpoint(&self) -> Result<(), LakeError> {
        let version = self.snapshot().version;
        let is_due = || version >= lock(&self.checkpointed).saturating_add(CHECKPOINT_EVERY);
        if is_due() {
            self.note_checkpoint().await?;
        }
        if !is_due() {
            return Ok(());
        }
        let failed = |error: deltalake::DeltaTableError| self.store.failed(&error);
        let table = self.load().await?;
        if let Err(error) = deltalake::protocol::checkpoints::create_checkpoint(&table, None).await {
            // Another process may have written the same one.
            self.note_checkpoint().await?;
            return if is_due() { Err(failed(error)) } else { Ok(()) };
        }
        self.store.sync_folder(&format!("{}/{LOG_FOLDER}", self.folder)).await?;
        deltalake::protocol::checkpoints::cleanup_metadata(&table, None).await.map_err(failed)?;
        *lock(&self.checkpointed) = version;
        Ok(())
    }

    async fn note_checkpoint(&self) -> Result<(), LakeError> {
        if let Some(version) = self.last_checkpoint().await? {
            let mut known = lock(&self.checkpointed);
            *known = version.max(*known);
        }
        Ok(())
    }

    /// Takes over from the Delta log when files left the table.
    pub(super) async fn note_tombstones(&self, table: &deltalake::DeltaTable) -> Result<(), LakeError> {
        let failed = |error: deltalake::DeltaTableError| self.store.failed(&error);
        let state = table.snapshot().map_err(failed)?;
        let log_store = table.log_store();
        let mut tombstones = state.all_tombstones(log_store.as_ref());
        let live = self.snapshot().files;
        while let Some(tombstone) = tombstones.try_next().await.map_err(failed)? {
            let path = tombstone.path().to_string();
            if !live.contains_key(&path) {
                lock(&self.dead).insert(path, tombstone.deletion_timestamp().unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Deletes Parquet files that have not been live for `keep_ms`: those that were removed, and those that a process
    /// wrote and never committed, a generation that was given up among them, with what it was while it was built. One that
    /// another process may go on with is left alone. Returns how many.
    pub(super) async fn delete_dead(&self, now_ms: i64, keep_ms: i64) -> Result<usize, LakeError> {
        let root = self.object_path("");
        let objects = self.store.objects();
        let listed: Vec<_> = objects
            .list(Some(&root))
            .try_collect()
            .await
            .map_err(|error: object_store::Error| self.store.failed(&error))?;
        // After the listing, so that a file which another process committed until then is known to be live.
        self.refresh().await?;
        let TableSnapshot { files: live, rebuild, .. } = self.snapshot();
        let mut gone = Vec::new();
        for object in listed {
            let Some(path) =
                object.location.as_ref().strip_prefix(root.as_ref()).map(|path| path.trim_start_matches('/'))
            else {
                continue;
            };
            let is_data = path.ends_with(".parquet") || path.ends_with(".draft");
            if !(is_data || generation::is_scaffold(path))
                || path.starts_with("_delta_log/")
                || live.contains_key(path)
                || lock(&self.pending).contains(path)
                || path.split_once('/').is_some_and(|(folder, _)| {
                    lock(&self.building).contains(folder) || generation::may_be_built(folder, rebuild, now_ms)
                })
            {
                continue;
            }
            let since_ms = *lock(&self.dead).entry(path.to_owned()).or_insert(now_ms);
            if now_ms - since_ms >= keep_ms {
                gone.push((path.to_owned(), object.location));
            }
        }
        for (path, location) in &gone {
            self.store.delete(location).await?;
            lock(&self.dead).remove(path);
        }
        Ok(gone.len())
    }
}
