//! The switch of tables that several processes share.
//!
//! Whoever rebuilds says that it begins, takes all partitions from the others, folds the rest, and keeps the new state beside
//! the new tables. Then nobody has begun a commit to the old tables that would still be taken, and nobody will: all look for
//! a switch after they have claimed partitions, and before that so that they need not claim in vain. Now it is decided, and
//! whoever sees that first completes it: the maker, or any process that looks for partitions to fold.

use super::ProjectorError;
use super::hold::maker;
use super::job::{Job, Phase, RebuildError};
use super::rebuild::{Site, Switch as Outcome, reach, try_again};
use super::refold::{Folded, Refold};
use crate::lake::{Lake, LakeError, Stage, Switch, TableName, rebuild_number};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often the maker says that it is at work.
const SAY_EVERY: Duration = Duration::from_secs(20);
/// So often all partitions are claimed anew, because others that had not heard of the switch have claimed some.
const CLAIMS: usize = 10;

/// Whether others have begun or decided a switch. Where that cannot be told now it shows at the next try.
pub(super) async fn switch_under_way(lake: &Lake) -> bool {
    matches!(lake.switch().await, Ok((_, Some(Switch { stage: Stage::Begun | Stage::Decided, .. }))))
}

/// What a process that shares the tables does before it claims partitions: completes a switch that was decided, ends one
/// whose maker is gone. [`ProjectorError::Switching`] while one is being made.
pub(super) async fn settle_shared(lake: &Lake, data_dir: &Path, now_us: i64) -> Result<(), ProjectorError> {
    loop {
        let (number, Some(switch)) = lake.switch().await? else { return Ok(()) };
        match switch.stage {
            Stage::Ended => return Ok(()),
            Stage::Begun if !switch.is_dead(now_us) => {
                return Err(ProjectorError::Switching { maker: switch.maker });
            }
            Stage::Begun => {
                tracing::warn!(
                    rebuild = switch.rebuild,
                    maker = switch.maker,
                    "a switch was left behind, and is ended"
                );
                end(lake, number, &switch, data_dir, now_us).await?;
            }
            Stage::Decided => {
                if let Err(error) = complete(lake, &switch).await {
                    if lake.switch().await?.0 != number {
                        // It was completed by another process, which others have followed.
                        continue;
                    }
                    return Err(error);
                }
                end(lake, number, &switch, data_dir, now_us).await?;
            }
        }
    }
}

/// Says that a switch is over; where another process has said so already, that is as good.
async fn end(lake: &Lake, number: u64, switch: &Switch, data_dir: &Path, now_us: i64) -> Result<(), LakeError> {
    let ended = Switch { stage: Stage::Ended, maker: maker(data_dir), told_us: now_us, ..switch.clone() };
    lake.tell_switch(number, ended).await.map(drop)
}

/// Makes the tables those of a rebuild whose switch is decided.
async fn complete(lake: &Lake, switch: &Switch) -> Result<(), ProjectorError> {
    lake.adopt(&switch.rebuild, switch.follows).await?;
    tracing::info!(rebuild = switch.rebuild, "the tables are those of the rebuild");
    Ok(())
}

/// What the maker of a switch has said last.
struct Word<'a> {
    site: &'a Site,
    rebuild: &'a str,
    follows: i64,
    number: u64,
    said: Instant,
}

impl<'a> Word<'a> {
    /// Begins a switch, unless another process is at one.
    async fn begin(site: &'a Site, rebuild: &'a str) -> Result<Self, RebuildError> {
        let now_us = (site.settings.clock)();
        let (mut number, newest) = site.lake.switch().await?;
        // What a run before this one has begun is taken up again.
        if newest.is_some_and(|switch| switch.stage != Stage::Ended && switch.rebuild != rebuild) {
            settle_shared(&site.lake, &site.data_dir, now_us).await?;
            number = site.lake.switch().await?.0;
        }
        site.lake.refresh().await?;
        let follows = site.lake.rebuild();
        let mut word = Self { site, rebuild, follows, number, said: Instant::now() };
        if !word.say(Stage::Begun).await? {
            let maker = "another process has begun at the same moment".to_owned();
            return Err(ProjectorError::Switching { maker }.into());
        }
        Ok(word)
    }

    fn switch(&self, stage: Stage) -> Switch {
        let (rebuild, maker) = (self.rebuild.to_owned(), self.site.maker.clone());
        Switch { rebuild, follows: self.follows, stage, maker, told_us: (self.site.settings.clock)() }
    }

    /// False where another process has spoken since.
    async fn say(&mut self, stage: Stage) -> Result<bool, LakeError> {
        let told = self.site.lake.tell_switch(self.number, self.switch(stage)).await?;
        if let Some(number) = told {
            (self.number, self.said) = (number, Instant::now());
        }
        Ok(told.is_some())
    }

    /// Says once more that it is at work, where that was not said for a while.
    async fn say_again(&mut self) -> Result<bool, LakeError> {
        if self.said.elapsed() < SAY_EVERY { Ok(true) } else { self.say(Stage::Begun).await }
    }
}

impl Site {
    /// Takes the place of tables that others share, while no run of this process has any partition.
    pub async fn switch_shared(&self, job: &Job, refold: Refold) -> Result<Outcome, RebuildError> {
        let mut word = Word::begin(self, &job.name).await?;
        let outcome = self.decide(&mut word, job, refold).await;
        if !matches!(outcome, Ok(Outcome::Done)) {
            // Others need not wait until this process is taken for gone. Where it cannot be said they will.
            let ended = word.say(Stage::Ended).await;
            self.lake.release();
            ended.map_or_else(|error| tracing::warn!(%error, "others cannot be told that it is over"), drop);
            return outcome;
        }
        let decided = word.switch(Stage::Decided);
        let mut tries = 0;
        while let Err(error) = complete(&self.lake, &decided).await {
            if !try_again(&error, "the tables cannot be switched now", &mut tries).await {
                return Err(error.into());
            }
        }
        word.say(Stage::Ended).await?;
        self.note_done(job)?;
        Ok(Outcome::Done)
    }

    /// All that comes before the decision, and the decision.
    async fn decide(&self, word: &mut Word<'_>, job: &Job, refold: Refold) -> Result<Outcome, RebuildError> {
        let all: Vec<u32> = (0..self.settings.partitions).collect();
        let mut claims = 1;
        let events = loop {
            // Whoever had them commits nothing any more, and drops what it had not committed.
            self.lake.claim(&all).await?;
            let events = self.lake.table(TableName::Events).snapshot();
            if refold.fold(&events, Arc::new(|_, _| {})).await? == Folded::TooLate || !word.say_again().await? {
                return Ok(Outcome::TooLate);
            }
            self.lake.refresh().await?;
            if self.lake.holds(&all) {
                break events;
            }
            if claims == CLAIMS {
                let maker = "others claim partitions all the time".to_owned();
                return Err(ProjectorError::Switching { maker }.into());
            }
            claims += 1;
        };
        let reach = reach(&events);
        self.jobs().put(&Job { phase: Phase::Switching, reach: Some(reach.clone()), ..job.clone() })?;
        refold.finish(&reach)?;
        refold.write_all().await?;
        for partition in all.iter().copied() {
            if !word.say_again().await? {
                return Ok(Outcome::TooLate);
            }
            refold.keep_state(rebuild_number(&job.name), &self.settings, partition).await?;
        }
        drop(refold);
        self.lake.refresh().await?;
        let is_decided = self.lake.holds(&all) && word.say(Stage::Decided).await?;
        Ok(if is_decided { Outcome::Done } else { Outcome::TooLate })
    }

    fn note_done(&self, job: &Job) -> Result<(), RebuildError> {
        let job = self.jobs().get(&job.name)?.unwrap_or_else(|| job.clone());
        let ended_us = Some((self.settings.clock)());
        Ok(self.jobs().put(&Job { phase: Phase::Done, ended_us, leaves: true, ..job })?)
    }

    /// What becomes, before the projector runs, of a rebuild that was cut off: its switch is completed where it was decided.
    pub async fn settle_shared_switch(&self, job: &Job) -> Result<(), RebuildError> {
        if !self.has_switched(job).await? && job.phase == Phase::Switching {
            // Others may have gone on with the tables since.
            self.begin_anew(job.clone()).await?;
        }
        Ok(())
    }

    /// Whether the switch of a rebuild was decided, which is completed then. One of this rebuild that was only begun is ended.
    pub async fn has_switched(&self, job: &Job) -> Result<bool, RebuildError> {
        if !job.is_shared || job.wish.keep_as.is_some() {
            return Ok(false);
        }
        let now_us = (self.settings.clock)();
        if let (number, Some(switch)) = self.lake.switch().await?
            && switch.rebuild == job.name
        {
            match switch.stage {
                Stage::Begun => end(&self.lake, number, &switch, &self.data_dir, now_us).await?,
                Stage::Decided => settle_shared(&self.lake, &self.data_dir, now_us).await?,
                Stage::Ended => {}
            }
        }
        self.lake.refresh().await?;
        let is_live = self.lake.rebuild() == rebuild_number(&job.name);
        if is_live {
            self.note_done(job)?;
        }
        Ok(is_live)
    }
}
