//! `POST /api/v1/verify`: whether the tables are what the log folds to.

use super::problem::Problem;
use crate::projector::verify::Verifier;
use crate::projector::verify::report::Told;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream;
use serde::Deserialize;
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/verify"];

/// Rows that are named of a day that differs, where nothing else is asked for.
pub const NAMED: usize = 5;

/// The route.
pub fn router(verifier: Verifier) -> Router {
    Router::new().route("/api/v1/verify", post(verify)).with_state(verifier)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wish {
    /// Rows that are named of a day that differs; 5 where nothing is said.
    #[serde(default = "named")]
    rows: usize,
}

fn named() -> usize {
    NAMED
}

/// Answers with lines of [`Told`]; the last one is `done` or `failed`. A client that leaves ends it.
#[utoipa::path(post, path = ROUTES[0], tag = "operate", params(Wish), responses((status = 200, description = "Lines of progress, findings and records that came too late; the last one is `done` or `failed`", content_type = "application/x-ndjson", body = String), Problem))]
pub(super) async fn verify(
    State(verifier): State<Verifier>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wish) = wish?;
    let Ok(busy) = verifier.busy.clone().try_lock_owned() else {
        return Err(Problem::new(StatusCode::CONFLICT, "a verification is under way: wait for its end"));
    };
    // Findings are few, and how far it is is told now and then.
    let (lines, told) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let _busy = busy;
        let tell = |told: Told| {
            let mut line = serde_json::to_vec(&told).unwrap_or_default();
            line.push(b'\n');
            // Whoever asked has gone, and this task with it.
            let _ = lines.send(Bytes::from(line));
        };
        if let Err(error) = verifier.run(wish.rows, &tell).await {
            tell(Told::Failed(error.to_string()));
        }
    });
    let state = (told, AbortOnDropHandle::new(task));
    let lines = stream::unfold(state, |(mut told, task)| async move {
        let line = told.recv().await?;
        Some((Ok::<_, Infallible>(line), (told, task)))
    });
    let kind = HeaderValue::from_static("application/x-ndjson");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response())
}
