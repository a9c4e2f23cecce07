//! What is recorded of a call.

use super::accounts::Account;
use super::clock::Clock;
use super::json::{embedded, without};
use crate::event::identity::event_id;
use crate::event::payload::{Request, Response};
use crate::event::{CALL_PREFIX, Event, STARTED_TYPE};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use uuid::Uuid;

/// Viber takes no more receivers in one broadcast; a refused request that names more is recorded as it is.
const MAX_RECEIVERS: usize = 300;
/// The method of a welcome message, which is no call.
const WELCOME: &str = "welcome_message";
/// A longer text is left out, so that no event is larger than a log takes. No JSON that a bot may send is that long: only what
/// is no JSON and has to be written as a string of escapes.
const MAX_TEXT: usize = 1_800_000;
/// The calls that Viber may bill.
const SENDS: [&str; 2] = ["send_message", "broadcast_message"];

/// A call and what came of it.
pub struct Call {
    pub account: Arc<Account>,
    pub method: String,
    pub request: Vec<u8>,
    /// HTTP status and body; `None` where there was no answer.
    pub answer: Option<(u16, Vec<u8>)>,
    /// Names a call whose start was recorded.
    pub id: Option<Uuid>,
}

impl Call {
    /// Whether Viber may bill it.
    pub fn is_send(&self) -> bool {
        SENDS.contains(&self.method.as_str())
    }

    /// The event that tells of the call before it is relayed, and its id. Like its result, that of a send is of the
    /// receiver; a broadcast's is of nobody.
    pub fn started(&self, clock: &Clock) -> (Uuid, Event) {
        let id = Uuid::now_v7();
        let mut receivers = self.broadcast_list();
        receivers.truncate(MAX_RECEIVERS);
        let user = self.receiver();
        receivers.extend(user.clone());
        let digest = hex::encode(Sha256::digest(self.request_text(&["auth_token"])));
        let (method, receivers) = (&self.method, json!(receivers));
        let data = format!(
            "{{\"call_id\":\"{id}\",\"method\":\"{method}\",\"receivers\":{receivers},\"digest\":\"{digest}\"}}"
        );
        let event = Event {
            id: id.to_string(),
            source: self.account.source.clone(),
            kind: STARTED_TYPE.to_owned(),
            subject: user,
            time_us: Some(clock.call_us()),
            content_type: Some("application/json".to_owned()),
            data: self.account.redact(data).into_bytes(),
            ..Event::default()
        };
        (id, event)
    }

    /// Viber's `status`, where the answer has one.
    pub fn status(&self) -> Option<i64> {
        let (_, body) = self.answer.as_ref()?;
        Response::parse(body)?.status.number().and_then(|n| i64::try_from(n).ok())
    }

    /// The events of the call (spec §2), in order.
    pub fn events(&self, clock: &Clock) -> Vec<Event> {
        let time_us = clock.call_us();
        let response = self.answer.as_ref().and_then(|(_, body)| Response::parse(body)).unwrap_or_default();
        let accepted = response.status.number() == Some(0);
        let token = response.message_token.token().filter(|_| accepted);
        let (head, tail) = (self.head(), self.tail());
        let receivers = self.receivers(accepted);
        if !receivers.is_empty() {
            let request = self.request_text(&["auth_token", "broadcast_list"]);
            let failed = self.failed_list();
            let event = |receiver: String| {
                let status = failed.iter().find(|(failed, _)| *failed == receiver).map_or("0", |(_, status)| status);
                let name = Value::from(receiver.as_str());
                let data = format!("{head}{request}{tail},\"receiver\":{name},\"receiver_status\":{status}}}");
                self.event(data, Some(receiver), token, time_us)
            };
            return receivers.into_iter().map(event).collect();
        }
        let text = self.request_text(&["auth_token"]);
        vec![self.event(format!("{head}{text}{tail}}}"), self.receiver(), token, time_us)]
    }

    /// The one user it is to or about.
    fn receiver(&self) -> Option<String> {
        let request = Request::parse(&self.request).unwrap_or_default();
        let user = match self.method.as_str() {
            "send_message" => request.receiver.text(),
            "get_user_details" => request.id.text(),
            _ => None,
        };
        user.filter(|user| !user.is_empty()).map(str::to_owned)
    }

    /// The request as JSON, without these members and without tokens.
    fn request_text(&self, left_out: &[&str]) -> String {
        bounded(self.account.redact(without(&self.request, left_out)))
    }

    /// `{"request":`; the id of a call whose start was recorded stands before it.
    fn head(&self) -> String {
        match self.id {
            Some(id) => format!("{{\"call_id\":\"{id}\",\"request\":"),
            None => "{\"request\":".to_owned(),
        }
    }

    /// `,"response":…,"http_status":…`.
    fn tail(&self) -> String {
        match &self.answer {
            Some((http_status, body)) => {
                let body = bounded(self.account.redact(embedded(body)));
                format!(",\"response\":{body},\"http_status\":{http_status}")
            }
            None => ",\"response\":null,\"http_status\":null".to_owned(),
        }
    }

    fn event(&self, data: String, user: Option<String>, token: Option<u64>, time_us: i64) -> Event {
        let id = match (token, &user) {
            (Some(token), Some(user)) => event_id(&self.method, token, user),
            _ => Uuid::now_v7().to_string(),
        };
        Event {
            id,
            source: self.account.source.clone(),
            kind: format!("{CALL_PREFIX}{}", self.method),
            subject: user,
            time_us: Some(time_us),
            content_type: Some("application/json".to_owned()),
            signature: None,
            extensions: Vec::new(),
            data: data.into_bytes(),
        }
    }

    /// The receivers that have events of their own: those of a broadcast, none of any other call.
    fn receivers(&self, accepted: bool) -> Vec<String> {
        let list = self.broadcast_list();
        if list.len() > MAX_RECEIVERS && !accepted { Vec::new() } else { list }
    }

    /// The receivers of a broadcast; none of any other call.
    fn broadcast_list(&self) -> Vec<String> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            broadcast_list: Vec<Value>,
        }
        if self.method != "broadcast_message" {
            return Vec::new();
        }
        let list = serde_json::from_slice::<List>(&self.request).map(|list| list.broadcast_list).unwrap_or_default();
        let id = |value: Value| match value {
            Value::String(id) if !id.is_empty() => Some(id),
            _ => None,
        };
        list.into_iter().filter_map(id).collect()
    }

    /// Receivers that Viber refused, with their status as it was written.
    fn failed_list(&self) -> Vec<(String, String)> {
        #[derive(Deserialize)]
        struct Failed {
            receiver: String,
            status: Box<RawValue>,
        }
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            failed_list: Vec<Box<RawValue>>,
        }
        let body = self.answer.as_ref().map_or(&[][..], |(_, body)| body);
        let list = serde_json::from_slice::<List>(body).map(|list| list.failed_list).unwrap_or_default();
        list.iter()
            .filter_map(|entry| serde_json::from_str::<Failed>(entry.get()).ok())
            .map(|failed| (failed.receiver, failed.status.get().to_owned()))
            .collect()
    }
}

/// JSON, or what says how much of it is left out.
fn bounded(text: String) -> String {
    if text.len() <= MAX_TEXT {
        return text;
    }
    json!({ "left_out": { "bytes": text.len(), "sha256": hex::encode(Sha256::digest(&text)) } }).to_string()
}

/// The welcome message a bot returned to `conversation_started`, where its answer is one: a message without a receiver
/// (Viber doc, spec §2).
pub fn welcome(account: &Account, user: Option<String>, answer: &[u8], clock: &Clock) -> Option<Event> {
    let object: serde_json::Map<String, Value> = serde_json::from_slice(answer).ok()?;
    if !object.contains_key("type") && !object.contains_key("keyboard") {
        return None;
    }
    let request = account.redact(without(answer, &["auth_token"]));
    Some(Event {
        id: Uuid::now_v7().to_string(),
        source: account.source.clone(),
        kind: format!("{CALL_PREFIX}{WELCOME}"),
        subject: user,
        time_us: Some(clock.call_us()),
        content_type: Some("application/json".to_owned()),
        data: format!("{{\"request\":{request},\"response\":null,\"http_status\":null}}").into_bytes(),
        ..Event::default()
    })
}

#[cfg(test)]
mod tests {
    use super::super::accounts::Accounts;
    use super::*;
    use crate::event::{Disposition, Fact, read};

    const T: i64 = 1_760_000_000_000_000;

    fn call(method: &str, request: &str, answer: Option<&str>) -> Vec<Event> {
        let accounts = Accounts::new([("shop".to_owned(), "tok-1".to_owned())]).unwrap();
        let call = Call {
            account: accounts.named("shop").unwrap(),
            method: method.into(),
            request: request.into(),
            answer: answer.map(|body| (200, body.as_bytes().to_vec())),
            id: None,
        };
        call.events(&Clock::new(Arc::new(|| T)))
    }

    fn data(event: &Event) -> &str {
        std::str::from_utf8(&event.data).unwrap()
    }

    #[test]
    fn a_send_is_kept_byte_for_byte() {
        let answer = r#"{"status":0 ,"message_token":6156995993335728388,"billing_status":1}"#;
        let events =
            call("send_message", "{ \"auth_token\" : \"tok-1\",\n \"receiver\":\"u==\", \"x\": 1.50}", Some(answer));
        assert_eq!(events[0].id, "send_message/6156995993335728388/u==");
        assert_eq!((events[0].kind.as_str(), events[0].time_us), ("com.viber.api.send_message", Some(T)));
        let wanted =
            format!("{{\"request\":{{ \"receiver\":\"u==\", \"x\": 1.50}},\"response\":{answer},\"http_status\":200}}");
        assert_eq!(data(&events[0]), wanted);
        assert!(matches!(read(&events[0], T).fact, Some(Fact::Outbound(_))));
    }

    #[test]
    fn the_token_is_in_no_event() {
        let broken = call("send_message", "{\"auth_token\":\"tok-1\", oops", Some("tok-1?"));
        assert!(!data(&broken[0]).contains("tok-1"), "{}", data(&broken[0]));
        assert_eq!(read(&broken[0], T).malformed, Some("status of the response cannot be read"));
    }

    #[test]
    fn a_broadcast_is_an_event_per_receiver() {
        let request = r#"{"broadcast_list":["a","b"],"type":"text"}"#;
        let answer = r#"{"status":0,"message_token":7,"failed_list":[{"receiver":"b","status":6}]}"#;
        let events = call("broadcast_message", request, Some(answer));
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].subject.as_deref(), events[0].id.as_str()), (Some("a"), "broadcast_message/7/a"));
        let wanted = r#"{"request":{"type":"text"},"response":"#.to_owned() + answer;
        assert_eq!(data(&events[0]), wanted.clone() + r#","http_status":200,"receiver":"a","receiver_status":0}"#);
        assert_eq!(data(&events[1]), wanted + r#","http_status":200,"receiver":"b","receiver_status":6}"#);
        let facts: Vec<bool> = events.iter().map(|event| read(event, T).fact.is_some()).collect();
        assert_eq!(facts, [true, false]);
    }

    #[test]
    fn what_no_log_would_take_is_left_out() {
        let events = call("send_message", &"\u{1}".repeat(1 << 20), Some(r#"{"status":3}"#));
        let wanted = r#"{"request":{"left_out":{"bytes":6291458,"sha256":""#;
        assert!(data(&events[0]).starts_with(wanted), "{}", &data(&events[0])[..200]);
        assert!(data(&events[0]).ends_with(r#""response":{"status":3},"http_status":200}"#));
    }

    #[test]
    fn a_start_is_told_of_before_its_result() {
        let accounts = Accounts::new([("shop".to_owned(), "tok-1".to_owned())]).unwrap();
        let clock = Clock::new(Arc::new(|| T));
        let of = |method: &str, request: &str| Call {
            account: accounts.named("shop").unwrap(),
            method: method.into(),
            request: request.into(),
            answer: None,
            id: None,
        };
        let mut send = of("send_message", r#"{"auth_token":"tok-1","receiver":"u==","text":"hi"}"#);
        let (id, started) = send.started(&clock);
        let digest = hex::encode(Sha256::digest(r#"{"receiver":"u==","text":"hi"}"#));
        let wanted = format!(r#"{{"call_id":"{id}","method":"send_message","receivers":["u=="],"digest":"{digest}"}}"#);
        assert_eq!((data(&started), started.id.as_str()), (wanted.as_str(), id.to_string().as_str()));
        assert_eq!((started.kind.as_str(), started.subject.as_deref()), ("counterbat.call.started", Some("u==")));
        assert_eq!(read(&started, T).fact, None);
        send.id = Some(id);
        send.answer = Some((200, br#"{"status":0,"message_token":7}"#.to_vec()));
        let result = &send.events(&clock)[0];
        assert!(data(result).starts_with(&format!(r#"{{"call_id":"{id}","request":{{"receiver""#)), "{}", data(result));
        assert!(matches!(read(result, T).fact, Some(Fact::Outbound(_))));
        let (_, broadcast) = of("broadcast_message", r#"{"broadcast_list":["a","b\""]}"#).started(&clock);
        assert!(data(&broadcast).contains(r#""receivers":["a","b\""],"#) && broadcast.subject.is_none());
        assert!(!of("get_online", "{}").is_send());
    }

    #[test]
    fn no_answer_is_recorded_as_none() {
        let events = call("send_message", r#"{"receiver":"u"}"#, None);
        assert_eq!(data(&events[0]), r#"{"request":{"receiver":"u"},"response":null,"http_status":null}"#);
        let reading = read(&events[0], T);
        assert!(reading.fact.is_none() && reading.malformed.is_none());
        assert_eq!(Disposition::Info.as_str(), "info");
    }

    #[test]
    fn details_are_of_a_user_and_a_refused_id_is_fresh() {
        let answer = r#"{"status":0,"user":{"id":"u","country":"UA"}}"#;
        let events = call("get_user_details", r#"{"id":"u"}"#, Some(answer));
        assert_eq!(events[0].subject.as_deref(), Some("u"));
        assert_eq!(read(&events[0], T).country.as_deref(), Some("UA"));
        let refused = call("send_message", r#"{"receiver":"u"}"#, Some(r#"{"status":12,"message_token":5}"#));
        assert!(Uuid::parse_str(&refused[0].id).is_ok());
    }
}
