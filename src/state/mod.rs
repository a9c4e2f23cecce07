//! What the fold remembers, on disk, with the log positions it reflects.
//!
//! One fjall database holds, per log partition: the [`User`]s, the *timers* that wake a user when time alone changes its
//! rows, and the *overlay*, the rows that changed since their file in the lake was written. A [`Batch`] changes all of
//! them together with the positions, atomically and durably.

mod floors;
pub mod handover;
pub mod overlay;

use crate::database_dir;
use crate::log::StateChange;
use crate::session::{Outlines, User};
use borsh::{BorshDeserialize, BorshSerialize};
use fjall::config::{CompressionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use floors::{Floors, Laying, Watch};
use overlay::Laid;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const META_KEY: &[u8] = b"meta";
/// Rows taken off the overlay in one batch.
const LIFT_BATCH: usize = 100_000;

/// Why the state did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The disk refused; trying again when it has room or is back may help.
    #[error("the state in {path} cannot be read or written: {reason}")]
    Io { path: String, reason: String },
    /// Somebody still reads it; a moment later it can be opened.
    #[error("the state in {path} is still open elsewhere")]
    Busy { path: String },
    /// What is there cannot be understood. It can be rebuilt from `events`.
    #[error("the state in {path} is damaged: {reason}")]
    Damaged { path: String, reason: String },
}

/// Names a user within a partition: `<account>\0<user>`.
pub type UserKey = Box<[u8]>;

/// The key of a user. Account names have no NUL, so keys are never ambiguous.
pub fn user_key(account: &str, user: &str) -> UserKey {
    let mut key = Vec::with_capacity(account.len() + 1 + user.len());
    key.extend_from_slice(account.as_bytes());
    key.push(0);
    key.extend_from_slice(user.as_bytes());
    key.into_boxed_slice()
}

/// Account and user of a key made by [`user_key`].
pub fn split_user_key(key: &[u8]) -> Option<(&str, &str)> {
    let at = key.iter().position(|byte| *byte == 0)?;
    Some((std::str::from_utf8(&key[..at]).ok()?, std::str::from_utf8(&key[at + 1..]).ok()?))
}

/// How far a partition has been folded.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct PartitionMark {
    /// The next offset to fold.
    pub position: u64,
    pub watermark_ms: Option<i64>,
    /// Timers at or before this time have been served.
    pub served_ms: Option<i64>,
    /// Open sessions by account and kind, for the gauge.
    pub open: Vec<(String, crate::session::row::Kind, i64)>,
    /// When the record before `position` was appended, in µs: another log has another there.
    pub appended_us: i64,
    /// The rebuild of the tables that this state belongs to.
    pub rebuild: i64,
    /// Whether rows were made under policies or prices that are others now: a rebuild makes them anew.
    pub is_outdated: bool,
    /// Names the run of changes handed over that this mark belongs to; empty where nothing is handed over.
    pub basis: String,
}

/// What the whole state reflects.
#[derive(Debug, Clone, Default, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Meta {
    pub format: u32,
    /// The log whose positions these are.
    pub log_id: String,
    /// The policies it was folded under, as [`crate::projector::Settings`] describes them.
    pub policies: Outlines,
    /// By partition.
    pub partitions: Vec<PartitionMark>,
}

impl Meta {
    /// Goes by `now`: partitions with rows that would be made otherwise are outdated from then on. Returns the accounts
    /// of these rows.
    pub fn go_by(&mut self, now: Outlines) -> Vec<String> {
        let before = std::mem::replace(&mut self.policies, now);
        let mut changed: Vec<String> =
            self.partitions.iter_mut().flat_map(|mark| mark.go_by(&before, &self.policies)).collect();
        changed.sort_unstable();
        changed.dedup();
        changed
    }
}

impl PartitionMark {
    fn go_by(&mut self, before: &Outlines, now: &Outlines) -> Vec<String> {
        // An account is counted here from its first fact on, with 0 where nothing of it is open.
        let met: BTreeSet<&str> = self.open.iter().map(|(account, ..)| account.as_str()).collect();
        let changed = self.watermark_ms.map(|watermark_ms| before.changed(now, met, watermark_ms));
        let changed: Vec<String> = changed.unwrap_or_default().into_iter().map(str::to_owned).collect();
        self.is_outdated |= !changed.is_empty();
        changed
    }
}

/// The version of what is stored; another one is rebuilt.
pub const FORMAT: u32 = 4;

/// A user as stored, with the earliest timer set for it.
#[derive(Debug, Clone, Default, PartialEq, BorshSerialize, BorshDeserialize)]
pub struct Entry {
    pub armed_ms: Option<i64>,
    pub user: User,
}

/// The state database. Cheap to clone.
#[derive(Clone)]
pub struct State {
    path: PathBuf,
    db: Database,
    meta: Keyspace,
    users: Keyspace,
    timers: Keyspace,
    overlay: Keyspace,
    floors: Arc<Floors>,
}

impl State {
    /// Opens or makes the state in `dir`, with about `memory_bytes` for caches and write buffers.
    pub fn open(dir: &Path, memory_bytes: u64) -> Result<Self, StateError> {
        let damaged = |error: fjall::Error| match error {
            fjall::Error::Io(error) => io_error(dir, &error.to_string()),
            fjall::Error::Locked => StateError::Busy { path: dir.display().to_string() },
            error => StateError::Damaged { path: dir.display().to_string(), reason: error.to_string() },
        };
        database_dir::clear_unfinished(dir).map_err(|error| io_error(dir, &error.to_string()))?;
        let buffers = (memory_bytes / 2).max(16 << 20);
        let db = Database::builder(dir)
            .cache_size((memory_bytes / 2).max(8 << 20))
            .max_journaling_size((buffers * 4).max(128 << 20))
            .manual_journal_persist(true)
            // Of several, fjall's first would put compactions aside without a pause while another one compacts.
            .worker_threads(1)
            .open()
            .map_err(damaged)?;
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size((buffers / 8).clamp(4 << 20, 64 << 20))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
                    fjall::config::BloomConstructionPolicy::BitsPerKey(10.0),
                )))
        };
        let keyspace = |name: &str| db.keyspace(name, options).map_err(damaged);
        Ok(Self {
            path: dir.to_owned(),
            meta: keyspace("meta")?,
            users: keyspace("users")?,
            timers: keyspace("timers")?,
            overlay: keyspace("overlay")?,
            floors: Arc::default(),
            db,
        })
    }

    /// What the state reflects; `None` when it is new.
    pub fn meta(&self) -> Result<Option<Meta>, StateError> {
        let Some(bytes) = self.meta.get(META_KEY).map_err(|error| self.error(error))? else { return Ok(None) };
        let meta: Meta = self.decode("meta", &bytes)?;
        if meta.format != FORMAT {
            return Err(self.damaged(format!("format {} is not {FORMAT}", meta.format)));
        }
        Ok(Some(meta))
    }

    /// A user's entry.
    pub fn user(&self, partition: u32, key: &[u8]) -> Result<Option<Entry>, StateError> {
        match self.users.get(partition_key(partition, key)).map_err(|error| self.error(error))? {
            Some(bytes) => self.decode("user", &bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Users whose timers lie in `(after, until]`, with those times.
    pub fn due(&self, partition: u32, after_ms: Option<i64>, until_ms: i64) -> Result<Vec<(i64, UserKey)>, StateError> {
        let start = match after_ms {
            Some(after_ms) if after_ms >= until_ms => return Ok(Vec::new()),
            Some(after_ms) => timer_key(partition, after_ms + 1, b""),
            None => partition_key(partition, b""),
        };
        let end = timer_key(partition, until_ms.saturating_add(1), b"");
        let mut due = Vec::new();
        for guard in self.timers.range(start..end) {
            let key = guard.key().map_err(|error| self.error(error))?;
            due.push(self.split_timer(&key)?);
        }
        Ok(due)
    }

    /// Starts a batch of changes.
    pub fn batch(&self) -> Batch {
        let batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        Batch { state: self.clone(), batch, laying: Laying::default(), changes: None }
    }

    /// Starts a batch that keeps its changes for handing over.
    pub fn recorded_batch(&self) -> Batch {
        Batch { changes: Some(Vec::new()), ..self.batch() }
    }

    /// Takes rows off the overlay, now that their files have them.
    pub fn lift(&self, keys: &[Vec<u8>]) -> Result<(), StateError> {
        for keys in keys.chunks(LIFT_BATCH) {
            let mut batch = self.batch();
            keys.iter().for_each(|key| batch.lift(key));
            batch.commit()?;
        }
        Ok(())
    }

    /// The bytes of the row that is laid under a key.
    pub fn laid(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        Ok(self.overlay.get(key).map_err(|error| self.error(error))?.map(|value| value.to_vec()))
    }

    /// A consistent view of the overlay as it is now.
    pub fn overlay(&self) -> OverlayView {
        // Before the snapshot.
        let watch = self.floors.watch();
        OverlayView { snapshot: self.db.snapshot(), watch, state: self.clone() }
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.db.disk_space().unwrap_or(0)
    }

    fn split_timer(&self, key: &[u8]) -> Result<(i64, UserKey), StateError> {
        match key.get(4..12).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => Ok((from_ordered(u64::from_be_bytes(bytes)), key[12..].into())),
            None => Err(self.damaged("a timer's key is too short".into())),
        }
    }

    fn decode<T: BorshDeserialize>(&self, what: &str, bytes: &[u8]) -> Result<T, StateError> {
        borsh::from_slice(bytes).map_err(|error| self.damaged(format!("{what}: {error}")))
    }

    fn damaged(&self, reason: String) -> StateError {
        StateError::Damaged { path: self.path.display().to_string(), reason }
    }

    fn error(&self, error: fjall::Error) -> StateError {
        match error {
            fjall::Error::Io(error) => io_error(&self.path, &error.to_string()),
            fjall::Error::Storage(fjall::LsmError::Io(error)) => io_error(&self.path, &error.to_string()),
            fjall::Error::Poisoned => io_error(&self.path, "an earlier write failed; it must be opened again"),
            error => self.damaged(error.to_string()),
        }
    }
}

fn io_error(path: &Path, reason: &str) -> StateError {
    StateError::Io { path: path.display().to_string(), reason: reason.to_owned() }
}

/// Changes that take effect together.
pub struct Batch {
    state: State,
    batch: fjall::OwnedWriteBatch,
    laying: Laying,
    /// What is changed, where it is to be handed over.
    changes: Option<Vec<StateChange>>,
}

impl Batch {
    /// Sets what the state reflects.
    pub fn set_meta(&mut self, meta: &Meta) {
        self.batch.insert(&self.state.meta, META_KEY, encode(meta));
    }

    /// Stores a user, or forgets one that is empty.
    pub fn set_user(&mut self, partition: u32, key: &[u8], entry: &Entry) {
        let own = partition_key(partition, key);
        let value = (!entry.user.is_empty() || entry.armed_ms.is_some()).then(|| encode(entry));
        if let Some(changes) = &mut self.changes {
            changes.push(handover::user_change(partition, key, value.clone()));
        }
        match value {
            None => self.batch.remove(&self.state.users, own),
            Some(value) => self.batch.insert(&self.state.users, own, value),
        }
    }

    /// Sets a timer.
    pub fn arm(&mut self, partition: u32, due_ms: i64, key: &[u8]) {
        self.batch.insert(&self.state.timers, timer_key(partition, due_ms, key), b"");
    }

    /// Removes a timer that was served.
    pub fn disarm(&mut self, partition: u32, due_ms: i64, key: &[u8]) {
        self.batch.remove(&self.state.timers, timer_key(partition, due_ms, key));
    }

    /// Lays a row over the tables: the bytes of an [`overlay::OverlayKey`] and of an [`overlay::LaidRow`].
    pub fn lay(&mut self, key: &[u8], value: &[u8]) {
        if let Some(changes) = &mut self.changes {
            let partition = overlay::partition_in(key).unwrap_or(0);
            changes.push(StateChange { partition, key: key.to_vec(), value: Some(value.to_vec()) });
        }
        self.laying.add(key);
        self.batch.insert(&self.state.overlay, key, value);
    }

    /// Takes a row off again, now that its file has it.
    pub fn lift(&mut self, key: &[u8]) {
        self.batch.remove(&self.state.overlay, key);
    }

    /// What is changed, where the batch keeps it: once.
    pub fn take_changes(&mut self) -> Vec<StateChange> {
        self.changes.take().unwrap_or_default()
    }

    /// Makes the changes, durably.
    pub fn commit(self) -> Result<(), StateError> {
        let Self { state, batch, laying, .. } = self;
        state.floors.lay(&laying, || batch.commit()).map_err(|error| state.error(error))
    }
}

/// The overlay at one moment.
pub struct OverlayView {
    snapshot: Snapshot,
    watch: Watch,
    state: State,
}

impl OverlayView {
    /// Calls `each` with key and value of every row whose key starts with `prefix`.
    pub fn each(
        &self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        for guard in self.snapshot.prefix(&self.state.overlay, prefix) {
            let (key, value) = guard.into_inner().map_err(|error| self.state.error(error))?;
            each(&key, &value)?;
        }
        Ok(())
    }

    /// [`OverlayView::each`] of all rows of a table in a partition.
    pub fn rows(
        &self,
        table: Laid,
        partition: u32,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let place = (table, partition);
        let start = overlay::prefix(table, partition, self.watch.floor(place));
        let end = overlay::prefix(table, partition.saturating_add(1), None);
        let mut first = None;
        for guard in self.snapshot.range(&self.state.overlay, start..end) {
            let (key, value) = guard.into_inner().map_err(|error| self.state.error(error))?;
            first = first.or_else(|| overlay::hour_in(&key));
            each(&key, &value)?;
        }
        self.state.floors.raise(&self.watch, place, first.unwrap_or(i64::MAX));
        Ok(())
    }

    /// The first key at or after `from` that starts with `prefix`.
    pub fn first_from(&self, prefix: &[u8], from: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.snapshot.range(&self.state.overlay, from.to_vec()..).next() {
            Some(guard) => {
                let key = guard.key().map_err(|error| self.state.error(error))?;
                Ok(key.starts_with(prefix).then(|| key.to_vec()))
            }
            None => Ok(None),
        }
    }

    /// An error that says what was found damaged.
    pub fn damaged(&self, reason: &str) -> StateError {
        self.state.damaged(reason.to_owned())
    }
}

fn encode(value: &impl BorshSerialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    // Writing to memory fails only when memory runs out, which aborts by itself.
    let _ = value.serialize(&mut bytes);
    bytes
}

fn partition_key(partition: u32, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + key.len());
    bytes.extend_from_slice(&partition.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

fn timer_key(partition: u32, due_ms: i64, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12 + key.len());
    bytes.extend_from_slice(&partition.to_be_bytes());
    bytes.extend_from_slice(&to_ordered(due_ms).to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// Maps i64 to u64 keeping the order.
fn to_ordered(value: i64) -> u64 {
    (value as u64) ^ (1 << 63)
}

fn from_ordered(value: u64) -> i64 {
    (value ^ (1 << 63)) as i64
}
