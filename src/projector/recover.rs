//! Rebuilding the state from `events`.

use super::live::{Live, Status};
use super::rebuild::any_age;
use super::worker::{Source, Worker};
use super::{Parts, ProjectorError, Settings, delta::Delta, job::Scope};
use crate::durable_file::{self, DurableFileError};
use crate::lake::rows::ArchivedEvents;
use crate::lake::{Lake, TableName};
use crate::session::Outlines;
use crate::state::{FORMAT, Meta, PartitionMark, State, StateError};
use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many partitions are replayed side by side.
const SIDE_BY_SIDE: usize = 2;
/// Tells what rows were made under, when the state that knows it is lost.
const MADE_UNDER: &str = "made-under.json";
/// Rows kept in memory between two state batches.
const ROWS_PER_BATCH: usize = 200_000;

/// Told now and then: archived events replayed, and how many there are.
pub(super) type Tell<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// What the rows of a data directory's tables were made under.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MadeUnder {
    policies: Outlines,
    /// The partitions that have rows which were made under something else.
    outdated: Vec<u32>,
}

impl MadeUnder {
    fn of(meta: &Meta) -> Self {
        let outdated = (0u32..).zip(&meta.partitions).filter(|(_, mark)| mark.is_outdated).map(|(number, _)| number);
        Self { policies: meta.policies.clone(), outdated: outdated.collect() }
    }

    /// Marks the partitions of a state that was folded anew whose rows may be others than they were. The accounts of those
    /// that are known.
    fn hold_against(made: Option<Self>, meta: &mut Meta) -> Vec<String> {
        let Self { policies, outdated } = match made {
            Some(made) => made,
            None => Self {
                policies: meta.policies.clone(),
                outdated: (0u32..).zip(&meta.partitions).map(|(n, _)| n).collect(),
            },
        };
        let now = std::mem::replace(&mut meta.policies, policies);
        let changed = meta.go_by(now);
        for (number, mark) in (0u32..).zip(&mut meta.partitions) {
            mark.is_outdated |= mark.watermark_ms.is_some() && outdated.contains(&number);
        }
        changed
    }
}

/// Notes what rows are made under from now on.
pub(super) fn note_made_under(data_dir: &Path, meta: &Meta) -> Result<(), DurableFileError> {
    let (path, now) = (data_dir.join(MADE_UNDER), MadeUnder::of(meta));
    match durable_file::read::<MadeUnder>(&path) {
        Ok(Some(known)) if known == now => Ok(()),
        Err(error @ DurableFileError::Io { .. }) => Err(error),
        _ => durable_file::write(&path, &now),
    }
}

/// Removes the state, and what an unfinished recovery left. What is removed can be rebuilt.
pub(super) fn discard(data_dir: &Path) -> Result<(), StateError> {
    for name in ["state", "state.recovering"] {
        remove(&data_dir.join(name))?;
    }
    Ok(())
}

pub(super) fn remove(dir: &Path) -> Result<(), StateError> {
    // A state of gigabytes takes a while.
    match tokio::task::block_in_place(|| std::fs::remove_dir_all(dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(dir, &error)),
        _ => Ok(()),
    }
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> StateError {
    StateError::Io { path: path.display().to_string(), reason: error.to_string() }
}

/// Moves a finished state directory to where it is used, durably.
pub(super) fn move_into_place(from: &Path, to: &Path) -> Result<(), StateError> {
    std::fs::rename(from, to).map_err(|error| io(from, &error))?;
    let parent = to.parent().unwrap_or(Path::new("."));
    std::fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| io(parent, &error))
}

/// Makes `data_dir/state` anew from the archived events. Meanwhile queries see the tables as they are.
pub(super) async fn recover(parts: &Parts, live: &Arc<Live>) -> Result<(), ProjectorError> {
    tracing::warn!("the state is missing or behind another run: rebuilding it from events");
    let recovering = Status { recovering: Some("starting".into()), ..live.status() };
    live.clear(recovering);
    let building = parts.data_dir.join("state.recovering");
    remove(&building)?;
    let state = State::open(&building, parts.settings.state_bytes())?;
    let told = AtomicU64::new(0);
    let tell = |done: u64, total: u64| {
        let percent = done * 100 / total.max(1);
        live.update(|status| status.recovering = Some(format!("{done} of {total} events")));
        if told.swap(percent / 10, Ordering::Relaxed) != percent / 10 {
            tracing::info!(done, total, percent, "rebuilding the state from events");
        }
    };
    let plan = plan(&parts.lake, &parts.settings).await?;
    let mut meta = replay(&parts.lake, &state, &plan, &tell).await?;
    let rebuild = parts.lake.rebuild();
    meta.partitions.iter_mut().for_each(|mark| mark.rebuild = rebuild);
    let made = durable_file::read(&parts.data_dir.join(MADE_UNDER));
    // What cannot be read says nothing.
    let changed = MadeUnder::hold_against(made.unwrap_or_default(), &mut meta);
    if meta.partitions.iter().any(|mark| mark.is_outdated) {
        tracing::warn!(
            accounts = changed.join(", "),
            "the state was lost, and rows were folded anew under policies and prices that may be others than they were made \
             under: those of settled months may have changed, and stay so until `counterbat rebuild` makes all of them anew"
        );
    }
    let mut batch = state.batch();
    batch.set_meta(&meta);
    batch.commit()?;
    drop(state);
    move_into_place(&building, &parts.data_dir.join("state"))?;
    tracing::info!("the state is rebuilt");
    Ok(())
}

/// How the archive is folded so that it gives the rows that the tables have.
pub(super) async fn plan(lake: &Lake, settings: &Arc<Settings>) -> Result<Plan, ProjectorError> {
    let rebuilt = lake.rebuilt_to().await?;
    let before = match rebuilt.is_empty() {
        true => None,
        // Their rows are in the tables as a rebuild made them, so they are folded as it folded them.
        false => Some((Arc::new(any_age(lake, settings, &rebuilt).await?), rebuilt)),
    };
    Ok(Plan { settings: settings.clone(), before })
}

/// What an archive is replayed by.
pub(super) struct Plan {
    pub settings: Arc<Settings>,
    /// Other settings, for what lies before these positions.
    pub before: Option<(Arc<Settings>, BTreeMap<u32, u64>)>,
}

impl Plan {
    /// The settings of a partition's beginning, and from which offset on those of the end hold.
    fn beginning(&self, partition: u32) -> (Arc<Settings>, u64) {
        match &self.before {
            Some((settings, positions)) => (settings.clone(), positions.get(&partition).copied().unwrap_or(0)),
            None => (self.settings.clone(), 0),
        }
    }
}

/// Folds the whole archive into an empty state, and time on to the archive's watermarks.
pub(super) async fn replay(
    lake: &Arc<Lake>,
    state: &State,
    plan: &Plan,
    tell: Tell<'_>,
) -> Result<Meta, ProjectorError> {
    let settings = &plan.settings;
    let events = lake.table(TableName::Events).snapshot();
    let total: u64 = events.files.values().map(|file| file.rows).sum();
    let done = AtomicU64::new(0);
    let marks: Vec<(u32, PartitionMark)> = futures::stream::iter(0..settings.partitions)
        .map(|partition| {
            let told = AtomicU64::new(0);
            let done = &done;
            async move {
                let own = |n: u64| {
                    let more = n - told.swap(n, Ordering::Relaxed);
                    tell(done.fetch_add(more, Ordering::Relaxed) + more, total);
                };
                replay_partition(lake, state, plan, partition, &own).await.map(|mark| (partition, mark))
            }
        })
        .buffer_unordered(SIDE_BY_SIDE)
        .try_collect()
        .await?;
    let mut partitions = vec![PartitionMark::default(); settings.partitions as usize];
    for (partition, mark) in marks {
        partitions[partition as usize] = mark;
    }
    let policies = settings.describe_policies();
    let meta = Meta { format: FORMAT, log_id: settings.log_id.clone(), policies, partitions };
    let mut batch = state.batch();
    batch.set_meta(&meta);
    batch.commit()?;
    Ok(meta)
}

/// Folds the archive of one partition into a state that has nothing of it; how far that is. `tell` is told how many
/// events were replayed.
pub(super) async fn replay_partition(
    lake: &Lake,
    state: &State,
    plan: &Plan,
    partition: u32,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<PartitionMark, ProjectorError> {
    let events = lake.table(TableName::Events).snapshot();
    let target = PartitionMark {
        position: events.positions.get(&partition).copied().unwrap_or(0),
        watermark_ms: events.watermarks.get(&partition).copied(),
        ..PartitionMark::default()
    };
    let mut replay = Replay::new(partition, plan, state.clone());
    let mut archive = lake.archive(partition).await?;
    let mut done = 0;
    while let Some(batch) = archive.try_next().await? {
        tokio::task::block_in_place(|| replay.fold(&batch))?;
        done += batch.num_rows() as u64;
        tell(done);
    }
    tokio::task::block_in_place(|| replay.finish(&target))
}

/// The replay of one partition.
pub(super) struct Replay {
    partition: u32,
    worker: Worker,
    state: State,
    /// Other rows are not kept.
    scope: Scope,
    /// What the state reflects: written with each batch, where a replay is to be gone on with.
    meta: Option<Arc<Mutex<Meta>>>,
    deltas: Vec<Delta>,
    rows: usize,
    limit: usize,
    /// From which offset on which settings hold; `None` once they do.
    turn: Option<(u64, Arc<Settings>)>,
}

impl Replay {
    fn new(partition: u32, plan: &Plan, state: State) -> Self {
        let (settings, until) = plan.beginning(partition);
        let (limit, turn) = (settings.layer_bytes(), Some((until, plan.settings.clone())));
        let worker = Worker::new(partition, settings, state.clone(), PartitionMark::default());
        let scope = Scope::default();
        Self { partition, worker, state, scope, meta: None, deltas: Vec::new(), rows: 0, limit, turn }
    }

    /// One that goes on where `meta` says that the state is, by the same settings to its end.
    pub fn resume(partition: u32, settings: Arc<Settings>, scope: Scope, state: State, meta: Arc<Mutex<Meta>>) -> Self {
        let mark = lock(&meta).partitions[partition as usize].clone();
        let limit = settings.layer_bytes();
        let worker = Worker::new(partition, settings, state.clone(), mark);
        Self { partition, worker, state, scope, meta: Some(meta), deltas: Vec::new(), rows: 0, limit, turn: None }
    }

    pub fn fold(&mut self, batch: &RecordBatch) -> Result<(), ProjectorError> {
        let mut records = Vec::with_capacity(batch.num_rows());
        let mut recorded = Vec::with_capacity(batch.num_rows());
        let archived = ArchivedEvents::new(batch)?;
        for row in 0..batch.num_rows() {
            let (record, disposition) = archived.record(row)?;
            records.push(record);
            recorded.push(disposition);
        }
        let until = self.turn.as_ref().map_or(0, |(until, _)| *until);
        let split = records.partition_point(|record| record.offset < until);
        if split > 0 {
            let delta = self.worker.fold(&records[..split], Some(&recorded[..split]), Source::Archive)?;
            self.keep(delta)?;
        }
        if split < records.len() {
            self.turn();
            let delta = self.worker.fold(&records[split..], Some(&recorded[split..]), Source::Archive)?;
            self.keep(delta)?;
        }
        Ok(())
    }

    /// The settings of the end hold from now on.
    fn turn(&mut self) {
        if let Some((_, settings)) = self.turn.take() {
            self.worker.go_by(settings);
        }
    }

    fn keep(&mut self, mut delta: Delta) -> Result<(), ProjectorError> {
        if self.scope != Scope::default() {
            delta.rows.retain(|laying| self.scope.has(&laying.key, &laying.row));
        }
        self.rows += delta.rows.len();
        self.deltas.push(delta);
        if self.rows >= ROWS_PER_BATCH || self.worker.bytes() >= self.limit {
            self.flush()?;
        }
        Ok(())
    }

    /// Goes on to `next`: what lies before it and was not folded is no record.
    pub fn pass(&mut self, next: u64) -> Result<(), ProjectorError> {
        let delta = self.worker.pass(next)?;
        self.keep(delta)
    }

    /// Makes durable what was folded; how far that is.
    pub fn flush(&mut self) -> Result<PartitionMark, ProjectorError> {
        let (mark, layer) = self.worker.freeze();
        let mut batch = self.state.batch();
        super::commit::write_layer(
            &mut batch,
            self.partition,
            &layer,
            self.deltas.iter().flat_map(|delta| &delta.rows),
        );
        match &self.meta {
            Some(meta) => {
                // Until the batch is written, so that no older mark of another partition goes over it.
                let mut meta = lock(meta);
                meta.partitions[self.partition as usize] = mark.clone();
                batch.set_meta(&meta);
                batch.commit()?;
            }
            None => batch.commit()?,
        }
        self.worker.thaw();
        self.deltas.clear();
        self.rows = 0;
        Ok(mark)
    }

    /// Ticks are not archived: moves time on to where it was.
    pub fn finish(&mut self, target: &PartitionMark) -> Result<PartitionMark, ProjectorError> {
        self.turn();
        if let Some(watermark_ms) = target.watermark_ms {
            let delta = self.worker.advance(watermark_ms, target.position)?;
            self.keep(delta)?;
        }
        self.flush()
    }
}

/// What a state reflects is whole at any time: its marks are replaced, never half changed.
pub(super) fn lock(meta: &Mutex<Meta>) -> std::sync::MutexGuard<'_, Meta> {
    meta.lock().unwrap_or_else(PoisonError::into_inner)
}
