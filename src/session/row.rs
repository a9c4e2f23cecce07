//! What the fold gives: rows of `sessions` and `messages` (spec §5), without the user they belong to. Pure.

use super::money::{Currency, Money};
pub use crate::event::Method;
use borsh::{BorshDeserialize, BorshSerialize};
use compact_str::CompactString;

/// `session_id`: the first 16 bytes of a SHA-256 (spec §3); shown as 32 hex digits.
pub type SessionId = [u8; 16];

/// Whether a session was opened by the user or by a paid message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Kind {
    Service,
    Paid,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum CloseReason {
    Expired,
    Cap,
    Unsubscribed,
}

/// How far time has moved past a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum SessionState {
    Open,
    Closed,
    Settled,
}

/// A row of `sessions`. Times are ms since the epoch, UTC.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct SessionRow {
    pub session_id: SessionId,
    pub country: Option<CompactString>,
    pub kind: Kind,
    pub state: SessionState,
    pub opened_at_ms: i64,
    pub expires_at_ms: i64,
    /// `closed_at` and `close_reason`; `None` while open.
    pub closed: Option<(i64, CloseReason)>,
    pub opened_by_token: u64,
    pub inbound: u32,
    pub outbound: u32,
    pub delivered: u32,
    pub seen: u32,
    pub failed: u32,
    pub charged: u32,
    pub overcharged: u32,
    pub first_response_ms: Option<i64>,
    pub last_event_at_ms: i64,
    /// The sum of its messages'; `None` where one has none, or they are of several currencies.
    pub cost: Option<Money>,
    pub currency: Option<Currency>,
    pub policy: CompactString,
}

/// Where the rules say a message lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Expected {
    InService,
    InPaid,
    OutOfSession,
}

/// `expected` held against the reported `billing_status` (spec §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, BorshSerialize, BorshDeserialize)]
pub enum Verdict {
    Agreed,
    UnseenSession,
    MissedSession,
    Overcharged,
    Recharged,
    Unreported,
}

/// A row of `messages`. Times are ms since the epoch, UTC.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct MessageRow {
    pub message_token: u64,
    pub session_id: Option<SessionId>,
    pub sent_at_ms: i64,
    pub method: Method,
    pub message_type: Option<CompactString>,
    pub tracking_data: Option<CompactString>,
    pub expected: Expected,
    pub billing_status: Option<i32>,
    pub verdict: Verdict,
    pub delivered_at_ms: Option<i64>,
    pub seen_at_ms: Option<i64>,
    pub failed_at_ms: Option<i64>,
    /// The `desc` of the `failed` callback, where it had one.
    pub failure: Option<CompactString>,
    pub country: Option<CompactString>,
    /// In force for the country at `sent_at`.
    pub price: Option<Money>,
    /// What Viber reports of it; `None` where it was charged and has no price.
    pub cost: Option<Money>,
    /// Of `price` and `cost`.
    pub currency: Option<Currency>,
    pub settled: bool,
    pub policy: CompactString,
}

macro_rules! names {
    ($type:ty { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// The word the tables and metrics use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The variant of a word the tables use.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}
names!(Kind { Service => "service", Paid => "paid" });
names!(CloseReason { Expired => "expired", Cap => "cap", Unsubscribed => "unsubscribed" });
names!(SessionState { Open => "open", Closed => "closed", Settled => "settled" });
names!(Expected { InService => "in_service", InPaid => "in_paid", OutOfSession => "out_of_session" });
names!(Verdict {
    Agreed => "agreed", UnseenSession => "unseen_session", MissedSession => "missed_session",
    Overcharged => "overcharged", Recharged => "recharged", Unreported => "unreported",
});
