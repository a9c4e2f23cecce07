//! `POST /webhooks/<account>`: a callback is verified, appended, handed on to the bot, and only then answered.
//!
//! Viber's own retries are the queue: what the bot did not take is answered with its refusal or 502, and comes again. The
//! record is there by then, and its repeat is a duplicate to the fold.

use super::accounts::Account;
use super::bots::Undelivered;
use super::{BodyError, Gateway, SIGNATURE, read_body, record};
use crate::event::identity::event_id;
use crate::event::payload::{Callback, Presence, Scalar};
use crate::event::{CALLBACK_PREFIX, Event};
use crate::log::LogError;
use crate::metrics::Rejection;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

/// The event name of a callback that tells none that could be part of a type.
const UNKNOWN: &str = "unknown";
/// The callback whose answer Viber reads: it may hold a welcome message.
const CONVERSATION_STARTED: &str = "conversation_started";
/// The route in metrics.
pub(super) const ROUTE: &str = "/webhooks/{account}";

/// A callback in the log, and what is needed to hand it on.
struct Accepted {
    account: Arc<Account>,
    name: String,
    user: Option<String>,
    /// Where it goes: signature, body, and the bot's URL.
    onward: Option<(String, Bytes, String)>,
}

pub(super) async fn receive(State(gateway): State<Gateway>, Path(account): Path<String>, request: Request) -> Response {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let response = match accept(&gateway, &account, &parts.headers, &parts.uri, body).await {
        Ok(accepted) => hand_on(&gateway, accepted, &parts.headers).await,
        Err(reason) => {
            gateway.metrics.rejected(reason);
            tracing::debug!(account, ?reason, "a callback was refused");
            match reason {
                Rejection::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                Rejection::Incomplete => StatusCode::BAD_REQUEST,
                Rejection::LogUnwritable => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::FORBIDDEN,
            }
            .into_response()
        }
    };
    if response.status() == StatusCode::OK {
        gateway.webhook_ok.observe(started.elapsed().as_secs_f64());
    } else {
        gateway.metrics.http_request(ROUTE, "POST", response.status().as_u16(), started.elapsed());
    }
    response
}

async fn accept(
    gateway: &Gateway,
    account: &str,
    headers: &HeaderMap,
    uri: &Uri,
    body: Body,
) -> Result<Accepted, Rejection> {
    let account = gateway.accounts.named(account).ok_or(Rejection::UnknownAccount)?;
    let signature = signature(headers, uri).ok_or(Rejection::MissingSignature)?;
    let body = read_body(headers, body).await.map_err(|error| match error {
        BodyError::TooLarge => Rejection::TooLarge,
        BodyError::Incomplete => Rejection::Incomplete,
    })?;
    if !account.verify(&signature, &body) {
        return Err(Rejection::BadSignature);
    }
    let callback = Callback::parse(&body).unwrap_or_default();
    let now_us = gateway.clock.now_us();
    saw(gateway, &callback, now_us);
    let name = callback.event.text().filter(|name| super::is_type_name(name)).unwrap_or(UNKNOWN).to_owned();
    let user = user(&callback).map(str::to_owned);
    let token = callback.message_token.token();
    let is_for_the_record = account.is_paused() || is_tee(uri);
    let webhook = if is_for_the_record { None } else { gateway.registrations.target(&account.name, &name).await };
    let onward = webhook.map(|webhook| (signature.clone(), body.clone(), webhook.url.clone()));
    let id = match (token, &user) {
        (Some(token), Some(user)) => event_id(&name, token, user),
        _ => Uuid::now_v7().to_string(),
    };
    let event = Event {
        id,
        source: account.source.clone(),
        kind: format!("{CALLBACK_PREFIX}{name}"),
        subject: user.clone(),
        time_us: Some(now_us),
        content_type: Some("application/json".to_owned()),
        signature: Some(signature),
        extensions: Vec::new(),
        data: body.into(),
    };
    gateway.recorder.append_callback(event).await.map_err(|_: LogError| Rejection::LogUnwritable)?;
    account.callbacks(&gateway.metrics).received(&name);
    Ok(Accepted { account, name, user, onward })
}

/// The bot's answer becomes ours: its status, and for [`CONVERSATION_STARTED`] its body. Bodies of other answers mean
/// nothing to Viber, and some bots repeat an old welcome message in them.
async fn hand_on(gateway: &Gateway, accepted: Accepted, headers: &HeaderMap) -> Response {
    let Accepted { account, name, user, onward } = accepted;
    let Some((signature, body, url)) = onward else { return StatusCode::OK.into_response() };
    let started = Instant::now();
    let answered = gateway.bots.deliver(&url, headers, &signature, body).await;
    let outcome = match &answered {
        Ok(answer) if answer.status.is_success() => "taken",
        Ok(_) => "refused",
        Err(undelivered) => Undelivered::as_str(*undelivered),
    };
    gateway.metrics.callback_relayed(&account.name, outcome, started.elapsed());
    let answer = match answered {
        Ok(answer) => answer,
        Err(undelivered) => {
            tracing::warn!(account = account.name, event = name, %undelivered, "a callback is left for Viber to repeat");
            return StatusCode::BAD_GATEWAY.into_response();
        }
    };
    if name != CONVERSATION_STARTED {
        return answer.status.into_response();
    }
    if answer.status == StatusCode::OK
        && let Some(welcome) = record::welcome(&account, user, &answer.body, &gateway.clock)
    {
        gateway.recorder.append_surely(vec![welcome]).await;
    }
    let mut response = (answer.status, Body::from(answer.body)).into_response();
    if let Some(kind) = answer.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

/// From the header, else from `?sig=`.
fn signature(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    match headers.get(SIGNATURE) {
        Some(value) => value.to_str().ok().map(|text| text.trim().to_owned()),
        None => parameter(uri, "sig").map(|value| value.trim().to_owned()),
    }
}

/// Whether a bot's own handler passes it on for the record alone.
fn is_tee(uri: &Uri) -> bool {
    parameter(uri, "tee").is_some_and(|value| value == "1")
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let mut pairs = url::form_urlencoded::parse(uri.query()?.as_bytes());
    pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}

/// Lets the clock know of a callback's timestamp.
fn saw(gateway: &Gateway, callback: &Callback<'_>, now_us: i64) {
    if let Scalar::Int(timestamp) = callback.timestamp
        && let Ok(timestamp_ms) = i64::try_from(timestamp)
    {
        gateway.clock.saw(timestamp_ms, now_us);
        gateway.metrics.clock_offset((timestamp_ms as f64 * 1000.0 - now_us as f64) / 1e6);
    }
}

/// `sender.id`, else `user.id`, else `user_id`.
fn user<'a>(callback: &'a Callback<'_>) -> Option<&'a str> {
    let id =
        |person: &'a Presence<crate::event::payload::Person<'_>>| person.object().and_then(|person| person.id.text());
    [id(&callback.sender), id(&callback.user), callback.user_id.text()].into_iter().flatten().find(|id| !id.is_empty())
}
