//! What a process that shares the log needs before it folds a partition: its state, as whoever had it left it.
//!
//! In this order: the own state on disk, where it is the one that was handed over last; the own one, where it is newer;
//! what a rebuild has kept, where nothing was handed over since; what was handed over; the archive. Whatever did not come
//! from the hand-over is handed over whole, so that later changes have something to be changes of.

use super::rebuild::any_age;
use super::recover::{Plan, replay_partition};
use super::{Parts, ProjectorError, live::Live};
use crate::lake::{KeptState, LakeError, TableName};
use crate::log::{EventLog, Group, Handed, StateChange};
use crate::state::handover::MARK;
use crate::state::{Meta, PartitionMark, State, StateError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uuid::Uuid;

/// Changes stored in one transaction.
const PAGE: usize = 20_000;
/// Partitions taken over at the same time: most of it is waiting for the brokers.
const SIDE_BY_SIDE: usize = 4;

/// Takes over partitions.
pub(super) struct TakeOver<'a> {
    pub parts: &'a Parts,
    pub live: &'a Live,
    pub group: &'a dyn Group,
    pub state: State,
    pub meta: Mutex<Meta>,
    /// The rebuild that the tables come from.
    pub rebuild: i64,
}

/// What taking over gave.
pub(super) struct Taken {
    /// What the whole state reflects now.
    pub meta: Meta,
    /// Partitions whose log does not go on where they were left, and why: nobody can fold them on (spec §7.6).
    pub refused: BTreeMap<u32, ProjectorError>,
}

impl TakeOver<'_> {
    /// Makes the state of these partitions what it was when they were left.
    pub async fn run(self, partitions: &[u32]) -> Result<Taken, ProjectorError> {
        let archived = self.parts.lake.table(TableName::Events).snapshot();
        let (mut waiting, mut taking, mut refused) =
            (partitions.iter().copied(), FuturesUnordered::new(), BTreeMap::new());
        loop {
            for partition in waiting.by_ref().take(SIDE_BY_SIDE - taking.len()) {
                let archived_to = archived.positions.get(&partition).copied().unwrap_or(0);
                let appended_us = archived.appended_us.get(&partition).copied();
                taking.push(self.take_or_refuse(partition, archived_to, appended_us));
            }
            let Some(taken) = taking.next().await else { break };
            refused.extend(taken?);
        }
        drop(taking);
        Ok(Taken { meta: self.meta.into_inner().unwrap_or_else(PoisonError::into_inner), refused })
    }

    /// Takes a partition over, or says why it cannot be folded on.
    async fn take_or_refuse(
        &self,
        partition: u32,
        archived_to: u64,
        appended_us: Option<i64>,
    ) -> Result<Option<(u32, ProjectorError)>, ProjectorError> {
        if let Some(appended_us) = appended_us {
            match same_log(&*self.parts.log, partition, archived_to, appended_us).await {
                Err(error @ ProjectorError::OtherRecords { .. }) => {
                    tracing::error!(%error, "the partition is not folded on");
                    return Ok(Some((partition, error)));
                }
                checked => checked?,
            }
        }
        self.take(partition, archived_to).await?;
        Ok(None)
    }

    fn mark(&self, partition: u32) -> PartitionMark {
        self.meta().partitions[partition as usize].clone()
    }

    fn meta(&self) -> MutexGuard<'_, Meta> {
        // A mark is replaced whole, so what a panic left locked is still good.
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take(&self, partition: u32, archived_to: u64) -> Result<(), ProjectorError> {
        let handed = self.group.handed(partition).await?;
        let own = self.mark(partition);
        let is_handed =
            |handed: &Handed| !handed.basis.is_empty() && handed.basis == own.basis && handed.position == own.position;
        if self.fits(&own, archived_to) && handed.as_ref().is_some_and(is_handed) {
            return Ok(());
        }
        let is_newer = own.position > 0 && handed.as_ref().is_none_or(|handed| own.position >= handed.position);
        if self.fits(&own, archived_to) && is_newer {
            return self.publish(partition).await;
        }
        let kept = match self.parts.lake.kept_state(self.rebuild, partition).await {
            Err(error @ LakeError::Damaged(_)) => {
                tracing::warn!(partition, %error, "what the rebuild has kept cannot be read");
                None
            }
            kept => kept?,
        };
        if let Some(kept) = kept.filter(|kept| handed.as_ref().is_none_or(|handed| handed.position <= kept.position)) {
            self.forget(partition)?;
            if let Some(mark) = self.take_kept(partition, kept).await?
                && self.fits(&mark, archived_to)
            {
                tracing::info!(partition, position = mark.position, "took the partition's state from the rebuild");
                self.keep(partition, mark)?;
                return self.publish(partition).await;
            }
        }
        self.forget(partition)?;
        if let Some(handed) = &handed
            && let Some(mark) = self.restore(partition).await?
            && mark.basis == handed.basis
            && self.fits(&mark, archived_to)
        {
            tracing::info!(partition, position = mark.position, "took over the partition's state");
            return self.keep(partition, mark);
        }
        self.forget(partition)?;
        let mark = match archived_to {
            0 => PartitionMark::default(),
            _ => self.recover(partition).await?,
        };
        self.keep(partition, PartitionMark { rebuild: self.rebuild, ..mark })?;
        self.publish(partition).await
    }

    /// Whether a state can be gone on from: of these tables, and not ahead of the archive.
    fn fits(&self, mark: &PartitionMark, archived_to: u64) -> bool {
        mark.rebuild == self.rebuild && mark.position <= archived_to
    }

    fn keep(&self, partition: u32, mark: PartitionMark) -> Result<(), ProjectorError> {
        // Stored under the lock: what is stored last has the marks of all.
        let mut meta = self.meta();
        meta.partitions[partition as usize] = mark;
        let mut batch = self.state.batch();
        batch.set_meta(&meta);
        Ok(batch.commit()?)
    }

    /// The mark goes first: what is half removed counts as nothing.
    fn forget(&self, partition: u32) -> Result<(), ProjectorError> {
        self.keep(partition, PartitionMark::default())?;
        Ok(tokio::task::block_in_place(|| self.state.clear(partition))?)
    }

    /// Takes in what was handed over; the mark that it ends with.
    async fn restore(&self, partition: u32) -> Result<Option<PartitionMark>, ProjectorError> {
        struct Taking {
            state: State,
            batch: crate::state::Batch,
            count: usize,
            mark: Option<PartitionMark>,
            failed: Option<StateError>,
        }
        let (state, log_id) = (self.state.clone(), self.parts.settings.log_id.clone());
        let policies = self.meta().policies.clone();
        let batch = state.batch();
        let taking = Arc::new(Mutex::new(Taking { state, batch, count: 0, mark: None, failed: None }));
        let shared = Arc::downgrade(&taking);
        let each = move |change: StateChange| {
            // Whoever asked may have gone, and must have left the state to the next.
            let Some(taking) = shared.upgrade() else { return false };
            let mut taking = taking.lock().unwrap_or_else(PoisonError::into_inner);
            let is_mark = change.key == MARK;
            let mut taken = taking.batch.take_over(change, &log_id, &policies);
            taking.count += 1;
            if taking.count.is_multiple_of(PAGE) && taken.is_ok() {
                let fresh = taking.state.batch();
                let full = std::mem::replace(&mut taking.batch, fresh);
                if let Err(error) = full.commit() {
                    taken = Err(error);
                }
            }
            match taken {
                Ok(mark) if is_mark => taking.mark = mark,
                Ok(_) => {}
                Err(error) => taking.failed = Some(error),
            }
            taking.failed.is_none()
        };
        self.group.restore(partition, Box::new(each)).await?;
        let finish = move || {
            let mut taking = taking.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = taking.failed.take() {
                return Err(error);
            }
            let fresh = taking.state.batch();
            std::mem::replace(&mut taking.batch, fresh).commit()?;
            taking.state.arm_all(partition)?;
            Ok(taking.mark.take())
        };
        match tokio::task::spawn_blocking(finish).await.map_err(|_| ProjectorError::Stopped)? {
            // What cannot be understood was written by another version: the archive has it all.
            Err(StateError::Damaged { reason, .. }) => {
                tracing::warn!(partition, %reason, "what was handed over cannot be read");
                Ok(None)
            }
            mark => Ok(mark?),
        }
    }

    /// Takes in what a rebuild has kept; the mark that it ends with. `None` where it cannot be read.
    async fn take_kept(&self, partition: u32, kept: KeptState) -> Result<Option<PartitionMark>, ProjectorError> {
        let (log_id, policies) = (&self.parts.settings.log_id, self.meta().policies.clone());
        let take = |changes: Vec<StateChange>| {
            let mut batch = self.state.batch();
            let mut mark = None;
            for change in changes {
                mark = batch.take_over(change, log_id, &policies)?;
            }
            batch.commit()?;
            Ok::<_, StateError>(mark)
        };
        let taken = async {
            for page in 0..kept.pages {
                let changes = self.parts.lake.kept_state_page(self.rebuild, partition, page).await?;
                tokio::task::block_in_place(|| take(changes))?;
            }
            let mark = take(vec![StateChange { partition, key: MARK.to_vec(), value: kept.mark }])?;
            tokio::task::block_in_place(|| self.state.arm_all(partition))?;
            Ok(mark)
        };
        match taken.await {
            Err(
                error @ (ProjectorError::Lake(LakeError::Damaged(_))
                | ProjectorError::State(StateError::Damaged { .. })),
            ) => {
                tracing::warn!(partition, %error, "what the rebuild has kept cannot be read");
                Ok(None)
            }
            taken => taken,
        }
    }

    async fn recover(&self, partition: u32) -> Result<PartitionMark, ProjectorError> {
        tracing::warn!(partition, "no state was handed over: rebuilding it from events");
        let lake = &self.parts.lake;
        let rebuilt = lake.rebuilt_to().await?;
        let own: BTreeMap<u32, u64> = rebuilt.get(&partition).map(|to| (partition, *to)).into_iter().collect();
        let before = match own.is_empty() {
            true => None,
            false => Some((Arc::new(any_age(lake, &self.parts.settings, &own).await?), own)),
        };
        let plan = Plan { settings: self.parts.settings.clone(), before };
        let told = |done: u64| {
            let text = format!("partition {partition}: {done} events");
            self.live.update(|status| status.recovering = Some(text));
        };
        let mark = replay_partition(lake, &self.state, &plan, partition, &told).await;
        self.live.update(|status| status.recovering = None);
        mark
    }

    /// Hands over the whole state of a partition under a new basis.
    async fn publish(&self, partition: u32) -> Result<(), ProjectorError> {
        let position = self.mark(partition).position;
        // Until the new mark stands there is none, so nobody takes up what is half written. The position goes with each
        // page because it is what a member that has been taken over cannot store.
        let unfinished = || vec![Handed { partition, position, basis: String::new() }];
        let unmarked = StateChange { partition, key: MARK.to_vec(), value: None };
        self.group.store(vec![unmarked], unfinished()).await?;
        let mut stale = self.handed_keys(partition).await?;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let changes = self.state.changes(partition, after.as_deref(), PAGE)?;
            let Some(last) = changes.last() else { break };
            after = Some(last.key.clone());
            for change in &changes {
                stale.remove(&change.key);
            }
            self.group.store(changes, unfinished()).await?;
        }
        let gone: Vec<StateChange> = stale.into_iter().map(|key| StateChange { partition, key, value: None }).collect();
        for page in gone.chunks(PAGE) {
            self.group.store(page.to_vec(), unfinished()).await?;
        }
        let basis = Uuid::now_v7().to_string();
        let mark = PartitionMark { basis: basis.clone(), ..self.mark(partition) };
        self.keep(partition, mark)?;
        let handed = Handed { partition, position, basis };
        let change = self.meta().handover(partition);
        self.group.store(vec![change], vec![handed]).await?;
        Ok(())
    }

    /// Keys that have a value in what was handed over.
    async fn handed_keys(&self, partition: u32) -> Result<HashSet<Vec<u8>>, ProjectorError> {
        let keys = Arc::new(Mutex::new(HashSet::new()));
        let shared = keys.clone();
        let each = move |change: StateChange| {
            let mut keys = shared.lock().unwrap_or_else(PoisonError::into_inner);
            match change.value {
                Some(_) => keys.insert(change.key),
                None => keys.remove(&change.key),
            };
            true
        };
        self.group.restore(partition, Box::new(each)).await?;
        let keys = std::mem::take(&mut *keys.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(keys)
    }
}

/// Fails where the record that was archived last is another one in this log: then the log is another one.
async fn same_log(
    log: &dyn EventLog,
    partition: u32,
    archived_to: u64,
    appended_us: i64,
) -> Result<(), ProjectorError> {
    let (start, end) = log.bounds(partition).await?;
    let Some(last) = archived_to.checked_sub(1).filter(|last| *last >= start && archived_to <= end) else {
        // Reading on from there says what is missing.
        return Ok(());
    };
    let fetched = crate::log::read_before(log, partition, last, archived_to, 1, 1).await?;
    match fetched.records.first() {
        Some(record) if record.offset == last && record.appended_at_us != appended_us => {
            Err(ProjectorError::OtherRecords { partition, offset: last })
        }
        _ => Ok(()),
    }
}
