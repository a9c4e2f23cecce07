//! `set_webhook` and what shows it: Viber is given the gateway's address, the bot sees its own.

use super::calls::{Incoming, refusal, relay_and_record, respond};
use super::json;
use super::registrations::Webhook;
use super::upstream::Answer;
use super::{Gateway, accounts::Account};
use crate::event::payload::Response as Payload;
use axum::body::Bytes;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use url::Url;

/// Viber's code for a webhook that cannot be one.
const INVALID_URL: u16 = 1;
/// A general error: none of the codes that say something of the request.
const GENERAL: u16 = 1000;

/// What a bot asks for.
#[derive(Debug, PartialEq)]
enum Wish {
    Set(Webhook),
    /// With event types that are none: Viber says so. Should it take them, the bot gets all.
    SetWithOddTypes(Webhook),
    Remove,
}

impl Wish {
    /// `None` when the body is not of that form: Viber says what is wrong with it.
    fn read(body: &[u8]) -> Option<Wish> {
        // Of a member that is there twice the last one counts, as it does to most readers of JSON.
        let mut members: Map<String, Value> = serde_json::from_slice(body).ok()?;
        let url = members.get("url")?.as_str()?.to_owned();
        if url.is_empty() {
            return Some(Wish::Remove);
        }
        let is_set = |name: &str| members.get(name) == Some(&Value::Bool(true));
        let (send_name, send_photo) = (is_set("send_name"), is_set("send_photo"));
        let webhook = |event_types| Webhook { url, event_types, send_name, send_photo };
        Some(match serde_json::from_value(members.remove("event_types").unwrap_or_default()) {
            Ok(event_types) => Wish::Set(webhook(event_types)),
            Err(_) => Wish::SetWithOddTypes(webhook(None)),
        })
    }
}

/// Relays a `set_webhook` with the gateway's own address and all event types, and keeps what the bot asked for.
pub(super) async fn set(gateway: &Gateway, account: Arc<Account>, call: Incoming) -> Response {
    let Some(wish) = Wish::read(&call.body) else {
        let body = call.body.clone();
        return respond(relay_and_record(gateway, &account, call, body).await);
    };
    let (webhook, mut body) = match wish {
        Wish::Remove => (None, call.body.clone()),
        Wish::Set(webhook) => (Some(webhook), json::without(&call.body, &["event_types"]).into()),
        Wish::SetWithOddTypes(webhook) => (Some(webhook), call.body.clone()),
    };
    if let Some(webhook) = &webhook {
        if let Err(reason) = check(gateway, &webhook.url) {
            return refusal(INVALID_URL, &format!("invalidUrl: {reason}"));
        }
        let own = Value::from(gateway.own_url(&account.name));
        // It was read as an object above, so the member is set.
        body = json::with(&body, "url", &own).map_or(body, Bytes::from);
    }
    let change = match gateway.registrations.begin(&account.name, webhook.clone()).await {
        Ok(change) => change,
        Err(error) => {
            tracing::error!(%error, account = account.name, "a webhook cannot be kept, so it was not set");
            return refusal(GENERAL, "counterbat cannot keep the webhook now, so the call was not sent: try again");
        }
    };
    let mut answer = relay_and_record(gateway, &account, call, body).await;
    let is_taken = answer.as_ref().is_ok_and(|answer| status(answer) == Some(0));
    let kept = if is_taken { change.confirm().await } else { change.forget().await };
    if let Err(error) = kept {
        tracing::error!(%error, account = account.name, is_taken, "a webhook is in force but not stored");
    }
    if let (true, Ok(answer)) = (is_taken, &mut answer) {
        show_event_types(answer, webhook.as_ref());
    }
    respond(answer)
}

/// In an answer to `get_account_info`, shows the bot its own webhook where Viber has the gateway's.
pub(super) fn show_own(gateway: &Gateway, account: &Account, answer: &mut Answer) {
    let Some(webhook) = gateway.registrations.confirmed(&account.name) else { return };
    if registered_at(answer).as_deref() != Some(&gateway.own_url(&account.name)) {
        return;
    }
    if let Some(body) = json::with(&answer.body, "webhook", &Value::from(webhook.url.as_str())) {
        answer.body = body.into();
    }
    show_event_types(answer, Some(&webhook));
}

/// The webhook that Viber has, as `get_account_info` tells it.
pub(super) fn registered_at(answer: &Answer) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        webhook: String,
    }
    serde_json::from_slice::<Info>(&answer.body).ok().map(|info| info.webhook)
}

/// Viber's `status` in an answer.
pub(super) fn status(answer: &Answer) -> Option<i128> {
    Payload::parse(&answer.body)?.status.number()
}

/// Leaves of the event types in an answer those that the bot is told of, in Viber's order; none for no webhook.
fn show_event_types(answer: &mut Answer, webhook: Option<&Webhook>) {
    #[derive(Deserialize)]
    struct Types {
        event_types: Option<Vec<String>>,
    }
    let listed = serde_json::from_slice::<Types>(&answer.body).ok().and_then(|types| types.event_types);
    let shown: Option<Vec<String>> = match (webhook, listed) {
        // A client of Viber's reads the list even after a removal.
        (None, None) => Some(Vec::new()),
        (None, Some(_)) => None,
        (Some(webhook), Some(listed)) => {
            let shown: Vec<String> = listed.iter().filter(|one| webhook.wants(one)).cloned().collect();
            (shown != listed).then_some(shown)
        }
        (Some(webhook), None) => Some(webhook.event_types.clone().unwrap_or_default()),
    };
    if let Some(shown) = shown
        && let Some(body) = json::with(&answer.body, "event_types", &json!(shown))
    {
        answer.body = body.into();
    }
}

/// Whether callbacks can be handed on to this URL; if not, why.
fn check(gateway: &Gateway, url: &str) -> Result<(), &'static str> {
    let url = Url::parse(url).map_err(|_| "the URL is not valid")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("the URL is neither https nor http");
    }
    if url.as_str().starts_with(&gateway.own_url("")) {
        return Err("this is the gateway's own address; give the address of the bot");
    }
    if !gateway.bots.may_reach(&url) {
        return Err("the URL is at a private address, which this gateway does not relay to");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderMap, StatusCode};

    fn webhook(types: Option<&[&str]>) -> Webhook {
        let event_types = types.map(|types| types.iter().map(|one| (*one).to_owned()).collect());
        Webhook { url: "https://bot".into(), event_types, send_name: false, send_photo: false }
    }

    #[test]
    fn wishes_are_read() {
        let read = |body: &str| Wish::read(body.as_bytes());
        assert_eq!(read(r#"{"url":"https://bot"}"#), Some(Wish::Set(webhook(None))));
        assert_eq!(read(r#"{"url":"https://bot","event_types":null}"#), Some(Wish::Set(webhook(None))));
        assert_eq!(read(r#"{"url":"https://bot","event_types":[]}"#), Some(Wish::Set(webhook(Some(&[])))));
        let named = Webhook { send_name: true, ..webhook(Some(&["seen"])) };
        let body =
            r#"{"url":"https://bot","event_types":["seen"],"send_name":true,"send_photo":"x","is_inline":false}"#;
        assert_eq!(read(body), Some(Wish::Set(named)));
        assert_eq!(read(r#"{"url":""}"#), Some(Wish::Remove));
        assert_eq!(read(r#"{"url":"https://other","url":"https://bot"}"#), Some(Wish::Set(webhook(None))));
        for odd in [r#""seen""#, "[1]", "{}"] {
            let body = format!(r#"{{"url":"https://bot","event_types":{odd}}}"#);
            assert_eq!(read(&body), Some(Wish::SetWithOddTypes(webhook(None))), "{odd}");
        }
        for other in ["", "[]", "{}", r#"{"url":null}"#, r#"{"url":5}"#] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn the_bot_sees_its_own_event_types() {
        let shown = |body: &str, webhook: Option<Webhook>| {
            let body = body.to_owned().into();
            let mut answer = Answer { status: StatusCode::OK, headers: HeaderMap::new(), body };
            show_event_types(&mut answer, webhook.as_ref());
            String::from_utf8(answer.body.to_vec()).unwrap()
        };
        let all = r#"{"status":0, "event_types":["subscribed","delivered","seen","message"]}"#;
        assert_eq!(shown(all, Some(webhook(None))), all);
        let wanted = r#"{"status":0, "event_types":["subscribed","seen","message"]}"#;
        assert_eq!(shown(all, Some(webhook(Some(&["seen"])))), wanted);
        assert_eq!(shown(r#"{"status":0}"#, None), r#"{"status":0,"event_types":[]}"#);
        assert_eq!(shown(r#"{"status":0,"event_types":[ ]}"#, None), r#"{"status":0,"event_types":[ ]}"#);
    }
}
