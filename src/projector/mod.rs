//! From the log to the tables: read → fold → archive → state → buckets.
//!
//! Each partition is folded by a task of its own ([`worker`]); one task makes the results durable ([`commit`]). When
//! anything fails, the run ends and the next one starts from what is durable: there is one way to resume, taken after a
//! kill, a full disk and a restart alike.

mod buckets;
mod commit;
mod delta;
mod handle;
mod live;
mod rebuild;
mod recover;
mod worker;

pub use handle::ProjectorHandle;
pub use live::{PartitionStatus, Status};
pub use rebuild::{Progress, finish_switch, rebuild};

use crate::lake::{Lake, LakeError, TableName};
use crate::log::{EventLog, Fetched, LogError};
use crate::metrics::Metrics;
use crate::session::{Policies, PolicyChain, Terms};
use crate::state::{Meta, PartitionMark, State, StateError};
use buckets::Buckets;
use commit::{Command, Committer, Frozen, Request};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use live::Live;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use worker::{Source, Worker};

/// Most records folded at once.
const BATCH_RECORDS: usize = 8192;
/// Most bytes of records folded at once.
const BATCH_BYTES: usize = 8 << 20;

/// Between two folds of a busy partition that are not full: many small ones cost more than a few larger ones, and this
/// is little beside the second within which SQL shows an event.
const FOLD_EVERY: Duration = Duration::from_millis(20);

/// Why the projector stopped or waits.
#[derive(Debug, thiserror::Error)]
pub enum ProjectorError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    State(#[from] StateError),
    /// The tables were written from another log.
    #[error(
        "{what} holds positions of log {theirs}, but this log is {ours}: a log that was lost cannot be continued; export the events and import them into a new data directory"
    )]
    OtherLog { what: &'static str, ours: String, theirs: String },
    /// It gave up; the text says why.
    #[error("the projector has stopped: {0}")]
    Halted(String),
    /// It is shutting down.
    #[error("the projector is stopping")]
    Stopped,
}

impl ProjectorError {
    /// Whether starting over may help without anybody's doing.
    fn is_transient(&self) -> bool {
        match self {
            ProjectorError::Log(error) => error.is_transient(),
            ProjectorError::Lake(error) => error.is_transient(),
            ProjectorError::State(StateError::Io { .. }) => true,
            _ => false,
        }
    }
}

/// What the projector goes by. Durations in ms unless typed.
#[derive(Clone)]
pub struct Settings {
    pub partitions: u32,
    pub log_id: String,
    /// `allowed_lateness`; `None` takes in facts of any age.
    pub lateness_ms: Option<i64>,
    /// `allowed_lateness` as it counts for settlement.
    pub settle_lateness_ms: i64,
    pub delivery_window_ms: i64,
    /// Whether records that were too late when they arrived are folded in now.
    pub any_age: bool,
    /// By account; others go by `default_policy`.
    pub policies: Policies,
    pub default_policy: PolicyChain,
    pub commit_every: Duration,
    pub snapshot_every: Duration,
    pub memory_bytes: u64,
    pub metrics: Arc<Metrics>,
    /// µs since the epoch, UTC.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

impl Settings {
    /// The terms an account is folded under.
    pub fn terms(&self, account: &str) -> Terms {
        Terms {
            policies: self.policies.of(account).unwrap_or_else(|| self.default_policy.clone()),
            lateness_ms: self.lateness_ms,
            settle_lateness_ms: self.settle_lateness_ms,
            delivery_window_ms: self.delivery_window_ms,
        }
    }

    /// The policies in words that change when they do.
    pub fn describe_policies(&self) -> String {
        format!(
            "default: {}; {}; lateness {} ms, delivery window {} ms",
            self.default_policy.describe(),
            self.policies.describe(),
            self.settle_lateness_ms,
            self.delivery_window_ms
        )
    }

    /// How many bytes of changes a partition may hold before they must be written.
    fn layer_bytes(&self) -> usize {
        let share = self.memory_bytes / 4 / u64::from(self.partitions.max(1));
        usize::try_from(share.clamp(4 << 20, 64 << 20)).unwrap_or(usize::MAX)
    }

    /// Memory for the state's caches and buffers.
    fn state_bytes(&self) -> u64 {
        self.memory_bytes / 2
    }
}

/// What the projector works on.
pub struct Parts {
    pub log: Arc<dyn EventLog>,
    pub lake: Arc<Lake>,
    /// Where `state` lies.
    pub data_dir: PathBuf,
    pub settings: Arc<Settings>,
    /// True once it is time to end.
    pub stop: watch::Receiver<bool>,
}

/// Starts the projector. It runs until `stop`, then commits and ends; the task's result says how it ended.
pub async fn start(parts: Parts) -> Result<(ProjectorHandle, JoinHandle<Result<(), ProjectorError>>), ProjectorError> {
    finish_switch(&parts.lake, &parts.data_dir).await?;
    let live = Arc::new(Live::new(tables(&parts.lake), parts.settings.partitions));
    let (requests, inbox) = mpsc::channel(16);
    let handle = ProjectorHandle { live: live.clone(), lake: parts.lake.clone(), requests };
    let task = tokio::spawn(supervise(parts, live, inbox));
    Ok((handle, task))
}

fn tables(lake: &Lake) -> BTreeMap<TableName, crate::lake::TableSnapshot> {
    [TableName::Events, TableName::Sessions, TableName::Messages]
        .into_iter()
        .map(|name| (name, lake.table(name).snapshot()))
        .collect()
}

/// Runs, and runs again after what may pass; waits for somebody after what will not.
async fn supervise(
    mut parts: Parts,
    live: Arc<Live>,
    mut inbox: mpsc::Receiver<Request>,
) -> Result<(), ProjectorError> {
    let mut pause = Duration::from_millis(200);
    loop {
        let error = match run(&parts, &live, &mut inbox).await {
            Ok(()) => return Ok(()),
            Err(ProjectorError::State(StateError::Damaged { path, reason })) => {
                tracing::warn!(%path, %reason, "the state is damaged and is rebuilt from events");
                recover::discard(&parts.data_dir)?;
                continue;
            }
            Err(error) => error,
        };
        if *parts.stop.borrow() {
            return Err(error);
        }
        let stopped = !error.is_transient();
        let text = error.to_string();
        tracing::error!(error = %text, retry = !stopped, "the projector has stopped");
        if stopped {
            live.update(|status| (status.error, status.stopped) = (Some(text), true));
        } else {
            // The next run opens the state anew, which it can only once nobody has it. Until then nothing counts as
            // folded, so queries wait rather than see tables without their overlay.
            let partitions = vec![PartitionStatus::default(); parts.settings.partitions as usize];
            live.reset(None, tables(&parts.lake), Status { partitions, error: Some(text), ..Status::default() });
        }
        let wait = async { if stopped { std::future::pending().await } else { tokio::time::sleep(pause).await } };
        tokio::select! {
            () = wait => {}
            _ = parts.stop.wait_for(|stop| *stop) => return Err(error),
        }
        pause = (pause * 2).min(Duration::from_secs(5));
        parts.lake.refresh().await.unwrap_or_else(|error| tracing::debug!(%error, "the tables are not readable yet"));
    }
}

/// One run, from what is durable until stop or failure.
async fn run(parts: &Parts, live: &Arc<Live>, inbox: &mut mpsc::Receiver<Request>) -> Result<(), ProjectorError> {
    let settings = &parts.settings;
    let dir = parts.data_dir.join("state");
    let archived = parts.lake.table(TableName::Events).snapshot();
    if let Some(theirs) = parts.lake.table(TableName::Events).foreign_log() {
        return Err(ProjectorError::OtherLog { what: "the events table", ours: settings.log_id.clone(), theirs });
    }
    let (mut state, mut meta) = open_state(&dir, settings)?;
    let ahead = |meta: &Meta| {
        (0u32..).zip(&meta.partitions).any(|(p, mark)| mark.position > archived.positions.get(&p).copied().unwrap_or(0))
    };
    let lost = meta.is_none() && archived.positions.values().any(|position| *position > 0);
    if lost || meta.as_ref().is_some_and(ahead) {
        drop(state);
        recover::discard(&parts.data_dir)?;
        recover::recover(parts, live).await?;
        (state, meta) = open_state(&dir, settings)?;
    }
    let mut meta = meta.unwrap_or_default();
    if !meta.log_id.is_empty() && meta.log_id != settings.log_id {
        let theirs = std::mem::take(&mut meta.log_id);
        return Err(ProjectorError::OtherLog { what: "the state", ours: settings.log_id.clone(), theirs });
    }
    if !meta.policies.is_empty() && meta.policies != settings.describe_policies() {
        tracing::warn!(
            folded_under = %meta.policies, configured = %settings.describe_policies(),
            "the policies were changed: what is folded already keeps its rows until `counterbat rebuild`"
        );
    }
    meta.partitions.resize(settings.partitions as usize, PartitionMark::default());
    live.reset(
        Some(state.clone()),
        tables(&parts.lake),
        Status {
            partitions: meta
                .partitions
                .iter()
                .map(|mark| PartitionStatus {
                    folded: mark.position,
                    archived: mark.position,
                    log_end: mark.position,
                    watermark_ms: mark.watermark_ms,
                })
                .collect(),
            ..Status::default()
        },
    );
    let open = meta.partitions.iter().flat_map(|mark| &mark.open);
    settings.metrics.set_sessions_open(open.map(|(account, kind, n)| (account.as_str(), *kind, *n)));
    drive(parts, live, inbox, state, meta, &archived.positions).await
}

fn open_state(dir: &Path, settings: &Settings) -> Result<(State, Option<Meta>), ProjectorError> {
    let state = State::open(dir, settings.state_bytes())?;
    let meta = state.meta()?;
    Ok((state, meta))
}

/// Starts the tasks and waits for the first to fail, or for all to end.
async fn drive(
    parts: &Parts,
    live: &Arc<Live>,
    inbox: &mut mpsc::Receiver<Request>,
    state: State,
    meta: Meta,
    archived: &BTreeMap<u32, u64>,
) -> Result<(), ProjectorError> {
    let flush_wanted = Arc::new(Notify::new());
    let mut tasks = FuturesUnordered::new();
    let mut workers = Vec::new();
    for (partition, mark) in (0u32..).zip(meta.partitions) {
        let worker = Worker::new(partition, parts.settings.clone(), state.clone(), mark);
        let (sender, commands) = mpsc::channel(4);
        workers.push(sender);
        let archive_from = archived.get(&partition).copied().unwrap_or(0);
        let fold = Folding {
            partition,
            worker,
            commands,
            log: parts.log.clone(),
            live: live.clone(),
            settings: parts.settings.clone(),
            flush_wanted: flush_wanted.clone(),
            source: Source::Log { archive_from },
        };
        tasks.push(on_own_thread(partition, fold.run(parts.stop.clone()))?);
    }
    let buckets = Buckets::new(&parts.settings);
    let committer = Committer {
        settings: parts.settings.clone(),
        lake: parts.lake.clone(),
        state,
        live: live.clone(),
        workers,
        flush_wanted,
        buckets,
    };
    let result = tokio::select! {
        result = committer.run(inbox, parts.stop.clone()) => result,
        // A thread ends well only when the committer is gone; one that panics is a bug whose text is on stderr already.
        Some(ended) = tasks.next() => ended.unwrap_or_else(|_| Err(ProjectorError::Halted("a fold has panicked".into()))),
    };
    // The committer is gone, so the threads end; the next run needs the state for itself.
    while tasks.next().await.is_some() {}
    result
}

/// Runs a fold on a thread of its own: what it allocates is freed where it was made, and nothing else waits for it.
fn on_own_thread(
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

/// The task that folds one partition.
struct Folding {
    partition: u32,
    worker: Worker,
    commands: mpsc::Receiver<Command>,
    log: Arc<dyn EventLog>,
    live: Arc<Live>,
    settings: Arc<Settings>,
    flush_wanted: Arc<Notify>,
    source: Source,
}

impl Folding {
    async fn run(mut self, stop: watch::Receiver<bool>) -> Result<(), ProjectorError> {
        let mut appended = self.log.appended();
        let limit = self.settings.layer_bytes();
        loop {
            let full = self.worker.bytes() >= limit;
            if full {
                self.flush_wanted.notify_one();
            }
            // Memory is bounded: nothing is folded until the committer has taken what is there.
            let resting = *stop.borrow() || full;
            let began = Instant::now();
            let found = if resting { Found::Nothing } else { self.step().await? };
            let command = match found {
                Found::Nothing => tokio::select! {
                    command = self.commands.recv() => command,
                    _ = appended.changed(), if !resting => continue,
                },
                Found::Last => tokio::select! {
                    command = self.commands.recv() => command,
                    () = tokio::time::sleep_until(began + FOLD_EVERY) => continue,
                },
                Found::More => match self.commands.try_recv() {
                    Ok(command) => Some(command),
                    Err(mpsc::error::TryRecvError::Empty) => continue,
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                },
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

    /// Reads and folds once.
    async fn step(&mut self) -> Result<Found, ProjectorError> {
        let from = self.worker.position();
        let Fetched { records, next, end } =
            self.log.read(self.partition, from, BATCH_RECORDS, BATCH_BYTES).await?;
        let lag = end.saturating_sub(next);
        let newest_us = records.last().map(|record| record.appended_at_us);
        let seconds = match newest_us {
            Some(appended_at_us) if lag > 0 => ((self.settings.clock)() - appended_at_us).max(0) as f64 / 1e6,
            _ => 0.0,
        };
        self.settings.metrics.lag(self.partition, lag, seconds);
        if records.is_empty() && next > from {
            let delta = self.worker.pass(next)?;
            self.live.publish(delta, end);
            return Ok(Found::Nothing);
        }
        if records.is_empty() {
            if end == from {
                let partition = self.partition as usize;
                if self.live.log_end(partition) != end {
                    self.live.update(|status| status.partitions[partition].log_end = end);
                }
            }
            return Ok(Found::Nothing);
        }
        let mut delta = self.worker.fold(&records, None, self.source)?;
        self.settings.metrics.apply(&std::mem::take(&mut delta.tally));
        self.live.publish(delta, end);
        Ok(if lag > 0 { Found::More } else { Found::Last })
    }
}

#[cfg(test)]
mod tests;
