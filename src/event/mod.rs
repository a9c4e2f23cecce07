//! Events: CloudEvents 1.0 as the log holds them, and what a Viber payload says. Pure.
//!
//! [`Event`] is the envelope (spec §2), with `data` kept byte for byte. [`structured`] is the form of import and
//! export files, [`binary`] the headers-and-value form of Kafka, [`frame`] the compact form of the embedded log.
//! [`Reading`] is what the fold learns from one event: account, user, facts, or why there are none.

pub mod binary;
pub mod frame;
pub mod identity;
pub mod payload;
pub mod reading;
pub mod shown;
pub mod structured;
pub mod time;

pub use reading::{Disposition, Envelope, Fact, Method, Origin, Outbound, Reading, Receipt, read, read_parts};

/// `type` prefix of an event made from a Viber callback.
pub const CALLBACK_PREFIX: &str = "com.viber.callback.";
/// `type` prefix of an event made from an API call and its response.
pub const CALL_PREFIX: &str = "com.viber.api.";
/// `type` prefix of Counterbat's own events.
pub const OWN_PREFIX: &str = "counterbat.";
/// `type` of the event that moves an idle partition's watermark.
pub const TICK_TYPE: &str = "counterbat.clock.ticked";
/// `type` of the event that tells of a send before it is relayed.
pub const STARTED_TYPE: &str = "counterbat.call.started";
/// `type` of the event that tells that calls began to pass unrecorded.
pub const GAP_OPENED_TYPE: &str = "counterbat.gap.opened";
/// `type` of the event that tells which calls have passed unrecorded.
pub const GAP_CLOSED_TYPE: &str = "counterbat.gap.closed";
/// `source` prefix; the account's name follows.
pub const SOURCE_PREFIX: &str = "/accounts/";

/// A CloudEvents 1.0 envelope with its payload (spec §2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub id: String,
    /// `/accounts/<account>`.
    pub source: String,
    /// The CloudEvents `type`.
    pub kind: String,
    /// The Viber user id, where there is one.
    pub subject: Option<String>,
    /// When the gateway received the callback or the response, in µs since the epoch, UTC.
    pub time_us: Option<i64>,
    /// Usually `application/json`.
    pub content_type: Option<String>,
    /// The signature Viber sent with the callback.
    pub signature: Option<String>,
    /// Any other context attributes, by name, in order of name.
    pub extensions: Vec<(String, String)>,
    /// The payload, byte for byte. Empty when the event has none.
    pub data: Vec<u8>,
}

impl Event {
    /// The account of `source`, when it has the form `/accounts/<account>` with a lawful name.
    pub fn account(&self) -> Option<&str> {
        self.source.strip_prefix(SOURCE_PREFIX).filter(|name| is_account_name(name))
    }

    /// Whether this is a tick of the watermark.
    pub fn is_tick(&self) -> bool {
        self.kind == TICK_TYPE
    }

    /// The key that decides the partition: `<account>/<user>`, or `<account>` without a user (spec §2).
    pub fn key(&self) -> String {
        let account = self.source.strip_prefix(SOURCE_PREFIX).unwrap_or(&self.source);
        match &self.subject {
            Some(user) => user_key(account, user),
            None => account.to_owned(),
        }
    }
}

/// [`Event::key`] of an account's event with a user.
pub fn user_key(account: &str, user: &str) -> String {
    format!("{account}/{user}")
}

/// A name that no account can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not of the form [a-z0-9_-]{{1,64}}", shown::brief(.0))]
pub struct BadAccountName(pub String);

/// Refuses a name that is not as [`is_account_name`] wants it.
pub fn check_account_name(name: &str) -> Result<(), BadAccountName> {
    if is_account_name(name) { Ok(()) } else { Err(BadAccountName(name.to_owned())) }
}

/// `[a-z0-9_-]{1,64}` (spec §2).
pub fn is_account_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

/// An event at its place in a partition of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub offset: u64,
    /// When the log took it, by the log's clock, in µs since the epoch, UTC.
    pub appended_at_us: i64,
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Events with hostile texts and data, as far as CloudEvents allows them.
    pub fn any_event() -> impl Strategy<Value = Event> {
        let text = "[ -~äш€😀\"\\\\\u{1}]{1,12}";
        let data = prop_oneof![
            Just(Vec::new()),
            proptest::collection::vec(any::<u8>(), 0..40),
            Just(br#"{"a":[1,2.50,"\u0041"],"a":18446744073709551615}"#.to_vec()),
            Just(b" {} ".to_vec()),
            Just(b"{\n}".to_vec()),
            Just(b"null".to_vec()),
        ];
        let time = proptest::option::of(0..4_000_000_000_000_000i64);
        let optional = || proptest::option::of(text);
        let extensions = proptest::collection::btree_map("x[a-z0-9]{1,8}", text, 0..3);
        (text, text, text, optional(), time, optional(), optional(), extensions, data).prop_map(
            |(id, source, kind, subject, time_us, content_type, signature, extensions, data)| Event {
                id,
                source,
                kind,
                subject,
                time_us,
                content_type,
                signature,
                extensions: extensions.into_iter().collect(),
                data,
            },
        )
    }
}
