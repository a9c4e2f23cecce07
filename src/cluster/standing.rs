//! How things stand with a user, asked of whoever folds its partition: here, or in another process.

use super::client::AskError;
use super::gather::Peers;
use crate::event::time::format_ms;
use crate::event::user_key;
use crate::log::partitioner;
use crate::log::registry::Node;
use crate::projector::{ProjectorError, ProjectorHandle};
use crate::session::Standing;
use crate::session::row::SessionRow;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks about users.
pub struct Standings {
    /// Of the log.
    pub partitions: u32,
    /// Where this process folds some.
    pub local: Option<ProjectorHandle>,
    pub peers: Option<Peers>,
}

/// How things stand with a user, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Standing)]
pub struct Told {
    pub account: String,
    pub user_id: String,
    #[schema(required)]
    pub country: Option<String>,
    /// RFC 3339, UTC.
    pub as_of: String,
    /// Those that are open, the newest last.
    pub sessions: Vec<OpenSession>,
    pub quote: Quoted,
}

/// An open session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenSession {
    pub session_id: String,
    /// `service` or `paid`.
    pub kind: String,
    pub opened_at: String,
    pub expires_at: String,
    /// Whole minutes until then.
    pub minutes_left: i64,
    pub inbound: u32,
    pub outbound: u32,
    pub policy: String,
}

/// What a message to the user would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quoted {
    /// `in_service`, `in_paid` or `out_of_session`.
    pub expected: String,
    /// `None` where that is a matter of how many free messages the month has left.
    #[schema(required)]
    pub is_free: Option<bool>,
    #[schema(required)]
    pub until: Option<String>,
    /// Of one that is charged, as a decimal number; `None` where none is known.
    #[schema(required)]
    pub price: Option<String>,
    #[schema(required)]
    pub currency: Option<String>,
    /// How many messages out of sessions are free in a UTC month.
    pub free_per_month: u64,
    pub policy: String,
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
pub enum StandingError {
    #[error("no projector has said that it folds partition {0}, which has this user")]
    Nobody(u32),
    #[error("{0}")]
    Asked(String),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
}

impl Standings {
    /// Of a user at `now_ms`, ms since the epoch; `log` is the log's id.
    pub async fn of(&self, log: &str, account: &str, user: &str, now_ms: i64) -> Result<Told, StandingError> {
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
        let question = AboutUser { log: log.to_owned(), account: account.to_owned(), user: user.to_owned(), now_ms };
        let told = peers.client.about_user(&owner.address, &question).await;
        told.map_err(|error: AskError| StandingError::Asked(error.to_string()))
    }
}

impl Told {
    pub(super) fn new(account: &str, user: &str, now_ms: i64, standing: &Standing) -> Self {
        let Standing { country, open, quote } = standing;
        let is_free = match (quote.is_in_session(), quote.free_per_month) {
            (true, _) => Some(true),
            (false, 0) => Some(false),
            (false, _) => None,
        };
        Self {
            account: account.to_owned(),
            user_id: user.to_owned(),
            country: country.as_ref().map(ToString::to_string),
            as_of: format_ms(now_ms),
            sessions: open.iter().map(|row| OpenSession::new(row, now_ms)).collect(),
            quote: Quoted {
                expected: quote.expected.as_str().to_owned(),
                is_free,
                until: quote.until_ms.map(format_ms),
                price: quote.price.map(|price| price.to_string()),
                currency: quote.currency.map(|currency| currency.as_str().to_owned()),
                free_per_month: quote.free_per_month,
                policy: quote.policy.to_string(),
            },
        }
    }
}

impl OpenSession {
    fn new(row: &SessionRow, now_ms: i64) -> Self {
        Self {
            session_id: hex::encode(row.session_id),
            kind: row.kind.as_str().to_owned(),
            opened_at: format_ms(row.opened_at_ms),
            expires_at: format_ms(row.expires_at_ms),
            minutes_left: (row.expires_at_ms - now_ms).max(0) / 60_000,
            inbound: row.inbound,
            outbound: row.outbound,
            policy: row.policy.to_string(),
        }
    }
}
