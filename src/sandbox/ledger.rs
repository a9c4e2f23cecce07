//! The ledger: what Viber accepted and what it told, to hold a gateway's records against.

use super::event::Event;
use bytes::Bytes;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A receiver of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receiver {
    pub id: Arc<str>,
    /// What Viber decided for this receiver.
    pub status: u16,
    pub billing_status: Option<u8>,
    /// Reported and charged against the rules, because that fault is on.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub misbilled: bool,
}

/// A call that was received.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Name of the bot; `None` where the token was wrong.
    pub bot: Option<Arc<str>>,
    /// As in the path; `welcome_message` for the one in the answer to `conversation_started`.
    pub method: &'static str,
    pub receivers: Vec<Receiver>,
    /// Viber's `status`; `None` where a fault had it that nothing was done.
    pub status: Option<u16>,
    /// HTTP status of the answer; `None` where the connection was closed instead.
    pub http_status: Option<u16>,
    pub message_token: Option<u64>,
    /// As answered: of a broadcast one for all.
    pub billing_status: Option<u8>,
    /// Sandbox time, ms since the epoch.
    pub decided_at_ms: i64,
    /// It was carried out, then the connection was closed without an answer.
    pub cut: bool,
}

/// One try at telling a callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// When it was over, sandbox time, ms since the epoch.
    pub at_ms: i64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An HTTP status.
    HttpStatus(u16),
    /// No answer: `timeout`, `connect`, `broken` or `no_webhook`.
    Error(&'static str),
}

impl Outcome {
    /// Only 200 acknowledges.
    pub fn is_acknowledged(self) -> bool {
        self == Outcome::HttpStatus(200)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::HttpStatus(status) => write!(f, "HTTP {status}"),
            Outcome::Error(why) => write!(f, "no answer ({why})"),
        }
    }
}

/// A callback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Callback {
    pub bot: Arc<str>,
    pub event: Event,
    pub message_token: u64,
    pub user: Option<Arc<str>>,
    /// As in the body: sandbox time, ms since the epoch.
    pub timestamp_ms: i64,
    /// The very bytes that are sent; text in JSON.
    #[serde(serialize_with = "as_text")]
    pub body: Bytes,
    /// The user's message opened a session.
    pub opens_session: bool,
    /// Never sent, because that fault is on.
    pub lost: bool,
    pub attempts: Vec<Attempt>,
    pub acknowledged: bool,
}

fn as_text<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}

/// One line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    Call(Call),
    Callback(Callback),
}

/// What to read of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    All,
    Calls,
    Callbacks,
}

/// Counts of one event's callbacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    pub told: u64,
    pub attempts: u64,
    pub acknowledged: u64,
    /// All retries failed, or there was no webhook any more.
    pub given_up: u64,
    /// Never sent, because that fault is on.
    pub lost: u64,
}

/// Counts since the start; nothing is forgotten here when the ledger drops old lines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// By method, then `status`; `fault` where nothing was done.
    pub calls: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Messages accepted, by what they were billed as.
    pub accepted: BTreeMap<u8, u64>,
    pub misbilled: u64,
    /// Carried out, but not answered.
    pub cut: u64,
    pub sessions_opened: u64,
    pub callbacks: BTreeMap<&'static str, Told>,
    /// Lines the ledger no longer has.
    pub dropped: u64,
}

impl Counts {
    /// Callbacks that are still being tried.
    pub fn outstanding(&self) -> u64 {
        let told = self.callbacks.values();
        told.map(|event| event.told.saturating_sub(event.acknowledged + event.given_up + event.lost)).sum()
    }
}

struct Inner {
    entries: VecDeque<Entry>,
    /// Number of the first line held.
    first: u64,
    counts: Counts,
}

/// The ledger. At most `capacity` lines; the oldest are dropped.
pub struct Ledger {
    inner: Mutex<Inner>,
    capacity: usize,
}

impl Ledger {
    /// An empty one.
    pub fn new(capacity: usize) -> Self {
        let inner = Inner { entries: VecDeque::new(), first: 0, counts: Counts::default() };
        Self { inner: Mutex::new(inner), capacity: capacity.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, inner: &mut Inner, entry: Entry) -> u64 {
        if inner.entries.len() == self.capacity {
            inner.entries.pop_front();
            inner.first += 1;
            inner.counts.dropped += 1;
        }
        inner.entries.push_back(entry);
        inner.first + inner.entries.len() as u64 - 1
    }

    /// A call was received and decided.
    pub fn called(&self, call: Call) {
        let mut inner = self.lock();
        let status = call.status.map_or_else(|| "fault".to_owned(), |status| status.to_string());
        *inner.counts.calls.entry(call.method).or_default().entry(status).or_default() += 1;
        for receiver in &call.receivers {
            if let Some(billing_status) = receiver.billing_status {
                *inner.counts.accepted.entry(billing_status).or_default() += 1;
            }
            inner.counts.misbilled += u64::from(receiver.misbilled);
        }
        inner.counts.cut += u64::from(call.cut);
        self.add(&mut inner, Entry::Call(call));
    }

    /// A session was opened by a user's message.
    pub fn session_opened(&self) {
        self.lock().counts.sessions_opened += 1;
    }

    /// There is a callback to tell: the number of its line.
    pub fn told(&self, callback: Callback) -> u64 {
        let mut inner = self.lock();
        let counts = inner.counts.callbacks.entry(callback.event.name()).or_default();
        counts.told += 1;
        counts.lost += u64::from(callback.lost);
        self.add(&mut inner, Entry::Callback(callback))
    }

    /// A callback was tried; `is_last` where it will not be tried again although nobody acknowledged it.
    pub fn attempted(&self, line: u64, event: Event, attempt: Attempt, is_last: bool) {
        let mut inner = self.lock();
        let acknowledged = attempt.outcome.is_acknowledged();
        let counts = inner.counts.callbacks.entry(event.name()).or_default();
        counts.attempts += 1;
        counts.acknowledged += u64::from(acknowledged);
        counts.given_up += u64::from(is_last && !acknowledged);
        let place = line.checked_sub(inner.first).and_then(|place| usize::try_from(place).ok());
        if let Some(Entry::Callback(callback)) = place.and_then(|place| inner.entries.get_mut(place)) {
            callback.attempts.push(attempt);
            callback.acknowledged |= acknowledged;
        }
    }

    /// Counts since the start.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Number the next line will get.
    pub fn end(&self) -> u64 {
        let inner = self.lock();
        inner.first + inner.entries.len() as u64
    }

    /// Lines from number `since` on with their numbers, at most `limit`, and the number to go on from. Lines of callbacks
    /// change while they are tried.
    pub fn read(&self, since: u64, lines: Lines, limit: usize) -> (Vec<(u64, Entry)>, u64) {
        let inner = self.lock();
        let from = since.max(inner.first);
        let skip = usize::try_from(from - inner.first).unwrap_or(usize::MAX);
        let mut next = from;
        let mut found = Vec::new();
        for entry in inner.entries.iter().skip(skip) {
            if found.len() == limit {
                break;
            }
            let wanted = match entry {
                Entry::Call(_) => lines != Lines::Callbacks,
                Entry::Callback(_) => lines != Lines::Calls,
            };
            if wanted {
                found.push((next, entry.clone()));
            }
            next += 1;
        }
        (found, next)
    }

    /// All calls it has, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        let call = |(_, entry)| if let Entry::Call(call) = entry { Some(call) } else { None };
        self.read(0, Lines::Calls, usize::MAX).0.into_iter().filter_map(call).collect()
    }

    /// All callbacks it has, oldest first.
    pub fn callbacks(&self) -> Vec<Callback> {
        let callback = |(_, entry)| if let Entry::Callback(callback) = entry { Some(callback) } else { None };
        self.read(0, Lines::Callbacks, usize::MAX).0.into_iter().filter_map(callback).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(status: u16, billing_status: Option<u8>) -> Call {
        let receiver = Receiver { id: "u==".into(), status, billing_status, misbilled: false };
        Call {
            bot: Some("shop".into()),
            method: "send_message",
            receivers: vec![receiver],
            status: Some(status),
            http_status: Some(200),
            message_token: Some(5),
            billing_status,
            decided_at_ms: 7,
            cut: false,
        }
    }

    fn callback(token: u64) -> Callback {
        Callback {
            bot: "shop".into(),
            event: Event::Message,
            message_token: token,
            user: Some("u==".into()),
            timestamp_ms: 7,
            body: "{}".into(),
            opens_session: true,
            lost: false,
            attempts: Vec::new(),
            acknowledged: false,
        }
    }

    #[test]
    fn a_callback_is_acknowledged_by_200_alone() {
        let ledger = Ledger::new(10);
        let line = ledger.told(callback(1));
        let refused = Attempt { at_ms: 8, outcome: Outcome::HttpStatus(204) };
        let lost = Attempt { at_ms: 9, outcome: Outcome::Error("timeout") };
        let taken = Attempt { at_ms: 10, outcome: Outcome::HttpStatus(200) };
        for (attempt, outstanding) in [(&refused, 1), (&lost, 1), (&taken, 0)] {
            ledger.attempted(line, Event::Message, attempt.clone(), false);
            assert_eq!(ledger.counts().outstanding(), outstanding);
        }
        let one = &ledger.callbacks()[0];
        assert!(one.acknowledged);
        assert_eq!(one.attempts, [refused, lost, taken]);
    }

    #[test]
    fn old_lines_go_and_counts_stay() {
        let ledger = Ledger::new(2);
        let line = ledger.told(callback(1));
        ledger.called(call(0, Some(1)));
        ledger.called(call(6, None));
        assert_eq!(ledger.end(), 3);
        // Its line is gone; it counts all the same.
        ledger.attempted(line, Event::Message, Attempt { at_ms: 8, outcome: Outcome::HttpStatus(200) }, false);
        let counts = ledger.counts();
        assert_eq!((counts.dropped, counts.outstanding(), counts.accepted[&1]), (1, 0, 1));
        assert_eq!(counts.calls["send_message"]["6"], 1);
        assert!(ledger.callbacks().is_empty());
        let (lines, next) = ledger.read(0, Lines::All, 1);
        assert_eq!((lines.len(), lines[0].0, next), (1, 1, 2));
        assert_eq!(ledger.read(next, Lines::Callbacks, 9), (vec![], 3));
        assert_eq!(ledger.read(99, Lines::All, 9), (vec![], 99));
    }

    #[test]
    fn lines_as_json() {
        let line = serde_json::to_string(&Entry::Call(call(0, Some(3)))).unwrap();
        assert_eq!(
            line,
            r#"{"kind":"call","bot":"shop","method":"send_message","receivers":[{"id":"u==","status":0,"billing_status":3}],"status":0,"http_status":200,"message_token":5,"billing_status":3,"decided_at_ms":7,"cut":false}"#
        );
        let mut one = callback(1);
        one.attempts = vec![Attempt { at_ms: 8, outcome: Outcome::Error("connect") }];
        let line = serde_json::to_string(&Entry::Callback(one)).unwrap();
        assert!(line.contains(r#""event":"message""#) && line.contains(r#"[{"at_ms":8,"error":"connect"}]"#), "{line}");
    }
}
