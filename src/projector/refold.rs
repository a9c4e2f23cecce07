//! Folds the archive anew, into a state and tables of its own, as far as it goes and again when it has grown. What is done
//! is in that state, so that it is gone on with after a kill.

use super::buckets::Buckets;
use super::bulk::Bulk;
use super::by_user::TellRead;
use super::job::{Reach, Scope};
use super::rebuild::try_again;
use super::recover::{Replay, lock};
use super::{ProjectorError, Settings};
use crate::lake::{Change, EventsLayout, KeptState, Lake, TableName, TableSnapshot, rows};
use crate::state::{Batch, FORMAT, Meta, PartitionMark, State, StateError};
use arrow::array::RecordBatch;
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;

/// Changes of a state kept in one object.
const PAGE: usize = 5_000;

/// Told now and then: records gone through, and how many there are.
pub(super) type Tell = Arc<dyn Fn(u64, u64) + Send + Sync>;

/// How a round of folding ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Folded {
    All,
    /// An event has come later than the settings take in: it has to be begun anew, with wider ones.
    TooLate,
}

/// A refold under way.
pub(super) struct Refold {
    generation: Arc<Lake>,
    fold: Fold,
    /// Partitions folded side by side; with one, whoever drops the future has ended the fold.
    side_by_side: usize,
}

/// What partitions are folded with.
#[derive(Clone)]
struct Fold {
    lake: Arc<Lake>,
    state: State,
    meta: Arc<Mutex<Meta>>,
    settings: Arc<Settings>,
    scope: Scope,
    /// A folder for what memory does not hold.
    room: PathBuf,
}

/// A round of folding.
#[derive(Clone)]
struct Round {
    generation: Arc<Lake>,
    events: TableSnapshot,
    /// Where the rows of those partitions lie that are folded from their beginning.
    layout: Arc<EventsLayout>,
    done: Arc<AtomicU64>,
    total: u64,
    tell: Tell,
}

impl Refold {
    /// Goes on with what is in `dir`, or begins there; what memory does not hold goes to `room`. `None` where what is there
    /// was folded by other settings.
    pub fn open(
        lake: Arc<Lake>,
        generation: Lake,
        dir: &Path,
        room: &Path,
        settings: Arc<Settings>,
        scope: Scope,
        side_by_side: usize,
    ) -> Result<Option<Self>, ProjectorError> {
        // What a kill has left there is of no use.
        super::recover::remove(room)?;
        std::fs::create_dir_all(room).map_err(|error| super::recover::io(room, &error))?;
        let state = State::open(dir, settings.state_bytes())?;
        let mut policies = settings.describe_policies();
        // What rests half done is gone on with only by what would do the same.
        policies.common.push_str(&format!("; any age up to {:?} ms; {scope:?}", settings.lateness_ms));
        let partitions = vec![PartitionMark::default(); settings.partitions as usize];
        let new = Meta { format: FORMAT, log_id: settings.log_id.clone(), policies, partitions };
        let meta = match state.meta() {
            Ok(None) => {
                // Users are written before it is told how far they are: what of them is left must not get into others.
                let mut batch = state.batch();
                batch.set_meta(&new);
                batch.commit()?;
                new
            }
            Ok(Some(meta)) if meta.policies == new.policies && meta.log_id == new.log_id => meta,
            Ok(Some(_)) | Err(StateError::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let fold = Fold { lake, state, meta: Arc::new(Mutex::new(meta)), settings, scope, room: room.to_owned() };
        Ok(Some(Self { generation: Arc::new(generation), fold, side_by_side }))
    }

    /// How many records of the log it has gone through.
    pub fn position(&self) -> u64 {
        lock(&self.fold.meta).partitions.iter().map(|mark| mark.position).sum()
    }

    /// How many records of `events` it has not gone through.
    pub fn behind(&self, events: &TableSnapshot) -> u64 {
        let meta = lock(&self.fold.meta);
        let behind = |(partition, position): (&u32, &u64)| {
            position.saturating_sub(meta.partitions.get(*partition as usize).map_or(0, |mark| mark.position))
        };
        events.positions.iter().map(behind).sum()
    }

    /// Folds what a version of `events` has beyond what it has folded already.
    pub async fn fold(&self, events: &TableSnapshot, tell: Tell) -> Result<Folded, ProjectorError> {
        let total: u64 = events.positions.values().sum();
        let done = Arc::new(AtomicU64::new(total.saturating_sub(self.behind(events))));
        let begins = (0u32..).zip(&lock(&self.fold.meta).partitions).any(|(partition, mark)| {
            mark.position == 0 && events.positions.get(&partition).is_some_and(|end| *end > 0)
        });
        let layout = if begins { self.fold.lake.events_layout(events).await? } else { EventsLayout::default() };
        let (generation, events, layout) = (self.generation.clone(), events.clone(), Arc::new(layout));
        let round = Round { generation, events, layout, done, total, tell };
        if self.side_by_side == 1 {
            for partition in 0..self.fold.settings.partitions {
                if self.fold.partition(round.clone(), partition).await? == Folded::TooLate {
                    return Ok(Folded::TooLate);
                }
            }
            return Ok(Folded::All);
        }
        let (mut partitions, mut folding) = (0..self.fold.settings.partitions, JoinSet::new());
        let mut stopped: Option<Result<Folded, ProjectorError>> = None;
        loop {
            while folding.len() < self.side_by_side && stopped.is_none() {
                let Some(partition) = partitions.next() else { break };
                let (fold, round) = (self.fold.clone(), round.clone());
                folding.spawn(async move { fold.partition(round, partition).await });
            }
            // All of them are waited for: they have the state.
            let Some(ended) = folding.join_next().await else { return stopped.unwrap_or(Ok(Folded::All)) };
            match ended.unwrap_or_else(|error| Err(ProjectorError::Halted(format!("a fold broke down: {error}")))) {
                Ok(Folded::All) => {}
                ended => stopped = stopped.or(Some(ended)),
            }
        }
    }

    /// Moves time on to where a version of `events` ends, all of which is folded: ticks are not among its rows. Nothing can
    /// be folded after it as if time had not moved.
    pub fn finish(&self, reach: &Reach) -> Result<(), ProjectorError> {
        for partition in 0..self.fold.settings.partitions {
            let target = PartitionMark {
                position: reach.positions.get(&partition).copied().unwrap_or(0),
                watermark_ms: reach.watermarks.get(&partition).copied(),
                ..PartitionMark::default()
            };
            tokio::task::block_in_place(|| self.fold.replay(partition).finish(&target))?;
        }
        Ok(())
    }

    /// Brings the tables up to what is folded. `is_last` says that they are complete with it.
    pub async fn write(&self, is_last: bool) -> Result<(), ProjectorError> {
        let Fold { state, meta, settings, .. } = &self.fold;
        let mut buckets = Buckets::new(settings);
        let marks = lock(meta).partitions.clone();
        let watermarks: BTreeMap<u32, Option<i64>> =
            (0u32..).zip(&marks).map(|(partition, mark)| (partition, mark.watermark_ms)).collect();
        for name in [TableName::Messages, TableName::Sessions] {
            let mut more = true;
            while more {
                let rewrite = buckets.rewrite(name, &self.generation, state, &watermarks, true).await?;
                if rewrite.is_none() && !is_last {
                    break;
                }
                // The last one is committed even without a row: it says how far the rebuild went.
                let rewrite = rewrite.unwrap_or_default();
                more = rewrite.more;
                let table = self.generation.table(name);
                let old = table.snapshot().positions;
                let positions = (0u32..).zip(&marks).map(|(p, mark)| (p, (old.get(&p).copied(), mark.position)));
                let change = Change {
                    add: rewrite.add,
                    remove: rewrite.remove,
                    positions: if is_last && !more { positions.collect() } else { BTreeMap::new() },
                    operation: "rebuild",
                    ..Change::default()
                };
                table.commit(change).await?;
                state.lift(&rewrite.keys)?;
            }
        }
        Ok(())
    }

    /// [`Refold::write`] to the end. After [`Refold::finish`] an error costs the whole refold, so one that passes is waited
    /// for a while.
    pub async fn write_all(&self) -> Result<(), ProjectorError> {
        let mut tries = 0;
        while let Err(error) = self.write(true).await {
            if !try_again(&error, "the new tables cannot be written now", &mut tries).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Its tables.
    pub fn generation(&self) -> &Lake {
        &self.generation
    }

    /// What the state reflects, where the live tables are those of this `rebuild` and gone on with under `settings`.
    fn meta_to_go_on(&self, rebuild: i64, settings: &Settings) -> Meta {
        let mut meta = lock(&self.fold.meta).clone();
        meta.policies = settings.describe_policies();
        meta.partitions.iter_mut().for_each(|mark| mark.rebuild = rebuild);
        meta
    }

    /// Makes the state one that the live tables can be gone on with once they are those of this `rebuild`, under `settings`.
    pub fn hand_over(self, rebuild: i64, settings: &Settings) -> Result<(), ProjectorError> {
        let mut batch = self.fold.state.batch();
        batch.set_meta(&self.meta_to_go_on(rebuild, settings));
        Ok(batch.commit()?)
    }

    /// [`Refold::hand_over`] to whatever processes fold the partitions on: keeps a partition's state beside the tables.
    pub async fn keep_state(&self, rebuild: i64, settings: &Settings, partition: u32) -> Result<(), ProjectorError> {
        let Fold { lake, state, .. } = &self.fold;
        let (mut after, mut pages): (Option<Vec<u8>>, u32) = (None, 0);
        loop {
            let changes = tokio::task::block_in_place(|| state.changes(partition, after.as_deref(), PAGE))?;
            let Some(last) = changes.last() else { break };
            after = Some(last.key.clone());
            lake.keep_state_page(rebuild, partition, pages, changes).await?;
            pages += 1;
        }
        let meta = self.meta_to_go_on(rebuild, settings);
        let (mark, position) = (meta.handover(partition).value, meta.partitions[partition as usize].position);
        Ok(lake.keep_state(rebuild, partition, &KeptState { position, pages, mark }).await?)
    }
}

impl Fold {
    async fn partition(&self, round: Round, partition: u32) -> Result<Folded, ProjectorError> {
        let mark = lock(&self.meta).partitions[partition as usize].clone();
        let end = round.events.positions.get(&partition).copied().unwrap_or(0);
        if mark.position >= end {
            return Ok(Folded::All);
        }
        if mark.position == 0 {
            return self.begin_partition(round, partition, end).await;
        }
        let Round { events, done, total, tell, .. } = round;
        let mut replay = self.replay(partition);
        let mut lateness = Lateness { newest_ms: mark.watermark_ms, limit_ms: self.settings.lateness_ms };
        let mut archive = self.lake.archive_from(&events, partition, mark.position).await?;
        while let Some(batch) = archive.try_next().await? {
            if lateness.exceeded_by(&batch)? {
                return Ok(Folded::TooLate);
            }
            tokio::task::block_in_place(|| replay.fold(&batch))?;
            let rows = batch.num_rows() as u64;
            tell((done.fetch_add(rows, Ordering::Relaxed) + rows).min(total), total);
        }
        // Ticks are not archived: without this an idle partition would seem to be behind for ever.
        tokio::task::block_in_place(|| replay.pass(end).and_then(|()| replay.flush()))?;
        Ok(Folded::All)
    }

    /// Folds all of a partition that the state has nothing of.
    async fn begin_partition(&self, round: Round, partition: u32, end: u64) -> Result<Folded, ProjectorError> {
        let Round { generation, layout, done, total, tell, .. } = round;
        let Self { lake, state, meta, settings, scope, room } = self;
        let bulk = Bulk { lake, generation: &generation, state, settings, scope, room, partition, end };
        let read: TellRead =
            Arc::new(move |rows| tell((done.fetch_add(rows, Ordering::Relaxed) + rows).min(total), total));
        let note = |mut batch: Batch, mark: PartitionMark| {
            // Until the batch is written, so that no older mark of another partition goes over it.
            let mut meta = lock(meta);
            meta.partitions[partition as usize] = mark;
            batch.set_meta(&meta);
            Ok(batch.commit()?)
        };
        bulk.run(&layout, read, note).await
    }

    fn replay(&self, partition: u32) -> Replay {
        let (settings, scope) = (self.settings.clone(), self.scope.clone());
        Replay::resume(partition, settings, scope, self.state.clone(), self.meta.clone())
    }
}

/// Watches how late events have come.
struct Lateness {
    newest_ms: Option<i64>,
    /// Events this late are not folded in.
    limit_ms: Option<i64>,
}

impl Lateness {
    fn exceeded_by(&mut self, batch: &RecordBatch) -> Result<bool, ProjectorError> {
        let Some(limit_ms) = self.limit_ms else { return Ok(false) };
        let times = rows::ArchivedTimes::new(batch)?;
        for row in 0..batch.num_rows() {
            let (time_ms, t_ms) = times.times_ms(row);
            if self.newest_ms.is_some_and(|newest_ms| newest_ms.saturating_sub(t_ms) >= limit_ms) {
                return Ok(true);
            }
            self.newest_ms = self.newest_ms.max(Some(time_ms));
        }
        Ok(false)
    }
}
