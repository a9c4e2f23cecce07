//! `GET /api/v1/users/{account}/{user}`: how things stand with a user now; `GET /api/v1/quote`: what a message to it would be.
//! Answered from the state of the fold, not from the tables.

use super::problem::{Named, Problem};
use super::standing::Told;
use crate::event::check_account_name;
use crate::query::Asker;
use async_trait::async_trait;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use std::sync::Arc;
use utoipa::IntoParams;

/// The wall clock, in µs since the epoch.
type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Knows how things stand with users.
#[async_trait]
pub trait Standings: Send + Sync {
    /// Of a user at `now_ms`, ms since the epoch. [`Problem::unavailable`] where asking again may help.
    async fn of(&self, account: &str, user: &str, now_ms: i64) -> Result<Told, Problem>;
}

/// What is answered from.
#[derive(Clone)]
pub struct Users {
    pub standings: Arc<dyn Standings>,
    pub clock: Clock,
}

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/users/{account}/{user}", "/api/v1/quote"];

/// The routes.
pub fn router(users: Users) -> Router {
    Router::new().route(ROUTES[0], get(user)).route(ROUTES[1], get(quote)).with_state(users)
}

/// Whom a message would be for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Receiver {
    account: String,
    user_id: String,
}

type Sight = Option<Extension<Arc<Asker>>>;

/// How things stand with a user now.
#[utoipa::path(get, path = ROUTES[0], tag = "ask", params(("account" = String, Path), ("user" = String, Path)), responses((status = 200, description = "How things stand", body = Told), Problem))]
pub(super) async fn user(
    State(users): State<Users>,
    asker: Sight,
    Named((account, user)): Named<(String, String)>,
) -> Result<Json<Told>, Problem> {
    Ok(Json(users.told(&account, &user, &asker).await?))
}

/// What a message to a user would be now, and what it would cost.
#[utoipa::path(get, path = ROUTES[1], tag = "ask", params(Receiver), responses((status = 200, description = "How things stand", body = Told), Problem))]
pub(super) async fn quote(
    State(users): State<Users>,
    asker: Sight,
    receiver: Result<Query<Receiver>, QueryRejection>,
) -> Result<Json<Told>, Problem> {
    let Query(Receiver { account, user_id }) = receiver?;
    Ok(Json(users.told(&account, &user_id, &asker).await?))
}

impl Users {
    async fn told(&self, account: &str, user: &str, asker: &Sight) -> Result<Told, Problem> {
        check_account_name(account).map_err(|error| Problem::bad_request(format!("account: {error}")))?;
        if user.is_empty() {
            return Err(Problem::bad_request("user_id is empty"));
        }
        if asker.as_ref().is_some_and(|Extension(asker)| !asker.sight.sees(account)) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "the token shows no users of this account"));
        }
        self.standings.of(account, user, (self.clock)() / 1000).await
    }
}
