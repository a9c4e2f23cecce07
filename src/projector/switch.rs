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
use crate::lake::{Heard, LONGEST_BUILD, Lake, LakeError, Stage, Switch, TableName, rebuild_number};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// How often the maker says that it is at work.
const SAY_EVERY: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(20) };
/// So often all partitions are claimed anew, because others that had not heard of the switch have claimed some.
const CLAIMS: usize = 10;

/// Whether others have begun or decided a switch. Where that cannot be told now it shows at the next try.
pub(super) async fn switch_under_way(lake: &Lake) -> bool {
    let heard = lake.switch().await.ok().and_then(|heard| heard.switch);
    heard.is_some_and(|switch| switch.stage != Stage::Ended)
}

/// What a process that shares the tables does before it claims partitions: completes a switch that was decided, ends one
/// whose maker is gone. [`ProjectorError::Switching`] while one is being made.
pub(super) async fn settle_shared(lake: &Lake, data_dir: &Path, now_us: i64) -> Result<(), ProjectorError> {
    loop {
        let heard = lake.switch().await?;
        let Some(switch) = &heard.switch else { return Ok(()) };
        match switch.stage {
            Stage::Ended => return Ok(()),
            Stage::Begun if !heard.is_dead() => {
                return Err(ProjectorError::Switching { maker: switch.maker.clone() });
            }
            Stage::Begun => {
                tracing::warn!(
                    rebuild = switch.rebuild,
                    maker = switch.maker,
                    "a switch was left behind, and is ended"
                );
                end(lake, &heard, data_dir, now_us).await?;
            }
            Stage::Decided => match complete(lake, switch).await {
                Ok(()) => end(lake, &heard, data_dir, now_us).await?,
                // It was completed by another process, which others have followed.
                Err(_) if lake.switch().await?.number != heard.number => {}
                Err(ProjectorError::Lake(error @ LakeError::Generation(_))) if !lake.has_adopted(&switch.rebuild) => {
                    tracing::error!(rebuild = switch.rebuild, %error, "a switch cannot be completed, and is ended");
                    end(lake, &heard, data_dir, now_us).await?;
                }
                Err(error) => return Err(error),
            },
        }
    }
}

/// Says that a switch is over; where another process has spoken, what it says is looked at next.
async fn end(lake: &Lake, heard: &Heard, data_dir: &Path, now_us: i64) -> Result<(), LakeError> {
    let Some(switch) = heard.switch.clone() else { return Ok(()) };
    let (maker, voice) = (maker(data_dir), Uuid::now_v7().to_string());
    let ended = Switch { stage: Stage::Ended, maker, voice, told_us: now_us, ..switch };
    lake.tell_switch(heard.number, ended).await.map(drop)
}

/// Makes the tables those of a rebuild whose switch is decided.
async fn complete(lake: &Lake, switch: &Switch) -> Result<(), ProjectorError> {
    lake.adopt(&switch.rebuild, switch.follows).await?;
    tracing::info!(rebuild = switch.rebuild, "the tables are those of the rebuild");
    Ok(())
}

/// What the maker of a switch says.
struct Word {
    site: Arc<Site>,
    rebuild: String,
    follows: i64,
    voice: String,
    /// Of what it has said last.
    number: u64,
}

impl Word {
    fn switch(&self, stage: Stage) -> Switch {
        Switch {
            rebuild: self.rebuild.clone(),
            follows: self.follows,
            stage,
            maker: self.site.maker.clone(),
            voice: self.voice.clone(),
            told_us: (self.site.settings.clock)(),
        }
    }

    /// False where another process has spoken since.
    async fn say(&mut self, stage: Stage) -> Result<bool, LakeError> {
        let lake = &self.site.lake;
        loop {
            if let Some(number) = lake.tell_switch(self.number, self.switch(stage)).await? {
                self.number = number;
                return Ok(true);
            }
            // It may have been heard before without an answer.
            let Heard { number, switch, .. } = lake.switch().await?;
            match switch.filter(|switch| switch.voice == self.voice) {
                Some(own) if own.stage == stage => {
                    self.number = number;
                    return Ok(true);
                }
                Some(_) => self.number = number,
                None => return Ok(false),
            }
        }
    }
}

/// Says that a switch is being made, again and again until it is decided or dropped.
struct Voice {
    word: Arc<Mutex<Word>>,
    /// Whether another process has spoken.
    lost: Arc<AtomicBool>,
    saying: JoinHandle<()>,
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.saying.abort();
    }
}

fn overheard() -> ProjectorError {
    ProjectorError::Switching { maker: "another process, as this one was silent for too long".to_owned() }
}

impl Voice {
    /// Begins a switch, unless another process is at one.
    async fn begin(site: &Arc<Site>, rebuild: &str) -> Result<Self, RebuildError> {
        let mut heard = site.lake.switch().await?;
        // What a run before this one has begun is taken up again.
        if heard.switch.is_some_and(|switch| switch.stage != Stage::Ended && switch.rebuild != rebuild) {
            settle_shared(&site.lake, &site.data_dir, (site.settings.clock)()).await?;
            heard = site.lake.switch().await?;
        }
        site.lake.refresh().await?;
        let (rebuild, voice, site) = (rebuild.to_owned(), Uuid::now_v7().to_string(), site.clone());
        let mut word = Word { rebuild, follows: site.lake.rebuild(), voice, number: heard.number, site };
        if !word.say(Stage::Begun).await? {
            let maker = "another process has begun at the same moment".to_owned();
            return Err(ProjectorError::Switching { maker }.into());
        }
        let (word, lost) = (Arc::new(Mutex::new(word)), Arc::new(AtomicBool::new(false)));
        let saying = tokio::spawn(say_again(word.clone(), lost.clone()));
        Ok(Self { word, lost, saying })
    }

    /// Whether it is still the newest that was said, as far as was heard.
    fn check(&self) -> Result<(), ProjectorError> {
        if self.lost.load(Ordering::SeqCst) { Err(overheard()) } else { Ok(()) }
    }

    /// Says the last of it; false where another process has spoken.
    async fn conclude(&self, stage: Stage) -> Result<bool, LakeError> {
        let mut word = self.word.lock().await;
        // Whoever says it again waits for the word, or for the time to say it: never in the middle.
        self.saying.abort();
        word.say(stage).await
    }
}

async fn say_again(word: Arc<Mutex<Word>>, lost: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(SAY_EVERY).await;
        match word.lock().await.say(Stage::Begun).await {
            Ok(true) => {}
            Ok(false) => return lost.store(true, Ordering::SeqCst),
            Err(error) => tracing::warn!(%error, "others cannot be told that the tables are being switched"),
        }
    }
}

impl Site {
    /// Takes the place of tables that others share, while no run of this process has any partition.
    pub async fn switch_shared(self: &Arc<Self>, job: &Job, refold: Refold) -> Result<Outcome, RebuildError> {
        self.check_in_time(job).await?;
        let voice = Voice::begin(self, &job.name).await?;
        let outcome = self.decide(&voice, job, refold).await;
        if !matches!(outcome, Ok(Outcome::Done)) {
            self.lake.release();
            // Others need not wait until this process is taken for gone. Where it cannot be said they will.
            let ended = voice.conclude(Stage::Ended).await;
            ended.map_or_else(|error| tracing::warn!(%error, "others cannot be told that it is over"), drop);
            return outcome;
        }
        let decided = voice.word.lock().await.switch(Stage::Decided);
        let mut tries = 0;
        while let Err(error) = complete(&self.lake, &decided).await {
            if !try_again(&error, "the tables cannot be switched now", &mut tries).await {
                return Err(error.into());
            }
        }
        self.lake.release();
        voice.conclude(Stage::Ended).await?;
        self.note_done(job)?;
        Ok(Outcome::Done)
    }

    /// All that comes before the decision, and the decision.
    async fn decide(&self, voice: &Voice, job: &Job, refold: Refold) -> Result<Outcome, RebuildError> {
        let all: Vec<u32> = (0..self.settings.partitions).collect();
        let mut claims = 1;
        let events = loop {
            // Whoever had them commits nothing any more, and drops what it had not committed.
            self.lake.claim(&all).await?;
            let events = self.lake.table(TableName::Events).snapshot();
            if refold.fold(&events, Arc::new(|_, _| {})).await? == Folded::TooLate {
                return Ok(Outcome::TooLate);
            }
            voice.check()?;
            self.lake.refresh().await?;
            if self.lake.holds(&all) {
                break events;
            }
            if claims == CLAIMS {
                return Err(ProjectorError::TakenOver.into());
            }
            claims += 1;
        };
        let reach = reach(&events);
        self.jobs().put(&Job { phase: Phase::Switching, reach: Some(reach.clone()), ..job.clone() })?;
        refold.finish(&reach)?;
        refold.write_all().await?;
        for partition in all.iter().copied() {
            let mut tries = 0;
            while let Err(error) = refold.keep_state(rebuild_number(&job.name), &self.settings, partition).await {
                if !try_again(&error, "the new state cannot be kept now", &mut tries).await {
                    return Err(error.into());
                }
            }
        }
        drop(refold);
        self.lake.refresh().await?;
        if !self.lake.holds(&all) {
            // One that had looked before the switch was begun has claimed some since; having looked again it does nothing.
            self.lake.claim(&all).await?;
            self.lake.refresh().await?;
        }
        let is_whole = self.lake.table(TableName::Events).snapshot().positions == reach.positions;
        let is_decided = is_whole && self.lake.holds(&all) && voice.conclude(Stage::Decided).await?;
        Ok(if is_decided { Outcome::Done } else { Outcome::TooLate })
    }

    fn note_done(&self, job: &Job) -> Result<(), RebuildError> {
        let job = self.jobs().get(&job.name)?.unwrap_or_else(|| job.clone());
        let ended_us = Some((self.settings.clock)());
        Ok(self.jobs().put(&Job { phase: Phase::Done, ended_us, leaves: true, ..job })?)
    }

    /// Whether a rebuild of tables that others share can still take their place.
    pub async fn check_in_time(&self, job: &Job) -> Result<(), RebuildError> {
        self.lake.refresh().await?;
        if self.lake.rebuild() > rebuild_number(&job.name) {
            let reason = "a later rebuild has taken the place of the tables meanwhile".to_owned();
            return Err(RebuildError::Wish(reason));
        }
        let age_us = (self.settings.clock)().saturating_sub(job.asked_us);
        // A day before others may remove what there is of it.
        if age_us >= i64::try_from((LONGEST_BUILD - Duration::from_secs(86_400)).as_micros()).unwrap_or(i64::MAX) {
            let days = age_us / 86_400_000_000;
            return Err(RebuildError::Wish(format!("it was begun {days} days ago: begin another")));
        }
        Ok(())
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
        loop {
            let heard = self.lake.switch().await?;
            match heard.switch.as_ref().filter(|switch| switch.rebuild == job.name).map(|switch| switch.stage) {
                Some(Stage::Begun) => end(&self.lake, &heard, &self.data_dir, now_us).await?,
                Some(Stage::Decided) => settle_shared(&self.lake, &self.data_dir, now_us).await?,
                Some(Stage::Ended) | None => break,
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
