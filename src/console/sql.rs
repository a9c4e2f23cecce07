//! `POST /api/v1/sql`: a query in, its answer out as it is found; of the tables as they are, or as they were.

use super::problem::Problem;
use crate::event::time::parse_time_us;
use crate::lake::AsOf;
use crate::query::output::{Format, OutputError, Writer};
use crate::query::{Asker, Engine, QueryError, QueryStream};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::{StreamExt, stream};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::ToSchema;

const LONGEST_REQUEST: usize = 1 << 20;

/// What an answer can be, the first if the client does not say; each with its type in HTTP.
const OFFERED: [(Format, &str); 4] = [
    (Format::Json, "application/json"),
    (Format::Ndjson, "application/x-ndjson"),
    (Format::Csv, "text/csv"),
    (Format::Arrow, ARROW),
];
/// The type of an Arrow IPC stream.
pub const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Up to when the rows of an answer are there, see [`crate::query::Freshness::header`].
pub const FRESHNESS: HeaderName = HeaderName::from_static("counterbat-freshness");
/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/sql"];

/// The route, answered by `engine`.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new().route("/api/v1/sql", post(answer)).layer(DefaultBodyLimit::max(LONGEST_REQUEST)).with_state(engine)
}

/// A query.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Query)]
pub(super) struct Request {
    sql: String,
    /// Of the one table that it reads.
    #[serde(default)]
    version: Option<u64>,
    /// RFC 3339, or a date.
    #[serde(default)]
    at: Option<String>,
}

impl Request {
    fn as_of(&self) -> Result<Option<AsOf>, Problem> {
        match (self.version, &self.at) {
            (Some(_), Some(_)) => Err(Problem::bad_request("version and at are two answers to one question")),
            (Some(version), None) => Ok(Some(AsOf::Version(version))),
            (None, Some(text)) => {
                let us = parse_time_us(text).map_err(|error| Problem::bad_request(format!("at: {error}")))?;
                Ok(Some(AsOf::At(us)))
            }
            (None, None) => Ok(None),
        }
    }
}

/// Answers a query as it is found; the form is the one that `accept` likes best.
#[utoipa::path(
    post,
    path = ROUTES[0],
    tag = "ask",
    request_body = Request,
    responses(
        (
            status = 200,
            description = "The rows",
            headers(("counterbat-freshness" = String, description = "Up to when the rows are there (RFC 8941)")),
            content(
                (Vec<serde_json::Value> = "application/json"),
                ("application/x-ndjson"),
                ("text/csv"),
                ("application/vnd.apache.arrow.stream"),
            )
        ),
        Problem
    )
)]
pub(super) async fn answer(
    State(engine): State<Arc<Engine>>,
    asker: Option<Extension<Arc<Asker>>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let (format, kind) = accepted(&headers)?;
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let request: Request = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request(format!("expected {{\"sql\":\"…\"}}: {error}")))?;
    let anybody = Asker::ANYBODY;
    let asker = asker.as_ref().map_or(&anybody, |Extension(asker)| asker.as_ref());
    let mut answer = engine.query_as_of(&request.sql, request.as_of()?, asker).await?;
    // The first rows are waited for, so that what fails at once is a problem document and not a broken answer.
    let first = answer.next().await.transpose()?;
    let schema = answer.schema();
    // Words and numbers in ASCII.
    let freshness =
        HeaderValue::try_from(answer.freshness().header()).unwrap_or(HeaderValue::from_static("complete=?0"));
    let broken = |error: OutputError| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let writer = Writer::new(format, schema, Vec::new()).map_err(broken)?;
    let body = Body::from_stream(pieces(Answer { writer: Some(writer), first, rest: answer }));
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind)), (FRESHNESS, freshness)];
    Ok((headers, body).into_response())
}

struct Answer {
    /// None when the end is written.
    writer: Option<Writer<Vec<u8>>>,
    first: Option<arrow::array::RecordBatch>,
    rest: QueryStream,
}

#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// The body. An error breaks it off without its proper end, so that a client cannot take a part for the whole; a client
/// that leaves drops it, and the query with it.
fn pieces(answer: Answer) -> impl stream::Stream<Item = Result<Bytes, BrokenOff>> {
    stream::try_unfold(answer, |mut answer| async move {
        let piece = next_piece(&mut answer).await.inspect_err(|error| {
            tracing::warn!(%error, "an answer to a query broke off");
        })?;
        Ok(piece.map(|piece| (piece, answer)))
    })
}

async fn next_piece(answer: &mut Answer) -> Result<Option<Bytes>, BrokenOff> {
    loop {
        let batch = match answer.first.take() {
            Some(batch) => Some(batch),
            None if answer.writer.is_none() => return Ok(None),
            None => answer.rest.next().await.transpose()?,
        };
        match (batch, &mut answer.writer) {
            (Some(batch), Some(writer)) => {
                writer.write(&batch)?;
                let written = writer.get_mut().map(std::mem::take).unwrap_or_default();
                if !written.is_empty() {
                    return Ok(Some(written.into()));
                }
            }
            (_, writer) => {
                let Some(writer) = writer.take() else { return Ok(None) };
                return Ok(Some(writer.finish()?.into()));
            }
        }
    }
}

/// The offered type the client likes best; on equal terms the first it names.
fn accepted(headers: &HeaderMap) -> Result<(Format, &'static str), Problem> {
    let wishes: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let wishes = wishes.join(",");
    if wishes.trim().is_empty() {
        return Ok(OFFERED[0]);
    }
    let mut best: Option<(f32, (Format, &'static str))> = None;
    for wish in wishes.split(',') {
        let mut parts = wish.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        let fits = |offered: &str| {
            kind == "*/*"
                || kind == offered
                || kind.strip_suffix('*').is_some_and(|group| group.ends_with('/') && offered.starts_with(group))
        };
        let Some(offer) = OFFERED.into_iter().find(|(_, offered)| fits(offered)) else { continue };
        if quality > 0.0 && best.is_none_or(|(other, _)| quality > other) {
            best = Some((quality, offer));
        }
    }
    best.map(|(_, offer)| offer).ok_or_else(|| {
        let offered = OFFERED.map(|(_, kind)| kind).join(", ");
        Problem::new(StatusCode::NOT_ACCEPTABLE, format!("an answer can be one of {offered}"))
    })
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Problem {
        let (status, title) = match &error {
            QueryError::Syntax { .. } => (StatusCode::BAD_REQUEST, "The query is no SQL"),
            QueryError::Refused(_) => (StatusCode::FORBIDDEN, "The query is refused"),
            QueryError::Past(_) => (StatusCode::NOT_FOUND, "The tables are not known as they were then"),
            QueryError::Plan { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "The query does not fit the tables"),
            QueryError::Execution(_) => (StatusCode::UNPROCESSABLE_ENTITY, "The query has no answer"),
            QueryError::Limit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "The query is too large"),
            QueryError::Timeout(_) => (StatusCode::UNPROCESSABLE_ENTITY, "The query takes too long"),
            QueryError::Internal(_) => (StatusCode::SERVICE_UNAVAILABLE, "The tables cannot be read"),
        };
        let problem = Problem::new(status, error.message()).titled(title);
        match error.position() {
            Some((line, column)) => problem.with("line", line).with("column", column),
            None => problem,
        }
    }
}
