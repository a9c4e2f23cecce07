//! What became of the events of one user, and why: the fold, told step by step. Pure.
//!
//! The records of a user are folded in order of arrival, by the same [`User`] that makes the tables; what is told is how each
//! of them counts once all are known. [`words`] says it for people.

mod placing;
mod values;
pub mod words;

#[cfg(test)]
mod tests;

use crate::event::reading::counted_time;
use crate::event::{Disposition, Origin, Reading, Record, read};
use crate::session::change;
use crate::session::row::{CloseReason, Expected, Kind, MessageRow, SessionRow, Verdict};
use crate::session::{Rows, Terms, User};
use placing::Placing;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A record of the archive.
#[derive(Debug, Clone)]
pub struct Archived {
    pub partition: u32,
    pub record: Record,
    pub disposition: Disposition,
    /// Whether a rebuild has folded it in though it came too late.
    pub folded_late: bool,
}

/// What a message or a session costs, as the tables have it: a decimal number and its currency.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    pub amount: Option<String>,
    pub currency: Option<String>,
    /// Why there is no amount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<NoCost>,
}

/// Why a row has no cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoCost {
    /// The tables do not have the row.
    NoRow,
    /// A charged message has no price.
    NoPrice,
    /// Messages of a session were charged in these currencies, which have no sum.
    Currencies(Vec<String>),
    /// The sum has more digits than the column.
    TooLarge,
}

/// What the tables have for the rows of a user.
#[derive(Debug, Clone, Default)]
pub struct Costs {
    /// By token.
    pub messages: BTreeMap<u64, Cost>,
    /// By session id in hex.
    pub sessions: BTreeMap<String, Cost>,
    /// The sessions that time has not ended yet, by id in hex.
    pub open: BTreeSet<String>,
}

/// All that is known of one user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Story {
    pub account: Option<String>,
    pub user_id: Option<String>,
    /// In order of arrival.
    pub steps: Vec<Step>,
    pub sessions: Vec<Told>,
}

/// One record, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub partition: u32,
    pub offset: u64,
    pub event_id: String,
    /// `callback message`, `call send_message`, or a foreign type.
    pub event: String,
    #[serde(serialize_with = "values::token")]
    pub message_token: Option<u64>,
    #[serde(rename = "received_at", serialize_with = "values::us")]
    pub received_us: i64,
    /// The time it counts with.
    #[serde(rename = "event_time", serialize_with = "values::ms")]
    pub t_ms: i64,
    pub skew: Option<Skew>,
    #[serde(serialize_with = "values::disposition")]
    pub disposition: Disposition,
    /// The record whose copy this is.
    pub duplicate_of: Option<Original>,
    pub meaning: Meaning,
    /// Rows of earlier records that are others since it came.
    pub changed: Vec<Changed>,
    /// The same in sentences.
    pub words: Vec<String>,
}

/// Why a time was not believed (spec §2, §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Skew {
    /// Its `time` lies so far ahead of the log's clock (ms): it counts as of its append.
    Ahead {
        ahead_ms: i64,
        #[serde(rename = "appended_at", serialize_with = "values::ms")]
        appended_ms: i64,
    },
    /// The callback's timestamp cannot be right: it counts as of its receipt.
    Timestamp,
}

/// An earlier record that says the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Original {
    pub partition: u32,
    pub offset: u64,
    #[serde(rename = "received_at", serialize_with = "values::us")]
    pub received_us: i64,
    /// Whether of all copies the later one counts, being the smallest.
    pub is_replaced: bool,
}

/// What a record says, and how it counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Meaning {
    Malformed {
        reason: String,
    },
    /// No fact: why it counts for nothing.
    Nothing {
        reason: String,
    },
    /// Nobody has folded it in.
    TooLate {
        behind_ms: i64,
        lateness_ms: Option<i64>,
    },
    Inbound {
        session: Option<Placed>,
        opens: bool,
        /// Where it has moved the end of its session, in ms.
        #[serde(rename = "end_moved_to", serialize_with = "values::optional_ms")]
        end_ms: Option<i64>,
    },
    Outbound {
        #[serde(serialize_with = "values::word")]
        expected: Expected,
        /// Of the copy that counts.
        billing_status: Option<i32>,
        /// What this record itself says of it.
        told: Reported,
        is_broadcast: bool,
        #[serde(serialize_with = "values::word")]
        verdict: Verdict,
        session: Option<Placed>,
        opens: bool,
        /// Which message of its session it is.
        number: u32,
        /// Whether it is the last one that its session may have.
        closes: bool,
        cost: Cost,
    },
    Receipt {
        receipt: &'static str,
        counts: Counts,
        failure: Option<String>,
    },
    Unsubscribed {
        closes: Vec<Placed>,
    },
    Subscribed,
}

/// What a record says of `billing_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reported {
    Status(i32),
    Nothing,
    /// Something that is no whole number: it counts as none.
    Unreadable,
}

/// How a receipt counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counts {
    /// For the message that was sent so long before.
    For { after_ms: i64 },
    /// Outside of the delivery window.
    TooLong { after_ms: i64, window_ms: i64 },
    /// There is no message with its token.
    Unmatched,
}

/// A session that something lies in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placed {
    pub session_id: String,
    #[serde(serialize_with = "values::word")]
    pub kind: Kind,
    #[serde(rename = "opened_at", serialize_with = "values::ms")]
    pub opened_ms: i64,
    /// When it ends, if nothing more happens.
    #[serde(rename = "ends_at", serialize_with = "values::ms")]
    pub ends_ms: i64,
    pub policy: String,
}

/// A session as all facts make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    #[serde(flatten)]
    pub session: Placed,
    /// `None` while it is open.
    #[serde(serialize_with = "values::optional_word")]
    pub close_reason: Option<CloseReason>,
    #[serde(serialize_with = "values::sure_token")]
    pub opened_by_token: u64,
    pub inbound: u32,
    pub outbound: u32,
    pub charged: u32,
    pub overcharged: u32,
    pub cost: Cost,
    pub words: Vec<String>,
}

/// A message that counts otherwise since a record came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    #[serde(serialize_with = "values::sure_token")]
    pub message_token: u64,
    #[serde(serialize_with = "values::word")]
    pub was: Expected,
    #[serde(serialize_with = "values::word")]
    pub is: Expected,
}

/// Tells the records of one user, in order of arrival, as they are folded under `terms`. Records without account or user
/// are told too, and fold to nothing.
pub fn tell(account: Option<&str>, user: Option<&str>, archived: &[Archived], terms: &Terms, costs: &Costs) -> Story {
    // What was too late is known from the archive, and of what was not nothing is.
    let terms = &Terms { lateness_ms: None, ..terms.clone() };
    let readings: Vec<Reading<'_>> =
        archived.iter().map(|one| read(&one.record.event, one.record.appended_at_us)).collect();
    let (names, mut fold) = ((account.unwrap_or_default(), user.unwrap_or_default()), User::default());
    let mut changed = Vec::with_capacity(archived.len());
    let mut newest_ms = i64::MIN;
    for (one, reading) in archived.iter().zip(&readings) {
        if !is_folded(one) {
            changed.push(Vec::new());
            continue;
        }
        // Only what comes out of order changes what was folded before.
        let before = (reading.t_ms <= newest_ms).then(|| rows(&fold, names, terms));
        fold.apply(reading, None, terms);
        changed.push(before.map_or_else(Vec::new, |before| changes(&before, &rows(&fold, names, terms))));
        if reading.fact.is_some() {
            newest_ms = newest_ms.max(reading.t_ms);
        }
    }
    let all = rows(&fold, names, terms);
    let placing = Placing::new(&all, terms, archived, &readings);
    let steps = archived.iter().zip(&readings).zip(changed).enumerate();
    let steps = steps.map(|(at, ((one, reading), changed))| {
        let mut step = Step {
            partition: one.partition,
            offset: one.record.offset,
            event_id: one.record.event.id.clone(),
            event: event_name(reading),
            message_token: reading.token,
            received_us: reading.received_at_us,
            t_ms: reading.t_ms,
            skew: skew(one, reading),
            disposition: one.disposition,
            duplicate_of: placing.copy_of(at),
            meaning: placing.meaning(at, costs),
            changed,
            words: Vec::new(),
        };
        step.words = words::of_step(&step, reading.origin);
        step
    });
    let steps = steps.collect();
    let sessions = all.sessions.iter().map(|row| told(row, &all, costs)).collect();
    Story { account: account.map(str::to_owned), user_id: user.map(str::to_owned), steps, sessions }
}

/// Whether a record is part of the rows.
fn is_folded(one: &Archived) -> bool {
    match one.disposition {
        Disposition::Malformed => false,
        Disposition::TooLate => one.folded_late,
        Disposition::Info | Disposition::Duplicate | Disposition::Fact => true,
    }
}

/// All rows, each session as it ends if nothing more happens.
fn rows(user: &User, (account, name): (&str, &str), terms: &Terms) -> Rows {
    user.rows(account, name, i64::MAX, terms)
}

fn changes(before: &Rows, after: &Rows) -> Vec<Changed> {
    let others = |change: change::Change<'_, MessageRow>| {
        let (before, after) = (change.before?, change.after?);
        let changed = Changed { message_token: after.message_token, was: before.expected, is: after.expected };
        (before.expected != after.expected).then_some(changed)
    };
    change::messages(before, after).into_iter().filter_map(others).collect()
}

fn event_name(reading: &Reading<'_>) -> String {
    match reading.origin {
        Origin::Callback => format!("callback {}", reading.kind),
        Origin::Call => format!("call {}", reading.kind),
        Origin::Own => format!("counterbat.{}", reading.kind),
        Origin::Other => reading.kind.to_owned(),
    }
}

fn skew(one: &Archived, reading: &Reading<'_>) -> Option<Skew> {
    let appended_us = one.record.appended_at_us;
    let (_, is_ahead) = counted_time(reading.received_at_us, appended_us);
    match (reading.skewed, is_ahead) {
        (false, _) => None,
        (true, true) => Some(Skew::Ahead {
            ahead_ms: (reading.received_at_us - appended_us).div_euclid(1000),
            appended_ms: appended_us.div_euclid(1000),
        }),
        (true, false) => Some(Skew::Timestamp),
    }
}

fn placed(row: &SessionRow) -> Placed {
    Placed {
        session_id: hex::encode(row.session_id),
        kind: row.kind,
        opened_ms: row.opened_at_ms,
        ends_ms: row.closed.map_or(row.expires_at_ms, |(end_ms, _)| end_ms),
        policy: row.policy.to_string(),
    }
}

fn told(row: &SessionRow, all: &Rows, costs: &Costs) -> Told {
    let session = placed(row);
    let ending = row.closed.map_or(CloseReason::Expired, |(_, reason)| reason);
    let mut told = Told {
        cost: session_cost(row, &session.session_id, all, costs),
        close_reason: (!costs.open.contains(&session.session_id)).then_some(ending),
        session,
        opened_by_token: row.opened_by_token,
        inbound: row.inbound,
        outbound: row.outbound,
        charged: row.charged,
        overcharged: row.overcharged,
        words: Vec::new(),
    };
    told.words = words::of_session(&told);
    told
}

fn message_cost(token: u64, costs: &Costs) -> Cost {
    match costs.messages.get(&token) {
        None => Cost { because: Some(NoCost::NoRow), ..Cost::default() },
        Some(cost) => Cost { because: cost.amount.is_none().then_some(NoCost::NoPrice), ..cost.clone() },
    }
}

fn session_cost(row: &SessionRow, id: &str, all: &Rows, costs: &Costs) -> Cost {
    let Some(cost) = costs.sessions.get(id) else {
        return Cost { because: Some(NoCost::NoRow), ..Cost::default() };
    };
    let is_in = |message: &&MessageRow| message.session_id == Some(row.session_id);
    let of_it: Vec<Cost> =
        all.messages.iter().filter(is_in).map(|message| message_cost(message.message_token, costs)).collect();
    let is_charged =
        |cost: &&Cost| cost.amount.as_ref().is_some_and(|amount| amount.bytes().any(|b| matches!(b, b'1'..=b'9')));
    let currencies: BTreeSet<&String> =
        of_it.iter().filter(is_charged).filter_map(|cost| cost.currency.as_ref()).collect();
    let because = match () {
        () if cost.amount.is_some() => None,
        () if of_it.iter().any(|cost| cost.amount.is_none()) => Some(NoCost::NoPrice),
        () if currencies.len() > 1 => Some(NoCost::Currencies(currencies.into_iter().cloned().collect())),
        () => Some(NoCost::TooLarge),
    };
    Cost { because, ..cost.clone() }
}

/// What of a user's story was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Focus {
    /// Records with this event id.
    Event(String),
    /// What has this token: a message and its receipts.
    Token(u64),
    /// A session, by its id in hex, with all that lies in it.
    Session(String),
    /// All of it.
    User,
}

impl Story {
    /// What of it was asked for, with the sessions that has to do with.
    pub fn about(mut self, focus: &Focus) -> Story {
        let of_session = |steps: &[Step], id: &str| -> Vec<bool> {
            let lies_in = |step: &Step| step.meaning.sessions().any(|session| session.session_id == id);
            let messages: Vec<u64> = steps
                .iter()
                .filter(|step| matches!(step.meaning, Meaning::Outbound { .. }) && lies_in(step))
                .filter_map(|step| step.message_token)
                .collect();
            let is_receipt = |step: &Step| {
                matches!(step.meaning, Meaning::Receipt { .. })
                    && step.message_token.is_some_and(|token| messages.contains(&token))
            };
            steps.iter().map(|step| lies_in(step) || is_receipt(step)).collect()
        };
        let wanted: Vec<bool> = match focus {
            Focus::User => return self,
            Focus::Event(id) => self.steps.iter().map(|step| step.event_id == *id).collect(),
            Focus::Token(token) => self.steps.iter().map(|step| step.message_token == Some(*token)).collect(),
            Focus::Session(id) => of_session(&self.steps, id),
        };
        let mut wanted = wanted.into_iter();
        self.steps.retain(|_| wanted.next().unwrap_or(false));
        let steps = &self.steps;
        self.sessions.retain(|told| match focus {
            Focus::Session(id) => told.session.session_id == *id,
            _ => steps.iter().flat_map(|step| step.meaning.sessions()).any(|session| *session == told.session),
        });
        self
    }
}

impl Meaning {
    /// The sessions it has to do with.
    fn sessions(&self) -> impl Iterator<Item = &Placed> {
        let (one, many): (Option<&Placed>, &[Placed]) = match self {
            Meaning::Inbound { session, .. } | Meaning::Outbound { session, .. } => (session.as_ref(), &[]),
            Meaning::Unsubscribed { closes } => (None, closes),
            _ => (None, &[]),
        };
        one.into_iter().chain(many)
    }
}
