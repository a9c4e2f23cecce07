//! Makes what was folded durable: `events`, then the state, then the buckets of `messages` and `sessions`.
//!
//! One task does all three, one after the other, while the partitions fold on. Anything that fails ends the run: what
//! was not made durable is folded again from the log.

use super::buckets::Buckets;
use super::delta::{Delta, Laying};
use super::live::Live;
use super::past::{LiftedRows, ROWS_KEPT};
use super::worker::Layer;
use super::{ProjectorError, Settings};
use crate::lake::{Change, FileEntry, Lake, TableName, TableSnapshot};
use crate::log::{Group, Handed, StateChange};
use crate::state::handover::lifted;
use crate::state::overlay::partition_in;
use crate::state::{Batch, Meta, PartitionMark, State, StateError};
use arrow::array::RecordBatch;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// A wish that everything folded by now be committed. `done` is answered when it is, and dropped when that failed.
pub(super) struct Request {
    pub done: oneshot::Sender<CommitPoint>,
}

/// The tables as they were when all three had what was folded.
#[derive(Debug, Clone, Default)]
pub(super) struct CommitPoint {
    pub tables: BTreeMap<TableName, TableSnapshot>,
    /// How far that is: by partition of this process the next offset to fold, and the watermark in ms.
    pub partitions: BTreeMap<u32, (u64, Option<i64>)>,
}

/// What a partition's task is told.
pub(super) enum Command {
    /// Hand over what changed.
    Freeze(oneshot::Sender<Frozen>),
    /// It is durable.
    Thaw,
}

/// What a partition hands over.
pub(super) struct Frozen {
    pub mark: PartitionMark,
    pub layer: Arc<Layer>,
    pub deltas: Vec<Arc<Delta>>,
}

/// Only-tick changes are written this rarely: they can be read again, and an idle table should stay idle.
const IDLE_COMMIT: Duration = Duration::from_secs(600);

/// The committing task's belongings.
pub(super) struct Committer {
    pub settings: Arc<Settings>,
    pub lake: Arc<Lake>,
    pub state: State,
    pub live: Arc<Live>,
    /// What the state reflects.
    pub meta: Meta,
    /// Who takes over the partitions, where others share them.
    pub group: Option<Arc<dyn Group>>,
    /// Rows that were taken off the overlay since that was last handed over.
    pub lifted: Vec<StateChange>,
    /// Of the partitions that are this process's.
    pub workers: BTreeMap<u32, mpsc::Sender<Command>>,
    pub flush_wanted: Arc<Notify>,
    pub buckets: Buckets,
}

impl Committer {
    /// Runs until `stop`, then commits once more.
    pub async fn run(
        mut self,
        requests: &mut mpsc::Receiver<Request>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), ProjectorError> {
        let mut last = Instant::now();
        let wanted = self.flush_wanted.clone();
        loop {
            let (mut request, mut pressed) = (None, false);
            let mut stopping = *stop.borrow();
            if !stopping {
                tokio::select! {
                    () = tokio::time::sleep(self.settings.commit_every) => {}
                    () = wanted.notified() => pressed = true,
                    wish = requests.recv() => request = wish,
                    _ = stop.wait_for(|stop| *stop) => stopping = true,
                }
            }
            let forced = stopping || pressed || request.is_some();
            if self.flush(forced || last.elapsed() >= IDLE_COMMIT).await? {
                last = Instant::now();
            }
            self.look().await?;
            let all = request.is_some();
            if all || self.buckets.is_due(self.lagging()) {
                self.write_buckets(all || stopping).await?;
            }
            if let Some(request) = request {
                // The one who asked may have gone.
                let _ = request.done.send(self.point());
            }
            if stopping {
                self.write_buckets(false).await?;
                return self.hand_over_lifted().await;
            }
        }
    }

    fn point(&self) -> CommitPoint {
        let mark = |partition: &u32| {
            let mark = &self.meta.partitions[*partition as usize];
            (*partition, (mark.position, mark.watermark_ms))
        };
        CommitPoint {
            tables: TableName::ALL.into_iter().map(|name| (name, self.lake.table(name).snapshot())).collect(),
            partitions: self.workers.keys().map(mark).collect(),
        }
    }

    /// Where others commit to the tables too, looks what they did; after an error, whether it has passed.
    async fn look(&self) -> Result<(), ProjectorError> {
        let failed = self.live.status().error.is_some();
        if self.group.is_some() || failed {
            self.lake.refresh().await?;
        }
        if self.group.is_some() && !self.lake.holds(&self.workers.keys().copied().collect::<Vec<_>>()) {
            return Err(ProjectorError::TakenOver);
        }
        if failed {
            self.live.update(|status| status.error = None);
        }
        Ok(())
    }

    /// Whether the fold is catching up with a log far ahead.
    fn lagging(&self) -> bool {
        self.live.status().partitions.iter().any(|partition| partition.log_end > partition.folded + 100_000)
    }

    /// Archives and stores what was folded; says whether there was anything to do.
    async fn flush(&mut self, even_if_idle: bool) -> Result<bool, ProjectorError> {
        let waiting: Vec<_> = self.workers.keys().map(|partition| self.live.deltas(*partition)).collect();
        let worthwhile = |delta: &Arc<Delta>| delta.events.is_some() || !delta.rows.is_empty();
        let busy = waiting.iter().flatten().any(worthwhile);
        if waiting.iter().all(Vec::is_empty) || !(busy || even_if_idle) {
            return Ok(false);
        }
        drop(waiting);
        let mut frozen = BTreeMap::new();
        for (partition, worker) in &self.workers {
            let (reply, answer) = oneshot::channel();
            worker.send(Command::Freeze(reply)).await.map_err(|_| ProjectorError::Stopped)?;
            frozen.insert(*partition, answer.await.map_err(|_| ProjectorError::Stopped)?);
        }
        let started = Instant::now();
        // Made while the archive is written, and stored after it.
        let batch = self.batch(&frozen);
        self.archive(&frozen).await?;
        self.settings.metrics.commit_seconds("events", started.elapsed().as_secs_f64());
        self.store(batch.await.map_err(|_| ProjectorError::Stopped)?).await?;
        self.buckets.note(frozen.values().flat_map(|frozen| &frozen.deltas));
        let counts: Vec<_> = frozen.iter().map(|(partition, frozen)| (*partition, frozen.deltas.len())).collect();
        self.live.retire(&counts);
        let now_us = (self.settings.clock)();
        self.live.update(|status| status.committed_us = Some(now_us));
        for worker in self.workers.values() {
            worker.send(Command::Thaw).await.map_err(|_| ProjectorError::Stopped)?;
        }
        Ok(true)
    }

    /// Commits the new records to `events`, with the positions.
    async fn archive(&self, frozen: &BTreeMap<u32, Frozen>) -> Result<(), ProjectorError> {
        let table = self.lake.table(TableName::Events);
        let before = table.snapshot();
        let batches: Vec<RecordBatch> =
            frozen.values().flat_map(|frozen| &frozen.deltas).filter_map(|delta| delta.events.clone()).collect();
        let add = self.lake.write_events(batches).await?;
        let mut positions = BTreeMap::new();
        let (mut watermarks, mut appended_us) = (BTreeMap::new(), BTreeMap::new());
        for (&partition, frozen) in frozen {
            let old = before.positions.get(&partition).copied();
            let new = frozen.mark.position;
            // A state behind the archive folds records that are archived already.
            if old.is_none_or(|old| old < new) && (new > 0 || old.is_some()) {
                positions.insert(partition, (old, new));
                appended_us.insert(partition, frozen.mark.appended_us);
            }
            if let Some(watermark_ms) = frozen.mark.watermark_ms {
                watermarks.insert(partition, watermark_ms);
            }
        }
        if add.is_empty() && positions.is_empty() {
            return Ok(());
        }
        let change = Change { add, positions, watermarks, appended_us, operation: "archive", ..Change::default() };
        table.commit(change).await?;
        Ok(())
    }

    /// Begins to make one batch of users, timers, overlay rows and positions.
    fn batch(&mut self, frozen: &BTreeMap<u32, Frozen>) -> JoinHandle<Batch> {
        for (partition, frozen) in frozen {
            let mark = &mut self.meta.partitions[*partition as usize];
            let (rebuild, basis) = (mark.rebuild, std::mem::take(&mut mark.basis));
            *mark = PartitionMark { rebuild, basis, ..frozen.mark.clone() };
        }
        self.meta.policies = self.settings.describe_policies();
        let parts: Vec<_> = frozen
            .iter()
            .map(|(partition, frozen)| (*partition, frozen.layer.clone(), frozen.deltas.clone()))
            .collect();
        let (state, meta, is_shared) = (self.state.clone(), self.meta.clone(), self.group.is_some());
        tokio::task::spawn_blocking(move || {
            let mut batch = if is_shared { state.recorded_batch() } else { state.batch() };
            for (partition, layer, deltas) in &parts {
                write_layer(&mut batch, *partition, layer, deltas.iter().flat_map(|delta| &delta.rows));
            }
            batch.set_meta(&meta);
            batch
        })
    }

    /// Stores a batch, which is handed over first: a state on disk that is newer than what was handed over would not be
    /// known as the one to go on from.
    async fn store(&mut self, mut batch: Batch) -> Result<(), ProjectorError> {
        self.hand_over(batch.take_changes()).await?;
        Ok(tokio::task::spawn_blocking(|| batch.commit()).await.map_err(|_| ProjectorError::Stopped)??)
    }

    /// Hands over changes of the state and how far it is now.
    async fn hand_over(&mut self, changes: Vec<StateChange>) -> Result<(), ProjectorError> {
        let Some(group) = &self.group else { return Ok(()) };
        // What was lifted may be laid again by these changes, so it goes first.
        let mut all = std::mem::take(&mut self.lifted);
        all.extend(changes);
        let marks = || self.workers.keys().map(|partition| (*partition, &self.meta.partitions[*partition as usize]));
        all.extend(marks().map(|(partition, _)| self.meta.handover(partition)));
        let handed =
            marks().map(|(partition, mark)| Handed { partition, position: mark.position, basis: mark.basis.clone() });
        Ok(group.store(all, handed.collect()).await?)
    }

    async fn hand_over_lifted(&mut self) -> Result<(), ProjectorError> {
        if self.lifted.is_empty() { Ok(()) } else { self.hand_over(Vec::new()).await }
    }

    /// Rewrites the buckets that are due (all that changed, if `all`).
    async fn write_buckets(&mut self, all: bool) -> Result<(), ProjectorError> {
        for name in [TableName::Messages, TableName::Sessions] {
            while self.write_some_buckets(name, all).await? {}
        }
        self.buckets.rested();
        self.maintain().await
    }

    /// Rewrites as many of a table's buckets as one commit should take; says whether others are left.
    async fn write_some_buckets(&mut self, name: TableName, all: bool) -> Result<bool, ProjectorError> {
        let status = self.live.status();
        let own = || {
            self.workers.keys().filter_map(|partition| Some((*partition, status.partitions.get(*partition as usize)?)))
        };
        let watermarks = own().map(|(partition, status)| (partition, status.watermark_ms)).collect();
        let positions: Vec<(u32, u64)> = own().map(|(partition, status)| (partition, status.archived)).collect();
        let started = Instant::now();
        let Some(rewrite) = self.buckets.rewrite(name, &self.lake, &self.state, &watermarks, all).await? else {
            return Ok(false);
        };
        let table = self.lake.table(name);
        let old = table.snapshot().positions;
        let positions: BTreeMap<_, _> = positions
            .iter()
            .filter(|(partition, new)| old.get(partition).is_none_or(|old| old < new) && *new > 0)
            .map(|(partition, new)| (*partition, (old.get(partition).copied(), *new)))
            .collect();
        let appended = |partition: &u32| (*partition, self.meta.partitions[*partition as usize].appended_us);
        let change = Change {
            add: rewrite.add,
            remove: rewrite.remove,
            appended_us: positions.keys().map(appended).collect(),
            positions,
            operation: "rewrite buckets",
            ..Change::default()
        };
        let version = table.commit(change).await?.version;
        // Only now: over the older version these rows are still to be laid.
        self.lift(name, version, rewrite.keys).await?;
        self.settings.metrics.commit_seconds(name.as_str(), started.elapsed().as_secs_f64());
        Ok(rewrite.more)
    }

    /// Takes rows off the overlay, now that a version of the table has them.
    async fn lift(&mut self, name: TableName, version: u64, keys: Vec<Vec<u8>>) -> Result<(), ProjectorError> {
        if self.group.is_some() {
            let partition = |key: &[u8]| partition_in(key).unwrap_or(0);
            self.lifted.extend(keys.iter().map(|key| lifted(partition(key), key.clone())));
        }
        let (state, live) = (self.state.clone(), self.live.clone());
        let lift = move || {
            let kept =
                if live.keeps_lifted() && keys.len() <= ROWS_KEPT { Some(rows_of(&state, &keys)?) } else { None };
            live.lift(name, version, kept);
            state.lift(&keys)
        };
        Ok(tokio::task::spawn_blocking(lift).await.map_err(|_| ProjectorError::Stopped)??)
    }

    /// Merges small files, writes checkpoints, deletes what is no longer needed. A failure here is told and tried again
    /// later: nothing depends on it.
    async fn maintain(&mut self) -> Result<(), ProjectorError> {
        let done = if self.buckets.maintenance_due() {
            self.lake.tidy((self.settings.clock)() / 1000, &self.buckets.days_before()).await
        } else if self.buckets.merge_due(|| self.lake.small_files()) {
            self.lake.merge_small_files().await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            tracing::warn!(%error, "tidying the tables failed; it is tried again later");
        }
        Ok(())
    }
}

/// The rows with these keys, as the state has them.
fn rows_of(state: &State, keys: &[Vec<u8>]) -> Result<LiftedRows, StateError> {
    let mut rows = Vec::with_capacity(keys.len());
    for key in keys {
        if let Some(value) = state.laid(key)? {
            rows.push((key.clone(), value));
        }
    }
    Ok(Arc::new(rows))
}

/// Adds to a batch what a partition changed: in order of keys, which the state takes up fastest, and of a row that was
/// laid several times only the last.
pub(super) fn write_layer<'a>(
    batch: &mut Batch,
    partition: u32,
    layer: &Layer,
    rows: impl Iterator<Item = &'a Laying>,
) {
    let mut users: Vec<_> = layer.users.iter().collect();
    users.sort_unstable_by_key(|(key, _)| *key);
    for (key, entry) in users {
        batch.set_user(partition, key, entry);
    }
    for (due_ms, key) in &layer.served {
        batch.disarm(partition, *due_ms, key);
    }
    for (due_ms, key) in &layer.timers {
        batch.arm(partition, *due_ms, key);
    }
    let mut rows: Vec<_> = rows.map(|laying| (laying.key.to_bytes(), &laying.row)).collect();
    rows.sort_by(|(one, _), (other, _)| one.cmp(other));
    for copies in rows.chunk_by(|(one, _), (next, _)| one == next) {
        if let Some((key, row)) = copies.last() {
            batch.lay(key, &row.to_bytes());
        }
    }
}

/// Files of one commit.
#[derive(Default)]
pub(super) struct Rewrite {
    pub add: Vec<FileEntry>,
    pub remove: Vec<FileEntry>,
    /// Keys of the overlay rows that the new files have.
    pub keys: Vec<Vec<u8>>,
    /// Whether buckets that are due were left for the next one.
    pub more: bool,
}
