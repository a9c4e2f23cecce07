//! The public listener: Viber's callbacks and the bots' calls, each in the log before it is answered (spec §7.1).
//!
//! [`webhooks`] verifies and appends callbacks and hands them on to the [`bots`]; [`calls`] relays calls to Viber
//! ([`upstream`]), [`set_webhook`] among them with the gateway's own address in place of the bot's, which
//! [`registrations`] keeps; [`record`] says what is kept of a call. [`recorder`] brings it into the log, [`spilling`] keeps it
//! while the log is away, [`gap`] tells what could not be kept. Accounts and webhooks lie on a [`shelf`], which all gateways
//! of a log may share.

mod account;
pub mod account_store;
pub mod accounts;
mod addresses;
mod adopt;
pub mod bots;
mod calls;
mod clock;
pub mod gap;
mod json;
mod limit;
mod record;
mod recorder;
mod redeliver;
pub mod registrations;
mod set_webhook;
pub mod shelf;
mod signature;
mod spilling;
pub mod tls;
pub mod upstream;
pub mod vault;
mod watch;
mod webhooks;

pub use adopt::adopt_files;
pub use recorder::Recording;
pub use redeliver::RedeliverError;
pub use watch::watch;

use crate::log::{EventLog, LogError};
use crate::metrics::Metrics;
use accounts::Accounts;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use bots::Bots;
use clock::{Clock, Now};
use futures::StreamExt;
use recorder::Recorder;
use registrations::Registrations;
use shelf::ShelfError;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use upstream::Upstream;
use url::Url;

/// Longer bodies are refused. Viber's own limit for requests is 30 KB.
const MAX_BODY: usize = 1 << 20;
/// Where a bot puts its token.
const TOKEN: &str = "x-viber-auth-token";
/// Where Viber puts the signature of a callback.
const SIGNATURE: &str = "x-viber-content-signature";
/// A body must arrive within this.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What the gateway works with.
pub struct Parts {
    pub log: Arc<dyn EventLog>,
    pub recording: Recording,
    pub accounts: Accounts,
    pub upstream: Upstream,
    pub bots: Bots,
    pub registrations: Registrations,
    /// Where Viber reaches this gateway.
    pub public_url: Url,
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
    bots: Bots,
    registrations: Arc<Registrations>,
    /// Without a slash at its end.
    public_url: String,
    metrics: Arc<Metrics>,
    clock: Arc<Clock>,
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
    /// Puts the parts together, within a runtime, and starts to bring in what waits for the log from before.
    pub fn new(parts: Parts) -> Self {
        let clock = Arc::new(Clock::new(parts.now));
        Self(Arc::new(Inner {
            recorder: Recorder::new(parts.log, parts.recording, parts.metrics.clone(), clock.clone()),
            accounts: parts.accounts,
            upstream: parts.upstream,
            bots: parts.bots,
            registrations: Arc::new(parts.registrations),
            public_url: parts.public_url.as_str().trim_end_matches('/').to_owned(),
            webhook_ok: parts.metrics.http_timer(webhooks::ROUTE, "POST", 200),
            metrics: parts.metrics,
            clock,
        }))
    }

    /// The routes.
    pub fn router(&self) -> Router {
        // Viber has no use for HEAD, which would otherwise count as a GET.
        let call = || get(calls::relay).post(calls::relay).head(async || StatusCode::METHOD_NOT_ALLOWED);
        Router::new()
            .route(webhooks::ROUTE, post(webhooks::receive))
            .route("/pa/{method}", call())
            .route("//pa/{method}", call())
            .with_state(self.clone())
    }

    /// Where Viber is told to send an account's callbacks.
    fn own_url(&self, account: &str) -> String {
        format!("{}/webhooks/{account}", self.public_url)
    }

    /// Forgets where an account's callbacks go, once the account is removed: one that comes under its name later is another
    /// bot. Waits for the disk or the brokers.
    pub fn forget_webhook(&self, account: &str) -> Result<(), ShelfError> {
        self.registrations.forget(account)
    }

    /// How many events of carried-out calls wait in memory for the log to be writable again.
    pub fn unrecorded(&self) -> u64 {
        self.recorder.unrecorded()
    }

    /// Whether what comes of a call could be recorded now, in the log or in the spill.
    pub async fn check_recordable(&self) -> Result<(), LogError> {
        self.recorder.check_recordable().await
    }

    /// Whether events wait in the spill, or the log is known to be away.
    pub fn is_spilling(&self) -> bool {
        self.recorder.is_spilling()
    }

    /// Waits until every relayed call is recorded, for `patience` at most; says whether all were.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.recorder.close(patience).await
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
