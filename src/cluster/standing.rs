//! How things stand with a user, asked of whoever folds its partition: here, or in another process.

use super::ANSWER_WITHIN;
use super::client::AskError;
use super::gather::Peers;
use crate::console::problem::Problem;
use crate::console::standing::Told;
use crate::console::users::Standings;
use crate::event::user_key;
use crate::log::registry::Node;
use crate::log::{LogId, partitioner};
use crate::projector::{ProjectorError, ProjectorHandle};
use async_trait::async_trait;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// Asks about users wherever they are folded.
pub struct ClusterStandings {
    pub log: LogId,
    /// Of the log.
    pub partitions: u32,
    /// Where this process folds some.
    pub local: Option<ProjectorHandle>,
    pub peers: Option<Peers>,
}

/// A question of another process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AboutUser {
    pub log: String,
    pub account: String,
    pub user: String,
    pub now_ms: i64,
}

/// Why it is not known how things stand. A retry helps when the partition has found its projector.
#[derive(Debug, thiserror::Error)]
enum StandingError {
    #[error("no projector has said that it folds partition {0}, which has this user")]
    Nobody(u32),
    #[error("{0}")]
    Asked(String),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
}

#[async_trait]
impl Standings for ClusterStandings {
    async fn of(&self, account: &str, user: &str, now_ms: i64) -> Result<Told, Problem> {
        let told = tokio::time::timeout(ANSWER_WITHIN, self.ask(account, user, now_ms)).await;
        let told = told.map_err(|_| Problem::unavailable("the fold of this user does not answer now"))?;
        told.map_err(|error| match error {
            StandingError::Projector(error) if !error.is_transient() => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            }
            error => Problem::unavailable(error.to_string()),
        })
    }
}

impl ClusterStandings {
    async fn ask(&self, account: &str, user: &str, now_ms: i64) -> Result<Told, StandingError> {
        let partition = partitioner::partition(user_key(account, user).as_bytes(), self.partitions);
        if let Some(local) = &self.local
            && let Some(standing) = local.standing(partition, account, user, now_ms).await?
        {
            return Ok(Told::new(account, user, now_ms, &standing));
        }
        let Some(peers) = &self.peers else { return Err(StandingError::Nobody(partition)) };
        let nodes = Node::all(&peers.registry.entries().borrow());
        let others = nodes
            .iter()
            .filter(|(instance, node)| **instance != peers.instance && node.partitions.contains(&partition));
        let Some((_, owner)) = others.max_by_key(|(instance, node)| (node.at_us, *instance)) else {
            return Err(StandingError::Nobody(partition));
        };
        let log = self.log.0.clone();
        let question = AboutUser { log, account: account.to_owned(), user: user.to_owned(), now_ms };
        let told = peers.client.about_user(&owner.address, &question).await;
        told.map_err(|error: AskError| StandingError::Asked(error.to_string()))
    }
}
