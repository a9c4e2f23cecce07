//! What one event says: account, user, event time, and the fact it states, if any (spec §3). Pure.

use super::payload::{Call, Callback, Presence, Request, Scalar};
use super::{CALL_PREFIX, CALLBACK_PREFIX, Event, OWN_PREFIX};
use borsh::{BorshDeserialize, BorshSerialize};
use compact_str::CompactString;

/// A clock may be ahead by this much before it is not believed: 5 minutes (spec §2, §3).
pub const MAX_AHEAD_MS: i64 = 5 * 60 * 1000;
/// A callback may tell of the past by this much before its timestamp is not believed: 30 days (spec §3).
pub const MAX_BEHIND_MS: i64 = 30 * 24 * 3600 * 1000;

/// Where an event comes from, by its `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    Callback,
    Call,
    Own,
    Other,
}

impl Origin {
    /// The word of the `origin` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Origin::Callback => "callback",
            Origin::Call => "call",
            Origin::Own => "counterbat",
            Origin::Other => "other",
        }
    }

    /// The prefix that the `type` column leaves out.
    pub fn prefix(self) -> &'static str {
        match self {
            Origin::Callback => CALLBACK_PREFIX,
            Origin::Call => CALL_PREFIX,
            Origin::Own => OWN_PREFIX,
            Origin::Other => "",
        }
    }

    /// The origin of a word of the `origin` column.
    pub fn from_name(name: &str) -> Option<Self> {
        [Origin::Callback, Origin::Call, Origin::Own, Origin::Other].into_iter().find(|origin| origin.as_str() == name)
    }

    /// Splits a `type` into its origin and the rest.
    pub fn of(kind: &str) -> (Self, &str) {
        for origin in [Origin::Callback, Origin::Call, Origin::Own] {
            if let Some(rest) = kind.strip_prefix(origin.prefix()) {
                return (origin, rest);
            }
        }
        (Origin::Other, kind)
    }
}

/// What the fold made of a record (spec §3), in the order the tests are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Disposition {
    Malformed,
    Info,
    TooLate,
    Duplicate,
    Fact,
}

impl Disposition {
    /// All of them.
    pub const ALL: [Disposition; 5] =
        [Disposition::Malformed, Disposition::Info, Disposition::TooLate, Disposition::Duplicate, Disposition::Fact];

    /// The word of the `disposition` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Disposition::Malformed => "malformed",
            Disposition::Info => "info",
            Disposition::TooLate => "too_late",
            Disposition::Duplicate => "duplicate",
            Disposition::Fact => "fact",
        }
    }

    /// The disposition of a word of that column.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|disposition| disposition.as_str() == name)
    }
}

/// What became of a message at the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Receipt {
    Delivered,
    Seen,
    Failed,
}

impl Receipt {
    /// The callback's event name.
    pub fn as_str(self) -> &'static str {
        match self {
            Receipt::Delivered => "delivered",
            Receipt::Seen => "seen",
            Receipt::Failed => "failed",
        }
    }
}

/// The call a message went out by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize)]
pub enum Method {
    Broadcast,
    Send,
}

impl Method {
    /// The method's name in the API and in the tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Broadcast => "broadcast_message",
            Method::Send => "send_message",
        }
    }
}

/// An accepted send to one receiver.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Outbound {
    pub method: Method,
    pub billing_status: Option<i32>,
    pub message_type: Option<CompactString>,
    pub tracking_data: Option<CompactString>,
}

/// What an event states about its user (spec §3).
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Fact {
    Inbound,
    Outbound(Outbound),
    /// With the `desc` of a `failed`.
    Receipt(Receipt, Option<CompactString>),
    Unsubscribed,
    Subscribed,
}

/// One event, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<'a> {
    pub account: Option<&'a str>,
    pub user: Option<&'a str>,
    pub origin: Origin,
    /// `type` without the origin's prefix.
    pub kind: &'a str,
    pub token: Option<u64>,
    /// Event time `t`.
    pub t_ms: i64,
    /// `time` as the event has it (its append time where it has none).
    pub received_at_us: i64,
    /// `time` as it counts: the append time where `time` is more than 5 minutes ahead of it. Moves the watermark.
    pub time_ms: i64,
    /// Whether `time` or the callback's timestamp was not believed.
    pub skewed: bool,
    pub status: Option<i32>,
    pub billing_status: Option<i32>,
    pub message_type: Option<CompactString>,
    /// The country this event tells of its user.
    pub country: Option<CompactString>,
    pub fact: Option<Fact>,
    /// Why the record is malformed.
    pub malformed: Option<&'static str>,
}

/// The time in ms that a record counts with, and whether that is not its own: one bad clock does not move the watermark
/// (spec §2).
pub fn counted_time(received_at_us: i64, appended_at_us: i64) -> (i64, bool) {
    let ahead = received_at_us.saturating_sub(appended_at_us) > MAX_AHEAD_MS * 1000;
    (if ahead { appended_at_us } else { received_at_us }.div_euclid(1000), ahead)
}

/// What is asked of an event besides its data.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    pub origin: Origin,
    /// `type` without the origin's prefix.
    pub kind: &'a str,
    /// Of a `source` that names one.
    pub account: Option<&'a str>,
    pub subject: Option<&'a str>,
    /// `time` as the event has it (its append time where it has none).
    pub received_at_us: i64,
    pub appended_at_us: i64,
}

/// Reads an event appended at `appended_at_us`. Never fails: what cannot be read is `malformed`.
pub fn read(event: &Event, appended_at_us: i64) -> Reading<'_> {
    let (origin, kind) = Origin::of(&event.kind);
    let envelope = Envelope {
        origin,
        kind,
        account: event.account(),
        subject: event.subject.as_deref(),
        received_at_us: event.time_us.unwrap_or(appended_at_us),
        appended_at_us,
    };
    read_parts(envelope, &event.data)
}

/// [`read`] of an event in parts.
pub fn read_parts<'a>(envelope: Envelope<'a>, data: &[u8]) -> Reading<'a> {
    let Envelope { origin, kind, account, subject, received_at_us, appended_at_us } = envelope;
    let (time_ms, ahead) = counted_time(received_at_us, appended_at_us);
    let mut reading = Reading {
        account,
        user: subject.filter(|user| !user.is_empty()),
        origin,
        kind,
        token: None,
        t_ms: time_ms,
        received_at_us,
        time_ms,
        skewed: ahead,
        status: None,
        billing_status: None,
        message_type: None,
        country: None,
        fact: None,
        malformed: None,
    };
    match origin {
        Origin::Callback => read_callback(data, &mut reading),
        Origin::Call => read_call(data, &mut reading),
        Origin::Other if kind.is_empty() => {
            reading.malformed = Some("no CloudEvent: a type, an id, a source and specversion 1.0 are needed");
        }
        Origin::Own | Origin::Other => {}
    }
    if matches!(origin, Origin::Callback | Origin::Call) && reading.account.is_none() && reading.malformed.is_none() {
        reading.malformed = Some("source is not /accounts/<account>");
    }
    if reading.malformed.is_some() {
        reading.fact = None;
        reading.country = None;
    }
    reading
}

fn read_callback(data: &[u8], reading: &mut Reading<'_>) {
    let Some(callback) = Callback::parse(data) else {
        reading.skewed = true;
        reading.malformed = Some("data is no JSON object");
        return;
    };
    reading.token = callback.message_token.token();
    match believable(&callback.timestamp, reading.time_ms) {
        Some(t_ms) => reading.t_ms = t_ms,
        None => reading.skewed = true,
    }
    let country = |person: &Presence<super::payload::Person<'_>>| {
        person.object().and_then(|person| text(&person.country)).filter(|country| !country.is_empty())
    };
    reading.country = country(&callback.sender).or_else(|| country(&callback.user));
    let fact = match reading.kind {
        "message" => {
            reading.message_type = callback.message.object().and_then(|content| text(&content.kind));
            Fact::Inbound
        }
        "delivered" => Fact::Receipt(Receipt::Delivered, None),
        "seen" => Fact::Receipt(Receipt::Seen, None),
        "failed" => Fact::Receipt(Receipt::Failed, text(&callback.desc)),
        "unsubscribed" => Fact::Unsubscribed,
        "subscribed" => Fact::Subscribed,
        _ => return,
    };
    match (reading.user, reading.token) {
        (None, _) => reading.malformed = Some("no subject: the user is not known"),
        (_, None) => reading.malformed = Some("message_token is missing or no u64"),
        _ => reading.fact = Some(fact),
    }
}

fn read_call(data: &[u8], reading: &mut Reading<'_>) {
    let Some(call) = Call::parse(data) else {
        reading.malformed = Some("data is no JSON object");
        return;
    };
    let request = call.request.object();
    reading.message_type = request.and_then(|request| text(&request.kind));
    let response = call.response.object();
    let status = response.and_then(|response| response.status.number());
    reading.status = status.and_then(|status| i32::try_from(status).ok());
    if let Some(response) = response {
        reading.token = response.message_token.token();
        reading.billing_status = response.billing_status.number().and_then(|n| i32::try_from(n).ok());
        if reading.kind == "get_user_details" && status == Some(0) {
            reading.country =
                response.user.object().and_then(|user| text(&user.country)).filter(|country| !country.is_empty());
        }
    }
    let method = match reading.kind {
        "send_message" => Method::Send,
        "broadcast_message" => Method::Broadcast,
        _ => return,
    };
    if matches!(call.response, Presence::Missing | Presence::Null) {
        return;
    }
    let receiver_status = match &call.receiver_status {
        Scalar::Missing => Some(0),
        value => value.number(),
    };
    match (status, receiver_status, reading.user, reading.token) {
        (None, ..) => reading.malformed = Some("status of the response cannot be read"),
        (_, None, ..) => reading.malformed = Some("receiver_status cannot be read"),
        (Some(0), Some(0), None, _) => reading.malformed = Some("no subject: the receiver is not known"),
        (Some(0), Some(0), _, None) => reading.malformed = Some("message_token is missing or no u64"),
        (Some(0), Some(0), ..) => reading.fact = Some(Fact::Outbound(outbound(method, reading, request))),
        _ => {}
    }
}

fn outbound(method: Method, reading: &Reading<'_>, request: Option<&Request<'_>>) -> Outbound {
    Outbound {
        method,
        billing_status: reading.billing_status,
        message_type: reading.message_type.clone(),
        tracking_data: request.and_then(|request| text(&request.tracking_data)),
    }
}

/// The timestamp of a callback, unless it is no positive integer or too far from `time_ms` to be believed (spec §3).
fn believable(timestamp: &Scalar<'_>, time_ms: i64) -> Option<i64> {
    let Scalar::Int(t) = timestamp else { return None };
    let t_ms = i64::try_from(*t).ok().filter(|t| *t > 0)?;
    let earliest = time_ms.saturating_sub(MAX_BEHIND_MS);
    (earliest..=time_ms.saturating_add(MAX_AHEAD_MS)).contains(&t_ms).then_some(t_ms)
}

fn text(scalar: &Scalar<'_>) -> Option<CompactString> {
    scalar.text().map(CompactString::from)
}
