//! The public listener: Viber's callbacks and the bots' calls, each in the log before it is answered (spec §7.1).
//!
//! [`webhooks`] verifies and appends callbacks, [`calls`] relays calls and [`record`] says what is kept of them.

mod account;
pub mod account_store;
pub mod accounts;
mod calls;
mod clock;
mod limit;
mod record;
mod signature;
pub mod tls;
pub mod upstream;
pub mod vault;
mod webhooks;

use crate::log::EventLog;
use crate::metrics::Metrics;
use accounts::Accounts;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use axum::routing::{get, post};
use clock::{Clock, Now};
use futures::StreamExt;
use record::Recorder;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use upstream::Upstream;

/// Longer bodies are refused. Viber's own limit for requests is 30 KB.
const MAX_BODY: usize = 1 << 20;
/// A body must arrive within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What the gateway works with.
pub struct Parts {
    pub log: Arc<dyn EventLog>,
    pub accounts: Accounts,
    pub upstream: Upstream,
    pub metrics: Arc<Metrics>,
    /// µs since the epoch, UTC.
    pub now: Now,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

/// Shared by all requests.
pub struct Inner {
    recorder: Recorder,
    accounts: Accounts,
    upstream: Upstream,
    metrics: Arc<Metrics>,
    clock: Clock,
    /// Of callbacks that were taken.
    webhook_ok: prometheus::Histogram,
}

impl Deref for Gateway {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Gateway {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            recorder: Recorder::new(parts.log, parts.metrics.clone()),
            accounts: parts.accounts,
            upstream: parts.upstream,
            webhook_ok: parts.metrics.http_timer(webhooks::ROUTE, "POST", 200),
            metrics: parts.metrics,
            clock: Clock::new(parts.now),
        }))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        let call = || get(calls::relay).post(calls::relay);
        Router::new()
            .route(webhooks::ROUTE, post(webhooks::receive))
            .route("/pa/{method}", call())
            .route("//pa/{method}", call())
            .with_state(self.clone())
    }

    /// Waits until every relayed call is recorded, for `patience` at most; says whether all were.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.recorder.tasks.close();
        tokio::time::timeout(patience, self.recorder.tasks.wait()).await.is_ok()
    }
}

/// Whether a name may be part of an event's `type`.
fn is_type_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

enum BodyError {
    TooLarge,
    Incomplete,
}

/// A request's whole body.
async fn read_body(headers: &HeaderMap, body: Body) -> Result<Bytes, BodyError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY as u64) {
        return Err(BodyError::TooLarge);
    }
    let read = async {
        let mut pieces = body.into_data_stream();
        let mut first = Bytes::new();
        let mut whole = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|_| BodyError::Incomplete)?;
            if first.len() + whole.len() + piece.len() > MAX_BODY {
                return Err(BodyError::TooLarge);
            }
            // Most bodies come in one piece, which then is not copied.
            if first.is_empty() && whole.is_empty() {
                first = piece;
            } else {
                whole.extend_from_slice(&std::mem::take(&mut first));
                whole.extend_from_slice(&piece);
            }
        }
        Ok(if whole.is_empty() { first } else { whole.into() })
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or(Err(BodyError::Incomplete))
}

#[cfg(test)]
mod tests;
