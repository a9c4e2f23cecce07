//! What one batch of the fold counts, as plain numbers.

use crate::event::Disposition;
use crate::session::money::{Currency, Money};
use crate::session::row::{CloseReason, Kind, MessageRow, Verdict};
use compact_str::CompactString;
use rustc_hash::FxHashMap;

/// Viber's `billing_status` of a charged message.
const CHARGED: i32 = 5;

/// The counts of one batch. Apply with [`super::Metrics::apply`].
#[derive(Debug, Clone, Default)]
pub struct Tally {
    dispositions: [u64; Disposition::ALL.len()],
    pub(super) messages: FxHashMap<(CompactString, Option<i32>, Verdict), u64>,
    pub(super) charged: FxHashMap<(CompactString, Option<CompactString>), u64>,
    /// In millionths.
    pub(super) spent: FxHashMap<(CompactString, Currency), i128>,
    pub(super) unpriced: FxHashMap<CompactString, u64>,
    pub(super) opened: FxHashMap<(CompactString, Kind), u64>,
    pub(super) closed: FxHashMap<(CompactString, Kind, CloseReason), u64>,
    pub(super) open: FxHashMap<(CompactString, Kind), i64>,
    pub(super) receipts: FxHashMap<(CompactString, &'static str), u64>,
    pub(super) unmatched: u64,
    pub(super) corrected: FxHashMap<&'static str, u64>,
}

impl Tally {
    /// A record was folded.
    pub fn event_folded(&mut self, disposition: Disposition) {
        self.dispositions[disposition as usize] += 1;
    }

    /// A message was folded for the first time.
    pub fn message_folded(&mut self, account: &str, row: &MessageRow) {
        *self.messages.entry((account.into(), row.billing_status, row.verdict)).or_default() += 1;
        if row.billing_status == Some(CHARGED) {
            *self.charged.entry((account.into(), row.country.clone())).or_default() += 1;
            if row.price.is_none() {
                *self.unpriced.entry(account.into()).or_default() += 1;
            }
        }
        self.spend(account, row);
    }

    /// A message that was counted has another row.
    pub fn message_changed(&mut self, account: &str, old: &MessageRow, new: &MessageRow) {
        if old.verdict != new.verdict {
            self.corrected("verdict");
        }
        match cost_of(old) {
            // Provisional until now: it is charged when it is delivered.
            None => self.spend(account, new),
            Some(cost) if cost_of(new) != Some(cost) => self.corrected("cost"),
            Some(_) => {}
        }
    }

    fn spend(&mut self, account: &str, row: &MessageRow) {
        if let Some((cost, currency)) = cost_of(row) {
            *self.spent.entry((account.into(), currency)).or_default() += i128::from(cost.micros());
        }
    }

    /// A session came to be.
    pub fn session_opened(&mut self, account: &str, kind: Kind) {
        *self.opened.entry((account.into(), kind)).or_default() += 1;
    }

    /// A session ended.
    pub fn session_closed(&mut self, account: &str, kind: Kind, reason: CloseReason) {
        *self.closed.entry((account.into(), kind, reason)).or_default() += 1;
    }

    /// So many more sessions are open, or fewer.
    pub fn sessions_open_delta(&mut self, account: &str, kind: Kind, change: i64) {
        *self.open.entry((account.into(), kind)).or_default() += change;
    }

    /// A receipt was folded.
    pub fn receipt_folded(&mut self, account: &str, event: &'static str) {
        *self.receipts.entry((account.into(), event)).or_default() += 1;
    }

    /// A receipt has waited for its message in vain.
    pub fn receipt_unmatched(&mut self) {
        self.unmatched += 1;
    }

    /// A row that was counted has changed in kind: `session`, `message`, `verdict` or `cost`.
    pub fn corrected(&mut self, kind: &'static str) {
        *self.corrected.entry(kind).or_default() += 1;
    }

    /// Records by disposition.
    pub(super) fn events(&self) -> impl Iterator<Item = (Disposition, u64)> + '_ {
        Disposition::ALL.into_iter().map(|disposition| (disposition, self.dispositions[disposition as usize]))
    }
}

/// What a message costs, where that is known and not zero.
fn cost_of(row: &MessageRow) -> Option<(Money, Currency)> {
    row.cost.filter(|cost| *cost != Money::ZERO).zip(row.currency)
}
