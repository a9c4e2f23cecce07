//! The rules: facts in order → sessions, messages, verdicts (spec §3). Pure.

use super::money::Bill;
use super::policy::{Anchor, ChargedOn, PolicyChain};
use super::price::PriceList;
use super::row::{CloseReason, Expected, Kind, MessageRow, SessionId, SessionRow, SessionState, Verdict};
use super::user::{Deed, Mark, Message, Recent, Sending, Session, User};
use borsh::{BorshDeserialize, BorshSerialize};
use compact_str::CompactString;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// What the fold of one account goes by. Durations in ms.
#[derive(Debug, Clone)]
pub struct Terms {
    pub policies: PolicyChain,
    pub prices: Arc<PriceList>,
    /// `allowed_lateness`: how far behind the watermark a fact may be to be taken in. `None`: any age.
    pub lateness_ms: Option<i64>,
    /// `allowed_lateness` as it counts for settlement.
    pub settle_lateness_ms: i64,
    /// `delivery_window`: receipts count up to this long after the send.
    pub delivery_window_ms: i64,
}

impl Terms {
    /// Facts at or before this time come too late, and identities at or before it are forgotten.
    pub fn known_after(&self, watermark_ms: Option<i64>) -> i64 {
        match (watermark_ms, self.lateness_ms) {
            (Some(watermark_ms), Some(lateness_ms)) => watermark_ms.saturating_sub(lateness_ms),
            _ => i64::MIN,
        }
    }

    /// When what ended at `end_ms` is settled.
    fn settles_at(&self, end_ms: i64) -> i64 {
        end_ms.saturating_add(self.delivery_window_ms).saturating_add(self.settle_lateness_ms)
    }

    /// When what ended at `end_ms` is forgotten: never before it is settled and nothing earlier can come.
    pub(super) fn forgotten_at(&self, end_ms: i64) -> i64 {
        let lateness_ms = self.lateness_ms.map_or(i64::MAX, |lateness_ms| lateness_ms.max(self.settle_lateness_ms));
        end_ms.saturating_add(self.delivery_window_ms).saturating_add(lateness_ms)
    }
}

/// All rows of a user that are not settled yet, at one watermark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    pub sessions: Vec<SessionRow>,
    pub messages: Vec<MessageRow>,
    /// The next watermark (ms) at which a row changes or something can be forgotten without a new fact.
    pub due_ms: Option<i64>,
}

/// Sessions and messages as they stand after all facts played so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Frontier {
    sessions: Vec<Session>,
    messages: Vec<Message>,
}

impl Frontier {
    pub(super) fn message(&self, token: u64) -> Option<&Message> {
        self.messages.iter().find(|message| message.token == token)
    }

    pub(super) fn message_mut(&mut self, token: u64) -> Option<&mut Message> {
        self.messages.iter_mut().find(|message| message.token == token)
    }

    /// Plays facts, in order, on top of what is there. `marks` are the user's countries, in order.
    pub(super) fn play(
        &mut self,
        account: &str,
        user: &str,
        facts: impl Iterator<Item = Recent>,
        marks: &[Mark],
        terms: &Terms,
    ) {
        let mut game = Game::new(self, account, user, marks, terms);
        for fact in facts {
            game.step(fact);
        }
    }

    /// Forgets what is settled and can no longer be touched.
    pub(super) fn forget(&mut self, watermark_ms: i64, terms: &Terms) {
        let gone = |end_ms: i64| watermark_ms >= terms.forgotten_at(end_ms);
        let sessions = &self.sessions;
        let ended = |id: &SessionId| {
            sessions.iter().find(|session| session.id == *id).map_or(i64::MIN, |session| session.ending().0)
        };
        // A receipt may come after its window: it is known for as long as any other.
        let horizon_ms = terms.known_after(Some(watermark_ms));
        let awaits_repeat = |message: &Message| message.receipts.latest_ms().is_some_and(|t_ms| t_ms > horizon_ms);
        self.messages.retain(|message| {
            let end_ms = message.session.as_ref().map_or(i64::MIN, ended).max(message.sent_at_ms);
            !gone(end_ms) || awaits_repeat(message)
        });
        let messages = &self.messages;
        self.sessions.retain(|session| {
            !gone(session.ending().0) || messages.iter().any(|message| message.session == Some(session.id))
        });
    }
}

/// One run over facts in order.
struct Game<'a> {
    frontier: &'a mut Frontier,
    /// Indexes of the open sessions.
    service: Option<usize>,
    paid: Option<usize>,
    account: &'a str,
    user: &'a str,
    marks: &'a [Mark],
    terms: &'a Terms,
}

impl<'a> Game<'a> {
    fn new(frontier: &'a mut Frontier, account: &'a str, user: &'a str, marks: &'a [Mark], terms: &'a Terms) -> Self {
        let open = |kind| frontier.sessions.iter().rposition(|session| session.kind == kind && session.end.is_none());
        let (service, paid) = (open(Kind::Service), open(Kind::Paid));
        Self { frontier, service, paid, account, user, marks, terms }
    }

    fn step(&mut self, fact: Recent) {
        self.expire(fact.t_ms);
        match fact.deed {
            Deed::Inbound => self.inbound(fact.t_ms, fact.token),
            Deed::Outbound(sending) => self.outbound(fact.t_ms, fact.token, sending),
            Deed::Unsubscribed => {
                for open in [self.service.take(), self.paid.take()].into_iter().flatten() {
                    self.frontier.sessions[open].end = Some((fact.t_ms, CloseReason::Unsubscribed));
                }
            }
            Deed::Subscribed => {}
        }
    }

    /// Ends the open sessions that do not reach `t_ms`: a window is half-open.
    fn expire(&mut self, t_ms: i64) {
        for open in [&mut self.service, &mut self.paid] {
            if let Some(at) = *open {
                let session = &mut self.frontier.sessions[at];
                if session.expires_at_ms <= t_ms {
                    session.end = Some((session.expires_at_ms, CloseReason::Expired));
                    *open = None;
                }
            }
        }
    }

    fn inbound(&mut self, t_ms: i64, token: u64) {
        let Some(at) = self.service else {
            let length_ms = self.terms.policies.at(t_ms).service.length_ms;
            self.service = Some(self.open(Kind::Service, t_ms, token, length_ms));
            return;
        };
        let session = &mut self.frontier.sessions[at];
        session.inbound += 1;
        session.last_event_at_ms = t_ms;
        let service = &self.terms.policies.at(session.opened_at_ms).service;
        if service.anchor == Anchor::Last {
            let limit_ms = service.max_length_ms.map_or(i64::MAX, |max| session.opened_at_ms.saturating_add(max));
            session.expires_at_ms = t_ms.saturating_add(service.length_ms).min(limit_ms);
        }
    }

    fn outbound(&mut self, t_ms: i64, token: u64, sending: Sending) {
        let (at, expected) = match (self.service, self.paid) {
            (Some(at), _) => (Some(at), Expected::InService),
            (None, Some(at)) => (Some(at), Expected::InPaid),
            (None, None) => {
                let paid = self.terms.policies.at(t_ms).paid.as_ref();
                let opened = match (sending.billing_status, paid) {
                    (Some(5), Some(paid)) => Some(self.open(Kind::Paid, t_ms, token, paid.length_ms)),
                    _ => None,
                };
                self.paid = opened;
                (opened, Expected::OutOfSession)
            }
        };
        if let Some(at) = at {
            let session = &mut self.frontier.sessions[at];
            session.outbound += 1;
            session.last_event_at_ms = t_ms;
            session.charged += u32::from(sending.billing_status == Some(5));
            session.overcharged += u32::from(verdict(expected, sending.billing_status) == Verdict::Overcharged);
            if session.kind == Kind::Service {
                session.first_response_ms.get_or_insert(t_ms - session.opened_at_ms);
                let cap = self.terms.policies.at(session.opened_at_ms).service.max_outbound;
                if cap.is_some_and(|cap| session.outbound >= cap) {
                    session.end = Some((t_ms, CloseReason::Cap));
                    self.service = None;
                }
            }
        }
        let message = Message {
            token,
            sent_at_ms: t_ms,
            method: sending.method,
            billing_status: sending.billing_status,
            message_type: sending.message_type,
            tracking_data: sending.tracking_data,
            expected,
            country: country_at(self.marks, t_ms),
            session: at.map(|at| self.frontier.sessions[at].id),
            receipts: sending.receipts,
        };
        self.frontier.messages.push(message);
    }

    /// Opens a session; an inbound message that opens one is its first.
    fn open(&mut self, kind: Kind, t_ms: i64, token: u64, length_ms: i64) -> usize {
        self.frontier.sessions.push(Session {
            id: session_id(self.account, self.user, kind, token),
            kind,
            country: country_at(self.marks, t_ms),
            opened_at_ms: t_ms,
            expires_at_ms: t_ms.saturating_add(length_ms),
            end: None,
            opened_by_token: token,
            inbound: u32::from(kind == Kind::Service),
            outbound: 0,
            charged: 0,
            overcharged: 0,
            first_response_ms: None,
            last_event_at_ms: t_ms,
            policy: self.terms.policies.at(t_ms).name.clone(),
        });
        self.frontier.sessions.len() - 1
    }
}

impl User {
    /// The user's unsettled rows as they stand at `watermark_ms`.
    pub fn rows(&self, account: &str, user: &str, watermark_ms: i64, terms: &Terms) -> Rows {
        let mut frontier = self.frontier.clone();
        frontier.play(account, user, self.recent.iter().cloned(), &self.marks, terms);
        let mut due_ms: Option<i64> = None;
        let mut due = |t_ms: i64| {
            if t_ms > watermark_ms && t_ms < i64::MAX {
                due_ms = Some(due_ms.map_or(t_ms, |earlier| earlier.min(t_ms)));
            }
        };
        if let (Some(t_ms), Some(lateness_ms)) = (self.earliest_waiting(), terms.lateness_ms) {
            due(t_ms.saturating_add(lateness_ms));
        }
        let mut sessions: Vec<SessionRow> = frontier
            .sessions
            .iter()
            .map(|session| {
                due(next_change(session.ending().0, watermark_ms, terms));
                session_row(session, watermark_ms, terms)
            })
            .collect();
        let mut bills = vec![Bill::default(); sessions.len()];
        let messages = frontier
            .messages
            .into_iter()
            .map(|message| {
                let at = message.session.and_then(|id| sessions.iter().rposition(|session| session.session_id == id));
                let end_ms = match at {
                    Some(at) => frontier.sessions[at].ending().0,
                    None => {
                        due(next_change(message.sent_at_ms, watermark_ms, terms)
                            .max(terms.settles_at(message.sent_at_ms)));
                        message.sent_at_ms
                    }
                };
                if let (Some(latest_ms), Some(lateness_ms)) = (message.receipts.latest_ms(), terms.lateness_ms) {
                    let known_until_ms = latest_ms.saturating_add(lateness_ms);
                    if known_until_ms > terms.forgotten_at(end_ms.max(message.sent_at_ms)) {
                        due(known_until_ms);
                    }
                }
                let settled = watermark_ms >= terms.settles_at(end_ms.max(message.sent_at_ms));
                let session = at.map(|at| &mut sessions[at]);
                let row = message_row(message, session, settled, terms);
                if let Some(at) = at {
                    bills[at].add(row.cost, row.currency);
                }
                row
            })
            .collect();
        for (session, bill) in sessions.iter_mut().zip(bills) {
            (session.cost, session.currency) = bill.total();
        }
        Rows { sessions, messages, due_ms }
    }
}

/// The next watermark after `watermark_ms` at which what ends at `end_ms` changes its state or is forgotten.
fn next_change(end_ms: i64, watermark_ms: i64, terms: &Terms) -> i64 {
    [end_ms, terms.settles_at(end_ms)]
        .into_iter()
        .find(|t_ms| watermark_ms < *t_ms)
        .unwrap_or_else(|| terms.forgotten_at(end_ms))
}

fn session_row(session: &Session, watermark_ms: i64, terms: &Terms) -> SessionRow {
    let (end_ms, reason) = session.ending();
    let open = watermark_ms < end_ms;
    let state = match () {
        () if open => SessionState::Open,
        () if watermark_ms < terms.settles_at(end_ms) => SessionState::Closed,
        () => SessionState::Settled,
    };
    SessionRow {
        session_id: session.id,
        country: session.country.clone(),
        kind: session.kind,
        state,
        opened_at_ms: session.opened_at_ms,
        expires_at_ms: session.expires_at_ms,
        closed: (!open).then_some((end_ms, reason)),
        opened_by_token: session.opened_by_token,
        inbound: session.inbound,
        outbound: session.outbound,
        delivered: 0,
        seen: 0,
        failed: 0,
        charged: session.charged,
        overcharged: session.overcharged,
        first_response_ms: session.first_response_ms,
        last_event_at_ms: session.last_event_at_ms,
        cost: None,
        currency: None,
        policy: session.policy.clone(),
    }
}

/// The row of a message; counts its receipts in its session.
fn message_row(message: Message, session: Option<&mut SessionRow>, settled: bool, terms: &Terms) -> MessageRow {
    let in_window = |t_ms: &i64| *t_ms < message.sent_at_ms.saturating_add(terms.delivery_window_ms);
    let delivered_at_ms = message.receipts.delivered_ms.filter(in_window);
    let seen_at_ms = message.receipts.seen_ms.filter(in_window);
    let failed_at_ms = message.receipts.failed_ms.filter(in_window);
    let policy = terms.policies.at(session.as_ref().map_or(message.sent_at_ms, |session| session.opened_at_ms));
    let is_due = policy.charged_on == ChargedOn::Sent || delivered_at_ms.is_some();
    let charge = terms.prices.charge(message.country.as_deref(), message.sent_at_ms, message.billing_status, is_due);
    let policy = match session {
        Some(session) => {
            session.delivered += u32::from(delivered_at_ms.is_some());
            session.seen += u32::from(seen_at_ms.is_some());
            session.failed += u32::from(failed_at_ms.is_some());
            session.policy.clone()
        }
        None => policy.name.clone(),
    };
    MessageRow {
        message_token: message.token,
        session_id: message.session,
        sent_at_ms: message.sent_at_ms,
        method: message.method,
        message_type: message.message_type,
        tracking_data: message.tracking_data,
        expected: message.expected,
        billing_status: message.billing_status,
        verdict: verdict(message.expected, message.billing_status),
        delivered_at_ms,
        seen_at_ms,
        failed_at_ms,
        failure: failed_at_ms.and(message.receipts.failure),
        country: message.country,
        price: charge.price,
        cost: charge.cost,
        currency: charge.currency,
        settled,
        policy,
    }
}

/// `expected` against the reported `billing_status` (the table of spec §3).
pub fn verdict(expected: Expected, billing_status: Option<i32>) -> Verdict {
    match (expected, billing_status) {
        (_, Some(0)) => Verdict::Agreed,
        (Expected::InService, Some(1 | 2)) => Verdict::Agreed,
        (_, Some(1 | 2)) => Verdict::UnseenSession,
        (Expected::InService, Some(3 | 4)) => Verdict::MissedSession,
        (_, Some(3 | 4)) => Verdict::Agreed,
        (Expected::InService, Some(5)) => Verdict::Overcharged,
        (Expected::InPaid, Some(5)) => Verdict::Recharged,
        (Expected::OutOfSession, Some(5)) => Verdict::Agreed,
        (_, _) => Verdict::Unreported,
    }
}

/// The country at a reference time: that of the greatest mark at or before it.
fn country_at(marks: &[Mark], t_ms: i64) -> Option<CompactString> {
    let after = marks.partition_point(|mark| mark.t_ms <= t_ms);
    after.checked_sub(1).map(|at| marks[at].country.clone())
}

/// The first 16 bytes of the SHA-256 over account, user, kind and opening token, joined by NUL bytes (spec §3).
pub fn session_id(account: &str, user: &str, kind: Kind, token: u64) -> SessionId {
    let mut hash = Sha256::new();
    for part in [account, user, kind.as_str()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.update(token.to_string().as_bytes());
    let digest = hash.finalize();
    let mut id = SessionId::default();
    id.copy_from_slice(&digest[..16]);
    id
}
