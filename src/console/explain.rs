//! `GET /api/v1/explain?q=…`: what became of an event, a message, a session or a user, and why.

use super::directory::{Directory, DirectoryError};
use super::problem::Problem;
use crate::event::{BadAccountName, check_account_name};
use crate::explain::{self, Archived, Cost, Costs, Focus, Story};
use crate::lake::rows::ArchivedEvents;
use crate::lake::{Lake, LakeError};
use crate::projector::Settings;
use crate::query::QueryError;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};

/// A broadcast has many receivers: so many of those that have a token are told.
const USERS: usize = 20;
/// Each of a user's events that came out of order is told by what all of them give with and without it: so many are told.
const MOST_EVENTS: usize = 20_000;
/// What is read of an event.
const COLUMNS: &str = "partition, \"offset\", appended_at, event_id, origin, type, account, user_id, received_at, \
                       disposition, data, data_base64, signature";

/// What is to be explained.
#[derive(Debug, Clone, Deserialize, Serialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wish {
    /// An event id, a message token, a session id or a user id.
    pub q: String,
    /// Needed where several accounts know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
}

/// The stories of all users it has to do with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Explanation {
    #[schema(value_type = Vec<Object>)]
    pub stories: Vec<Story>,
    /// Users beside these.
    pub more: usize,
}

/// Why something is not explained.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("account: {0}")]
    Account(#[from] BadAccountName),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("nothing is known of `{0}`: no event, message, session or user has this id")]
    Unknown(String),
    #[error("`{q}` is known of the accounts {accounts}: say of which by account")]
    Ambiguous { q: String, accounts: String },
    #[error("the user has {0} events, more than the {MOST_EVENTS} that can be told: ask the view user_timeline")]
    TooMany(usize),
    /// A bug, whose text is on stderr.
    #[error("telling it broke down: {0}")]
    Broken(String),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Lake(#[from] LakeError),
}

/// Finds what is asked for in the tables, and folds it.
#[derive(Clone)]
pub struct Explainer {
    pub directory: Directory,
    pub lake: Arc<Lake>,
    pub settings: Arc<Settings>,
}

/// Account and user, as far as there are any.
type Who = (Option<String>, Option<String>);

impl Explainer {
    /// Tells what became of it.
    pub async fn explain(&self, wish: &Wish) -> Result<Explanation, Failed> {
        if let Some(account) = &wish.account {
            check_account_name(account)?;
            self.directory.check(std::slice::from_ref(account)).await?;
        }
        let (focus, found) = self.find(wish).await?;
        let accounts: BTreeSet<&str> = found.iter().filter_map(|(account, _)| account.as_deref()).collect();
        if accounts.len() > 1 {
            let accounts = accounts.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Failed::Ambiguous { q: wish.q.clone(), accounts });
        }
        let rebuilt = self.lake.rebuilt_to().await?;
        let mut stories = Vec::new();
        for (account, user) in found.iter().take(USERS) {
            let archived = self.events(account.as_deref(), user.as_deref(), &focus, &rebuilt).await?;
            let costs = match (account, user) {
                (Some(account), Some(user)) => self.costs(account, user).await?,
                _ => Costs::default(),
            };
            if archived.len() > MOST_EVENTS {
                return Err(Failed::TooMany(archived.len()));
            }
            let terms = self.settings.terms(account.as_deref().unwrap_or_default());
            let (account, user) = (account.clone(), user.clone());
            let tell = move || explain::tell(account.as_deref(), user.as_deref(), &archived, &terms, &costs);
            let story = tokio::task::spawn_blocking(tell).await.map_err(|error| Failed::Broken(error.to_string()))?;
            stories.push(story.about(&focus));
        }
        Ok(Explanation { more: found.len() - stories.len(), stories })
    }

    /// What it is, and of which users.
    async fn find(&self, wish: &Wish) -> Result<(Focus, Vec<Who>), Failed> {
        let q = text(&wish.q);
        let of_account =
            wish.account.as_ref().map_or(String::new(), |account| format!(" and account = {}", text(account)));
        let mut ways = Vec::new();
        if wish.q.len() == 32 && wish.q.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let id = wish.q.to_ascii_lowercase();
            ways.push((Focus::Session(id.clone()), format!("sessions where session_id = {}", text(&id))));
        }
        if let Ok(token) = wish.q.parse::<u64>() {
            ways.push((Focus::Token(token), format!("events where message_token = {}", token.cast_signed())));
        }
        ways.push((Focus::Event(wish.q.clone()), format!("events where event_id = {q}")));
        ways.push((Focus::User, format!("events where user_id = {q}")));
        for (focus, whence) in ways {
            let sql = format!("select distinct account, user_id from {whence}{of_account} order by account, user_id");
            let mut found = Vec::new();
            for batch in self.rows(&sql).await? {
                found.extend((0..batch.num_rows()).map(|row| (string(&batch, 0, row), string(&batch, 1, row))));
            }
            if !found.is_empty() {
                return Ok((focus, found));
            }
        }
        Err(Failed::Unknown(wish.q.clone()))
    }

    /// All events of a user in order of arrival; without one those that were asked for.
    async fn events(
        &self,
        account: Option<&str>,
        user: Option<&str>,
        focus: &Focus,
        rebuilt: &BTreeMap<u32, u64>,
    ) -> Result<Vec<Archived>, Failed> {
        let is = |column: &str, value: Option<&str>| match value {
            Some(value) => format!("{column} = {}", text(value)),
            None => format!("{column} is null"),
        };
        let mut conditions = vec![is("account", account), is("user_id", user)];
        if account.is_none() || user.is_none() {
            conditions.extend(match focus {
                Focus::Event(id) => Some(is("event_id", Some(id))),
                Focus::Token(token) => Some(format!("message_token = {}", token.cast_signed())),
                Focus::Session(_) | Focus::User => None,
            });
        }
        let conditions = conditions.join(" and ");
        let sql = format!("select {COLUMNS} from events where {conditions} order by partition, \"offset\"");
        let mut archived = Vec::new();
        for batch in self.rows(&sql).await? {
            let events = ArchivedEvents::new(&batch)?;
            for row in 0..batch.num_rows() {
                let ((record, disposition), partition) = (events.record(row)?, events.partition(row));
                let folded_late = rebuilt.get(&partition).is_some_and(|rebuilt| record.offset < *rebuilt);
                archived.push(Archived { partition, record, disposition, folded_late });
            }
        }
        Ok(archived)
    }

    async fn costs(&self, account: &str, user: &str) -> Result<Costs, Failed> {
        let of_user = format!("where account = {} and user_id = {}", text(account), text(user));
        let columns = "cast(cost as varchar) as cost, currency";
        let mut costs = Costs::default();
        for batch in self.rows(&format!("select {columns}, message_token from messages {of_user}")).await? {
            let tokens = batch.column(2).as_primitive::<Int64Type>();
            costs
                .messages
                .extend((0..batch.num_rows()).map(|row| (tokens.value(row).cast_unsigned(), cost(&batch, row))));
        }
        for batch in self.rows(&format!("select {columns}, session_id, state from sessions {of_user}")).await? {
            for row in 0..batch.num_rows() {
                let Some(id) = string(&batch, 2, row) else { continue };
                if string(&batch, 3, row).as_deref() == Some("open") {
                    costs.open.insert(id.clone());
                }
                costs.sessions.insert(id, cost(&batch, row));
            }
        }
        Ok(costs)
    }

    async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        self.directory.engine.query(sql).await?.try_collect().await
    }
}

fn cost(batch: &RecordBatch, row: usize) -> Cost {
    Cost { amount: string(batch, 0, row), currency: string(batch, 1, row), because: None }
}

/// A value as SQL.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

fn string(batch: &RecordBatch, column: usize, row: usize) -> Option<String> {
    let array = batch.column(column).as_string_opt::<i32>()?;
    array.is_valid(row).then(|| array.value(row).to_owned())
}

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/explain"];

/// The route.
pub fn router(explainer: Explainer) -> Router {
    Router::new().route("/api/v1/explain", get(explain)).with_state(explainer)
}

/// What became of an event, a message, a session or a user, and why, with the same in sentences.
#[utoipa::path(get, path = ROUTES[0], tag = "ask", params(Wish), responses((status = 200, description = "The stories of all users it has to do with", body = Explanation), Problem))]
pub(super) async fn explain(
    State(explainer): State<Explainer>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Query(wish) = wish?;
    Ok(Json(explainer.explain(&wish).await?))
}

impl From<Failed> for Problem {
    fn from(failed: Failed) -> Problem {
        match failed {
            Failed::Query(error) => error.into(),
            Failed::Directory(error) => error.into(),
            Failed::Account(_) => Problem::bad_request(failed.to_string()),
            Failed::Unknown(_) => Problem::new(StatusCode::NOT_FOUND, failed.to_string()),
            Failed::TooMany(_) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, failed.to_string()),
            Failed::Broken(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, failed.to_string()),
            Failed::Ambiguous { .. } => Problem::new(StatusCode::CONFLICT, failed.to_string()),
            Failed::Lake(_) => Problem::unavailable(failed.to_string()),
        }
    }
}
