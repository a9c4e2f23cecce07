//! What the rest of the program may ask of the projector.

use super::ProjectorError;
use super::commit::{CommitPoint, Request};
use super::folding::Look;
use super::live::{Asked, Live, PartitionStatus, Status, Told};
use super::rebuild::Pause;
use crate::event::time::format_us;
use crate::lake::{Lake, TableName};
use crate::log::Assignment;
use crate::session::Standing;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// An outage that lasts longer is told to whoever waits for what cannot be had during it.
const OUTAGE: Duration = Duration::from_secs(10);

/// When the tables were brought up to date last, in words.
fn committed(us: Option<i64>) -> String {
    us.map_or("before this process has started".to_owned(), |us| format!("at {}", format_us(us)))
}

/// How often the tables are looked at for what others commit.
const OTHERS_EVERY: Duration = Duration::from_millis(200);

/// A handle on a running projector. Cheap to clone.
#[derive(Clone)]
pub struct ProjectorHandle {
    pub(super) live: Arc<Live>,
    pub(super) lake: Arc<Lake>,
    pub(super) requests: mpsc::Sender<Request>,
    /// Work to be done between two runs.
    pub(super) pauses: mpsc::Sender<Pause>,
}

impl ProjectorHandle {
    /// What is to be laid over tables as somebody has read them, with everything folded so far.
    pub async fn overlay(&self, asked: Asked) -> Result<Told, ProjectorError> {
        let live = self.live.clone();
        tokio::task::spawn_blocking(move || live.overlay(&asked)).await.map_err(|_| ProjectorError::Stopped)?
    }

    /// How things stand with a user at `now_ms` (ms since the epoch), with everything folded so far; `None` where this process
    /// does not fold the user's `partition`.
    pub async fn standing(
        &self,
        partition: u32,
        account: &str,
        user: &str,
        now_ms: i64,
    ) -> Result<Option<Standing>, ProjectorError> {
        let Some(looker) = self.live.looker(partition) else { return Ok(None) };
        let (told, wait) = oneshot::channel();
        let look = Look { account: account.to_owned(), user: user.to_owned(), now_ms, told };
        // A run that has ended folds nothing: the partition may be another's by now.
        let Ok(()) = looker.send(look).await else { return Ok(None) };
        match wait.await {
            Ok(standing) => standing.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The tables.
    pub fn lake(&self) -> &Arc<Lake> {
        &self.lake
    }

    /// How far it is, and what stops it.
    pub fn status(&self) -> Status {
        self.live.status()
    }

    /// What it works on, where the partitions are shared; changes as others come and go.
    pub fn assignment(&self) -> watch::Receiver<Assignment> {
        self.live.assignment()
    }

    /// Waits until everything before `ends` (by partition) is folded, thus visible to SQL; of partitions that others fold,
    /// what they have committed is.
    pub async fn wait_folded(&self, ends: &[u64]) -> Result<(), ProjectorError> {
        let mut changes = self.live.changes();
        let began = tokio::time::Instant::now();
        loop {
            let status = self.live.status();
            let behind = |(partition, end): &(&PartitionStatus, &u64)| partition.owned && partition.folded < **end;
            let mut waiting = status.partitions.iter().zip(ends).filter(behind).peekable();
            if waiting.peek().is_none() && status.recovering.is_none() && !status.joining {
                return Ok(());
            }
            if let Some(error) = waiting.find_map(|(partition, _)| partition.error.clone()) {
                return Err(ProjectorError::Halted(error));
            }
            if let (Some(error), true) = (status.error.clone(), status.stopped) {
                return Err(ProjectorError::Halted(error));
            }
            if let (Some(error), true) = (&status.error, began.elapsed() >= OUTAGE) {
                return Err(ProjectorError::Behind { error: error.clone(), committed: committed(status.committed_us) });
            }
            // Whatever changes, or nothing for a while: then it is looked at again.
            if let Ok(gone) = tokio::time::timeout(OUTAGE, changes.changed()).await {
                gone.map_err(|_| ProjectorError::Stopped)?;
            }
        }
    }

    /// Waits until all three tables contain everything before `ends` (by partition); of partitions that others fold, until
    /// `events` does.
    pub async fn wait_committed(&self, ends: &[u64]) -> Result<(), ProjectorError> {
        loop {
            match self.wait_folded(ends).await {
                // An outage passes, and who waits for a commit has time.
                Err(ProjectorError::Behind { .. }) => continue,
                folded => folded?,
            }
            // A commit that failed is made again, and so is one that a change of partitions has cut short.
            if self.commit().await?.is_some() && self.archived(ends) {
                return Ok(());
            }
            tokio::time::sleep(OTHERS_EVERY).await;
            let refreshed = self.lake.refresh().await;
            refreshed.unwrap_or_else(|error| tracing::debug!(%error, "the tables are not readable yet"));
        }
    }

    /// Has everything folded by now committed; `None` where that failed.
    async fn commit(&self) -> Result<Option<CommitPoint>, ProjectorError> {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.requests.send(Request { done }).await.map_err(|_| ProjectorError::Stopped)?;
        Ok(wait.await.ok())
    }

    /// The tables with everything before `ends` (by partition) that is this process's to fold, at one moment.
    /// [`ProjectorError::Behind`] where they cannot be brought so far.
    pub(super) async fn commit_point(&self, ends: &[u64]) -> Result<CommitPoint, ProjectorError> {
        let began = tokio::time::Instant::now();
        let mut told = None;
        loop {
            self.wait_folded(ends).await?;
            if let Some(point) = self.commit().await? {
                return Ok(point);
            }
            // The run that has failed tells why a moment later, until the next one has committed something.
            tokio::time::sleep(OTHERS_EVERY).await;
            let Status { error, committed_us, .. } = self.live.status();
            told = error.or(told);
            if began.elapsed() >= OUTAGE {
                let error = told.unwrap_or_else(|| "a commit has failed; the log says why".to_owned());
                return Err(ProjectorError::Behind { error, committed: committed(committed_us) });
            }
        }
    }

    /// Whether `events` has everything before `ends`.
    fn archived(&self, ends: &[u64]) -> bool {
        let positions = self.lake.table(TableName::Events).snapshot().positions;
        (0u32..).zip(ends).all(|(partition, end)| positions.get(&partition).copied().unwrap_or(0) >= *end)
    }
}
