//! `/api/v1/accounts`: the bots, looked at and changed while the gateway runs.

use super::problem::{Named, Problem};
use crate::config::Span;
use crate::gateway::Gateway;
use crate::gateway::accounts::{AccountSummary, Accounts, AccountsError, Adjustment};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

const LONGEST_REQUEST: usize = 64 << 10;
/// How long the tokens before stay valid where a request does not say.
pub const KEEP_OLD: Span = Span::days(1);

type Body = Result<Bytes, BytesRejection>;

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/accounts", "/api/v1/accounts/{name}", "/api/v1/accounts/{name}/rotate"];

/// The routes, with their state.
pub fn router(accounts: Accounts, gateway: Gateway) -> Router {
    let removal =
        Router::new().route("/api/v1/accounts/{name}", delete(remove)).with_state((accounts.clone(), gateway));
    Router::new()
        .route("/api/v1/accounts", get(list).post(add))
        .route("/api/v1/accounts/{name}", get(show).patch(adjust))
        .route("/api/v1/accounts/{name}/rotate", post(rotate))
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .with_state(accounts)
        .merge(removal)
}

/// Asks for an account.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    pub name: String,
    pub token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Asks for a change; what is missing stays, and a limit of null goes back to the default.
#[derive(Default, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub limit: Option<Option<u32>>,
}

/// Asks for another token.
#[derive(Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    pub token: String,
    #[serde(default = "keep_old")]
    #[schema(value_type = String, example = "24h")]
    pub keep_old: Span,
}

fn keep_old() -> Span {
    KEEP_OLD
}

/// A null is something else than nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The bots.
#[utoipa::path(get, path = ROUTES[0], tag = "operate", responses((status = 200, description = "All of them", body = Vec<AccountSummary>), Problem))]
pub(super) async fn list(State(accounts): State<Accounts>) -> Result<Json<Vec<AccountSummary>>, Problem> {
    carry_out(move || Ok(accounts.list())).await.map(Json)
}

/// One bot.
#[utoipa::path(get, path = ROUTES[1], tag = "operate", params(("name" = String, Path)), responses((status = 200, description = "The bot", body = AccountSummary), Problem))]
pub(super) async fn show(
    State(accounts): State<Accounts>,
    Named(name): Named<String>,
) -> Result<Json<AccountSummary>, Problem> {
    carry_out(move || accounts.show(&name)).await.map(Json)
}

/// Takes in a bot.
#[utoipa::path(post, path = ROUTES[0], tag = "operate", request_body = NewAccount, responses((status = 201, description = "It is taken in", body = AccountSummary), Problem))]
pub(super) async fn add(State(accounts): State<Accounts>, body: Body) -> Result<impl IntoResponse, Problem> {
    let NewAccount { name, token, policy, limit } =
        parsed(body, r#"{"name":"…","token":"…"} with policy (a text) and limit (a number) or without"#)?;
    let place = format!("/api/v1/accounts/{name}");
    let added = carry_out(move || accounts.add(&name, &token, policy.as_deref(), limit)).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, place)], Json(added)))
}

/// Pauses a bot, or lets it go on, or changes its limit.
#[utoipa::path(patch, path = ROUTES[1], tag = "operate", params(("name" = String, Path)), request_body = AccountChange, responses((status = 200, description = "It is changed", body = AccountSummary), Problem))]
pub(super) async fn adjust(
    State(accounts): State<Accounts>,
    Named(name): Named<String>,
    body: Body,
) -> Result<Json<AccountSummary>, Problem> {
    let AccountChange { paused, limit } = parsed(body, r#"{"paused":true or false,"limit":a number or null}"#)?;
    carry_out(move || accounts.adjust(&name, Adjustment { paused, limit })).await.map(Json)
}

/// Gives a bot another token.
#[utoipa::path(post, path = ROUTES[2], tag = "operate", params(("name" = String, Path)), request_body = Rotation, responses((status = 200, description = "It has another", body = AccountSummary), Problem))]
pub(super) async fn rotate(
    State(accounts): State<Accounts>,
    Named(name): Named<String>,
    body: Body,
) -> Result<Json<AccountSummary>, Problem> {
    let Rotation { token, keep_old } =
        parsed(body, r#"{"token":"…"} with keep_old (a duration such as "24h") or without"#)?;
    carry_out(move || accounts.rotate(&name, &token, keep_old.0)).await.map(Json)
}

/// Lets a bot go; what is recorded of it stays.
#[utoipa::path(delete, path = ROUTES[1], tag = "operate", params(("name" = String, Path)), responses((status = 204, description = "It is gone"), Problem))]
pub(super) async fn remove(
    State((accounts, gateway)): State<(Accounts, Gateway)>,
    Named(name): Named<String>,
) -> Result<StatusCode, Problem> {
    let remove = move || {
        accounts.remove(&name)?;
        Ok(gateway.forget_webhook(&name)?)
    };
    carry_out(remove).await.map(|()| StatusCode::NO_CONTENT)
}

/// Reads a body. The error does not quote it: it may hold a token.
fn parsed<T: DeserializeOwned>(body: Body, wanted: &str) -> Result<T, Problem> {
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::bad_request(format!("expected {wanted}: the body is something else at line {line}, column {column}"))
    })
}

/// A change waits for the disk, and goes on when the one who asked has left.
async fn carry_out<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AccountsError> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

impl From<AccountsError> for Problem {
    fn from(error: AccountsError) -> Problem {
        let status = match &error {
            AccountsError::Unknown(_) => StatusCode::NOT_FOUND,
            AccountsError::NameTaken(_)
            | AccountsError::TokenTaken(_)
            | AccountsError::Configured(_)
            | AccountsError::OtherPolicy { .. }
            | AccountsError::NoKey => StatusCode::CONFLICT,
            AccountsError::BadName(_) | AccountsError::BadToken | AccountsError::Policy { .. } => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            AccountsError::Shelf(_) => StatusCode::SERVICE_UNAVAILABLE,
            AccountsError::SameToken(..)
            | AccountsError::InBoth(_)
            | AccountsError::Unopened { .. }
            | AccountsError::Locked(_)
            | AccountsError::Key(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if status.is_server_error() {
            tracing::warn!(%error, "an account was not changed");
        }
        Problem::new(status, error.to_string())
    }
}
