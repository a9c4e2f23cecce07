//! How values are written in JSON: times RFC 3339, tokens as text, words of the tables.

use crate::event::Disposition;
use crate::event::time::{format_ms, format_us};
use crate::session::row::{CloseReason, Expected, Kind, Verdict};
use serde::Serializer;

pub fn us<S: Serializer>(us: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_us(*us))
}

pub fn ms<S: Serializer>(ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format_ms(*ms))
}

pub fn optional_ms<S: Serializer>(ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    match ms {
        Some(ms) => serializer.serialize_str(&format_ms(*ms)),
        None => serializer.serialize_none(),
    }
}

pub fn sure_token<S: Serializer>(token: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(token)
}

pub fn token<S: Serializer>(token: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match token {
        Some(token) => serializer.collect_str(token),
        None => serializer.serialize_none(),
    }
}

pub fn disposition<S: Serializer>(disposition: &Disposition, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(disposition.as_str())
}

/// A value that the tables have a word for.
pub trait Word {
    fn word(&self) -> &'static str;
}

macro_rules! words {
    ($($type:ty),+) => {$(
        impl Word for $type {
            fn word(&self) -> &'static str {
                self.as_str()
            }
        }
    )+};
}
words!(Kind, CloseReason, Expected, Verdict);

pub fn optional_word<S: Serializer>(value: &Option<impl Word>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.serialize_str(value.word()),
        None => serializer.serialize_none(),
    }
}

pub fn word<S: Serializer>(value: &impl Word, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.word())
}
