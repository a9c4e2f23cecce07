//! Asks other nodes.

use super::following::AboutChanges;
use super::standing::AboutUser;
use super::wire::{Question, WireError, decode};
use super::{ANSWER_WITHIN, ClusterSecret};
use crate::console::standing::Told;
use crate::lake::TableName;
use crate::lake::picture::Overlay;
use crate::projector::feed;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The path that a projector answers at.
pub(super) const OVERLAY: &str = "/internal/v1/overlay";
/// The path that users are asked about at.
pub(super) const STANDING: &str = "/internal/v1/standing";
/// The path that changes of sessions are asked for at.
pub(super) const CHANGES: &str = "/internal/v1/changes";
/// Which partitions an answer is of: a list of RFC 8941.
pub(super) const PARTITIONS: &str = "counterbat-partitions";
/// The member of a problem document that says what a node may do about it.
pub(super) const REASON: &str = "reason";
/// The tables are older than what the projector still knows.
pub(super) const TOO_OLD: &str = "too_old";

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for calls to other nodes cannot be made: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// Why a node gave no answer that is of use. The texts are the same each time, so that they are told once.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("its projector at {0} cannot be reached")]
    Unreachable(String),
    #[error("its projector at {address} has not answered within {} s", ANSWER_WITHIN.as_secs())]
    Silent { address: String },
    /// It says itself what is wrong.
    #[error("its projector at {address} refuses: {detail}")]
    Refused { address: String, detail: String },
    #[error("the answer of its projector at {address} cannot be read: {error}")]
    Damaged { address: String, error: WireError },
}

/// A projector's answer.
pub(super) enum Answer {
    Laid { partitions: BTreeSet<u32>, overlays: BTreeMap<TableName, Overlay>, bytes: usize },
    TooOld,
}

/// A client of other nodes.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    secret: ClusterSecret,
}

impl Client {
    /// A client that shows this secret.
    pub fn new(secret: ClusterSecret) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .connect_timeout(ANSWER_WITHIN)
            // Of silence: many rows may take longer than that.
            .read_timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            // Nodes reach each other directly.
            .no_proxy();
        Ok(Self { http: http.build()?, secret })
    }

    /// Asks the projector at `address` how things stand with a user.
    pub(super) async fn about_user(&self, address: &str, question: &AboutUser) -> Result<Told, AskError> {
        self.ask_json(address, STANDING, question).await
    }

    /// Asks the projector at `address` what has become of sessions.
    pub(super) async fn about_changes(&self, address: &str, question: &AboutChanges) -> Result<feed::Answer, AskError> {
        self.ask_json(address, CHANGES, question).await
    }

    async fn ask_json<T: DeserializeOwned>(
        &self,
        address: &str,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, AskError> {
        let trouble = |error: &reqwest::Error| match error.is_timeout() {
            true => AskError::Silent { address: address.to_owned() },
            false => AskError::Unreachable(address.to_owned()),
        };
        let refused = |detail: &str| AskError::Refused { address: address.to_owned(), detail: detail.to_owned() };
        let url = format!("{}{path}", address.trim_end_matches('/'));
        // Names and numbers: nothing that JSON could not say.
        let body = serde_json::to_vec(question).unwrap_or_default();
        let request = self.http.post(url).bearer_auth(self.secret.reveal()).header("content-type", "application/json");
        let response = request.body(body).send().await.map_err(|error| trouble(&error))?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|error| trouble(&error))?;
        if status != StatusCode::OK {
            let problem: Problem = serde_json::from_slice(&bytes).unwrap_or_default();
            return Err(refused(&problem.detail));
        }
        serde_json::from_slice(&bytes).map_err(|error| refused(&format!("its answer cannot be read: {error}")))
    }

    /// Asks the projector at `address`.
    pub(super) async fn ask(&self, address: &str, question: &Question) -> Result<Answer, AskError> {
        let trouble = |error: &reqwest::Error| match error.is_timeout() {
            true => AskError::Silent { address: address.to_owned() },
            false => AskError::Unreachable(address.to_owned()),
        };
        let tables: Vec<TableName> = question.asked().tables.into_keys().collect();
        // Numbers, names and maps of them: nothing that JSON could not say.
        let body = serde_json::to_vec(question).unwrap_or_default();
        let url = format!("{}{OVERLAY}", address.trim_end_matches('/'));
        let request = self.http.post(url).bearer_auth(self.secret.reveal()).header("content-type", "application/json");
        let response = request.body(body).send().await.map_err(|error| trouble(&error))?;
        let status = response.status();
        let partitions = response.headers().get(PARTITIONS).and_then(|list| list.to_str().ok()).map(parse_list);
        let bytes = response.bytes().await.map_err(|error| trouble(&error))?;
        let refused = |detail: &str| AskError::Refused { address: address.to_owned(), detail: detail.to_owned() };
        if status != StatusCode::OK {
            let problem: Problem = serde_json::from_slice(&bytes).unwrap_or_default();
            return match problem.reason.as_deref() {
                Some(TOO_OLD) => Ok(Answer::TooOld),
                _ if problem.detail.is_empty() => Err(refused(&format!("it answers {}", status.as_u16()))),
                _ => Err(refused(&problem.detail)),
            };
        }
        let partitions = partitions.ok_or_else(|| refused("it does not say what its answer is of"))?;
        let length = bytes.len();
        let read = tokio::task::spawn_blocking(move || decode(&bytes, tables.into_iter())).await;
        match read {
            Ok(Ok(overlays)) => Ok(Answer::Laid { partitions, overlays, bytes: length }),
            Ok(Err(error)) => Err(AskError::Damaged { address: address.to_owned(), error }),
            Err(_) => Err(refused("its answer is none")),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    detail: String,
    reason: Option<String>,
}

/// The header of an answer that is of these partitions.
pub(super) fn list(partitions: &[u32]) -> String {
    partitions.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn parse_list(text: &str) -> BTreeSet<u32> {
    text.split(',').filter_map(|number| number.trim().parse().ok()).collect()
}
