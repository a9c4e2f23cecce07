//! What queries see: tables at their versions, the overlay of the state, and what was folded since.
//!
//! Everything is swapped under one lock, so a picture is of one moment. Rows that are laid twice (in a delta and already
//! in the state, or in the state and already in a file) are the same rows, so the order of the steps of a commit never
//! shows.

use super::ProjectorError;
use super::delta::Delta;
use crate::lake::picture::TableView;
use crate::lake::rows::{MessageRows, SessionRows, message_key, session_key};
use crate::lake::{TableName, TableSnapshot};
use crate::log::Assignment;
use crate::state::overlay::{Laid, LaidRow, OverlayKey, RowId, prefix};
use crate::state::{OverlayView, State, split_user_key};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

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
    /// The partitions that this process folds, in order.
    pub fn owned(&self) -> Vec<u32> {
        (0u32..).zip(&self.partitions).filter(|(_, partition)| partition.owned).map(|(number, _)| number).collect()
    }
}

struct Inner {
    tables: BTreeMap<TableName, TableSnapshot>,
    deltas: Vec<VecDeque<Arc<Delta>>>,
    state: Option<State>,
    status: Status,
}

/// The shared picture. Hand it around in an `Arc`.
pub(super) struct Live {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    assignment: watch::Sender<Assignment>,
}

impl Live {
    pub fn new(tables: BTreeMap<TableName, TableSnapshot>, partitions: u32) -> Self {
        let partitions = partitions as usize;
        let deltas = (0..partitions).map(|_| VecDeque::new()).collect();
        // Until the first run knows what is this process's, nothing counts as folded.
        let partitions = vec![PartitionStatus::default(); partitions];
        let status = Status { partitions, joining: true, ..Status::default() };
        let inner = Mutex::new(Inner { tables, deltas, state: None, status });
        Self { inner, changed: watch::Sender::new(0), assignment: watch::Sender::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding the lock leaves whole values behind: each field is replaced, never half changed.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Starts over with a state; nothing folded before counts.
    pub fn reset(&self, state: Option<State>, tables: BTreeMap<TableName, TableSnapshot>, status: Status) {
        let mut inner = self.lock();
        inner.deltas.iter_mut().for_each(VecDeque::clear);
        inner.state = state;
        inner.tables = tables;
        inner.status = status;
        drop(inner);
        self.tell();
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
    pub fn retire(&self, counts: &[(u32, usize)], events: TableSnapshot) {
        let mut inner = self.lock();
        for (partition, count) in counts {
            let partition = *partition as usize;
            let position = match count.checked_sub(1) {
                Some(last) => inner.deltas[partition][last].position,
                None => continue,
            };
            inner.deltas[partition].drain(..*count);
            inner.status.partitions[partition].archived = position;
        }
        inner.tables.insert(TableName::Events, events);
        drop(inner);
        self.tell();
    }

    /// Shows a new version of a table.
    pub fn set_table(&self, name: TableName, snapshot: TableSnapshot) {
        self.lock().tables.insert(name, snapshot);
        self.tell();
    }

    /// One consistent picture of the tables named.
    pub fn picture(&self, names: &[TableName]) -> Result<BTreeMap<TableName, TableView>, ProjectorError> {
        let inner = self.lock();
        let tables: Vec<_> = names.iter().filter_map(|name| Some((*name, inner.tables.get(name)?.clone()))).collect();
        let overlay = inner.state.as_ref().map(State::overlay);
        let deltas: Vec<Arc<Delta>> = inner.deltas.iter().flatten().cloned().collect();
        let owned = inner.status.owned();
        drop(inner);
        tables
            .into_iter()
            .map(|(name, snapshot)| {
                let view = match name {
                    TableName::Events => events_view(&snapshot, &deltas),
                    TableName::Sessions => laid_view(&snapshot, Laid::Sessions, overlay.as_ref(), &owned, &deltas)?,
                    TableName::Messages => laid_view(&snapshot, Laid::Messages, overlay.as_ref(), &owned, &deltas)?,
                };
                Ok((name, view))
            })
            .collect()
    }
}

fn events_view(snapshot: &TableSnapshot, deltas: &[Arc<Delta>]) -> TableView {
    TableView {
        clean: snapshot.files.values().cloned().collect(),
        rows: deltas.iter().filter_map(|delta| delta.events.clone()).collect(),
        ..TableView::default()
    }
}

fn laid_view(
    snapshot: &TableSnapshot,
    table: Laid,
    overlay: Option<&OverlayView>,
    owned: &[u32],
    deltas: &[Arc<Delta>],
) -> Result<TableView, ProjectorError> {
    let mut newest: FxHashMap<&OverlayKey, &LaidRow> = FxHashMap::default();
    for laying in deltas.iter().flat_map(|delta| &delta.rows).filter(|laying| laying.key.table == table) {
        newest.insert(&laying.key, &laying.row);
    }
    let mut laid = LaidRows::new(table);
    for (key, row) in &newest {
        laid.add(key, row);
    }
    // Rows of partitions that were this process's once are others' to lay.
    for (overlay, partition) in overlay.into_iter().flat_map(|overlay| owned.iter().map(move |own| (overlay, *own))) {
        overlay.each(&prefix(table, partition, None), |key, value| {
            let key = OverlayKey::from_bytes(key).ok_or_else(|| overlay.damaged("an overlay key"))?;
            if !newest.contains_key(&key) {
                let row = LaidRow::from_bytes(table, value).ok_or_else(|| overlay.damaged("an overlay row"))?;
                laid.add(&key, &row);
            }
            Ok(())
        })?;
    }
    let (clean, dirty) = snapshot.files.values().cloned().partition(|file| !laid.touches(file));
    Ok(TableView { clean, dirty, replaced: Arc::new(laid.replaced.unwrap_or_default()), rows: laid.rows.finish() })
}

/// Builders for rows of either table.
pub(super) enum Builder {
    Sessions(Box<SessionRows>),
    Messages(Box<MessageRows>),
}

impl Builder {
    pub fn new(table: Laid) -> Self {
        match table {
            Laid::Sessions => Builder::Sessions(Box::default()),
            Laid::Messages => Builder::Messages(Box::default()),
        }
    }

    pub fn push(&mut self, account: &str, user: &str, row: &LaidRow) {
        match (self, row) {
            (Builder::Sessions(rows), LaidRow::Session(row)) => rows.push(account, user, row),
            (Builder::Messages(rows), LaidRow::Message(row)) => rows.push(account, user, row),
            // A row of the other table cannot get here: keys and rows are made and read by table.
            _ => {}
        }
    }

    pub fn finish(self) -> Vec<arrow::array::RecordBatch> {
        let batch = match self {
            Builder::Sessions(rows) => rows.finish(),
            Builder::Messages(rows) => rows.finish(),
        };
        if batch.num_rows() == 0 { Vec::new() } else { vec![batch] }
    }
}

/// Rows that are laid over a table, and the keys they replace.
pub(super) struct LaidRows {
    pub rows: Builder,
    /// `None` where there is no file with a row to replace.
    pub replaced: Option<HashSet<Box<[u8]>>>,
    hours: FxHashSet<(u32, i64)>,
}

impl LaidRows {
    pub fn new(table: Laid) -> Self {
        Self { rows: Builder::new(table), replaced: Some(HashSet::new()), hours: FxHashSet::default() }
    }

    /// Where no file has a row yet.
    pub fn over_nothing(table: Laid) -> Self {
        Self { replaced: None, ..Self::new(table) }
    }

    pub fn add(&mut self, key: &OverlayKey, row: &LaidRow) {
        let Some((account, user)) = split_user_key(&key.user) else { return };
        self.hours.insert((key.partition, key.hour));
        if let Some(replaced) = &mut self.replaced {
            replaced.insert(match key.id {
                RowId::Session(id) => session_key(&id),
                RowId::Message(token) => message_key(account, user, token),
            });
        }
        self.rows.push(account, user, row);
    }

    fn touches(&self, file: &crate::lake::FileEntry) -> bool {
        let Some(span) = file.span else { return true };
        if span.end_hour - span.start_hour <= 48 {
            (span.start_hour..span.end_hour).any(|hour| self.hours.contains(&(span.partition, hour)))
        } else {
            self.hours.iter().any(|(partition, hour)| {
                *partition == span.partition && (span.start_hour..span.end_hour).contains(hour)
            })
        }
    }
}
