//! What is recorded of a call, and the way into the log.

use super::accounts::Account;
use super::clock::Clock;
use super::json::{embedded, without};
use crate::event::identity::event_id;
use crate::event::payload::{Request, Response};
use crate::event::{CALL_PREFIX, Event};
use crate::log::partitioner::partition;
use crate::log::{EventLog, LogError};
use crate::metrics::Metrics;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Viber takes no more receivers in one broadcast; a refused request that names more is recorded as it is.
const MAX_RECEIVERS: usize = 300;
/// The method of a welcome message, which is no call.
const WELCOME: &str = "welcome_message";
/// For so long after an append or a probe the log counts as writable.
const WRITABLE_FOR: Duration = Duration::from_secs(1);

/// A call and what came of it.
pub struct Call {
    pub account: Arc<Account>,
    pub method: String,
    pub request: Vec<u8>,
    /// HTTP status and body; `None` where there was no answer.
    pub answer: Option<(u16, Vec<u8>)>,
}

impl Call {
    /// Viber's `status`, where the answer has one.
    pub fn status(&self) -> Option<i64> {
        let (_, body) = self.answer.as_ref()?;
        Response::parse(body)?.status.number().and_then(|n| i64::try_from(n).ok())
    }

    /// The events of the call (spec §2), in order.
    pub fn events(&self, clock: &Clock) -> Vec<Event> {
        let time_us = clock.call_us();
        let request = Request::parse(&self.request).unwrap_or_default();
        let response = self.answer.as_ref().and_then(|(_, body)| Response::parse(body)).unwrap_or_default();
        let accepted = response.status.number() == Some(0);
        let token = response.message_token.token().filter(|_| accepted);
        let tail = self.tail();
        let receivers = self.receivers(accepted);
        if !receivers.is_empty() {
            let request = self.account.redact(without(&self.request, &["auth_token", "broadcast_list"]));
            let failed = self.failed_list();
            let event = |receiver: String| {
                let status = failed.iter().find(|(failed, _)| *failed == receiver).map_or("0", |(_, status)| status);
                let name = Value::from(receiver.as_str());
                let data = format!("{{\"request\":{request}{tail},\"receiver\":{name},\"receiver_status\":{status}}}");
                self.event(data, Some(receiver), token, time_us)
            };
            return receivers.into_iter().map(event).collect();
        }
        let user = match self.method.as_str() {
            "send_message" => request.receiver.text(),
            "get_user_details" => request.id.text(),
            _ => None,
        };
        let text = self.account.redact(without(&self.request, &["auth_token"]));
        let user = user.filter(|user| !user.is_empty()).map(str::to_owned);
        vec![self.event(format!("{{\"request\":{text}{tail}}}"), user, token, time_us)]
    }

    /// `,"response":…,"http_status":…`.
    fn tail(&self) -> String {
        match &self.answer {
            Some((http_status, body)) => {
                let body = self.account.redact(embedded(body));
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

    /// The receivers of a broadcast; none of any other call.
    fn receivers(&self, accepted: bool) -> Vec<String> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            broadcast_list: Vec<Value>,
        }
        if self.method != "broadcast_message" {
            return Vec::new();
        }
        let list = serde_json::from_slice::<List>(&self.request).map(|list| list.broadcast_list).unwrap_or_default();
        if list.len() > MAX_RECEIVERS && !accepted {
            return Vec::new();
        }
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

/// The way into the log. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    log: Arc<dyn EventLog>,
    metrics: Arc<Metrics>,
    /// When the log was last known to be writable.
    known: Arc<Mutex<Option<Instant>>>,
    probing: Arc<tokio::sync::Mutex<()>>,
    /// Events that wait to be appended although what they tell of is done.
    waiting: Arc<AtomicU64>,
    pub(super) tasks: TaskTracker,
}

impl Recorder {
    /// Into this log.
    pub fn new(log: Arc<dyn EventLog>, metrics: Arc<Metrics>) -> Self {
        let (known, probing, waiting) = (Arc::default(), Arc::default(), Arc::default());
        Self { log, metrics, known, probing, waiting, tasks: TaskTracker::new() }
    }

    /// Appends events, each to the partition of its user. `Ok` once they are durable.
    pub async fn append(&self, events: Vec<Event>) -> Result<(), LogError> {
        let partitions = self.log.partitions();
        let batch = events.into_iter().map(|event| (partition(event.key().as_bytes(), partitions), event)).collect();
        let started = Instant::now();
        let appended = self.log.append(batch).await;
        self.metrics.append_took(started.elapsed());
        self.know(appended.is_ok());
        appended.map(|_| ())
    }

    /// Appends what must not be lost although it was carried out already: when the log refuses, it is tried again in the
    /// background until it is taken.
    pub async fn append_surely(&self, events: Vec<Event>) {
        let Err(error) = self.append(events.clone()).await else { return };
        let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).take(10).collect();
        tracing::error!(%error, ?ids, events = events.len(), "a relayed call is not recorded yet; trying on");
        let (recorder, n) = (self.clone(), events.len() as u64);
        self.wait_for_log(n);
        self.tasks.spawn(async move {
            let mut pause = Duration::from_millis(100);
            loop {
                tokio::time::sleep(pause).await;
                match recorder.append(events.clone()).await {
                    Ok(()) => {
                        recorder.no_longer_waits(n);
                        tracing::info!(events = n, "a relayed call is recorded at last");
                        return;
                    }
                    Err(error) => tracing::warn!(%error, events = n, "a relayed call is still not recorded"),
                }
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        });
    }

    /// How many events wait for the log.
    pub fn unrecorded(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    fn wait_for_log(&self, n: u64) {
        self.metrics.unrecorded(self.waiting.fetch_add(n, Ordering::AcqRel) + n);
    }

    fn no_longer_waits(&self, n: u64) {
        self.metrics.unrecorded(self.waiting.fetch_sub(n, Ordering::AcqRel) - n);
    }

    /// Whether an append would be taken now. Costs nothing while appends succeed.
    pub async fn check_writable(&self) -> Result<(), LogError> {
        if self.is_known() {
            return Ok(());
        }
        // One probe answers for all who wait.
        let _probing = self.probing.lock().await;
        if self.is_known() {
            return Ok(());
        }
        let checked = self.log.check_writable().await;
        self.know(checked.is_ok());
        checked
    }

    fn know(&self, writable: bool) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = writable.then(Instant::now);
    }

    fn is_known(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < WRITABLE_FOR)
    }
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
