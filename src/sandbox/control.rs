//! `/sandbox/…`: what a person or a test asks of the sandbox itself. JSON both ways.

use super::Sandbox;
use super::act::{Act, ActError, Acted};
use super::bot::{BotInfo, NewBot};
use super::event::Content;
use super::faults::Faults;
use super::ledger::{Attempt, Entry, Lines};
use super::user::{NewUser, UserInfo};
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use tokio::sync::oneshot;

/// Lines read at once.
const BATCH: usize = 1_000;
/// Users made by one request.
const MAX_USERS: usize = 1_000_000;

/// The routes.
pub(super) fn router() -> Router<Sandbox> {
    Router::new()
        .route("/sandbox/bots", get(bots).post(add_bot))
        .route("/sandbox/users", get(users).post(add_users))
        .route("/sandbox/act", post(act))
        .route("/sandbox/faults", get(faults).put(set_faults))
        .route("/sandbox/ledger", get(ledger))
        .route("/sandbox/stats", get(stats))
}

/// A request that cannot be carried out, and why.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl From<ActError> for Refused {
    fn from(error: ActError) -> Self {
        let status = match error {
            ActError::NoBot(_) | ActError::NoUser { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::CONFLICT,
        };
        Refused(status, error.to_string())
    }
}

/// Whatever the content type says, as Viber does.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))
}

async fn bots(State(sandbox): State<Sandbox>) -> Json<Vec<BotInfo>> {
    Json(sandbox.bots())
}

async fn add_bot(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<BotInfo>, Refused> {
    let new: NewBot = parse(&body)?;
    sandbox.add_bot(new).map(Json).map_err(|error| Refused(StatusCode::CONFLICT, error.to_string()))
}

#[derive(Deserialize)]
struct OfBot {
    bot: String,
}

async fn users(State(sandbox): State<Sandbox>, Query(of): Query<OfBot>) -> Result<Json<Vec<UserInfo>>, Refused> {
    Ok(Json(sandbox.users(&of.bot)?))
}

#[derive(Deserialize)]
struct AddUsers {
    bot: String,
    /// How many alike; 1 where not given.
    #[serde(default = "one")]
    count: usize,
    #[serde(default)]
    user: NewUser,
}

fn one() -> usize {
    1
}

async fn add_users(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<Vec<UserInfo>>, Refused> {
    let add: AddUsers = parse(&body)?;
    if add.count > MAX_USERS {
        return Err(Refused(StatusCode::BAD_REQUEST, format!("count: {MAX_USERS} is the most")));
    }
    Ok(Json(sandbox.add_users(&add.bot, add.count, &add.user)?))
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Write,
    Start,
    Subscribe,
    Unsubscribe,
    Seen,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deed {
    bot: String,
    /// The user's id.
    user: String,
    action: Action,
    /// Of `write`; a text where not given.
    #[serde(default)]
    message: Option<Content>,
    /// Of `start`: the context of a deep link.
    #[serde(default)]
    context: Option<String>,
    /// Answer after the first attempt to tell the bot.
    #[serde(default)]
    wait: bool,
}

#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    acted: Acted,
    /// Where it was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_attempt: Option<Attempt>,
}

async fn act(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<Done>, Refused> {
    let Deed { bot, user, action, message, context, wait } = parse(&body)?;
    let act = match action {
        Action::Write => Act::Write(message.unwrap_or_else(|| Content::text("Hello"))),
        Action::Start => Act::Start { context },
        Action::Subscribe => Act::Subscribe,
        Action::Unsubscribe => Act::Unsubscribe,
        Action::Seen => Act::See,
    };
    let (first, attempted) = oneshot::channel();
    let acted = sandbox.act_and_tell(&bot, &user, act, wait.then_some(first))?;
    // Nobody tells of an attempt where there is none.
    let first_attempt = if wait && acted.told { attempted.await.ok() } else { None };
    Ok(Json(Done { acted, first_attempt }))
}

async fn faults(State(sandbox): State<Sandbox>) -> Json<Faults> {
    Json(sandbox.faults())
}

/// Faults that are not named are off.
async fn set_faults(State(sandbox): State<Sandbox>, body: Bytes) -> Result<Json<Faults>, Refused> {
    let faults: Faults = parse(&body)?;
    sandbox.set_faults(faults);
    Ok(Json(faults))
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    since: u64,
    kind: Option<String>,
}

#[derive(Serialize)]
struct Line {
    seq: u64,
    #[serde(flatten)]
    entry: Entry,
}

/// NDJSON up to the last line there is when it is asked for.
async fn ledger(State(sandbox): State<Sandbox>, Query(read): Query<Read>) -> Result<Response, Refused> {
    let lines = match read.kind.as_deref() {
        None => Lines::All,
        Some("calls") => Lines::Calls,
        Some("callbacks") => Lines::Callbacks,
        Some(other) => {
            let why = format!("kind: `{other}` is neither `calls` nor `callbacks`");
            return Err(Refused(StatusCode::BAD_REQUEST, why));
        }
    };
    let end = sandbox.ledger().end();
    let batches = futures::stream::unfold(read.since, move |since| {
        let sandbox = sandbox.clone();
        async move {
            if since >= end {
                return None;
            }
            let (found, next) = sandbox.ledger().read(since, lines, BATCH);
            let mut text = Vec::new();
            for (seq, entry) in found.into_iter().take_while(|(seq, _)| *seq < end) {
                // Entries are texts and numbers, and memory takes all writes.
                let _ = serde_json::to_writer(&mut text, &Line { seq, entry });
                text.push(b'\n');
            }
            Some((Ok::<_, Infallible>(text), next))
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(batches)).into_response())
}

async fn stats(State(sandbox): State<Sandbox>) -> Json<super::Stats> {
    Json(sandbox.stats())
}
