//! `POST /api/v1/redeliver`: recorded callbacks sent to their bot again, as after an outage of the bot that outlasted
//! Viber's own repeats.

use super::problem::Problem;
use crate::event::time::{format_us, parse_time_us};
use crate::event::{BadAccountName, check_account_name};
use crate::gateway::{Gateway, RedeliverError};
use crate::query::{Engine, Freshness, QueryError, QueryStream};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the answer tells how far it is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Which callbacks: of this account, received in `[from, to)`.
#[derive(Debug, Clone, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Redelivery)]
pub struct Wish {
    pub account: String,
    /// RFC 3339, or a date.
    pub from: String,
    pub to: String,
}

/// How far a redelivery is, and at its end how it went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
#[schema(as = RedeliveryProgress)]
pub struct Progress {
    pub total: u64,
    /// The bot answered with success.
    pub taken: u64,
    /// It answered with something else.
    pub refused: u64,
    /// It did not answer, or could not be reached.
    pub undelivered: u64,
    /// It had not asked for this event.
    pub unwanted: u64,
    pub done: bool,
}

impl Progress {
    /// Callbacks gone through.
    pub fn passed(&self) -> u64 {
        self.taken + self.refused + self.undelivered + self.unwanted
    }
}

/// Why callbacks cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("account: {0}")]
    Account(#[from] BadAccountName),
    #[error("{name}: {reason}")]
    Time { name: &'static str, reason: String },
    /// Whoever asks for them would take those that come in later to be sent too.
    #[error("to: {to} is in the future, and callbacks that come in until then would be left out: it is {now}")]
    Future { to: String, now: String },
    /// Some would be left out for good: nobody would send them later.
    #[error(
        "of partitions {partitions} {seen} can be seen now, as those who fold them do not answer, and later callbacks would be left out: send them when they do, or give an earlier --to"
    )]
    Behind { partitions: String, seen: String },
    #[error(transparent)]
    Redeliver(#[from] RedeliverError),
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// A callback is recorded at most so long after it was received.
const RECORDED_WITHIN_US: i64 = 60 * 1_000_000;

impl Failed {
    /// Whether rows as new as these may lack a callback received before `to_us`.
    fn unless_complete(freshness: &Freshness, to_us: i64) -> Result<(), Failed> {
        let needed_us = to_us.saturating_add(RECORDED_WITHIN_US);
        if freshness.is_complete() || freshness.until_us.is_some_and(|until_us| until_us >= needed_us) {
            return Ok(());
        }
        let partitions = freshness.behind.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let seen = match freshness.until_us {
            Some(until_us) => format!("only what was recorded until {}", format_us(until_us)),
            None => "nothing".to_owned(),
        };
        Err(Failed::Behind { partitions, seen })
    }
}

/// A redelivery under way: one callback after the other, in the order in which they were received.
pub struct Redelivery {
    gateway: Gateway,
    account: String,
    rows: QueryStream,
    batch: Option<RecordBatch>,
    row: usize,
    progress: Progress,
}

impl Redelivery {
    /// Finds the callbacks: each once, however often Viber sent it; no validations of a webhook.
    pub async fn start(engine: &Engine, gateway: Gateway, wish: &Wish) -> Result<Self, Failed> {
        check_account_name(&wish.account)?;
        gateway.check_redelivery(&wish.account)?;
        let time = |name, text: &str| parse_time_us(text).map_err(|reason| Failed::Time { name, reason });
        let (from_us, to_us) = (time("from", &wish.from)?, time("to", &wish.to)?);
        let (from, to, now_us) = (format_us(from_us), format_us(to_us), gateway.now_us());
        if to_us > now_us {
            return Err(Failed::Future { to, now: format_us(now_us) });
        }
        let found = format!(
            "(select type, data, data_base64, signature, received_at, partition, \"offset\", row_number() over \
             (partition by event_id order by received_at, partition, \"offset\") as n from events where account = '{}' \
             and origin = 'callback' and type <> 'webhook' and disposition <> 'duplicate' \
             and received_at >= timestamp '{from}' and received_at < timestamp '{to}') as found where n = 1",
            wish.account
        );
        let mut count = engine.query(&format!("select count(*) from {found}")).await?;
        let mut total = 0;
        while let Some(batch) = count.next().await.transpose()? {
            total = batch.column(0).as_primitive::<Int64Type>().iter().flatten().sum::<i64>().unsigned_abs();
        }
        let rows = format!(
            "select type, data, data_base64, signature from {found} order by received_at, partition, \"offset\""
        );
        let rows = engine.query(&rows).await?;
        Failed::unless_complete(rows.freshness(), to_us)?;
        let progress = Progress { total, ..Progress::default() };
        Ok(Self { gateway, account: wish.account.clone(), rows, batch: None, row: 0, progress })
    }

    /// Sends the next one; tells how far it is.
    pub async fn step(&mut self) -> Result<Progress, Failed> {
        while self.batch.as_ref().is_none_or(|batch| self.row >= batch.num_rows()) {
            self.row = 0;
            self.batch = self.rows.next().await.transpose()?;
            if self.batch.is_none() {
                self.progress.done = true;
                return Ok(self.progress);
            }
        }
        let Some(batch) = &self.batch else { return Ok(self.progress) };
        let text = |column: usize| batch.column(column).as_string::<i32>().value(self.row);
        let data = match batch.column(2).as_boolean().value(self.row) {
            // Written by the archive, so it can be read; what cannot goes as it stands.
            true => BASE64_STANDARD.decode(text(1)).unwrap_or_else(|_| text(1).into()),
            false => text(1).into(),
        };
        let (event, signature) = (text(0).to_owned(), text(3).to_owned());
        self.row += 1;
        let sent = self.gateway.deliver_again(&self.account, &event, &signature, data.into()).await;
        match sent {
            Ok(Some(status)) if status.is_success() => self.progress.taken += 1,
            Ok(Some(_)) => self.progress.refused += 1,
            Ok(None) => self.progress.unwanted += 1,
            Err(_) => self.progress.undelivered += 1,
        }
        Ok(self.progress)
    }
}

/// What the route works with.
#[derive(Clone)]
pub struct Parts {
    pub engine: Arc<Engine>,
    pub gateway: Gateway,
}

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/redeliver"];

/// The route.
pub fn router(parts: Parts) -> Router {
    Router::new().route("/api/v1/redeliver", post(redeliver)).with_state(parts)
}

/// Answers with lines of [`Progress`]; the last one is `done`. A client that leaves ends it.
/// Sends recorded callbacks to their bot again.
#[utoipa::path(post, path = ROUTES[0], tag = "operate", request_body = Wish, responses((status = 200, description = "Lines that tell how far it is; the last one has done = true", content_type = "application/x-ndjson", body = String), Problem))]
pub(super) async fn redeliver(
    State(parts): State<Parts>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(wish) = wish?;
    let redelivery = Redelivery::start(&parts.engine, parts.gateway, &wish).await?;
    let lines = stream::try_unfold(Some(redelivery), |redelivery| async move {
        let Some(mut redelivery) = redelivery else { return Ok(None) };
        let begun = Instant::now();
        let progress = loop {
            let progress = redelivery.step().await?;
            if progress.done || begun.elapsed() >= TELL_EVERY {
                break progress;
            }
        };
        let mut line = serde_json::to_vec(&progress).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Failed>(Some((Bytes::from(line), (!progress.done).then_some(redelivery))))
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}

impl From<Failed> for Problem {
    fn from(failed: Failed) -> Problem {
        match failed {
            Failed::Query(error) => error.into(),
            Failed::Redeliver(error) => Problem::new(StatusCode::CONFLICT, error.to_string()),
            Failed::Behind { .. } => Problem::unavailable(failed.to_string()),
            Failed::Account(_) | Failed::Time { .. } | Failed::Future { .. } => {
                Problem::bad_request(failed.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_might_leave_callbacks_out_is_refused() {
        let complete = Freshness::default();
        let to_us = 1_772_359_200_000_000;
        let behind = |until_us| Freshness { behind: [0, 4].into(), until_us };
        assert!(Failed::unless_complete(&complete, to_us).is_ok());
        assert!(Failed::unless_complete(&behind(Some(to_us + RECORDED_WITHIN_US)), to_us).is_ok());
        let refused = |until_us| Failed::unless_complete(&behind(until_us), to_us).unwrap_err().to_string();
        assert!(refused(Some(to_us)).contains("partitions 0, 4 only what was recorded until 2026-03-01T10:00:00.000Z"));
        assert!(refused(None).contains("nothing"), "{}", refused(None));
    }
}
