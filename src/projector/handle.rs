//! What the rest of the program may ask of the projector.

use super::ProjectorError;
use super::commit::Request;
use super::live::{Live, Status};
use crate::lake::picture::TableView;
use crate::lake::{Lake, TableName};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// A handle on a running projector. Cheap to clone.
#[derive(Clone)]
pub struct ProjectorHandle {
    pub(super) live: Arc<Live>,
    pub(super) lake: Arc<Lake>,
    pub(super) requests: mpsc::Sender<Request>,
}

impl ProjectorHandle {
    /// One consistent picture of the tables named, of everything folded so far.
    pub async fn picture(&self, tables: &[TableName]) -> Result<BTreeMap<TableName, TableView>, ProjectorError> {
        let (live, tables) = (self.live.clone(), tables.to_vec());
        tokio::task::spawn_blocking(move || live.picture(&tables)).await.map_err(|_| ProjectorError::Stopped)?
    }

    /// The tables.
    pub fn lake(&self) -> &Arc<Lake> {
        &self.lake
    }

    /// How far it is, and what stops it.
    pub fn status(&self) -> Status {
        self.live.status()
    }

    /// Waits until everything before `ends` (by partition) is folded, thus visible to SQL.
    pub async fn wait_folded(&self, ends: &[u64]) -> Result<(), ProjectorError> {
        self.wait(|status| status.partitions.iter().zip(ends).all(|(partition, end)| partition.folded >= *end)).await
    }

    /// Waits until all three tables contain everything before `ends` (by partition).
    pub async fn wait_committed(&self, ends: &[u64]) -> Result<(), ProjectorError> {
        self.wait_folded(ends).await?;
        loop {
            let (done, wait) = tokio::sync::oneshot::channel();
            self.requests.send(Request { done }).await.map_err(|_| ProjectorError::Stopped)?;
            if wait.await.is_ok() {
                return Ok(());
            }
            // The commit failed and the projector started over: wait until it has folded everything again.
            self.wait_folded(ends).await?;
        }
    }

    async fn wait(&self, done: impl Fn(&Status) -> bool) -> Result<(), ProjectorError> {
        let mut changes = self.live.changes();
        loop {
            let status = self.live.status();
            if done(&status) && status.recovering.is_none() {
                return Ok(());
            }
            if let (Some(error), true) = (status.error, status.stopped) {
                return Err(ProjectorError::Halted(error));
            }
            changes.changed().await.map_err(|_| ProjectorError::Stopped)?;
        }
    }
}
