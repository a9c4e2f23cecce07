//! Where each record lies once all are folded.

use super::{Archived, Costs, Counts, Meaning, Original, Reported, is_folded, message_cost, placed};
use crate::event::payload::{Call, Presence, Scalar};
use crate::event::{Disposition, Fact, Method, Origin, Outbound, Reading, Receipt};
use crate::session::policy::Anchor;
use crate::session::row::{CloseReason, Kind, MessageRow, SessionRow};
use crate::session::{Rows, Terms};
use std::collections::BTreeMap;

/// What copies have in common (spec §3).
type Identity = (&'static str, u64);

/// Records that say the same.
struct Copies {
    /// The one that came first.
    first: usize,
    /// The one that counts.
    counts: usize,
}

/// The rows, and which records they come from.
pub(super) struct Placing<'a> {
    rows: &'a Rows,
    terms: &'a Terms,
    archived: &'a [Archived],
    readings: &'a [Reading<'a>],
    copies: BTreeMap<Identity, Copies>,
}

impl<'a> Placing<'a> {
    pub fn new(rows: &'a Rows, terms: &'a Terms, archived: &'a [Archived], readings: &'a [Reading<'a>]) -> Self {
        let mut copies: BTreeMap<Identity, Copies> = BTreeMap::new();
        for (at, reading) in readings.iter().enumerate().filter(|(at, _)| is_folded(&archived[*at])) {
            let Some(identity) = identity(reading) else { continue };
            let known = copies.entry(identity).or_insert(Copies { first: at, counts: at });
            if order(reading) < order(&readings[known.counts]) {
                known.counts = at;
            }
        }
        Self { rows, terms, archived, readings, copies }
    }

    /// Of a copy: the record that came first.
    pub fn copy_of(&self, at: usize) -> Option<Original> {
        let copies = self.copies.get(&identity(&self.readings[at])?)?;
        let first = &self.archived[copies.first];
        (first.record.offset < self.archived[at].record.offset && is_folded(&self.archived[at])).then(|| Original {
            partition: first.partition,
            offset: first.record.offset,
            received_us: self.readings[copies.first].received_at_us,
            is_replaced: copies.counts == at,
        })
    }

    /// What a record says, and how it counts.
    pub fn meaning(&self, at: usize, costs: &Costs) -> Meaning {
        let (one, reading) = (&self.archived[at], &self.readings[at]);
        match (one.disposition, &reading.fact, reading.token) {
            (Disposition::Malformed, ..) => {
                let misplaced = "it lies in a partition where its key does not belong: its producer must use Kafka's \
                                 default partitioner (murmur2)";
                Meaning::Malformed { reason: reading.malformed.unwrap_or(misplaced).to_owned() }
            }
            (Disposition::TooLate, ..) if !one.folded_late => {
                let behind_ms = reading.time_ms.saturating_sub(reading.t_ms);
                Meaning::TooLate { behind_ms, lateness_ms: Some(self.terms.settle_lateness_ms) }
            }
            (_, Some(fact), Some(token)) => self.fact(fact, token, at, costs),
            _ => Meaning::Nothing { reason: nothing(one, reading) },
        }
    }

    fn fact(&self, fact: &Fact, token: u64, at: usize, costs: &Costs) -> Meaning {
        let counting = identity(&self.readings[at]).and_then(|identity| self.copies.get(&identity));
        let counting = &self.readings[counting.map_or(at, |copies| copies.counts)];
        match fact {
            Fact::Inbound => self.inbound(token, counting.t_ms),
            Fact::Outbound(_) => self.outbound(token, self.reported(at), costs),
            Fact::Receipt(kind, failure) => Meaning::Receipt {
                receipt: kind.as_str(),
                counts: self.receipt(token, counting.t_ms),
                failure: failure.as_ref().map(ToString::to_string),
            },
            Fact::Unsubscribed => {
                let closed = Some((counting.t_ms, CloseReason::Unsubscribed));
                Meaning::Unsubscribed { closes: self.sessions(|row| row.closed == closed).map(placed).collect() }
            }
            Fact::Subscribed => Meaning::Subscribed,
        }
    }

    fn sessions(&self, fits: impl Fn(&SessionRow) -> bool) -> impl DoubleEndedIterator<Item = &'a SessionRow> {
        self.rows.sessions.iter().filter(move |row| fits(row))
    }

    fn inbound(&self, token: u64, t_ms: i64) -> Meaning {
        let mut opened =
            self.sessions(|row| row.kind == Kind::Service && row.opened_at_ms == t_ms && row.opened_by_token == token);
        if let Some(row) = opened.next_back() {
            return Meaning::Inbound { session: Some(placed(row)), opens: true, end_ms: None };
        }
        // A message comes before what closes a session at the same time, but not before the end of a window.
        let is_in = |row: &SessionRow| {
            let reaches = match row.closed {
                Some((end_ms, CloseReason::Cap | CloseReason::Unsubscribed)) => t_ms <= end_ms,
                Some((end_ms, CloseReason::Expired)) => t_ms < end_ms,
                None => true,
            };
            row.kind == Kind::Service && row.opened_at_ms <= t_ms && reaches
        };
        let session = self.sessions(is_in).next_back();
        let end_ms = session.and_then(|row| {
            let service = &self.terms.policies.at(row.opened_at_ms).service;
            let limit_ms = service.max_length_ms.map_or(i64::MAX, |max_ms| row.opened_at_ms.saturating_add(max_ms));
            (service.anchor == Anchor::Last).then(|| t_ms.saturating_add(service.length_ms).min(limit_ms))
        });
        Meaning::Inbound { session: session.map(placed), opens: false, end_ms }
    }

    fn message(&self, token: u64) -> Option<&'a MessageRow> {
        self.rows.messages.iter().find(|row| row.message_token == token)
    }

    /// What a send says itself of its billing_status, counted or not.
    fn reported(&self, at: usize) -> Reported {
        if let Some(status) = self.readings[at].billing_status {
            return Reported::Status(status);
        }
        let call = Call::parse(&self.archived[at].record.event.data);
        let said = call.as_ref().and_then(|call| call.response.object()).map(|response| &response.billing_status);
        match said {
            None | Some(Scalar::Missing | Scalar::Null) => Reported::Nothing,
            Some(_) => Reported::Unreadable,
        }
    }

    fn outbound(&self, token: u64, told: Reported, costs: &Costs) -> Meaning {
        let Some(row) = self.message(token) else {
            return Meaning::Nothing { reason: "nothing is left of it".to_owned() };
        };
        let session = row.session_id.and_then(|id| self.rows.sessions.iter().find(|session| session.session_id == id));
        let before = |other: &&MessageRow| {
            other.session_id == row.session_id
                && (other.sent_at_ms, other.message_token) <= (row.sent_at_ms, row.message_token)
        };
        let number = match session {
            Some(_) => u32::try_from(self.rows.messages.iter().filter(before).count()).unwrap_or(u32::MAX),
            None => 0,
        };
        let closes = session.is_some_and(|session| {
            session.closed == Some((row.sent_at_ms, CloseReason::Cap)) && session.outbound == number
        });
        Meaning::Outbound {
            expected: row.expected,
            billing_status: row.billing_status,
            told,
            is_broadcast: row.method == Method::Broadcast,
            verdict: row.verdict,
            session: session.map(placed),
            opens: session.is_some_and(|session| session.kind == Kind::Paid && session.opened_by_token == token),
            number,
            closes,
            cost: message_cost(token, costs),
        }
    }

    fn receipt(&self, token: u64, t_ms: i64) -> Counts {
        let Some(message) = self.message(token) else { return Counts::Unmatched };
        let (after_ms, window_ms) = (t_ms.saturating_sub(message.sent_at_ms), self.terms.delivery_window_ms);
        if after_ms < window_ms { Counts::For { after_ms } } else { Counts::TooLong { after_ms, window_ms } }
    }
}

fn identity(reading: &Reading<'_>) -> Option<Identity> {
    let name = match reading.fact.as_ref()? {
        Fact::Inbound => "inbound",
        Fact::Outbound(_) => "outbound",
        Fact::Receipt(kind, _) => kind.as_str(),
        Fact::Unsubscribed => "unsubscribed",
        Fact::Subscribed => "subscribed",
    };
    Some((name, reading.token?))
}

/// What decides between copies: of all the smallest counts (spec §3).
fn order<'a>(reading: &'a Reading<'_>) -> (i64, bool, Option<i32>, &'a str, &'a str, &'a str) {
    match &reading.fact {
        Some(Fact::Outbound(Outbound { method, billing_status, message_type, tracking_data })) => (
            reading.t_ms,
            billing_status.is_none(),
            *billing_status,
            method.as_str(),
            message_type.as_deref().unwrap_or_default(),
            tracking_data.as_deref().unwrap_or_default(),
        ),
        Some(Fact::Receipt(Receipt::Failed, failure)) => {
            (reading.t_ms, failure.is_some(), None, failure.as_deref().unwrap_or_default(), "", "")
        }
        _ => (reading.t_ms, false, None, "", "", ""),
    }
}

/// Why a record is no fact.
fn nothing(one: &Archived, reading: &Reading<'_>) -> String {
    let is_send = matches!(reading.kind, "send_message" | "broadcast_message");
    match (reading.origin, reading.kind) {
        (Origin::Call, "welcome_message") => "a welcome message is free, and lies in no session".to_owned(),
        (Origin::Call, _) if is_send => refusal(one, reading),
        (Origin::Call, _) => "a call that sends no message to a user opens nothing".to_owned(),
        (Origin::Callback, "conversation_started") => {
            "a conversation that is started opens no session, only a message does".to_owned()
        }
        (Origin::Callback, _) => "a callback of this kind opens nothing".to_owned(),
        (Origin::Own, "call.started") => "the start of a call, recorded before it was relayed".to_owned(),
        (Origin::Own, _) => "Counterbat's own word, no fact of a user".to_owned(),
        (Origin::Other, _) => "a type that is not Viber's: recorded, and counted for nothing".to_owned(),
    }
}

/// Why a send counts for nothing.
fn refusal(one: &Archived, reading: &Reading<'_>) -> String {
    let Some(call) = Call::parse(&one.record.event.data) else { return "its data cannot be read".to_owned() };
    match (&call.response, reading.status) {
        (Presence::Missing | Presence::Null, _) => {
            "no answer of Viber is recorded: it may have been sent or not, and counts for nothing".to_owned()
        }
        (_, Some(0)) => match call.receiver_status.number() {
            Some(status) => format!("Viber refused this receiver with status {status}: it counts for nothing"),
            None => "Viber's answer about this receiver cannot be read".to_owned(),
        },
        (_, Some(status)) => format!("Viber refused it with status {status}: it counts for nothing"),
        (_, None) => "the status of Viber's answer cannot be read".to_owned(),
    }
}
