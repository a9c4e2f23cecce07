//! `/pa/<method>`: a call is relayed to Viber, recorded with its answer, and only then answered.

use super::accounts::Account;
use super::record::Call;
use super::upstream::{Answer, Failure, Relayed};
use super::{BodyError, Gateway, TOKEN, read_body, set_webhook};
use crate::event::payload::{Request as Payload, Scalar};
use crate::metrics::Rejection;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Instant;

const ROUTE: &str = "/pa/{method}";
/// Viber's codes.
const INVALID_AUTH_TOKEN: u16 = 2;
const SUSPENDED: (u16, &str) = (9, "publicAccountSuspended: the account is paused at counterbat");
const TOO_MANY_REQUESTS: (u16, &str) = (12, "tooManyRequests: the account's limit at counterbat is reached");
const BAD_DATA: u16 = 3;
/// A general error: none of the codes that say something of the request.
const GENERAL: u16 = 1000;

pub(super) async fn relay(State(gateway): State<Gateway>, Path(name): Path<String>, request: Request) -> Response {
    let started = Instant::now();
    let http_method = request.method().clone();
    let response = carry_out(&gateway, name, request).await;
    let code = response.status().as_u16();
    gateway.metrics.http_request(ROUTE, http_method.as_str(), code, started.elapsed());
    response
}

async fn carry_out(gateway: &Gateway, name: String, request: Request) -> Response {
    if !super::is_type_name(&name) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let (parts, body) = request.into_parts();
    let body = match read_body(&parts.headers, body).await {
        Ok(body) => body,
        Err(BodyError::TooLarge) => {
            gateway.metrics.rejected(Rejection::TooLarge);
            return refusal(BAD_DATA, "badData: the request is larger than 1 MiB");
        }
        Err(BodyError::Incomplete) => {
            gateway.metrics.rejected(Rejection::Incomplete);
            return refusal(BAD_DATA, "badData: the request did not arrive whole");
        }
    };
    let account = match caller(gateway, &parts.headers, &body) {
        Ok(account) => account,
        Err(message) => {
            gateway.metrics.rejected(Rejection::BadToken);
            return refusal(INVALID_AUTH_TOKEN, message);
        }
    };
    if let Some((reason, (status, message))) = turned_away(&account) {
        gateway.metrics.rejected(reason);
        return refusal(status, message);
    }
    // From here on it runs to its end, whether or not the caller waits.
    let query = parts.uri.query().map(str::to_owned);
    let call = Incoming { http_method: parts.method, name, query, headers: parts.headers, body };
    let gateway = gateway.clone();
    let tasks = gateway.recorder.tasks.clone();
    let done = tasks.spawn(async move { perform(&gateway, account, call).await });
    done.await.unwrap_or_else(|_| {
        // The task ended without an answer: a panic, whose text is in the log.
        refusal(GENERAL, "counterbat failed: the call may have been sent")
    })
}

/// A call as the bot sent it.
pub(super) struct Incoming {
    pub http_method: Method,
    pub name: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

async fn perform(gateway: &Gateway, account: Arc<Account>, call: Incoming) -> Response {
    if call.name == "set_webhook" {
        return set_webhook::set(gateway, account, call).await;
    }
    let (shows_webhook, body) = (call.name == "get_account_info", call.body.clone());
    let mut answer = relay_and_record(gateway, &account, call, body).await;
    if let (true, Ok(answer)) = (shows_webhook, &mut answer) {
        set_webhook::show_own(gateway, &account, answer);
    }
    respond(answer)
}

/// Relays a call with this body, once it is sure that it can be recorded, and records it as the bot sent it, with Viber's
/// answer.
pub(super) async fn relay_and_record(
    gateway: &Gateway,
    account: &Arc<Account>,
    call: Incoming,
    body: Bytes,
) -> Result<Answer, Failure> {
    let Incoming { http_method, name, query, headers, body: request } = call;
    let mut call = Call { account: account.clone(), method: name, request: request.into(), answer: None, id: None };
    let permit = gateway.recorder.admit(&mut call, &gateway.clock).await.map_err(|error| {
        gateway.metrics.rejected(Rejection::LogUnwritable);
        let (account, method) = (&account.name, &call.method);
        tracing::warn!(%error, account, method, "a call was refused: it could not be recorded");
        Failure::Unrecordable
    })?;
    let Relayed { answer, took } =
        gateway.upstream.relay(http_method, &call.method, query.as_deref(), &headers, body).await;
    gateway.metrics.upstream_took(took);
    call.answer = answer.as_ref().ok().map(|answer| (answer.status.as_u16(), answer.body.to_vec()));
    gateway.metrics.call_relayed(&account.name, &call.method, call.status());
    gateway.recorder.finish(permit, call.events(&gateway.clock)).await;
    answer.inspect_err(|failure| {
        gateway.metrics.upstream_failed(failure.as_str());
        tracing::warn!(account = account.name, method = call.method, %failure, "Viber did not answer");
    })
}

/// Viber's answer for the bot, or what stands in for one.
pub(super) fn respond(answer: Result<Answer, Failure>) -> Response {
    match answer {
        Ok(Answer { status, headers, body }) => (status, headers, Body::from(body)).into_response(),
        Err(failure) => refusal(GENERAL, &failure.to_string()),
    }
}

/// The account whose token the call carries, in the header, in the body, or the same in both; else what Viber says then.
fn caller(gateway: &Gateway, headers: &HeaderMap, body: &[u8]) -> Result<Arc<Account>, &'static str> {
    const INVALID: &str = "invalidAuthToken";
    let in_header = match headers.get(TOKEN) {
        Some(value) => Some(value.to_str().map_err(|_| INVALID)?.trim()),
        None => None,
    };
    let payload = Payload::parse(body).unwrap_or_default();
    let in_body = match &payload.auth_token {
        Scalar::Missing | Scalar::Null => None,
        token => Some(token.text().ok_or(INVALID)?.trim()),
    };
    let token = match (in_header, in_body) {
        (Some(one), Some(other)) if one != other => return Err(INVALID),
        (Some(token), _) | (None, Some(token)) => token,
        (None, None) => return Err("missing_auth_token"),
    };
    gateway.accounts.with_token(token).ok_or(INVALID)
}

/// Why calls of the account are not taken now, and Viber's code and text for it.
fn turned_away(account: &Account) -> Option<(Rejection, (u16, &'static str))> {
    if account.is_paused() {
        return Some((Rejection::Paused, SUSPENDED));
    }
    (!account.admits_call()).then_some((Rejection::RateLimited, TOO_MANY_REQUESTS))
}

/// An error as Viber tells one: HTTP 200 and a status.
pub(super) fn refusal(status: u16, message: &str) -> Response {
    let body = serde_json::json!({ "status": status, "status_message": message }).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
