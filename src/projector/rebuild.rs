//! `rebuild`: refolds every archived event, of any age, into new tables and a new state. They take the place of the live ones
//! at once, or are kept beside them as a generation.
//!
//! Events are folded while the projector goes on, round by round, until few are left. For those, and the switch, it rests.

use super::hold::maker;
use super::job::{Job, Jobs, Phase, Reach, RebuildError};
use super::recover::{io, move_into_place, note_made_under, remove};
use super::refold::{Folded, Refold};
use super::run::wait_free;
use super::{ProjectorError, Settings};
use crate::durable_file::{self, DurableFileError};
use crate::lake::{Claimed, GenerationInfo, Lake, TableName, TableSnapshot, rebuild_number};
use crate::state::Meta;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};

/// So many records are folded while the projector rests.
const FEW_RECORDS: u64 = 20_000;
/// So many rounds are made to get there: one that never does has more to fold than it can.
const ROUNDS: usize = 20;

/// Partitions folded side by side where nothing else is done.
const SIDE_BY_SIDE: usize = 2;

/// What a rebuild tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Progress {
    /// Records gone through, of how many.
    Folding { done: u64, total: u64 },
    /// The new tables are being written.
    Writing,
    /// The new tables take the place of the old.
    Switching,
}

/// Told what a rebuild does.
pub(super) type Tell = Arc<dyn Fn(Progress) + Send + Sync>;

/// Work that is done while no run of the projector has the state and the tables.
pub(super) type Pause = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// What rebuilds work on.
pub(super) struct Site {
    pub lake: Arc<Lake>,
    pub data_dir: PathBuf,
    /// What the live tables are folded by.
    pub settings: Arc<Settings>,
    /// Where the projector is asked to rest; `None` where none runs.
    pub pauses: Option<mpsc::Sender<Pause>>,
    /// Held while the live tables are replaced.
    pub switching: Mutex<()>,
    /// Asking for rebuilds, dropping them and removing what they have left take turns.
    pub changing: Mutex<()>,
    /// Held while the name of a generation is claimed.
    pub claiming: Mutex<()>,
    /// The process, as others are told of it.
    pub maker: String,
}

/// How taking the place of the live tables went.
pub(super) enum Switch {
    Done,
    /// It has to be begun anew, with settings that take in later events.
    TooLate,
}

impl Site {
    pub fn new(
        lake: Arc<Lake>,
        data_dir: PathBuf,
        settings: Arc<Settings>,
        pauses: Option<mpsc::Sender<Pause>>,
    ) -> Arc<Self> {
        let maker = maker(&data_dir);
        let (switching, changing, claiming) = Default::default();
        Arc::new(Self { lake, data_dir, settings, pauses, switching, changing, claiming, maker })
    }

    pub fn jobs(&self) -> Jobs {
        Jobs::new(&self.data_dir)
    }

    /// Goes on with a rebuild to its end. No switch is marked.
    pub async fn carry_out(self: &Arc<Self>, name: &str, tell: &Tell) -> Result<(), RebuildError> {
        let job = self.job(name)?;
        if !job.has_ended() {
            match self.hold(job).await? {
                Some(hold) => hold.during(self.go_on(name, tell)).await?,
                None => self.go_on(name, tell).await?,
            }
        }
        self.sweep().await;
        Ok(())
    }

    async fn go_on(self: &Arc<Self>, name: &str, tell: &Tell) -> Result<(), RebuildError> {
        loop {
            let mut job = self.job(name)?;
            if job.has_ended() {
                return Ok(());
            }
            if job.phase == Phase::Clearing && job.error.is_some() {
                return self.clear_away(name).await;
            }
            if job.phase == Phase::Clearing {
                self.clear(&job).await?;
                job.phase = Phase::Folding;
                self.jobs().put(&job)?;
            }
            if job.phase == Phase::Switching {
                if self.has_switched(&job).await? {
                    return Ok(());
                }
                // It failed when time was moved on already, and the projector has gone on since.
                self.begin_anew(job).await?;
                continue;
            }
            if job.is_shared && job.wish.keep_as.is_none() {
                self.check_in_time(&job).await?;
            }
            if let Some(newest) = &self.settings.newest_policies {
                newest().await.map_err(ProjectorError::from)?;
            }
            let Some(refold) = self.open(&mut job).await? else {
                self.begin_anew(job).await?;
                continue;
            };
            let ended = match job.wish.keep_as {
                Some(_) => self.keep(&mut job, refold, tell).await?,
                None => self.replace(&job, refold, tell).await?,
            };
            match ended {
                Switch::Done => return Ok(()),
                // What took so long may have been decided all the same.
                Switch::TooLate if self.has_switched(&job).await? => return Ok(()),
                Switch::TooLate => self.begin_anew(job).await?,
            }
        }
    }

    fn job(&self, name: &str) -> Result<Job, RebuildError> {
        self.jobs().get(name)?.ok_or_else(|| RebuildError::Unknown(name.to_owned()))
    }

    /// Opens what there is of a rebuild; `None` where it is of no use.
    async fn open(&self, job: &mut Job) -> Result<Option<Refold>, RebuildError> {
        let settings = job.wish.settings(&self.settings)?;
        if job.lateness_ms.is_none() {
            self.lake.refresh().await?;
            let positions = self.lake.table(TableName::Events).snapshot().positions;
            job.lateness_ms = any_age(&self.lake, &settings, &positions).await?.lateness_ms;
            self.jobs().put(job)?;
        }
        let memory_bytes = if self.pauses.is_some() { settings.beside_bytes() } else { settings.alone_bytes() };
        let settings = Settings { any_age: true, lateness_ms: job.lateness_ms, memory_bytes, ..settings };
        let generation = match &job.wish.keep_as {
            Some(name) => self.lake.generation_to_keep(name).await?,
            None => self.lake.generation(&job.name).await?,
        };
        let (dir, room) = (self.jobs().state_dir(&job.name), self.jobs().room(&job.name));
        // Beside a server half of the machine is enough; what is dropped must come to its end soon.
        let side_by_side = if self.pauses.is_some() { 1 } else { SIDE_BY_SIDE };
        let (settings, scope) = (Arc::new(settings), job.wish.scope()?);
        let refold = Refold::open(self.lake.clone(), generation, &dir, &room, settings, scope, side_by_side)?;
        if let Some(records) = refold.as_ref().map(Refold::position).filter(|records| *records > 0) {
            tracing::info!(rebuild = job.name, records, "the rebuild goes on where it was");
        }
        Ok(refold)
    }

    pub(super) async fn begin_anew(&self, mut job: Job) -> Result<(), RebuildError> {
        tracing::info!(
            rebuild = job.name,
            "the rebuild begins anew: what there was of it was folded by other settings"
        );
        // Half of it must never be gone on with, so that it goes is noted first.
        (job.phase, job.lateness_ms, job.reach) = (Phase::Clearing, None, None);
        self.jobs().put(&job)?;
        self.clear(&job).await?;
        job.phase = Phase::Folding;
        Ok(self.jobs().put(&job)?)
    }

    /// Folds what is archived, again and again until at most this many records are left; `None` where it has to be begun
    /// anew. The version of `events` that was folded last, all of it.
    async fn catch_up(
        &self,
        refold: &Refold,
        few: u64,
        writes: bool,
        tell: &Tell,
    ) -> Result<Option<TableSnapshot>, RebuildError> {
        let mut round = 0;
        loop {
            round += 1;
            self.lake.refresh().await?;
            let events = self.lake.table(TableName::Events).snapshot();
            let tell_all = tell.clone();
            let folding = Arc::new(move |done, total| tell_all(Progress::Folding { done, total }));
            if refold.fold(&events, folding).await? == Folded::TooLate {
                return Ok(None);
            }
            if writes {
                tell(Progress::Writing);
                refold.write(false).await?;
            }
            if round >= ROUNDS || refold.behind(&self.lake.table(TableName::Events).snapshot()) <= few {
                return Ok(Some(events));
            }
        }
    }

    /// Makes a generation that is kept.
    async fn keep(&self, job: &mut Job, refold: Refold, tell: &Tell) -> Result<Switch, RebuildError> {
        if job.phase == Phase::Folding {
            let Some(events) = self.catch_up(&refold, FEW_RECORDS, false, tell).await? else {
                return Ok(Switch::TooLate);
            };
            (job.phase, job.reach) = (Phase::Writing, Some(reach(&events)));
            self.jobs().put(job)?;
        }
        let reach = job.reach.clone().unwrap_or_default();
        tell(Progress::Writing);
        refold.finish(&reach)?;
        refold.write(true).await?;
        let now_us = (self.settings.clock)();
        refold.generation().sweep(now_us / 1000).await?;
        let scope = job.wish.scope()?;
        let info = GenerationInfo {
            name: job.name.clone(),
            made_us: now_us,
            policies: job.policies.clone(),
            accounts: scope.accounts,
            from_us: scope.from_us,
            events: reach.events,
            up_to_us: reach.up_to_us,
            positions: reach.positions,
            watermarks_ms: (0..self.settings.partitions).map(|number| reach.watermarks.get(&number).copied()).collect(),
            policy: job.wish.own_policy(&self.settings)?.map(|policy| policy.name.to_string()),
            policy_toml: job.wish.policy_toml.clone(),
            bytes: refold.generation().bytes(),
            made_by: job.claim.clone(),
        };
        drop(refold);
        if self.claim(&job.name, &job.claim).await? != Claimed::Again {
            // Others may have removed what there was of it meanwhile.
            return Ok(Switch::TooLate);
        }
        // It may have been told by a run that was cut off right after that.
        if let Err(error) = self.lake.publish(&info).await
            && !self.has_made(job).await?
        {
            return Err(error.into());
        }
        (job.phase, job.ended_us, job.leaves) = (Phase::Done, Some(now_us), true);
        self.jobs().put(job)?;
        Ok(Switch::Done)
    }

    /// Whether there is a complete generation that this rebuild has made.
    async fn has_made(&self, job: &Job) -> Result<bool, RebuildError> {
        let Some(name) = &job.wish.keep_as else { return Ok(false) };
        Ok(self.lake.generation_info(name).await?.is_some_and(|info| info.made_by == job.claim))
    }

    /// Takes the place of the live tables.
    async fn replace(self: &Arc<Self>, job: &Job, refold: Refold, tell: &Tell) -> Result<Switch, RebuildError> {
        if self.catch_up(&refold, FEW_RECORDS, true, tell).await?.is_none() {
            return Ok(Switch::TooLate);
        }
        let Some(pauses) = &self.pauses else { return self.switch(job, refold, tell).await };
        let (site, job, tell) = (self.clone(), job.clone(), tell.clone());
        let (done, switched) = oneshot::channel();
        let pause: Pause = Box::new(move || {
            Box::pin(async move {
                // Who waits may be gone: then the next start of the program sees how it went.
                let _ = done.send(site.switch(&job, refold, &tell).await);
            })
        });
        pauses.send(pause).await.map_err(|_| ProjectorError::Stopped)?;
        switched.await.map_err(|_| ProjectorError::Restless)?
    }

    /// The end of it, while nobody else has the state and the tables: folds what is left, and switches. Until the switch
    /// is marked, an error leaves the live tables and state as they are.
    async fn switch(self: &Arc<Self>, job: &Job, refold: Refold, tell: &Tell) -> Result<Switch, RebuildError> {
        let _alone = self.switching.lock().await;
        if self.job(&job.name)?.has_ended() {
            return Err(RebuildError::Unknown(job.name.clone()));
        }
        tell(Progress::Switching);
        if job.is_shared {
            return self.switch_shared(job, refold).await;
        }
        self.lake.refresh().await?;
        let events = self.lake.table(TableName::Events).snapshot();
        if refold.fold(&events, Arc::new(|_, _| {})).await? == Folded::TooLate {
            return Ok(Switch::TooLate);
        }
        // Queries that still lay over the old state what they have been told are waited for.
        wait_free(&self.data_dir.join("state")).await?;
        let reach = reach(&events);
        let job = Job { phase: Phase::Switching, reach: Some(reach.clone()), ..job.clone() };
        self.jobs().put(&job)?;
        refold.finish(&reach)?;
        refold.write_all().await?;
        refold.hand_over(rebuild_number(&job.name), &self.settings)?;
        durable_file::write(&self.data_dir.join(MARKER), &job.name).map_err(told)?;
        finish_switch(&self.lake, &self.data_dir, (self.settings.clock)()).await?;
        let made = Meta { policies: self.settings.describe_policies(), ..Meta::default() };
        if let Err(error) = note_made_under(&self.data_dir, &made) {
            tracing::warn!(%error, "that rows are made under what holds now is not noted");
        }
        Ok(Switch::Done)
    }

    /// Whether a switch has gone so far that it can only be completed.
    pub fn is_marked(&self) -> bool {
        self.data_dir.join(MARKER).exists()
    }

    /// Gives a rebuild up.
    pub async fn fail(&self, name: &str, error: &RebuildError) -> Result<(), RebuildError> {
        let mut job = self.job(name)?;
        if job.has_ended() {
            return Ok(());
        }
        job.ended_us = Some((self.settings.clock)());
        if job.is_shared && self.has_switched(&job).await? {
            return Ok(());
        }
        if self.has_made(&job).await? {
            tracing::warn!(rebuild = name, %error, "the generation is complete all the same");
            (job.phase, job.leaves) = (Phase::Done, true);
            return Ok(self.jobs().put(&job)?);
        }
        tracing::error!(rebuild = name, %error, "the rebuild is given up");
        (job.phase, job.error) = (Phase::Clearing, Some(error.to_string()));
        self.jobs().put(&job)?;
        self.clear_away(name).await
    }

    /// Completes what was cut off while the projector rested, before it runs again. What cannot be completed is given up.
    pub async fn settle(self: &Arc<Self>) -> Result<(), ProjectorError> {
        finish_switch(&self.lake, &self.data_dir, (self.settings.clock)()).await?;
        let unfinished = self.jobs().unfinished().map_err(told)?;
        // One that others share may have been begun, for which they wait, before it was noted down here.
        if let Some(job) = unfinished.filter(|job| job.phase == Phase::Switching || job.is_shared) {
            self.settle_switch(job).await?;
        }
        Ok(())
    }

    async fn settle_switch(self: &Arc<Self>, job: Job) -> Result<(), ProjectorError> {
        let tell: Tell = Arc::new(|_| {});
        let completed = match job.is_shared {
            // Others may have gone on with the tables since.
            true => self.settle_shared_switch(&job).await,
            false => self.complete(job.clone(), &tell).await,
        };
        match completed {
            Ok(()) => Ok(()),
            Err(RebuildError::Projector(error)) if error.is_transient() || self.is_marked() => Err(error),
            // A switch that is marked is never given up.
            Err(error) if self.is_marked() => Err(ProjectorError::Halted(error.to_string())),
            Err(error) => {
                let failed = self.fail(&job.name, &error).await;
                failed.unwrap_or_else(|error| tracing::warn!(%error, "what is left of it cannot be removed now"));
                Ok(())
            }
        }
    }

    async fn complete(self: &Arc<Self>, mut job: Job, tell: &Tell) -> Result<(), RebuildError> {
        match self.open(&mut job).await? {
            Some(refold) => match self.switch(&job, refold, tell).await? {
                Switch::Done => Ok(()),
                Switch::TooLate => self.begin_anew(job).await,
            },
            None => self.begin_anew(job).await,
        }
    }
}

pub(super) fn told(error: DurableFileError) -> ProjectorError {
    match error {
        DurableFileError::Io { path, error } => io(&path, &error).into(),
        damaged => ProjectorError::Halted(damaged.to_string()),
    }
}

/// How far a version of `events` goes.
pub(super) fn reach(events: &TableSnapshot) -> Reach {
    Reach {
        events: events.files.values().map(|file| file.rows).sum(),
        up_to_us: events.appended_us.values().max().copied(),
        positions: events.positions.clone(),
        watermarks: events.watermarks.clone(),
    }
}

/// Its presence says that the generation it names, and the state of that name, are complete.
const MARKER: &str = "state.switch";

/// The terms under which no event archived before these positions is too late.
pub(super) async fn any_age(
    lake: &Lake,
    settings: &Settings,
    before: &BTreeMap<u32, u64>,
) -> Result<Settings, ProjectorError> {
    let widest_ms = lake.widest_lateness(before).await?;
    let lateness_ms = settings.lateness_ms.map(|lateness_ms| lateness_ms.max(widest_ms.saturating_add(1)));
    Ok(Settings { any_age: true, lateness_ms, ..settings.clone() })
}

/// Completes a switch that was begun; does nothing when there is none. Safe to repeat. `now_us` is µs since the epoch.
pub(super) async fn finish_switch(lake: &Lake, data_dir: &Path, now_us: i64) -> Result<(), ProjectorError> {
    let marker = data_dir.join(MARKER);
    let Some(name) = durable_file::read::<String>(&marker).map_err(told)? else { return Ok(()) };
    lake.refresh().await?;
    lake.adopt(&name, lake.follows(&name)).await?;
    let jobs = Jobs::new(data_dir);
    let (new, state) = (jobs.state_dir(&name), data_dir.join("state"));
    if new.exists() {
        if state.exists() {
            // It is removed later: that takes time, and the projector rests.
            let old = jobs.old_state_dir(&name);
            remove(&old)?;
            move_into_place(&state, &old)?;
        }
        move_into_place(&new, &state)?;
    }
    if let Some(job) = jobs.get(&name).map_err(told)? {
        jobs.put(&Job { phase: Phase::Done, ended_us: Some(now_us), leaves: true, ..job }).map_err(told)?;
    }
    durable_file::remove(&marker).map_err(told)?;
    tracing::info!(rebuild = name, "the tables are those of the rebuild");
    Ok(())
}

/// Whether what has failed is to be tried again, after a pause; `tries` counts.
pub(super) async fn try_again(error: &ProjectorError, what: &str, tries: &mut usize) -> bool {
    *tries += 1;
    if !error.is_transient() || *tries > TRIES {
        return false;
    }
    tracing::warn!(%error, "{what}; trying again");
    tokio::time::sleep(AGAIN).await;
    true
}

/// So often what fails is tried again while the projector rests.
const TRIES: usize = 10;

/// A pause before what failed is tried again.
pub(super) const AGAIN: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
