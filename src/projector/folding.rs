//! The task that folds one partition: reads, folds, shows what changed.

use super::commit::{Command, Frozen};
use super::delta::Delta;
use super::feed::{self, Batch, Told};
use super::live::Live;
use super::worker::{Source, Worker};
use super::{ProjectorError, Settings};
use crate::event::Record;
use crate::log::{EventLog, Fetched, LOOK_EVERY, LogError};
use crate::session::Standing;
use rustc_hash::FxHashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

/// Most records folded at once.
const BATCH_RECORDS: usize = 8192;
/// So many users are told about between two batches.
const LOOKS: usize = 64;
/// Most bytes of records folded at once.
const BATCH_BYTES: usize = 8 << 20;

/// Between two folds of a busy partition that are not full: many small ones cost more than a few larger ones, and this
/// is little beside the second within which SQL shows an event.
const FOLD_EVERY: Duration = Duration::from_millis(20);

/// Runs a fold on a thread of its own: what it allocates is freed where it was made, and nothing else waits for it.
pub(super) fn on_own_thread(
    partition: u32,
    fold: impl Future<Output = Result<(), ProjectorError>> + Send + 'static,
) -> Result<oneshot::Receiver<Result<(), ProjectorError>>, ProjectorError> {
    let failed =
        |error: std::io::Error| ProjectorError::Halted(format!("no thread for partition {partition}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (ended, wait) = oneshot::channel();
    let run = move || {
        // Who started it may be gone by then.
        let _ = ended.send(runtime.block_on(fold));
    };
    std::thread::Builder::new().name(format!("fold-{partition}")).spawn(run).map_err(failed)?;
    Ok(wait)
}

/// What a look at the log found.
enum Found {
    /// No record.
    Nothing,
    /// Records, the last of the log among them.
    Last,
    /// Records, and there are more.
    More,
}

/// Somebody asks how things stand with a user.
pub(super) struct Look {
    pub account: String,
    pub user: String,
    /// ms since the epoch.
    pub now_ms: i64,
    pub told: oneshot::Sender<Result<Standing, ProjectorError>>,
}

/// The task that folds one partition.
pub(super) struct Folding {
    pub partition: u32,
    pub worker: Worker,
    pub commands: mpsc::Receiver<Command>,
    pub looks: mpsc::Receiver<Look>,
    pub log: Arc<dyn EventLog>,
    pub live: Arc<Live>,
    pub settings: Arc<Settings>,
    pub flush_wanted: Arc<Notify>,
    pub source: Source,
    /// Accounts that have been met.
    pub met: FxHashSet<String>,
}

impl Folding {
    /// Runs until the committer is gone. Once `stop` is true nothing more is folded.
    pub async fn run(mut self, stop: watch::Receiver<bool>) -> Result<(), ProjectorError> {
        let mut appended = self.log.appended();
        let limit = self.settings.layer_bytes();
        let mut halted = false;
        'folding: loop {
            let full = self.worker.bytes() >= limit;
            if full {
                self.flush_wanted.notify_one();
            }
            // Memory is bounded: nothing is folded until the committer has taken what is there.
            let resting = *stop.borrow() || full || halted;
            let began = Instant::now();
            if resting {
                self.begin_to_tell();
            }
            let found = match if resting { Ok(Found::Nothing) } else { self.step().await } {
                // No retry and no restart helps: this partition rests, the others go on (spec §7.6).
                Err(ProjectorError::Log(error @ LogError::Gone { .. })) => {
                    tracing::error!(%error, "the partition is not folded on");
                    let partition = self.partition as usize;
                    self.live.update(|status| status.partitions[partition].error = Some(error.to_string()));
                    halted = true;
                    continue;
                }
                found => found?,
            };
            let is_last = matches!(found, Found::Last);
            let look_at = Instant::now() + LOOK_EVERY;
            let command = match found {
                Found::Nothing | Found::Last => loop {
                    tokio::select! {
                        command = self.commands.recv() => break command,
                        Some(look) = self.looks.recv() => self.tell(look),
                        _ = appended.changed(), if !is_last && !resting => continue 'folding,
                        () = tokio::time::sleep_until(began + FOLD_EVERY), if is_last => continue 'folding,
                        () = tokio::time::sleep_until(look_at), if !is_last && !resting => continue 'folding,
                    }
                },
                Found::More => {
                    // Some at a time: those who ask must not hold up the fold.
                    for _ in 0..LOOKS {
                        let Ok(look) = self.looks.try_recv() else { break };
                        self.tell(look);
                    }
                    match self.commands.try_recv() {
                        Ok(command) => Some(command),
                        Err(mpsc::error::TryRecvError::Empty) => continue,
                        Err(mpsc::error::TryRecvError::Disconnected) => None,
                    }
                }
            };
            match command {
                Some(Command::Freeze(reply)) => {
                    let (mark, layer) = self.worker.freeze();
                    let deltas = self.live.deltas(self.partition);
                    // The committer is gone when nobody takes it: the run is ending.
                    let _ = reply.send(Frozen { mark, layer, deltas });
                }
                Some(Command::Thaw) => self.worker.thaw(),
                None => return Ok(()),
            }
        }
    }

    fn tell(&mut self, look: Look) {
        let Look { account, user, now_ms, told } = look;
        // Who asked may have gone.
        let _ = told.send(self.worker.standing(&account, &user, now_ms));
    }

    /// Sees to the policies of accounts that are met for the first time: an account is known to all before its first event
    /// comes in, but what is known may still be on its way here.
    async fn meet(&mut self, records: &[Record]) -> Result<(), ProjectorError> {
        let Some(newest) = &self.settings.newest_policies else { return Ok(()) };
        let mut is_behind = false;
        for account in records.iter().filter_map(|record| record.event.account()) {
            if !self.met.contains(account) {
                self.met.insert(account.to_owned());
                is_behind |= self.settings.policies.of(account).is_none();
            }
        }
        if is_behind { Ok(newest().await?) } else { Ok(()) }
    }

    /// Says so when an account has come in whose rows were made under another policy before.
    fn tell_outdated(&self) {
        let partition = self.partition as usize;
        if self.worker.is_outdated() && !self.live.is_outdated(partition) {
            self.settings.metrics.set_rebuild_needed(true);
            self.live.update(|status| status.partitions[partition].is_outdated = true);
        }
    }

    /// Shows what a batch changed, which began at `from`, and then tells of it: who hears of it finds it.
    fn publish(&mut self, from: u64, mut delta: Delta, end: u64) {
        let (changes, to) = (delta.changes.take(), delta.position);
        self.live.publish(delta, end);
        let Some(changes) = changes else { return };
        let (feed, rebuild) = (&self.settings.feed, self.worker.rebuild());
        let goes_on = feed.told(self.partition) == Some(Told { rebuild, to: from });
        let is_whole = !goes_on || changes.len() > feed::MOST;
        let open = match is_whole {
            true => self.worker.open_sessions(None),
            false if changes.is_empty() => Vec::new(),
            false => self.worker.open_sessions(Some(&changes)),
        };
        feed.take(Batch { partition: self.partition, rebuild, since: from, from, to, changes, open, is_whole });
    }

    /// Tells how things stand where that is wanted and has not been told yet.
    fn begin_to_tell(&self) {
        let (feed, rebuild, at) = (&self.settings.feed, self.worker.rebuild(), self.worker.position());
        let is_known = |told: Told| told.rebuild == rebuild;
        if feed.is_wanted() && !feed.told(self.partition).is_some_and(is_known) {
            let (partition, open) = (self.partition, self.worker.open_sessions(None));
            let changes = Vec::new();
            feed.take(Batch { partition, rebuild, since: at, from: at, to: at, changes, open, is_whole: true });
        }
    }

    /// Reads and folds once.
    async fn step(&mut self) -> Result<Found, ProjectorError> {
        let from = self.worker.position();
        let Fetched { records, next, end } = self.log.read(self.partition, from, BATCH_RECORDS, BATCH_BYTES).await?;
        let lag = end.saturating_sub(next);
        let newest_us = records.last().map(|record| record.appended_at_us);
        let seconds = match newest_us {
            Some(appended_at_us) if lag > 0 => ((self.settings.clock)() - appended_at_us).max(0) as f64 / 1e6,
            _ => 0.0,
        };
        self.settings.metrics.lag(self.partition, lag, seconds);
        if records.is_empty() && next > from {
            self.worker.tell_changes(self.settings.feed.is_wanted());
            let delta = self.worker.pass(next)?;
            self.publish(from, delta, end);
            return Ok(Found::Nothing);
        }
        if records.is_empty() {
            self.begin_to_tell();
            if end == from {
                let partition = self.partition as usize;
                if self.live.log_end(partition) != end {
                    self.live.update(|status| status.partitions[partition].log_end = end);
                }
            }
            return Ok(Found::Nothing);
        }
        self.meet(&records).await?;
        // Known only now: whoever asked while the log was read may have asked before the record was appended.
        self.worker.tell_changes(self.settings.feed.is_wanted());
        let mut delta = self.worker.fold(&records, None, self.source)?;
        self.settings.metrics.apply(&std::mem::take(&mut delta.tally));
        self.publish(from, delta, end);
        self.tell_outdated();
        Ok(if lag > 0 { Found::More } else { Found::Last })
    }
}
