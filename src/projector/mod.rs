//! From the log to the tables: read → fold → archive → state → buckets.
//!
//! Each partition is folded by a task of its own ([`worker`]); one task makes the results durable ([`commit`]). When
//! anything fails, the run ends and the next one starts from what is durable: there is one way to resume, taken after a
//! kill, a full disk and a restart alike.

mod buckets;
mod bulk;
mod by_user;
mod commit;
mod delta;
pub mod feed;
mod folding;
mod handle;
mod hold;
mod job;
mod laid;
mod live;
mod past;
mod rebuild;
mod rebuilds;
mod recover;
mod refold;
mod run;
mod span_rows;
mod sweep;
mod switch;
mod takeover;
pub mod verify;
mod worker;

pub use handle::ProjectorHandle;
pub use job::{Job, Phase, Reach, RebuildError, Scope, Wish};
pub use live::{Asked, PartitionStatus, Status, Told};
pub use rebuild::Progress;
pub use rebuilds::{Listing, OfflineRebuilds, Rebuilds, Report};

use crate::lake::{Lake, LakeError};
use crate::log::{EventLog, LogError};
use crate::metrics::Metrics;
use crate::session::outline::Outline;
use crate::session::{Outlines, Policies, PolicyChain, Prices, Terms};
use crate::state::StateError;
use feed::Feed;
use futures::future::BoxFuture;
use live::Live;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

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
    /// The topic was made anew under its old name.
    #[error(
        "partition {partition} has another record at offset {offset} than was archived from there: the log was replaced; export what it has, and import that into a new one with tables of its own"
    )]
    OtherRecords { partition: u32, offset: u64 },
    /// Others may have the partitions now, so nothing of them is committed.
    #[error("the partitions were lost: this process was silent for too long")]
    Lost,
    /// What this process has not committed is dropped, and what is its own is looked at anew.
    #[error("other processes have claimed the partitions")]
    TakenOver,
    /// Nobody commits to the tables until that is done.
    #[error("the tables of a rebuild take the place of the old ones ({maker})")]
    Switching { maker: String },
    /// What was appended meanwhile is safe in the log, but cannot be shown. Trying again helps once the cause is gone.
    #[error("what is newest cannot be shown for now: {error}; the tables were brought up to date last {committed}")]
    Behind { error: String, committed: String },
    /// What was to be done while it rests was not, as its run ended otherwise.
    #[error("the projector did not come to rest; its log says why")]
    Restless,
    /// Others may have taken over what it was at work on.
    #[error("others were not told in time that this process is at work on the generation")]
    Silent,
    /// It gave up; the text says why.
    #[error("the projector has stopped: {0}")]
    Halted(String),
    /// It is shutting down.
    #[error("the projector is stopping")]
    Stopped,
}

impl ProjectorError {
    /// Whether starting over may help without anybody's doing.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            ProjectorError::Log(error) => error.is_transient(),
            // After a conflict somebody else has what this process thought its own, and the group says what is.
            ProjectorError::Lake(error) => error.is_transient() || matches!(error, LakeError::Conflict { .. }),
            ProjectorError::State(StateError::Io { .. } | StateError::Busy { .. }) => true,
            ProjectorError::Lost | ProjectorError::Restless | ProjectorError::Silent => true,
            ProjectorError::TakenOver | ProjectorError::Switching { .. } => true,
            _ => false,
        }
    }

    /// Whether it says that others have what was this process's.
    fn is_of_a_takeover(&self) -> bool {
        let conflict = matches!(self, ProjectorError::Lake(LakeError::Conflict { .. }));
        conflict || matches!(self, ProjectorError::TakenOver | ProjectorError::Switching { .. })
    }
}

/// Makes `policies` know what other processes have made known up to now.
pub type NewestPolicies = Arc<dyn Fn() -> BoxFuture<'static, Result<(), LogError>> + Send + Sync>;

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
    /// Brings in the policies of accounts that were added elsewhere; `None` where this process knows all of them.
    pub newest_policies: Option<NewestPolicies>,
    pub default_policy: PolicyChain,
    pub prices: Prices,
    pub commit_every: Duration,
    pub snapshot_every: Duration,
    pub memory_bytes: u64,
    pub metrics: Arc<Metrics>,
    /// µs since the epoch, UTC.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Told what becomes of sessions.
    pub feed: Arc<Feed>,
}

impl Settings {
    /// The terms an account is folded under.
    pub fn terms(&self, account: &str) -> Terms {
        Terms {
            policies: self.policies.of(account).unwrap_or_else(|| self.default_policy.clone()),
            prices: self.prices.of(account).clone(),
            lateness_ms: self.lateness_ms,
            settle_lateness_ms: self.settle_lateness_ms,
            delivery_window_ms: self.delivery_window_ms,
        }
    }

    /// The policies and prices of all accounts, to be held against those that rows were made under.
    pub fn describe_policies(&self) -> Outlines {
        let outline = |policies: &PolicyChain, account: Option<&str>| -> Outline {
            let prices = account.map_or(&self.prices.default, |account| self.prices.of(account));
            policies.outline().into_iter().chain(prices.outline().iter().cloned()).collect()
        };
        let known = self.policies.known();
        let of = |account: &String| {
            let policies = known.get(account).unwrap_or(&self.default_policy);
            (account.clone(), outline(policies, Some(account)))
        };
        Outlines {
            common: format!("lateness {} ms, delivery window {} ms", self.settle_lateness_ms, self.delivery_window_ms),
            default: outline(&self.default_policy, None),
            accounts: known.keys().chain(self.prices.accounts.keys()).map(of).collect(),
        }
    }

    /// The policies by name, for people.
    pub fn policies_in_words(&self) -> String {
        let words = |chain: &PolicyChain| -> String {
            chain.policies().map(|policy| policy.name.as_str()).collect::<Vec<_>>().join(", then ")
        };
        let own = |(account, chain): (&String, &PolicyChain)| format!("; {account}: {}", words(chain));
        format!("{}{}", words(&self.default_policy), self.policies.known().iter().map(own).collect::<String>())
    }

    /// The fold's part of the memory; a quarter of it all is for a rebuild beside it.
    fn own_bytes(&self) -> u64 {
        self.memory_bytes / 4 * 3
    }

    /// With so much memory the own part is the quarter that another fold leaves.
    fn beside_bytes(&self) -> u64 {
        self.memory_bytes / 3
    }

    /// With so much the own part is all there is.
    fn alone_bytes(&self) -> u64 {
        self.memory_bytes / 3 * 4
    }

    /// How many bytes of changes a partition may hold before they must be written. While they are, as many come in again.
    fn layer_bytes(&self) -> usize {
        let share = self.own_bytes() / 4 / u64::from(self.partitions.max(1));
        usize::try_from(share.clamp(4 << 20, 64 << 20)).unwrap_or(usize::MAX)
    }

    /// Memory for the state's caches and buffers.
    fn state_bytes(&self) -> u64 {
        self.own_bytes() / 2
    }
}

/// What the projector works on.
pub struct Parts {
    pub log: Arc<dyn EventLog>,
    pub lake: Arc<Lake>,
    /// Where `state` lies.
    pub data_dir: PathBuf,
    /// Names this process among those that share the log, for good.
    pub instance: String,
    pub settings: Arc<Settings>,
    /// True once it is time to end.
    pub stop: watch::Receiver<bool>,
}

/// Starts the projector. It runs until `stop`, then commits and ends; the task's result says how it ended.
pub async fn start(parts: Parts) -> Result<(ProjectorHandle, JoinHandle<Result<(), ProjectorError>>), ProjectorError> {
    let (lake, data_dir, settings) = (parts.lake.clone(), parts.data_dir.clone(), parts.settings.clone());
    rebuild::Site::new(lake, data_dir, settings, None).settle().await?;
    verify::clean(&parts.data_dir)?;
    let live = Arc::new(Live::new(parts.settings.partitions));
    let (requests, inbox) = mpsc::channel(16);
    let (pauses, wanted) = mpsc::channel(1);
    let handle = ProjectorHandle { live: live.clone(), lake: parts.lake.clone(), requests, pauses };
    let inbox = run::Inbox { requests: inbox, pauses: wanted };
    let task = tokio::spawn(run::supervise(parts, live, inbox));
    Ok((handle, task))
}

#[cfg(test)]
mod tests;
