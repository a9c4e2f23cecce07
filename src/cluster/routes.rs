//! What a node answers other nodes: nothing without the secret that they share.

use super::ClusterSecret;
use super::client::{CHANGES, OVERLAY, PARTITIONS, REASON, STANDING, TOO_OLD, list};
use super::following::{AboutChanges, TELL_WITHIN};
use super::standing::AboutUser;
use super::wire::{Question, encode};
use crate::console::problem::Problem;
use crate::console::standing::Told as ToldOfUser;
use crate::event::user_key;
use crate::log::{LogId, partitioner};
use crate::projector::feed::{Answer, Feed};
use crate::projector::{ProjectorHandle, Told};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use std::sync::Arc;
use std::time::Duration;

/// So long what is asked for may still be on its way into the fold: less than whoever asks waits, so that it hears why.
const FOLD_WITHIN: Duration = Duration::from_millis(1500);
const LONGEST_REQUEST: usize = 1 << 20;
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// What is answered from.
pub struct Answering {
    pub log: LogId,
    pub projector: ProjectorHandle,
    pub feed: Arc<Feed>,
}

/// The routes for other nodes. Without a secret they answer nobody.
pub fn router(answering: Answering, secret: Option<ClusterSecret>) -> Router {
    Router::new()
        .route(OVERLAY, post(overlay))
        .route(STANDING, post(standing))
        .route(CHANGES, post(changes))
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .with_state(Arc::new(answering))
        .layer(middleware::from_fn_with_state(Arc::new(secret), authorized))
}

async fn authorized(State(secret): State<Arc<Option<ClusterSecret>>>, request: Request, next: Next) -> Response {
    match refusal(secret.as_ref().as_ref(), request.headers()) {
        Some(detail) => Problem::new(StatusCode::FORBIDDEN, detail).into_response(),
        None => next.run(request).await,
    }
}

/// Why a node is not to be answered.
fn refusal(secret: Option<&ClusterSecret>, headers: &HeaderMap) -> Option<&'static str> {
    let Some(secret) = secret else { return Some("this node answers no others: [cluster] secret is not set here") };
    let given = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()?.strip_prefix("Bearer "));
    match given {
        None => Some("nodes answer only those who show the secret they share ([cluster] secret)"),
        Some(given) if secret.is(given) => None,
        Some(_) => Some("the secret is another one: [cluster] secret must be the same on all nodes"),
    }
}

fn check_log(node: &Answering, asked: &str) -> Result<(), Problem> {
    if asked == node.log.0 {
        return Ok(());
    }
    let detail = format!(
        "it works on log {}, and the query is about log {asked}: nodes of one cluster must name the same topic",
        node.log
    );
    Err(Problem::new(StatusCode::CONFLICT, detail))
}

async fn overlay(State(node): State<Arc<Answering>>, body: Bytes) -> Result<Response, Problem> {
    let question: Question =
        serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("no question: {error}")))?;
    check_log(&node, &question.log)?;
    let mut asked = question.asked();
    let status = node.projector.status();
    // One that cannot be folded on must not hold up the others.
    asked.partitions.retain(|partition| {
        status.partitions.get(*partition as usize).is_some_and(|partition| partition.error.is_none())
    });
    let end = |partition: u32| match asked.partitions.contains(&partition) {
        true => question.ends.get(&partition).copied().unwrap_or(0),
        false => 0,
    };
    let ends: Vec<u64> = (0u32..).zip(&status.partitions).map(|(partition, _)| end(partition)).collect();
    let folded = tokio::time::timeout(FOLD_WITHIN, node.projector.wait_folded(&ends)).await;
    let unavailable = |error: &dyn std::fmt::Display| Problem::unavailable(error.to_string());
    folded
        .map_err(|_| Problem::unavailable("it has not folded the newest records yet"))?
        .map_err(|error| unavailable(&error))?;
    match node.projector.overlay(asked).await.map_err(|error| unavailable(&error))? {
        Told::TooOld => {
            let problem = Problem::new(StatusCode::CONFLICT, "the tables are older than what is still known here");
            Err(problem.with(REASON, TOO_OLD))
        }
        Told::Laid { partitions, overlays } => {
            let encoded = tokio::task::spawn_blocking(move || encode(&overlays)).await;
            let bytes = encoded.map_err(|error| unavailable(&error))?.map_err(|error| unavailable(&error))?;
            Ok(([(header::CONTENT_TYPE.as_str(), ARROW.to_owned()), (PARTITIONS, list(&partitions))], bytes)
                .into_response())
        }
    }
}

async fn standing(State(node): State<Arc<Answering>>, body: Bytes) -> Result<Json<ToldOfUser>, Problem> {
    let AboutUser { log, account, user, now_ms } =
        serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("no question: {error}")))?;
    check_log(&node, &log)?;
    let partitions = u32::try_from(node.projector.status().partitions.len()).unwrap_or(u32::MAX);
    let partition = partitioner::partition(user_key(&account, &user).as_bytes(), partitions);
    let found = node.projector.standing(partition, &account, &user, now_ms).await;
    let found = found.map_err(|error| Problem::unavailable(error.to_string()))?;
    let given_up = || Problem::unavailable("its partition has been given up");
    Ok(Json(ToldOfUser::new(&account, &user, now_ms, &found.ok_or_else(given_up)?)))
}

/// What has become of sessions, once there is something to tell, or after a while without.
async fn changes(State(node): State<Arc<Answering>>, body: Bytes) -> Result<Json<Answer>, Problem> {
    let AboutChanges { log, after } =
        serde_json::from_slice(&body).map_err(|error| Problem::bad_request(format!("no question: {error}")))?;
    check_log(&node, &log)?;
    node.feed.want();
    let mut changed = node.feed.changed();
    let until = tokio::time::Instant::now() + TELL_WITHIN;
    loop {
        changed.borrow_and_update();
        let answer = node.feed.answer(after.as_ref(), &node.projector.status().owned());
        let is_news = answer.is_anew || !answer.batches.is_empty();
        // The feed is there as long as its process.
        if is_news || tokio::time::timeout_at(until, changed.changed()).await.is_err() {
            return Ok(Json(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_answered_without_the_secret() {
        let secret = ClusterSecret::new("s3cret".to_owned());
        let headers = |given: &str| HeaderMap::from_iter([(header::AUTHORIZATION, given.parse().unwrap())]);
        assert_eq!(refusal(Some(&secret), &headers("Bearer s3cret")), None);
        for given in ["Bearer s3cre", "Bearer ", "s3cret", "Basic s3cret"] {
            assert!(refusal(Some(&secret), &headers(given)).is_some(), "{given}");
        }
        assert!(refusal(Some(&secret), &HeaderMap::new()).is_some());
        assert!(refusal(None, &headers("Bearer s3cret")).unwrap().contains("not set"));
    }
}
