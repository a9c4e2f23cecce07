//! `POST /webhooks/<account>`: a callback is verified, appended, and only then acknowledged.

use super::accounts::Account;
use super::{BodyError, Gateway, read_body};
use crate::event::identity::event_id;
use crate::event::payload::{Callback, Presence, Scalar};
use crate::event::{CALLBACK_PREFIX, Event};
use crate::log::LogError;
use crate::metrics::Rejection;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use std::time::Instant;
use uuid::Uuid;

/// Where Viber puts the signature.
const SIGNATURE: &str = "x-viber-content-signature";
/// The event name of a callback that tells none that could be part of a type.
const UNKNOWN: &str = "unknown";
/// The route in metrics.
pub(super) const ROUTE: &str = "/webhooks/{account}";

pub(super) async fn receive(
    State(gateway): State<Gateway>,
    Path(account): Path<String>,
    request: Request,
) -> StatusCode {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let status = match accept(&gateway, &account, &parts.headers, &parts.uri, body).await {
        Ok(()) => StatusCode::OK,
        Err(reason) => {
            gateway.metrics.rejected(reason);
            tracing::debug!(account, ?reason, "a callback was refused");
            match reason {
                Rejection::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                Rejection::Incomplete => StatusCode::BAD_REQUEST,
                Rejection::LogUnwritable => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::FORBIDDEN,
            }
        }
    };
    if status == StatusCode::OK {
        gateway.webhook_ok.observe(started.elapsed().as_secs_f64());
    } else {
        gateway.metrics.http_request(ROUTE, "POST", status.as_u16(), started.elapsed());
    }
    status
}

async fn accept(gateway: &Gateway, account: &str, headers: &HeaderMap, uri: &Uri, body: Body) -> Result<(), Rejection> {
    let account = gateway.accounts.named(account).ok_or(Rejection::UnknownAccount)?;
    let signature = signature(headers, uri).ok_or(Rejection::MissingSignature)?;
    let body = read_body(headers, body).await.map_err(|error| match error {
        BodyError::TooLarge => Rejection::TooLarge,
        BodyError::Incomplete => Rejection::Incomplete,
    })?;
    if !account.verify(&signature, &body) {
        return Err(Rejection::BadSignature);
    }
    let now_us = gateway.clock.now_us();
    let (event, name) = event(&account, signature, body, now_us, gateway);
    gateway.recorder.append(vec![event]).await.map_err(|_: LogError| Rejection::LogUnwritable)?;
    account.callbacks(&gateway.metrics).received(&name);
    Ok(())
}

/// From the header, else from `?sig=`.
fn signature(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    if let Some(value) = headers.get(SIGNATURE) {
        return value.to_str().ok().map(|text| text.trim().to_owned());
    }
    url::form_urlencoded::parse(uri.query()?.as_bytes())
        .find(|(name, _)| name == "sig")
        .map(|(_, value)| value.trim().to_owned())
}

/// The event of a callback (spec §2), and its name for counting.
fn event(account: &Account, signature: String, body: Bytes, now_us: i64, gateway: &Gateway) -> (Event, String) {
    let callback = Callback::parse(&body).unwrap_or_default();
    if let Scalar::Int(timestamp) = callback.timestamp
        && let Ok(timestamp_ms) = i64::try_from(timestamp)
    {
        gateway.clock.saw(timestamp_ms, now_us);
        gateway.metrics.clock_offset((timestamp_ms as f64 * 1000.0 - now_us as f64) / 1e6);
    }
    let name = callback.event.text().filter(|name| super::is_type_name(name)).unwrap_or(UNKNOWN).to_owned();
    let user = user(&callback).map(str::to_owned);
    let id = match (callback.message_token.token(), &user) {
        (Some(token), Some(user)) => event_id(&name, token, user),
        _ => Uuid::now_v7().to_string(),
    };
    let event = Event {
        id,
        source: account.source.clone(),
        kind: format!("{CALLBACK_PREFIX}{name}"),
        subject: user,
        time_us: Some(now_us),
        content_type: Some("application/json".to_owned()),
        signature: Some(signature),
        extensions: Vec::new(),
        data: body.into(),
    };
    (event, name)
}

/// `sender.id`, else `user.id`, else `user_id`.
fn user<'a>(callback: &'a Callback<'_>) -> Option<&'a str> {
    let id =
        |person: &'a Presence<crate::event::payload::Person<'_>>| person.object().and_then(|person| person.id.text());
    [id(&callback.sender), id(&callback.user), callback.user_id.text()].into_iter().flatten().find(|id| !id.is_empty())
}
