//! `/pa/<method>`: a call is relayed to Viber, recorded with its answer, and only then answered.

use super::accounts::Account;
use super::record::Call;
use super::upstream::{Answer, Relayed};
use super::{BodyError, Gateway, read_body};
use crate::event::payload::{Request as Payload, Scalar};
use crate::metrics::Rejection;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Instant;

/// Where a bot puts its token.
const TOKEN: &str = "x-viber-auth-token";
const ROUTE: &str = "/pa/{method}";
/// Viber's codes.
const INVALID_AUTH_TOKEN: (u16, &str) = (2, "invalidAuthToken");
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
    let Some(account) = caller(gateway, &parts.headers, &body) else {
        gateway.metrics.rejected(Rejection::BadToken);
        return refusal(INVALID_AUTH_TOKEN.0, INVALID_AUTH_TOKEN.1);
    };
    if let Some((reason, (status, message))) = turned_away(&account) {
        gateway.metrics.rejected(reason);
        return refusal(status, message);
    }
    if let Err(error) = gateway.recorder.check_writable().await {
        gateway.metrics.rejected(Rejection::LogUnwritable);
        tracing::warn!(%error, account = account.name, method = name, "a call was refused: it could not be recorded");
        return refusal(GENERAL, "counterbat cannot record the call now, so it was not sent: try again");
    }
    // From here on it runs to its end, whether or not the caller waits.
    let (gateway, query) = (gateway.clone(), parts.uri.query().map(str::to_owned));
    let tasks = gateway.recorder.tasks.clone();
    let done = tasks.spawn(async move {
        let relayed = gateway.upstream.relay(parts.method, &name, query.as_deref(), &parts.headers, body.clone()).await;
        finish(&gateway, account, name, body, relayed).await
    });
    done.await.unwrap_or_else(|_| {
        // The task ended without an answer: a panic, whose text is in the log.
        refusal(GENERAL, "counterbat failed: the call may have been sent")
    })
}

async fn finish(
    gateway: &Gateway,
    account: Arc<Account>,
    method: String,
    request: Bytes,
    relayed: Relayed,
) -> Response {
    gateway.metrics.upstream_took(relayed.took);
    let answer = match &relayed.answer {
        Ok(answer) => Some((answer.status.as_u16(), answer.body.to_vec())),
        Err(_) => None,
    };
    let call = Call { account, method, request: request.into(), answer };
    gateway.metrics.call_relayed(&call.account.name, &call.method, call.status());
    gateway.recorder.append_surely(call.events(&gateway.clock)).await;
    match relayed.answer {
        Ok(Answer { status, headers, body }) => (status, headers, Body::from(body)).into_response(),
        Err(failure) => {
            tracing::warn!(account = call.account.name, method = call.method, %failure, "Viber did not answer");
            refusal(GENERAL, &failure.to_string())
        }
    }
}

/// The account whose token the call carries, in the header, in the body, or the same in both.
fn caller(gateway: &Gateway, headers: &HeaderMap, body: &[u8]) -> Option<Arc<Account>> {
    let in_header = match headers.get(TOKEN) {
        Some(value) => Some(value.to_str().ok()?.trim()),
        None => None,
    };
    let payload = Payload::parse(body).unwrap_or_default();
    let in_body = match &payload.auth_token {
        Scalar::Missing | Scalar::Null => None,
        token => Some(token.text()?.trim()),
    };
    let token = match (in_header, in_body) {
        (Some(one), Some(other)) if one != other => return None,
        (Some(token), _) | (None, Some(token)) => token,
        (None, None) => return None,
    };
    gateway.accounts.with_token(token)
}

/// Why calls of the account are not taken now, and Viber's code and text for it.
fn turned_away(account: &Account) -> Option<(Rejection, (u16, &'static str))> {
    if account.is_paused() {
        return Some((Rejection::Paused, SUSPENDED));
    }
    (!account.admits_call()).then_some((Rejection::RateLimited, TOO_MANY_REQUESTS))
}

/// An error as Viber tells one: HTTP 200 and a status.
fn refusal(status: u16, message: &str) -> Response {
    let body = serde_json::json!({ "status": status, "status_message": message }).to_string();
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
