//! Keys and values of the overlay: the rows that changed since their file was written. Pure.

use crate::session::row::{MessageRow, SessionId, SessionRow};
use borsh::BorshDeserialize;

const HOUR_MS: i64 = 3_600_000;

/// The table a laid row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Laid {
    Sessions,
    Messages,
}

impl Laid {
    /// Of the first byte of an overlay key.
    pub fn of(tag: u8) -> Option<Self> {
        [Laid::Sessions, Laid::Messages].into_iter().find(|table| table.tag() == tag)
    }

    fn tag(self) -> u8 {
        match self {
            Laid::Sessions => b's',
            Laid::Messages => b'm',
        }
    }
}

/// What identifies a row within its bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RowId {
    Session(SessionId),
    Message(u64),
}

/// Where a row lies: table, partition, hour of its reference time, user, id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OverlayKey {
    pub table: Laid,
    pub partition: u32,
    /// Hours since the epoch.
    pub hour: i64,
    /// As [`super::user_key`] makes it.
    pub user: Box<[u8]>,
    pub id: RowId,
}

/// The hour since the epoch of a time.
pub fn hour_of(t_ms: i64) -> i64 {
    t_ms.div_euclid(HOUR_MS)
}

/// The start of an overlay key: table, partition and, if given, hour.
pub fn prefix(table: Laid, partition: u32, hour: Option<i64>) -> Vec<u8> {
    let mut bytes = vec![table.tag()];
    bytes.extend_from_slice(&partition.to_be_bytes());
    if let Some(hour) = hour {
        bytes.extend_from_slice(&super::to_ordered(hour).to_be_bytes());
    }
    bytes
}

/// The partition in the bytes of an overlay key.
pub fn partition_in(key: &[u8]) -> Option<u32> {
    key.get(1..5)?.try_into().ok().map(u32::from_be_bytes)
}

/// The hour in the bytes of an overlay key.
pub fn hour_in(key: &[u8]) -> Option<i64> {
    let bytes: [u8; 8] = key.get(5..13)?.try_into().ok()?;
    Some(super::from_ordered(u64::from_be_bytes(bytes)))
}

impl OverlayKey {
    /// The key's bytes, ordered by table, partition, hour, user, id.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = prefix(self.table, self.partition, Some(self.hour));
        bytes.extend_from_slice(&self.user);
        match self.id {
            RowId::Session(id) => bytes.extend_from_slice(&id),
            RowId::Message(token) => bytes.extend_from_slice(&token.to_be_bytes()),
        }
        bytes
    }

    /// Reads a key's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (table, id_len) = match bytes.first()? {
            b's' => (Laid::Sessions, 16),
            b'm' => (Laid::Messages, 8),
            _ => return None,
        };
        let partition = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?);
        let hour = hour_in(bytes)?;
        let rest = bytes.get(13..)?;
        let (user, id) = rest.split_at_checked(rest.len().checked_sub(id_len)?)?;
        let id = match table {
            Laid::Sessions => RowId::Session(id.try_into().ok()?),
            Laid::Messages => RowId::Message(u64::from_be_bytes(id.try_into().ok()?)),
        };
        Some(Self { table, partition, hour, user: user.into(), id })
    }
}

/// A row, or the word that it is gone.
#[derive(Debug, Clone, PartialEq)]
pub enum LaidRow {
    Session(SessionRow),
    Message(MessageRow),
    Gone,
}

impl LaidRow {
    /// The row's bytes; none when it is gone.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            LaidRow::Session(row) => super::encode(row),
            LaidRow::Message(row) => super::encode(row),
            LaidRow::Gone => Vec::new(),
        }
    }

    /// Reads the bytes of a row of `table`.
    pub fn from_bytes(table: Laid, bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(LaidRow::Gone);
        }
        match table {
            Laid::Sessions => SessionRow::try_from_slice(bytes).ok().map(LaidRow::Session),
            Laid::Messages => MessageRow::try_from_slice(bytes).ok().map(LaidRow::Message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_and_sort_by_hour() {
        let key = |hour, token| OverlayKey {
            table: Laid::Messages,
            partition: 3,
            hour,
            user: super::super::user_key("bot", "u\u{0}x"),
            id: RowId::Message(token),
        };
        for (hour, token) in [(-1, 0), (0, u64::MAX), (500_000, 7)] {
            assert_eq!(OverlayKey::from_bytes(&key(hour, token).to_bytes()), Some(key(hour, token)));
        }
        assert!(key(-1, 9).to_bytes() < key(0, 0).to_bytes());
        assert_eq!(OverlayKey::from_bytes(b"m123"), None);
    }
}
