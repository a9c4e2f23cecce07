//! `/api/v1/rebuilds`: rebuilds beside the running server, and the generations that are kept.

use super::directory::Directory;
use super::problem::{Named, Problem};
use crate::event::time::{format_us, parse_time_us};
use crate::projector::{Listing, RebuildError, Rebuilds, Report, Wish};
use crate::session::Policy;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/rebuilds", "/api/v1/rebuilds/{name}"];

/// The routes, with their state.
pub fn router(rebuilds: Rebuilds, directory: Directory) -> Router {
    let asking = Router::new().route("/api/v1/rebuilds", post(ask)).with_state((rebuilds.clone(), directory));
    Router::new()
        .route("/api/v1/rebuilds", get(list))
        .route("/api/v1/rebuilds/{name}", get(one).delete(remove))
        .with_state(rebuilds)
        .merge(asking)
}

/// The last rebuilds, and the generations that are kept beside the live tables.
#[utoipa::path(get, path = ROUTES[0], tag = "operate", responses((status = 200, description = "All there are", body = Listing), Problem))]
pub(super) async fn list(State(rebuilds): State<Rebuilds>) -> Result<Json<Listing>, Problem> {
    Ok(Json(rebuilds.list().await?))
}

/// Begins one; how it goes is told by its own address. Nothing at all asks for the same as `{}`.
#[utoipa::path(post, path = ROUTES[0], tag = "operate", request_body = Wish, responses((status = 202, description = "It is begun", body = Report), Problem))]
pub(super) async fn ask(
    State((rebuilds, directory)): State<(Rebuilds, Directory)>,
    body: Bytes,
) -> Result<(StatusCode, Json<Report>), Problem> {
    let body = if body.trim_ascii().is_empty() { Bytes::from_static(b"{}") } else { body };
    let mut wish: Wish = serde_json::from_slice(&body).map_err(|error| {
        Problem::bad_request(format!("expected {{}}, or some of as, policy, policy_toml, accounts, from: {error}"))
    })?;
    if let Some(from) = &mut wish.from {
        *from = format_us(parse_time_us(from).map_err(|error| Problem::unprocessable(format!("from: {error}")))?);
    }
    if let Some(text) = &wish.policy_toml {
        Policy::parse_own(text).map_err(|error| Problem::unprocessable(format!("policy_toml: {error}")))?;
    }
    wish.scope()?;
    directory.check(&wish.accounts).await?;
    Ok((StatusCode::ACCEPTED, Json(rebuilds.ask(wish).await?)))
}

/// How a rebuild goes.
#[utoipa::path(get, path = ROUTES[1], tag = "operate", params(("name" = String, Path)), responses((status = 200, description = "How it goes", body = Report), Problem))]
pub(super) async fn one(State(rebuilds): State<Rebuilds>, Named(name): Named<String>) -> Result<Json<Report>, Problem> {
    Ok(Json(rebuilds.get(&name)?))
}

/// Gives a rebuild up, or removes a generation that is kept.
#[utoipa::path(delete, path = ROUTES[1], tag = "operate", params(("name" = String, Path)), responses((status = 204, description = "It is removed"), Problem))]
pub(super) async fn remove(
    State(rebuilds): State<Rebuilds>,
    Named(name): Named<String>,
) -> Result<StatusCode, Problem> {
    rebuilds.drop(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<RebuildError> for Problem {
    fn from(error: RebuildError) -> Problem {
        let status = match &error {
            RebuildError::Wish(_) | RebuildError::Policy(_) => StatusCode::UNPROCESSABLE_ENTITY,
            RebuildError::Busy(_) | RebuildError::IsLive(_) | RebuildError::Taken { .. } => StatusCode::CONFLICT,
            RebuildError::Unknown(_) => StatusCode::NOT_FOUND,
            RebuildError::Projector(_) | RebuildError::File(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem::new(status, error.to_string())
    }
}
