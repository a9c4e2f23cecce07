//! `POST /api/v1/import` and `GET /api/v1/export`: event files through a running server.

use super::problem::Problem;
use crate::event::time::parse_time_us;
use crate::log::{self, EventLog};
use crate::projector::ProjectorHandle;
use crate::transfer::import::{LiveWatermarks, SkipBad};
use crate::transfer::{ExportError, Exporter, Filter, ImportError, Importer, Outcome, Stop, Summary};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::{StreamExt, stream};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use utoipa::{IntoParams, ToSchema};

/// Bad lines told one by one in the answer; more are only counted.
const SKIPPED_SHOWN: usize = 1000;
/// Response header naming the first offset of partitions that retention has shortened: `0:120,3:77`.
pub const TRIMMED_HEADER: &str = "counterbat-trimmed";

/// What the routes work with.
#[derive(Clone)]
pub struct Transfer {
    pub log: Arc<dyn EventLog>,
    pub projector: ProjectorHandle,
    pub allowed_lateness_ms: i64,
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
}

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/import", "/api/v1/export"];

/// The routes, with their state.
pub fn router(transfer: Transfer) -> Router {
    Router::new()
        .route("/api/v1/import", post(import).layer(DefaultBodyLimit::disable()))
        .route("/api/v1/export", get(export))
        .with_state(transfer)
}

/// How events are taken in.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportQuery {
    /// Takes those too that only a rebuild folds in.
    #[serde(default, deserialize_with = "flag")]
    late: bool,
    #[serde(default, deserialize_with = "flag")]
    /// Answers when the tables have them.
    wait: bool,
    #[serde(default, deserialize_with = "flag")]
    /// Sets lines aside that are no event.
    skip_bad: bool,
    /// Number of the body's first line, for a file sent in pieces.
    #[serde(default = "first_line")]
    first_line: u64,
}

fn first_line() -> u64 {
    1
}

fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        other => Err(de::Error::custom(format!("`{other}` is neither 0 nor 1"))),
    }
}

/// What an import did.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Imported)]
pub(super) struct Answer {
    #[serde(flatten)]
    summary: Summary,
    /// The bad lines that were set aside, the first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<SkippedLine>,
}

/// A line that is no event.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct SkippedLine {
    line: u64,
    reason: String,
}

/// Appends events, a line each, as `export` writes them.
#[utoipa::path(post, path = ROUTES[0], tag = "operate", params(ImportQuery), request_body(content = String, content_type = "application/x-ndjson"), responses((status = 200, description = "All are in the log", body = Answer), Problem))]
pub(super) async fn import(
    State(transfer): State<Transfer>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    body: Body,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let skipped = Arc::new(Mutex::new(Vec::new()));
    let watermarks = live_watermarks(&transfer.projector);
    let mut importer =
        Importer::new(transfer.log.clone(), transfer.clock.clone(), watermarks(), transfer.allowed_lateness_ms)
            .beside(watermarks)
            .append_late(query.late)
            .skip_bad(query.skip_bad.then(|| remember(skipped.clone())));

    // Before the first event: what an earlier piece appended must be in the watermarks this one is held against.
    let ends = log_ends(&transfer).await?;
    transfer.projector.wait_folded(&ends).await.map_err(|error| Problem::unavailable(error.to_string()))?;

    let (source, feed) = bridge(body);
    let outcome = importer.run(source, query.first_line).await;
    // A client that still writes would miss the answer if the connection were closed under it.
    feed.await.ok();
    let outcome = outcome.map_err(|error| match error {
        ImportError::Read { .. } => Problem::bad_request(error.to_string()),
        _ => Problem::unavailable(error.to_string()),
    })?;
    answer(&transfer, &query, outcome, &skipped).await
}

async fn answer(
    transfer: &Transfer,
    query: &ImportQuery,
    Outcome { summary, stopped }: Outcome,
    skipped: &Mutex<Vec<SkippedLine>>,
) -> Result<Response, Problem> {
    if let Some(stop) = stopped {
        let before = summary.appended;
        let detail = format!("{stop}. The {before} events before it are appended");
        let line = match stop {
            Stop::Bad { line, .. } | Stop::TooLate { line, .. } => line,
        };
        return Err(Problem::unprocessable(detail).with("line", line).with("appended", before));
    }
    if query.wait {
        let ends = log_ends(transfer).await?;
        let committed = transfer.projector.wait_committed(&ends).await;
        committed.map_err(|error| Problem::unavailable(error.to_string()))?;
    }
    let skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Json(Answer { summary, skipped }).into_response())
}

fn remember(skipped: Arc<Mutex<Vec<SkippedLine>>>) -> SkipBad {
    Box::new(move |bad| {
        let mut skipped = skipped.lock().unwrap_or_else(PoisonError::into_inner);
        if skipped.len() < SKIPPED_SHOWN {
            skipped.push(SkippedLine { line: bad.line, reason: bad.reason.to_owned() });
        }
        Ok(())
    })
}

fn live_watermarks(projector: &ProjectorHandle) -> LiveWatermarks {
    let projector = projector.clone();
    Arc::new(move || projector.status().partitions.iter().map(|partition| partition.watermark_ms).collect())
}

async fn log_ends(transfer: &Transfer) -> Result<Vec<u64>, Problem> {
    log::ends(&*transfer.log).await.map_err(|error| Problem::unavailable(error.to_string()))
}

/// A body as a blocking reader, and the task that feeds it. After the reader is gone the rest of the body is read and
/// dropped.
fn bridge(body: Body) -> (BodyReader, tokio::task::JoinHandle<()>) {
    let (pieces, receiver) = mpsc::channel(16);
    let feed = tokio::spawn(async move {
        let mut stream = body.into_data_stream();
        let mut wanted = true;
        while let Some(piece) = stream.next().await {
            let failed = piece.is_err();
            if wanted {
                wanted = pieces.send(piece.map_err(io::Error::other)).await.is_ok();
            }
            if failed {
                break;
            }
        }
    });
    (BodyReader { receiver, piece: Bytes::new() }, feed)
}

struct BodyReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.piece.len());
        out[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Which events.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// RFC 3339, or a date in UTC: received then or later.
    from: Option<String>,
    /// Received before.
    to: Option<String>,
    account: Option<String>,
}

impl ExportQuery {
    fn filter(self) -> Result<Filter, Problem> {
        let time = |name: &str, text: Option<String>| match text.filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => match parse_time_us(&text) {
                Ok(us) => Ok(Some(us)),
                Err(error) => Err(Problem::bad_request(format!("{name}: {error}"))),
            },
        };
        let account = self.account.filter(|account| !account.is_empty());
        Ok(Filter { from_us: time("from", self.from)?, to_us: time("to", self.to)?, account })
    }
}

/// All events of the log, a line each, by partition.
#[utoipa::path(get, path = ROUTES[1], tag = "operate", params(ExportQuery), responses((status = 200, description = "The events", content_type = "application/x-ndjson", body = String), Problem))]
pub(super) async fn export(
    State(transfer): State<Transfer>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let unavailable = |error: ExportError| Problem::unavailable(error.to_string());
    let exporter = Exporter::open(transfer.log, query.filter()?).await.map_err(unavailable)?;
    let trimmed: Vec<String> = exporter.trimmed().iter().map(|(p, first)| format!("{p}:{first}")).collect();
    let blocks = stream::try_unfold(exporter, |mut exporter| async move {
        let block = exporter.next_block().await?;
        Ok::<_, ExportError>(block.map(|block| (Bytes::from(block), exporter)))
    });
    let mut response = (StatusCode::OK, Body::from_stream(blocks)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    if let Ok(value) = HeaderValue::from_str(&trimmed.join(","))
        && !trimmed.is_empty()
    {
        response.headers_mut().insert(TRIMMED_HEADER, value);
    }
    Ok(response)
}
