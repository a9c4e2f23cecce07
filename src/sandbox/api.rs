//! `/pa/<method>`: who calls, which faults the call meets, and what the ledger keeps of it.

use super::answer::Answer;
use super::code::{Code, Refusal};
use super::cut::Cutter;
use super::double::Double;
use super::ledger::Call;
use super::methods::{Method, Request, carry_out};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// Viber's limit for requests.
const MAX_BODY: usize = 30 * 1024;
const TOKEN: &str = "x-viber-auth-token";
const ERROR_PAGE: &str = "<html><head><title>Error 500</title></head><body><h1>HTTP ERROR 500</h1></body></html>";

/// The routes. The documented base URL ends in a slash, so some clients ask for `//pa/…`.
pub(super) fn router() -> Router<Arc<Double>> {
    let method = || get(call).post(call);
    Router::new().route("/pa/{method}", method()).route("//pa/{method}", method())
}

async fn call(
    State(double): State<Arc<Double>>,
    Path(name): Path<String>,
    ConnectInfo(cutter): ConnectInfo<Cutter>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some(method) = Method::named(&name) else { return StatusCode::NOT_FOUND.into_response() };
    let fate = double.faults.next_call();
    let mut entry = Call {
        bot: None,
        method: method.name(),
        receivers: Vec::new(),
        status: None,
        http_status: None,
        message_token: None,
        billing_status: None,
        decided_at_ms: double.time.now_ms(),
        cut: false,
    };
    if fate.down {
        double.ledger.called(entry);
        cutter.cut();
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let body = axum::body::to_bytes(body, MAX_BODY).await;
    if fate.http_500 {
        double.ledger.called(Call { http_status: Some(500), ..entry });
        return (StatusCode::INTERNAL_SERVER_ERROR, Html(ERROR_PAGE)).into_response();
    }
    let body = parse(body.ok());
    let bot = token(&headers, body.as_ref().ok());
    let bot = bot.and_then(|token| double.bot_with_token(token).ok_or(Code::INVALID_AUTH_TOKEN));
    entry.bot = bot.as_ref().ok().map(|bot| bot.name.clone());
    let answer = match (&bot, &body) {
        (Err(code), _) => Answer::stranger(*code),
        (Ok(_), Err(refusal)) => Answer::refusal(refusal.clone()),
        (Ok(bot), Ok(body)) => carry_out(method, Request { double: &double, bot, body, fate }).await,
    };
    let accepts = matches!(method, Method::SendMessage | Method::BroadcastMessage) && answer.status == 0;
    let cut = accepts && fate.cut;
    // Members are texts and numbers: nothing in them can fail to be written.
    let text = serde_json::to_string(&answer).unwrap_or_default();
    double.ledger.called(Call {
        receivers: answer.receivers,
        status: Some(answer.status),
        http_status: (!cut).then_some(200),
        message_token: answer.message_token,
        billing_status: answer.billing_status,
        decided_at_ms: answer.decided_at_ms.unwrap_or_else(|| double.time.now_ms()),
        cut,
        ..entry
    });
    if fate.slow_ms > 0 {
        tokio::time::sleep(Duration::from_millis(fate.slow_ms)).await;
    }
    if cut {
        cutter.cut();
    }
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// The members of a request; none where the body is empty. `None` is a body too long, or one that did not arrive.
fn parse(body: Option<Bytes>) -> Result<Map<String, Value>, Refusal> {
    let body = body.ok_or_else(|| Code::BAD_DATA.because("a request has 30 KB at most"))?;
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(Code::BAD_DATA.because("the request is no object")),
        Err(error) => Err(Code::BAD_DATA.because(error.to_string())),
    }
}

/// The token in the header or in the body. Nothing documented says which holds where they differ, so neither does.
fn token<'a>(headers: &'a HeaderMap, body: Option<&'a Map<String, Value>>) -> Result<&'a str, Code> {
    let in_header = match headers.get(TOKEN) {
        Some(value) => Some(value.to_str().map_err(|_| Code::INVALID_AUTH_TOKEN)?.trim()),
        None => None,
    };
    let in_body = match body.and_then(|body| body.get("auth_token")) {
        None | Some(Value::Null) => None,
        Some(value) => Some(value.as_str().ok_or(Code::INVALID_AUTH_TOKEN)?.trim()),
    };
    match (in_header, in_body) {
        (Some(one), Some(other)) if one != other => Err(Code::INVALID_AUTH_TOKEN),
        (Some(token), _) | (None, Some(token)) => Ok(token),
        (None, None) => Err(Code::MISSING_AUTH_TOKEN),
    }
}
