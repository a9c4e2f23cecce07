//! What the fold remembers of one user: the facts that are not yet settled (spec §3). Pure.
//!
//! Facts up to the *horizon* (watermark − lateness) cannot be preceded by anything that is still to come, so they are
//! played once into the *frontier*: sessions, messages, the last country. Facts after it are kept as they are and
//! played anew whenever one of them changes. Receipts only ever touch their message and never move the frontier.

use super::fold::{Frontier, Terms};
use super::row::SessionId;
use crate::event::{Disposition, Fact, Outbound, Reading, Receipt};
use borsh::{BorshDeserialize, BorshSerialize};
use compact_str::CompactString;

/// Receipts of one message: of each kind the earliest, in ms.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Receipts {
    pub delivered_ms: Option<i64>,
    pub seen_ms: Option<i64>,
    pub failed_ms: Option<i64>,
    pub failure: Option<CompactString>,
    /// By kind, the time of a copy that came when the identity of the ones before was forgotten: it is known by that.
    again: Vec<(u8, i64)>,
}

impl Receipts {
    /// Of the receipts, the latest time that an identity is known by.
    pub(super) fn latest_ms(&self) -> Option<i64> {
        let told = [self.delivered_ms, self.seen_ms, self.failed_ms].into_iter().flatten();
        told.chain(self.again.iter().map(|(_, t_ms)| *t_ms)).max()
    }

    fn slot(&mut self, kind: Receipt) -> &mut Option<i64> {
        match kind {
            Receipt::Delivered => &mut self.delivered_ms,
            Receipt::Seen => &mut self.seen_ms,
            Receipt::Failed => &mut self.failed_ms,
        }
    }

    /// Takes a receipt in; says whether one of this kind was still known.
    fn take(&mut self, kind: Receipt, t_ms: i64, failure: Option<&CompactString>, known_after_ms: i64) -> bool {
        let known = self.know(kind, t_ms, known_after_ms);
        let slot = self.slot(kind);
        match *slot {
            Some(t) if t < t_ms => {}
            // Of copies with one time the smallest text counts, none before any.
            Some(t) if t == t_ms => {
                if kind == Receipt::Failed && failure.map(CompactString::as_str) < self.failure.as_deref() {
                    self.failure = failure.cloned();
                }
            }
            _ => {
                *slot = Some(t_ms);
                if kind == Receipt::Failed {
                    self.failure = failure.cloned();
                }
            }
        }
        known
    }
}

impl Receipts {
    /// Whether the identity of a receipt is known; it is from now on.
    fn know(&mut self, kind: Receipt, t_ms: i64, known_after_ms: i64) -> bool {
        let Some(first_ms) = *self.slot(kind) else { return false };
        let number = kind as u8;
        let again = self.again.iter_mut().find(|(of, _)| *of == number);
        let known = again.as_ref().map_or(first_ms, |(_, again_ms)| *again_ms) > known_after_ms;
        match (known, again) {
            (true, None) => {}
            (true, Some((_, again_ms))) => *again_ms = t_ms.min(*again_ms),
            (false, Some((_, again_ms))) => *again_ms = t_ms,
            (false, None) => self.again.push((number, t_ms)),
        }
        known
    }
}

/// A receipt whose message has not been seen yet.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Waiting {
    token: u64,
    receipts: Receipts,
}

/// What a user or the bot did after the horizon. The order of the variants is the order of facts of one time.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) enum Deed {
    Inbound,
    Outbound(Sending),
    Unsubscribed,
    Subscribed,
}

impl Deed {
    fn rank(&self) -> u8 {
        match self {
            Deed::Inbound => 0,
            Deed::Outbound(_) => 1,
            Deed::Unsubscribed => 2,
            Deed::Subscribed => 3,
        }
    }
}

/// A message sent, as its call told.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Sending {
    pub method: super::row::Method,
    pub billing_status: Option<i32>,
    pub message_type: Option<CompactString>,
    pub tracking_data: Option<CompactString>,
    pub receipts: Receipts,
}

impl Sending {
    /// What decides between copies of one time (spec §3): no billing status comes last, no text counts as "".
    fn order(&self) -> (bool, Option<i32>, &str, &str, &str) {
        (
            self.billing_status.is_none(),
            self.billing_status,
            self.method.as_str(),
            self.message_type.as_deref().unwrap_or(""),
            self.tracking_data.as_deref().unwrap_or(""),
        )
    }
}

/// A fact after the horizon.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Recent {
    pub t_ms: i64,
    pub token: u64,
    pub deed: Deed,
}

impl Recent {
    fn order(&self) -> (i64, u8, u64) {
        (self.t_ms, self.deed.rank(), self.token)
    }
}

/// A country told by an event at `t_ms`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, BorshSerialize, BorshDeserialize)]
pub(super) struct Mark {
    pub t_ms: i64,
    pub token: u64,
    pub country: CompactString,
}

/// The memory of one user.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct User {
    pub(super) frontier: Frontier,
    /// Facts after the horizon, in order.
    pub(super) recent: Vec<Recent>,
    /// Countries in order: at most one at or before the horizon.
    pub(super) marks: Vec<Mark>,
    /// By token.
    waiting: Vec<Waiting>,
    /// Receipts given up without a message since this was last asked for.
    #[borsh(skip)]
    unmatched: u64,
}

impl User {
    /// Takes in what a well-formed record says. `watermark_ms` is that of the partition before the record. Returns the
    /// record's disposition; `TooLate` leaves the user as it was.
    pub fn apply(&mut self, reading: &Reading<'_>, watermark_ms: Option<i64>, terms: &Terms) -> Disposition {
        let Reading { t_ms, token, fact, country, .. } = reading;
        self.hear(*t_ms, *token, fact.as_ref(), country.as_ref(), watermark_ms, terms)
    }

    /// [`User::apply`] of what a reading has for it.
    pub fn hear(
        &mut self,
        t_ms: i64,
        token: Option<u64>,
        fact: Option<&Fact>,
        country: Option<&CompactString>,
        watermark_ms: Option<i64>,
        terms: &Terms,
    ) -> Disposition {
        let known_after_ms = terms.known_after(watermark_ms);
        let too_late = t_ms <= known_after_ms;
        if let (Some(country), false) = (country, too_late) {
            self.mark(Mark { t_ms, token: token.unwrap_or(0), country: country.clone() });
        }
        let (Some(fact), Some(token)) = (fact, token) else { return Disposition::Info };
        if too_late {
            return Disposition::TooLate;
        }
        // Each record finds what time has left, wherever the batches were cut.
        self.give_up(known_after_ms);
        let known = match fact {
            Fact::Inbound => self.deed(t_ms, token, Deed::Inbound, known_after_ms),
            Fact::Unsubscribed => self.deed(t_ms, token, Deed::Unsubscribed, known_after_ms),
            Fact::Subscribed => self.deed(t_ms, token, Deed::Subscribed, known_after_ms),
            Fact::Outbound(outbound) => self.outbound(t_ms, token, outbound, known_after_ms),
            Fact::Receipt(kind, failure) => self.receipt(t_ms, token, *kind, failure.as_ref(), known_after_ms),
        };
        if known { Disposition::Duplicate } else { Disposition::Fact }
    }

    /// Whether a message with this token is still remembered that would be forgotten, had time been moved on to
    /// `watermark_ms`; or perhaps would.
    pub fn is_overdue(&self, token: u64, watermark_ms: i64, terms: &Terms) -> bool {
        let is_old = |t_ms: i64| watermark_ms >= terms.forgotten_at(t_ms);
        self.recent.iter().any(|fact| fact.token == token && is_old(fact.t_ms))
            || self.frontier.message(token).is_some_and(|message| is_old(message.sent_at_ms))
    }

    /// Whether nothing is left that a later event could build on.
    pub fn is_empty(&self) -> bool {
        *self == User::default()
    }

    fn mark(&mut self, mark: Mark) {
        if let Err(at) = self.marks.binary_search(&mark) {
            self.marks.insert(at, mark);
        }
    }

    /// Adds an inbound or (un)subscription; of copies the smallest time counts.
    fn deed(&mut self, t_ms: i64, token: u64, deed: Deed, known_after_ms: i64) -> bool {
        let rank = deed.rank();
        let copy = self
            .recent
            .iter()
            .rposition(|fact| fact.token == token && fact.deed.rank() == rank && fact.t_ms > known_after_ms);
        if let Some(at) = copy {
            if t_ms < self.recent[at].t_ms {
                let mut fact = self.recent.remove(at);
                fact.t_ms = t_ms;
                self.insert(fact);
            }
            return true;
        }
        self.insert(Recent { t_ms, token, deed });
        false
    }

    fn outbound(&mut self, t_ms: i64, token: u64, outbound: &Outbound, known_after_ms: i64) -> bool {
        let mut sending = Sending {
            method: outbound.method,
            billing_status: outbound.billing_status,
            message_type: outbound.message_type.clone(),
            tracking_data: outbound.tracking_data.clone(),
            receipts: Receipts::default(),
        };
        let same = |fact: &Recent| fact.token == token && matches!(fact.deed, Deed::Outbound(_));
        if let Some(at) = self.recent.iter().rposition(same) {
            let old_t_ms = self.recent[at].t_ms;
            let known = old_t_ms > known_after_ms;
            if let Deed::Outbound(old) = &mut self.recent[at].deed
                && (t_ms, sending.order()) < (old_t_ms, old.order())
            {
                sending.receipts = std::mem::take(&mut old.receipts);
                self.recent.remove(at);
                self.insert(Recent { t_ms, token, deed: Deed::Outbound(sending) });
            }
            return known;
        }
        // Its identity is forgotten, but the message still stands and is the earlier copy: nothing changes.
        if self.frontier.message(token).is_some() {
            return false;
        }
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.token == token) {
            sending.receipts = self.waiting.swap_remove(at).receipts;
        }
        self.insert(Recent { t_ms, token, deed: Deed::Outbound(sending) });
        false
    }

    fn receipt(
        &mut self,
        t_ms: i64,
        token: u64,
        kind: Receipt,
        failure: Option<&CompactString>,
        known_after_ms: i64,
    ) -> bool {
        for fact in self.recent.iter_mut().rev() {
            if let (true, Deed::Outbound(sending)) = (fact.token == token, &mut fact.deed) {
                return sending.receipts.take(kind, t_ms, failure, known_after_ms);
            }
        }
        if let Some(message) = self.frontier.message_mut(token) {
            return message.receipts.take(kind, t_ms, failure, known_after_ms);
        }
        let at = match self.waiting.iter().position(|waiting| waiting.token == token) {
            Some(at) => at,
            None => {
                self.waiting.push(Waiting { token, receipts: Receipts::default() });
                self.waiting.len() - 1
            }
        };
        self.waiting[at].receipts.take(kind, t_ms, failure, known_after_ms)
    }

    /// Adds a message that is only asked about.
    pub(super) fn add_sending(&mut self, t_ms: i64, token: u64, sending: Sending) {
        self.insert(Recent { t_ms, token, deed: Deed::Outbound(sending) });
    }

    fn insert(&mut self, fact: Recent) {
        let at = self.recent.partition_point(|other| other.order() <= fact.order());
        self.recent.insert(at, fact);
    }

    /// Moves the horizon to what `watermark_ms` allows and forgets what can no longer change a row. Rows are the same
    /// before and after, but for those of settled sessions and messages, which are no longer given. Returns how many
    /// receipts were given up without a message.
    pub fn settle(&mut self, account: &str, user: &str, watermark_ms: i64, terms: &Terms) -> u64 {
        let horizon_ms = terms.known_after(Some(watermark_ms));
        let split = self.recent.partition_point(|fact| fact.t_ms <= horizon_ms);
        if split > 0 {
            let frozen: Vec<Recent> = self.recent.drain(..split).collect();
            self.frontier.play(account, user, frozen.into_iter(), &self.marks, terms);
        }
        let stale = self.marks.partition_point(|mark| mark.t_ms <= horizon_ms);
        if stale > 1 {
            self.marks.drain(..stale - 1);
        }
        self.frontier.forget(watermark_ms, terms);
        self.give_up(horizon_ms);
        std::mem::take(&mut self.unmatched)
    }

    /// Drops waiting receipts that would be too late by now.
    fn give_up(&mut self, horizon_ms: i64) {
        let unmatched = &mut self.unmatched;
        self.waiting.retain_mut(|waiting| {
            for kind in [Receipt::Delivered, Receipt::Seen, Receipt::Failed] {
                let slot = waiting.receipts.slot(kind);
                if slot.is_some_and(|t_ms| t_ms <= horizon_ms) {
                    *slot = None;
                    *unmatched += 1;
                }
            }
            waiting.receipts.latest_ms().is_some()
        });
    }

    /// When the earliest waiting receipt is given up.
    pub(super) fn earliest_waiting(&self) -> Option<i64> {
        self.waiting
            .iter()
            .flat_map(|waiting| [waiting.receipts.delivered_ms, waiting.receipts.seen_ms, waiting.receipts.failed_ms])
            .flatten()
            .min()
    }
}

/// A session as far as it has been played.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Session {
    pub id: SessionId,
    pub kind: super::row::Kind,
    pub country: Option<CompactString>,
    pub opened_at_ms: i64,
    pub expires_at_ms: i64,
    /// Closed by a fact, or by time before a later fact.
    pub end: Option<(i64, super::row::CloseReason)>,
    pub opened_by_token: u64,
    pub inbound: u32,
    pub outbound: u32,
    pub charged: u32,
    pub overcharged: u32,
    pub first_response_ms: Option<i64>,
    pub last_event_at_ms: i64,
    pub policy: CompactString,
}

impl Session {
    /// When it ends if nothing more happens, and why.
    pub fn ending(&self) -> (i64, super::row::CloseReason) {
        self.end.unwrap_or((self.expires_at_ms, super::row::CloseReason::Expired))
    }
}

/// A message as far as it has been played.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(super) struct Message {
    pub token: u64,
    pub sent_at_ms: i64,
    pub method: super::row::Method,
    pub billing_status: Option<i32>,
    pub message_type: Option<CompactString>,
    pub tracking_data: Option<CompactString>,
    pub expected: super::row::Expected,
    pub country: Option<CompactString>,
    pub session: Option<SessionId>,
    pub receipts: Receipts,
}
