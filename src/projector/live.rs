//! What queries lay over the tables: the overlay of the state, what was folded since, and what was taken off lately.
//!
//! Everything is swapped under one lock, so what is told is of one moment, and it is told for the tables that whoever
//! asks has. Rows that are laid twice (in a delta and already in the state, or in the state and already in a file) are the
//! same rows, so the order of the steps of a commit never shows.

use super::ProjectorError;
use super::delta::Delta;
use super::folding::Look;
use super::laid::LaidRows;
use super::past::{Fit, Ground, LiftedRows, Past};
use crate::lake::TableName;
use crate::lake::picture::{Overlay, Standing};
use crate::log::Assignment;
use crate::state::overlay::{Laid, LaidRow, OverlayKey};
use crate::state::{OverlayView, State};
use arrow::array::RecordBatch;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, watch};

/// Tables that something is to be laid over, and the partitions it is wanted of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub partitions: Vec<u32>,
    pub tables: BTreeMap<TableName, Standing>,
}

/// What is laid over tables that stand as they were told.
#[derive(Debug, Clone)]
pub enum Told {
    /// All of it, of those partitions asked for that this process folds.
    Laid { partitions: Vec<u32>, overlays: BTreeMap<TableName, Overlay> },
    /// The tables are older than what this process still knows: they are to be read anew.
    TooOld,
}

/// How far a partition is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The next offset to fold.
    pub folded: u64,
    /// The next offset that is in neither state nor `events`.
    pub archived: u64,
    pub log_end: u64,
    pub watermark_ms: Option<i64>,
    /// Whether this process folds it; else others do, and what they have committed is seen.
    pub owned: bool,
    /// Whether rows of it were made under policies or prices that are others now.
    pub is_outdated: bool,
    /// Why it is not folded on, where nobody but its owner can mend that.
    pub error: Option<String>,
}

/// How the projector is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub partitions: Vec<PartitionStatus>,
    /// What stops it now.
    pub error: Option<String>,
    /// Whether it has given up and waits for somebody.
    pub stopped: bool,
    /// What it is rebuilding, and how far it is.
    pub recovering: Option<String>,
    /// Whether the partitions are being shared out: it is not known yet which are this process's.
    pub joining: bool,
    /// When the tables were brought up to date last by this process, in µs.
    pub committed_us: Option<i64>,
}

impl Status {
    /// Whether rows were made under policies or prices that are others now: a rebuild makes them anew.
    pub fn is_outdated(&self) -> bool {
        self.partitions.iter().any(|partition| partition.is_outdated)
    }

    /// The partitions that this process folds, in order.
    pub fn owned(&self) -> Vec<u32> {
        (0u32..).zip(&self.partitions).filter(|(_, partition)| partition.owned).map(|(number, _)| number).collect()
    }
}

struct Inner {
    deltas: Vec<VecDeque<Arc<Delta>>>,
    state: Option<State>,
    past: Past,
    status: Status,
    /// Where those who fold are asked about users.
    lookers: BTreeMap<u32, mpsc::Sender<Look>>,
}

/// What all parts of the projector show and see. Hand it around in an `Arc`.
pub(super) struct Live {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    assignment: watch::Sender<Assignment>,
}

impl Live {
    pub fn new(partitions: u32) -> Self {
        let partitions = partitions as usize;
        let deltas = (0..partitions).map(|_| VecDeque::new()).collect();
        // Until the first run knows what is this process's, nothing counts as folded.
        let partitions = vec![PartitionStatus::default(); partitions];
        let status = Status { partitions, joining: true, ..Status::default() };
        let inner = Inner { deltas, state: None, past: Past::default(), status, lookers: BTreeMap::new() };
        Self { inner: Mutex::new(inner), changed: watch::Sender::new(0), assignment: watch::Sender::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding the lock leaves whole values behind: each field is replaced, never half changed.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts over without a state: nothing is laid over the tables.
    pub fn clear(&self, status: Status) {
        self.begin(None, Ground::default(), status);
    }

    /// Starts over with a state; nothing folded before counts.
    pub fn reset(&self, state: State, ground: Ground, status: Status) {
        self.begin(Some(state), ground, status);
    }

    fn begin(&self, state: Option<State>, ground: Ground, status: Status) {
        let mut inner = self.lock();
        inner.deltas.iter_mut().for_each(VecDeque::clear);
        inner.state = state;
        inner.past = Past::from(ground);
        inner.status = status;
        inner.lookers.clear();
        drop(inner);
        self.tell();
    }

    /// Users of a partition are asked about there, until the next run.
    pub fn look_through(&self, partition: u32, looker: mpsc::Sender<Look>) {
        self.lock().lookers.insert(partition, looker);
    }

    /// Where users of a partition are asked about; `None` where this process does not fold it.
    pub fn looker(&self, partition: u32) -> Option<mpsc::Sender<Look>> {
        self.lock().lookers.get(&partition).cloned()
    }

    /// Changes the status.
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.lock().status);
        self.tell();
    }

    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    /// The end of a partition's log as it was seen last.
    pub fn log_end(&self, partition: usize) -> u64 {
        self.lock().status.partitions[partition].log_end
    }

    /// What is worked on from now on, where the partitions are shared.
    pub fn assigned(&self, assignment: &Assignment) {
        self.assignment.send_replace(assignment.clone());
    }

    pub fn assignment(&self) -> watch::Receiver<Assignment> {
        self.assignment.subscribe()
    }

    /// Bumps whenever something visible changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Whether rows of a partition were made under policies or prices that are others now.
    pub fn is_outdated(&self, partition: usize) -> bool {
        self.lock().status.partitions[partition].is_outdated
    }

    /// Shows what a batch changed.
    pub fn publish(&self, delta: Delta, log_end: u64) {
        let mut inner = self.lock();
        let partition = delta.partition as usize;
        inner.status.partitions[partition].folded = delta.position;
        inner.status.partitions[partition].log_end = log_end;
        inner.status.partitions[partition].watermark_ms = delta.watermark_ms;
        inner.deltas[partition].push_back(Arc::new(delta));
        drop(inner);
        self.tell();
    }

    /// The deltas of a partition that are not in the state yet, oldest first.
    pub fn deltas(&self, partition: u32) -> Vec<Arc<Delta>> {
        self.lock().deltas[partition as usize].iter().cloned().collect()
    }

    /// Drops the oldest deltas of each partition, so many, now that `events` and the state have them.
    pub fn retire(&self, counts: &[(u32, usize)]) {
        let mut inner = self.lock();
        let Inner { deltas, past, status, .. } = &mut *inner;
        for (partition, count) in counts {
            for delta in deltas[*partition as usize].drain(..*count) {
                past.archive(*partition, delta.position, delta.events.clone());
                status.partitions[*partition as usize].archived = delta.position;
            }
        }
        drop(inner);
        self.tell();
    }

    /// Notes what a commit to a table is about to take off the overlay, where that is little enough to be kept.
    pub fn lift(&self, table: TableName, version: u64, rows: Option<LiftedRows>) {
        self.lock().past.lift(table, version, rows);
    }

    /// Whether what is taken off is of use to anybody.
    pub fn keeps_lifted(&self) -> bool {
        self.lock().past.keeps()
    }

    /// What is to be laid over tables as they are told.
    pub fn overlay(&self, asked: &Asked) -> Result<Told, ProjectorError> {
        let inner = self.lock();
        let Some(state) = &inner.state else {
            let none = asked.tables.keys().map(|name| (*name, Overlay::default())).collect();
            return Ok(Told::Laid { partitions: Vec::new(), overlays: none });
        };
        let mut partitions = Vec::new();
        for partition in asked.partitions.iter().copied() {
            let status = inner.status.partitions.get(partition as usize);
            let fits = asked.tables.iter().map(|(name, theirs)| inner.past.fit(*name, partition, theirs));
            let fits: Vec<Fit> = fits.collect();
            if !status.is_some_and(|status| status.owned) || fits.contains(&Fit::TakenOver) {
                continue;
            }
            if fits.contains(&Fit::TooOld) {
                return Ok(Told::TooOld);
            }
            partitions.push(partition);
        }
        let of_deltas = partitions.iter().flat_map(|partition| &inner.deltas[*partition as usize]);
        let moment = Moment {
            deltas: of_deltas.cloned().collect(),
            overlay: state.overlay(),
            lifted: asked
                .tables
                .iter()
                .map(|(name, theirs)| (*name, inner.past.lifted_since(*name, theirs.version)))
                .collect(),
            archived: match asked.tables.get(&TableName::Events) {
                Some(theirs) => inner.past.archived_since(&positions(theirs, &partitions)),
                None => Vec::new(),
            },
        };
        drop(inner);
        let overlays = asked.tables.iter().map(|(name, theirs)| {
            let overlay = match name {
                TableName::Events => moment.events(&positions(theirs, &partitions)),
                TableName::Sessions => moment.laid(*name, Laid::Sessions, &partitions)?,
                TableName::Messages => moment.laid(*name, Laid::Messages, &partitions)?,
            };
            Ok::<_, ProjectorError>((*name, overlay))
        });
        let overlays = overlays.collect::<Result<_, _>>()?;
        Ok(Told::Laid { partitions, overlays })
    }
}

/// The positions of these partitions in `events`.
fn positions(events: &Standing, partitions: &[u32]) -> BTreeMap<u32, u64> {
    let position = |partition: &u32| events.positions.get(partition).copied().unwrap_or(0);
    partitions.iter().map(|partition| (*partition, position(partition))).collect()
}

/// All that is laid, at one moment.
struct Moment {
    /// By partition, oldest first.
    deltas: Vec<Arc<Delta>>,
    overlay: OverlayView,
    /// Newest first.
    lifted: BTreeMap<TableName, Vec<LiftedRows>>,
    archived: Vec<RecordBatch>,
}

impl Moment {
    fn events(&self, positions: &BTreeMap<u32, u64>) -> Overlay {
        // A commit takes whole deltas, so none lies on both sides of a position.
        let is_newer = |delta: &&Arc<Delta>| delta.position > positions.get(&delta.partition).copied().unwrap_or(0);
        let folded = self.deltas.iter().filter(is_newer).filter_map(|delta| delta.events.clone());
        Overlay { rows: self.archived.iter().cloned().chain(folded).collect(), ..Overlay::default() }
    }

    fn laid(&self, name: TableName, table: Laid, partitions: &[u32]) -> Result<Overlay, ProjectorError> {
        let damaged = |what: &str| self.overlay.damaged(what);
        let row_of = |value: &[u8]| LaidRow::from_bytes(table, value).ok_or_else(|| damaged("an overlay row"));
        let mut newest: FxHashMap<&OverlayKey, &LaidRow> = FxHashMap::default();
        for laying in self.deltas.iter().flat_map(|delta| &delta.rows).filter(|laying| laying.key.table == table) {
            newest.insert(&laying.key, &laying.row);
        }
        let mut laid = LaidRows::new(table);
        for (key, row) in &newest {
            laid.add(key, row);
        }
        let lifted = self.lifted.get(&name).map_or(&[][..], Vec::as_slice);
        let mut seen: FxHashSet<Vec<u8>> = FxHashSet::default();
        // Rows of partitions that were this process's once are others' to lay.
        for partition in partitions {
            self.overlay.rows(table, *partition, |key, value| {
                if !lifted.is_empty() {
                    seen.insert(key.to_vec());
                }
                let key = OverlayKey::from_bytes(key).ok_or_else(|| damaged("an overlay key"))?;
                if !newest.contains_key(&key) {
                    laid.add(&key, &row_of(value)?);
                }
                Ok(())
            })?;
        }
        for (bytes, value) in lifted.iter().flat_map(|rows| rows.iter()) {
            let key = OverlayKey::from_bytes(bytes).ok_or_else(|| damaged("an overlay key"))?;
            let is_newest = !newest.contains_key(&key) && partitions.contains(&key.partition);
            if is_newest && seen.insert(bytes.clone()) {
                laid.add(&key, &row_of(value)?);
            }
        }
        Ok(laid.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::row::{Expected, MessageRow, Method, Verdict};
    use crate::state::overlay::RowId;
    use crate::state::user_key;
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    use std::sync::Arc;

    const HOUR: i64 = 490_000;

    fn key(partition: u32, token: u64) -> OverlayKey {
        OverlayKey {
            table: Laid::Messages,
            partition,
            hour: HOUR,
            user: user_key("bot", "ann"),
            id: RowId::Message(token),
        }
    }

    /// A message whose `seen_at` tells which of its rows it is.
    fn row(token: u64, seen_ms: i64) -> LaidRow {
        LaidRow::Message(MessageRow {
            message_token: token,
            session_id: None,
            sent_at_ms: HOUR * 3_600_000,
            method: Method::Send,
            message_type: None,
            tracking_data: None,
            expected: Expected::InService,
            billing_status: None,
            verdict: Verdict::Agreed,
            delivered_at_ms: None,
            seen_at_ms: Some(seen_ms),
            failed_at_ms: None,
            failure: None,
            country: None,
            price: None,
            cost: None,
            currency: None,
            settled: false,
            policy: "counterbat".into(),
        })
    }

    fn lay(state: &State, partition: u32, token: u64, seen_ms: i64) {
        let mut batch = state.batch();
        batch.lay(&key(partition, token).to_bytes(), &row(token, seen_ms).to_bytes());
        batch.commit().unwrap();
    }

    /// As a commit does that makes rows part of a version of the table.
    fn commit(live: &Live, state: &State, version: u64, tokens: &[u64]) {
        let keys: Vec<Vec<u8>> = tokens.iter().map(|token| key(1, *token).to_bytes()).collect();
        let rows = keys.iter().map(|key| (key.clone(), state.laid(key).unwrap().unwrap())).collect();
        live.lift(TableName::Messages, version, Some(Arc::new(rows)));
        state.lift(&keys).unwrap();
    }

    #[test]
    fn without_a_state_nothing_is_laid_over_any_table() {
        let tables = TableName::ALL.map(|name| (name, Standing::default())).into();
        let told = Live::new(2).overlay(&Asked { partitions: vec![0, 1], tables }).unwrap();
        let Told::Laid { partitions, overlays } = told else { panic!("the tables are not too old") };
        assert!(partitions.is_empty() && overlays.values().all(|overlay| overlay.rows.is_empty()));
        // Whoever asked for a table reads an answer about it.
        assert!(TableName::ALL.iter().all(|name| overlays.contains_key(name)));
    }

    /// Tokens and times of what is laid over a version; `None` where it is too old.
    fn laid(live: &Live, version: u64) -> Option<Vec<(i64, i64)>> {
        let theirs = Standing { version, ..Standing::default() };
        let asked = Asked { partitions: vec![0, 1, 2], tables: [(TableName::Messages, theirs)].into() };
        let Told::Laid { partitions, overlays } = live.overlay(&asked).unwrap() else { return None };
        assert_eq!(partitions, [1], "others are others' to tell");
        let overlay = &overlays[&TableName::Messages];
        let mut found = Vec::new();
        for batch in &overlay.rows {
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let tokens = column("message_token").as_primitive::<Int64Type>().values().to_vec();
            let seen = column("seen_at").as_primitive::<arrow::datatypes::TimestampMicrosecondType>().values().to_vec();
            found.extend(tokens.into_iter().zip(seen.into_iter().map(|us| us / 1000)));
        }
        found.sort_unstable();
        assert_eq!(overlay.replaced.len(), found.len());
        assert!(found.is_empty() || overlay.hours.contains(&(1, HOUR)));
        Some(found)
    }

    #[test]
    fn older_tables_are_laid_over_with_what_the_newer_ones_have() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), 16 << 20).unwrap();
        let live = Live::new(3);
        let status = Status {
            partitions: vec![
                PartitionStatus::default(),
                PartitionStatus { owned: true, ..PartitionStatus::default() },
                PartitionStatus::default(),
            ],
            ..Status::default()
        };
        let ground = Ground { versions: [(TableName::Messages, 10)].into(), is_shared: true, ..Ground::default() };
        live.reset(state.clone(), ground, status.clone());
        lay(&state, 1, 7, 100);
        lay(&state, 1, 8, 100);
        // Left by a partition that was this process's once.
        lay(&state, 2, 9, 100);
        assert_eq!(laid(&live, 10), Some(vec![(7, 100), (8, 100)]));
        assert_eq!(laid(&live, 9), None, "the partition's state begins with version 10");

        commit(&live, &state, 12, &[7, 8]);
        assert_eq!(laid(&live, 12), Some(vec![]));
        assert_eq!(laid(&live, 11), Some(vec![(7, 100), (8, 100)]));
        lay(&state, 1, 7, 200);
        commit(&live, &state, 15, &[7]);
        lay(&state, 1, 8, 300);
        assert_eq!(laid(&live, 15), Some(vec![(8, 300)]));
        assert_eq!(laid(&live, 12), Some(vec![(7, 200), (8, 300)]));
        assert_eq!(laid(&live, 10), Some(vec![(7, 200), (8, 300)]), "of several rows the newest");

        // What is folded and not in the state yet goes over everything.
        let laying = super::super::delta::Laying { key: key(1, 7), row: row(7, 400), fresh: false };
        let delta = Delta {
            partition: 1,
            position: 5,
            watermark_ms: None,
            events: None,
            rows: vec![laying],
            tally: crate::metrics::Tally::default(),
            changes: None,
        };
        live.publish(delta, 5);
        assert_eq!(laid(&live, 10), Some(vec![(7, 400), (8, 300)]));
        assert_eq!(laid(&live, 99), Some(vec![(7, 400), (8, 300)]));

        live.lift(TableName::Messages, 20, None);
        assert_eq!(laid(&live, 19), None);
        live.clear(status);
        let asked = Asked { partitions: vec![1], ..Asked::default() };
        assert!(matches!(live.overlay(&asked), Ok(Told::Laid { partitions, .. }) if partitions.is_empty()));
    }
}
