//! The methods of the API: what each checks, decides and answers.

use super::answer::{AccountInfo, Answer, Failed, Member, Online, UserDetails};
use super::bot::{Bot, BotState, Webhook};
use super::code::{Code, Refusal};
use super::double::{Double, Sending};
use super::event::{self, Event};
use super::faults::Fate;
use super::ledger::{Attempt, Callback, Receiver};
use super::message;
use bytes::Bytes;
use reqwest::Url;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::sync::Arc;

const MAX_RECEIVERS: usize = 300;
const MAX_IDS: usize = 100;

/// The methods, as paths name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    SetWebhook,
    SendMessage,
    BroadcastMessage,
    GetAccountInfo,
    GetUserDetails,
    GetOnline,
    Post,
}

impl Method {
    const ALL: [Method; 7] = [
        Method::SetWebhook,
        Method::SendMessage,
        Method::BroadcastMessage,
        Method::GetAccountInfo,
        Method::GetUserDetails,
        Method::GetOnline,
        Method::Post,
    ];

    /// The method of that name.
    pub fn named(name: &str) -> Option<Method> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// As paths name it.
    pub fn name(self) -> &'static str {
        match self {
            Method::SetWebhook => "set_webhook",
            Method::SendMessage => "send_message",
            Method::BroadcastMessage => "broadcast_message",
            Method::GetAccountInfo => "get_account_info",
            Method::GetUserDetails => "get_user_details",
            Method::GetOnline => "get_online",
            Method::Post => "post",
        }
    }
}

/// A call whose caller is known.
pub(super) struct Request<'a> {
    pub double: &'a Double,
    pub bot: &'a Arc<Bot>,
    pub body: &'a Map<String, Value>,
    pub fate: Fate,
}

/// Carries a call out.
pub(super) async fn carry_out(method: Method, request: Request<'_>) -> Answer {
    let answer = match method {
        Method::SetWebhook => set_webhook(&request).await,
        Method::SendMessage => return send_message(&request),
        Method::BroadcastMessage => broadcast(&request),
        Method::GetAccountInfo => Ok(account_info(request.bot)),
        Method::GetUserDetails => user_details(&request),
        Method::GetOnline => online(&request),
        Method::Post => post(&request),
    };
    answer.unwrap_or_else(Answer::refusal)
}

/// A member that must be a text.
fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<&'a str, Refusal> {
    match body.get(name) {
        None | Some(Value::Null) => Err(Code::MISSING_DATA.because(name)),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Code::BAD_DATA.because(format!("{name} is no text"))),
    }
}

/// A member that must be a list of at most so many texts.
fn texts<'a>(body: &'a Map<String, Value>, name: &str, most: usize) -> Result<Vec<&'a str>, Refusal> {
    let list = match body.get(name) {
        None | Some(Value::Null) => return Err(Code::MISSING_DATA.because(name)),
        Some(list) => list.as_array().ok_or_else(|| Code::BAD_DATA.because(format!("{name} is no list")))?,
    };
    if list.len() > most {
        return Err(Code::BAD_DATA.because(format!("{name} has {} entries, {most} is the most", list.len())));
    }
    let texts = list.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
    texts.ok_or_else(|| Code::BAD_DATA.because(format!("{name} has an entry that is no text")))
}

async fn set_webhook(request: &Request<'_>) -> Result<Answer, Refusal> {
    let Request { double, bot, body, .. } = request;
    let given = text(body, "url")?;
    if given.is_empty() {
        bot.state().webhook = None;
        return Ok(Answer { event_types: Some(Vec::new()), ..Answer::ok() });
    }
    let event_types = match body.get("event_types") {
        None | Some(Value::Null) => Event::ASKABLE.to_vec(),
        Some(_) => {
            // Names that are none occur in real lists and are not refused.
            let asked = texts(body, "event_types", usize::MAX)?;
            let wanted = |event: &Event| event.is_mandatory() || asked.contains(&event.name());
            Event::ASKABLE.into_iter().filter(wanted).collect()
        }
    };
    let url = Url::parse(given).ok().filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    let url = url.ok_or(Refusal { status: Code::INVALID_URL.0, text: "URL not valid or not HTTPS".into() })?;
    validate(double, bot, &url).await?;
    let mut state = bot.state();
    state.had_webhook = true;
    state.webhook = Some(Arc::new(Webhook { url, text: given.to_owned(), event_types: event_types.clone() }));
    Ok(Answer { event_types: Some(event_types), ..Answer::ok() })
}

/// Calls the URL with a `webhook` event, which must be answered with HTTP 200.
async fn validate(double: &Double, bot: &Arc<Bot>, url: &Url) -> Result<(), Refusal> {
    let timestamp_ms = double.time.now_ms();
    let message_token = double.tokens.next(timestamp_ms);
    let body = Bytes::from(event::webhook(timestamp_ms, message_token));
    let line = double.ledger.told(Callback {
        bot: bot.name.clone(),
        event: Event::Webhook,
        message_token,
        user: None,
        timestamp_ms,
        body: body.clone(),
        opens_session: false,
        lost: false,
        attempts: Vec::new(),
        acknowledged: false,
    });
    let signature = bot.sign(&body);
    let (outcome, _) = double.courier.post(url, body, &signature).await;
    double.ledger.attempted(line, Event::Webhook, Attempt { at_ms: double.time.now_ms(), outcome }, true);
    if outcome.is_acknowledged() {
        return Ok(());
    }
    let text = format!("the webhook did not answer the validation with HTTP 200: {outcome}");
    Err(Refusal { status: Code::INVALID_URL.0, text: text.into() })
}

fn send_message(request: &Request<'_>) -> Answer {
    let Request { double, bot, body, fate } = request;
    let receiver = text(body, "receiver");
    let mut state = bot.state();
    let at_us = double.time.now_us();
    let at_ms = at_us.div_euclid(1000);
    let token = double.tokens.next(at_ms);
    let sending = Sending { token, at_us, misbill: fate.misbill, is_broadcast: false };
    let sent = check_webhook(&state).and_then(|()| {
        let receiver = receiver.clone()?;
        let message = message::read(body)?;
        double.send(bot, &mut state, receiver, &message, sending)
    });
    drop(state);
    let entry = |status, billing_status, misbilled| match &receiver {
        Ok(id) => vec![Receiver { id: Arc::from(*id), status, billing_status, misbilled }],
        Err(_) => Vec::new(),
    };
    match sent {
        Ok((billing_status, misbilled)) => Answer {
            message_token: Some(token),
            billing_status: Some(billing_status),
            receivers: entry(0, Some(billing_status), misbilled),
            decided_at_ms: Some(at_ms),
            ..Answer::ok()
        },
        Err(refusal) => Answer {
            // The one refusal that is documented with a token.
            message_token: (refusal.status == Code::TOO_MANY_REQUESTS.0).then_some(token),
            receivers: entry(refusal.status, None, false),
            decided_at_ms: Some(at_ms),
            ..Answer::refusal(refusal)
        },
    }
}

fn check_webhook(state: &BotState) -> Result<(), Refusal> {
    if state.webhook.is_some() { Ok(()) } else { Err(Code::WEBHOOK_NOT_SET.into()) }
}

fn broadcast(request: &Request<'_>) -> Result<Answer, Refusal> {
    let Request { double, bot, body, fate } = request;
    let mut state = bot.state();
    check_webhook(&state)?;
    let list = texts(body, "broadcast_list", MAX_RECEIVERS)?;
    if list.is_empty() {
        return Err(Code::MISSING_DATA.because("broadcast_list"));
    }
    let message = message::read(body)?;
    let at_us = double.time.now_us();
    let at_ms = at_us.div_euclid(1000);
    if !state.takes_broadcast(at_ms) {
        return Err(Code::TOO_MANY_REQUESTS.into());
    }
    let token = double.tokens.next(at_ms);
    let sending = Sending { token, at_us, misbill: fate.misbill, is_broadcast: true };
    let (mut failed, mut receivers, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for id in list {
        // One that is named twice gets it once.
        if seen.contains(&id) {
            continue;
        }
        seen.push(id);
        let (status, billing_status, misbilled) = match double.send(bot, &mut state, id, &message, sending) {
            Ok((billing_status, misbilled)) => (0, Some(billing_status), misbilled),
            Err(refusal) => {
                let status = refusal.status;
                let refusal = Refusal { text: in_list(refusal), status };
                failed.push(Failed { receiver: id.to_owned(), refusal });
                (status, None, false)
            }
        };
        receivers.push(Receiver { id: id.into(), status, billing_status, misbilled });
    }
    // One value for the whole list: the dearest.
    let billing_status = receivers.iter().filter_map(|receiver| receiver.billing_status).max();
    let (message_token, failed_list) = (Some(token), Some(failed));
    Ok(Answer { message_token, billing_status, failed_list, receivers, decided_at_ms: Some(at_ms), ..Answer::ok() })
}

/// In `failed_list` the same refusal has another text.
fn in_list(refusal: Refusal) -> Cow<'static, str> {
    if refusal.status == Code::RECEIVER_NOT_SUBSCRIBED.0 { "Not subscribed".into() } else { refusal.text }
}

fn account_info(bot: &Arc<Bot>) -> Answer {
    let state = bot.state();
    let admin =
        Member { id: bot.admin.clone(), name: "Admin", avatar: "https://media.example/admin.jpg", role: "superadmin" };
    let webhook = state.webhook.as_ref();
    let account = AccountInfo {
        id: bot.id.clone(),
        name: bot.name.clone(),
        uri: bot.name.to_lowercase().replace(' ', ""),
        icon: "https://media.example/icon.jpg".into(),
        background: "https://media.example/background.jpg".into(),
        category: "Companies, Brands & Products",
        subcategory: "Mobile & Software",
        location: event::Location { lat: 50.4501, lon: 30.5234 },
        country: "UA",
        webhook: webhook.map(|webhook| webhook.text.clone()).unwrap_or_default(),
        event_types: webhook.map(|webhook| webhook.event_types.clone()).unwrap_or_default(),
        subscribers_count: state.subscribers(),
        members: [admin],
    };
    Answer { account: Some(account), ..Answer::ok() }
}

fn user_details(request: &Request<'_>) -> Result<Answer, Refusal> {
    let Request { double, bot, body, .. } = request;
    let id = text(body, "id")?;
    let mut state = bot.state();
    let at_ms = double.time.now_ms();
    let user = state.users.get_mut(id).ok_or(Code::RECEIVER_NOT_REGISTERED)?;
    if !user.subscribed {
        return Err(Code::RECEIVER_NOT_SUBSCRIBED.into());
    }
    if !user.tells_details(at_ms) {
        return Err(Code::TOO_MANY_REQUESTS.into());
    }
    let profile = &user.profile;
    let details = UserDetails {
        id: profile.id.clone(),
        name: profile.name.clone(),
        avatar: event::avatar(profile),
        country: profile.country.clone(),
        language: profile.language.clone(),
        primary_device_os: "android 14",
        api_version: profile.api_version,
        viber_version: "23.2.0",
        mcc: profile.mcc,
        mnc: 1,
        device_type: "SM-A536B",
    };
    Ok(Answer { message_token: Some(double.tokens.next(at_ms)), user: Some(details), ..Answer::ok() })
}

fn online(request: &Request<'_>) -> Result<Answer, Refusal> {
    /// A user who wrote this lately is online.
    const LATELY_MS: i64 = 5 * 60_000;
    let Request { double, bot, body, .. } = request;
    let ids = texts(body, "ids", MAX_IDS)?;
    let state = bot.state();
    let now_ms = double.time.now_ms();
    let look = |id: &str| {
        let (online_status, online_status_message, last_online) = match state.users.get(id) {
            None => (4, "unavailable", 0),
            Some(user) if !user.subscribed => (2, "undisclosed", 0),
            Some(user) if now_ms - user.last_wrote_ms < LATELY_MS => (0, "online", now_ms),
            Some(user) => (1, "offline", user.last_wrote_ms),
        };
        Online { id: id.to_owned(), online_status, online_status_message, last_online }
    };
    Ok(Answer { users: Some(ids.into_iter().map(look).collect()), ..Answer::ok() })
}

fn post(request: &Request<'_>) -> Result<Answer, Refusal> {
    let Request { double, bot, body, .. } = request;
    if !bot.state().had_webhook {
        return Err(Code::WEBHOOK_NOT_SET.into());
    }
    let from = text(body, "from")?;
    message::read_post(body)?;
    if from != bot.admin {
        return Err(Code::NOT_AUTHORIZED.because("from is no member who may post"));
    }
    Ok(Answer { message_token: Some(double.tokens.next(double.time.now_ms())), ..Answer::ok() })
}
