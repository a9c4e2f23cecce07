//! The state of a partition as changes that are kept elsewhere, from which another process goes on.
//!
//! Keys: `u` and a user's key, an overlay row's key as it is, and [`MARK`] for how far the partition was folded. Timers
//! are not among them: a user's entry says which one is set.

use super::overlay::{self, Laid};
use super::{Batch, Entry, FORMAT, Meta, PartitionMark, State, StateError, encode, partition_key, split_user_key};
use crate::log::StateChange;
use crate::session::Outlines;
use borsh::{BorshDeserialize, BorshSerialize};

const USER: u8 = b'u';
/// The key of a partition's mark.
pub const MARK: &[u8] = b"p";
/// Keys removed in one batch.
const CLEAR_BATCH: usize = 50_000;

/// How far a partition was folded, and by what.
#[derive(Debug, Clone, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
struct Mark {
    format: u32,
    log_id: String,
    policies: Outlines,
    mark: PartitionMark,
}

impl Meta {
    /// The change that tells how far a partition was folded.
    pub fn handover(&self, partition: u32) -> StateChange {
        let mark = self.partitions.get(partition as usize).cloned().unwrap_or_default();
        let mark = Mark { format: FORMAT, log_id: self.log_id.clone(), policies: self.policies.clone(), mark };
        StateChange { partition, key: MARK.to_vec(), value: Some(encode(&mark)) }
    }
}

/// The change that takes a row off the overlay.
pub fn lifted(partition: u32, key: Vec<u8>) -> StateChange {
    StateChange { partition, key, value: None }
}

/// The change of a user's entry.
pub(super) fn user_change(partition: u32, key: &[u8], value: Option<Vec<u8>>) -> StateChange {
    let mut own = Vec::with_capacity(1 + key.len());
    own.push(USER);
    own.extend_from_slice(key);
    StateChange { partition, key: own, value }
}

impl Batch {
    /// Makes a change that another process has handed over. A mark is returned: it counts once all the rest is in. `None`
    /// too for a mark of another log or format, with which nothing can be begun. What was folded under others than
    /// `policies` is outdated.
    pub fn take_over(
        &mut self,
        change: StateChange,
        log_id: &str,
        policies: &Outlines,
    ) -> Result<Option<PartitionMark>, StateError> {
        let StateChange { partition, key, value } = change;
        if key == MARK {
            let mark = value.and_then(|value| Mark::try_from_slice(&value).ok());
            let fitting = mark.filter(|mark| mark.format == FORMAT && mark.log_id == log_id);
            return Ok(fitting.map(|mut mark| {
                mark.mark.go_by(&mark.policies, policies);
                mark.mark
            }));
        }
        match (key.split_first(), value) {
            (Some((&USER, key)), Some(value)) => {
                let entry: Entry = self.state.decode("user", &value)?;
                self.set_user(partition, key, &entry);
            }
            (Some((&USER, key)), None) => self.set_user(partition, key, &Entry::default()),
            (_, Some(value)) => self.lay(&key, &value),
            (_, None) => self.lift(&key),
        }
        Ok(None)
    }
}

impl State {
    /// Forgets everything of a partition but its mark.
    pub fn clear(&self, partition: u32) -> Result<(), StateError> {
        for (keyspace, prefix) in [
            (&self.users, partition_key(partition, b"")),
            (&self.timers, partition_key(partition, b"")),
            (&self.overlay, overlay::prefix(Laid::Sessions, partition, None)),
            (&self.overlay, overlay::prefix(Laid::Messages, partition, None)),
        ] {
            loop {
                let mut batch = self.batch();
                let mut any = false;
                for guard in keyspace.prefix(&prefix).take(CLEAR_BATCH) {
                    let key = guard.key().map_err(|error| self.error(error))?;
                    batch.batch.remove(keyspace, key);
                    any = true;
                }
                if !any {
                    break;
                }
                batch.commit()?;
            }
        }
        Ok(())
    }

    /// Sets the timers that the users of a partition say are set, after their entries were taken over.
    pub fn arm_all(&self, partition: u32) -> Result<(), StateError> {
        let mut batch = self.batch();
        let mut armed = 0;
        for guard in self.users.prefix(partition_key(partition, b"")) {
            let (key, value) = guard.into_inner().map_err(|error| self.error(error))?;
            let entry: Entry = self.decode("user", &value)?;
            if let Some(due_ms) = entry.armed_ms {
                batch.arm(partition, due_ms, &key[4..]);
                armed += 1;
            }
            if armed == CLEAR_BATCH {
                std::mem::replace(&mut batch, self.batch()).commit()?;
                armed = 0;
            }
        }
        batch.commit()
    }

    /// Everything of a partition as changes, at most `limit` of them after the key `after`; empty at the end.
    pub fn changes(&self, partition: u32, after: Option<&[u8]>, limit: usize) -> Result<Vec<StateChange>, StateError> {
        let mut changes = Vec::new();
        // In order of the changes' keys: overlay rows of messages, of sessions, then users.
        for table in [Laid::Messages, Laid::Sessions] {
            let prefix = overlay::prefix(table, partition, None);
            let from = after.filter(|after| **after >= *prefix).unwrap_or(&prefix).to_vec();
            for guard in self.overlay.range(from..).take(limit + 1) {
                let (key, value) = guard.into_inner().map_err(|error| self.error(error))?;
                if !key.starts_with(&prefix) || changes.len() == limit {
                    break;
                }
                if after != Some(&key[..]) {
                    changes.push(StateChange { partition, key: key.to_vec(), value: Some(value.to_vec()) });
                }
            }
        }
        let prefix = partition_key(partition, b"");
        let from = match after {
            Some([USER, key @ ..]) => partition_key(partition, key),
            _ => prefix.clone(),
        };
        let begun = from.len() > prefix.len();
        for guard in self.users.range(from.clone()..).take(limit + 1) {
            let (key, value) = guard.into_inner().map_err(|error| self.error(error))?;
            if !key.starts_with(&prefix) || changes.len() >= limit {
                break;
            }
            if !(begun && key[..] == from[..]) && split_user_key(&key[4..]).is_some() {
                changes.push(user_change(partition, &key[4..], Some(value.to_vec())));
            }
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::overlay::{LaidRow, OverlayKey, RowId};
    use crate::state::user_key;

    #[test]
    fn a_partition_is_handed_over_whole_and_alone() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = State::open(one.path(), 16 << 20).unwrap();
        let mut batch = state.batch();
        for partition in [1, 2] {
            for n in 0..7i64 {
                let user = user_key("bot", &format!("u{n}"));
                batch.set_user(partition, &user, &Entry { armed_ms: Some(n), ..Entry::default() });
                batch.arm(partition, n, &user);
                let table = if n % 2 == 0 { Laid::Sessions } else { Laid::Messages };
                let id = if n % 2 == 0 { RowId::Session([n as u8; 16]) } else { RowId::Message(n as u64) };
                let key = OverlayKey { table, partition, hour: n, user, id };
                batch.lay(&key.to_bytes(), &LaidRow::Gone.to_bytes());
            }
        }
        batch.commit().unwrap();
        let taker = State::open(other.path(), 16 << 20).unwrap();
        for limit in [1, 3, 100] {
            taker.clear(1).unwrap();
            let mut after: Option<Vec<u8>> = None;
            let mut count = 0;
            loop {
                let changes = state.changes(1, after.as_deref(), limit).unwrap();
                let Some(last) = changes.last() else { break };
                after = Some(last.key.clone());
                count += changes.len();
                let mut batch = taker.batch();
                for change in changes {
                    assert_eq!(batch.take_over(change, "log", &Outlines::default()).unwrap(), None);
                }
                batch.commit().unwrap();
            }
            taker.arm_all(1).unwrap();
            assert_eq!(count, 14, "pages of {limit}");
            assert_eq!(taker.changes(1, None, 100).unwrap(), state.changes(1, None, 100).unwrap());
            assert_eq!(taker.due(1, None, 10).unwrap(), state.due(1, None, 10).unwrap());
            assert_eq!(taker.changes(2, None, 100).unwrap(), []);
        }
        state.clear(1).unwrap();
        assert_eq!(state.changes(1, None, 100).unwrap(), []);
        assert_eq!(state.changes(2, None, 100).unwrap().len(), 14);
    }

    #[test]
    fn marks_of_others_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), 16 << 20).unwrap();
        let mark = PartitionMark { position: 9, ..PartitionMark::default() };
        let policies = Outlines::default();
        let meta =
            Meta { format: FORMAT, log_id: "log".into(), policies: policies.clone(), partitions: vec![mark.clone()] };
        assert_eq!(state.batch().take_over(meta.handover(0), "log", &policies).unwrap(), Some(mark));
        assert_eq!(state.batch().take_over(meta.handover(0), "another", &policies).unwrap(), None);
    }

    #[test]
    fn a_partition_folded_under_other_policies_is_outdated_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), 16 << 20).unwrap();
        let outlines = |what: &str| Outlines { default: vec![(i64::MIN, what.into())], ..Outlines::default() };
        let open = vec![("shop".to_owned(), crate::session::row::Kind::Service, 0)];
        let met = PartitionMark { watermark_ms: Some(7), open, ..PartitionMark::default() };
        let partitions = vec![met, PartitionMark { watermark_ms: Some(7), ..PartitionMark::default() }];
        let mut meta = Meta { format: FORMAT, log_id: "log".into(), policies: outlines("old"), partitions };
        let taken = |meta: &Meta, now: &str| {
            let taken = [0, 1].map(|one| state.batch().take_over(meta.handover(one), "log", &outlines(now)).unwrap());
            taken.map(|mark| mark.unwrap().is_outdated)
        };
        assert_eq!((taken(&meta, "old"), taken(&meta, "new")), ([false, false], [true, false]));
        assert_eq!(meta.go_by(outlines("old")), [""; 0]);
        assert_eq!(meta.go_by(outlines("new")), ["shop"]);
        assert_eq!(meta.go_by(outlines("old")), ["shop"]);
        assert_eq!(taken(&meta, "old"), [true, false]);
    }
}
