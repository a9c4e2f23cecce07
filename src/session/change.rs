//! What changed between two sets of rows of one user. Pure.

use super::fold::Rows;
use super::row::{MessageRow, SessionId, SessionRow};
use rustc_hash::FxHashMap;
use std::hash::Hash;

/// A row that is new, changed or gone. `before` and `after` are never both `None`, and never equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<'a, R> {
    pub before: Option<&'a R>,
    pub after: Option<&'a R>,
}

/// The sessions that differ.
pub fn sessions<'a>(before: &'a Rows, after: &'a Rows) -> Vec<Change<'a, SessionRow>> {
    changes::<_, SessionId>(&before.sessions, &after.sessions, |row| row.session_id)
}

/// The messages that differ.
pub fn messages<'a>(before: &'a Rows, after: &'a Rows) -> Vec<Change<'a, MessageRow>> {
    changes(&before.messages, &after.messages, |row| row.message_token)
}

fn changes<'a, R: PartialEq, K: Hash + Eq>(
    before: &'a [R],
    after: &'a [R],
    key: impl Fn(&R) -> K,
) -> Vec<Change<'a, R>> {
    // Most users have a few rows, and most of those stay where they were.
    let same = before.iter().zip(after).take_while(|(old, new)| old == new).count();
    let (before, after) = (&before[same..], &after[same..]);
    if before.is_empty() {
        return after.iter().map(|row| Change { before: None, after: Some(row) }).collect();
    }
    let mut old: FxHashMap<K, &R> = before.iter().map(|row| (key(row), row)).collect();
    let mut changed = Vec::new();
    for row in after {
        match old.remove(&key(row)) {
            Some(same) if same == row => {}
            was => changed.push(Change { before: was, after: Some(row) }),
        }
    }
    changed.extend(
        before.iter().filter(|row| old.contains_key(&key(row))).map(|row| Change { before: Some(row), after: None }),
    );
    changed
}
