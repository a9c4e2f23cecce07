//! The log on one machine: fjall, one writer thread, one fsync for whatever waits.

use super::store::{Pending, Store};
use super::{EventLog, Fetched, LogError, LogId, Position};
use crate::event::{Event, frame};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Microseconds since the epoch, UTC.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// When records may be removed. All off by default; never past what the tables hold.
#[derive(Debug, Clone, Copy, Default)]
pub struct Retention {
    /// Records appended longer ago than this, in µs.
    pub max_age_us: Option<i64>,
    /// The oldest records once the log takes more bytes on disk than this.
    pub max_bytes: Option<u64>,
}

/// How to open a log.
#[derive(Debug, Clone)]
pub struct Options {
    /// For a new log; an old one must have been made with this number.
    pub partitions: u32,
    /// Memory for caching what is read, in bytes.
    pub cache_bytes: u64,
    pub retention: Retention,
}

/// At most this many bytes share an fsync.
const GROUP_BYTES: usize = 8 << 20;
/// How long a broken log rests before it is opened again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);
/// What the probe for room writes.
const PROBE_BYTES: usize = 256 << 10;

type Answer = Result<Vec<Position>, LogError>;

struct Append {
    records: Vec<Pending>,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

/// The embedded log. Dropping it ends its writer after what waits is written.
pub struct EmbeddedLog {
    id: LogId,
    shared: Arc<Shared>,
    appends: Sender<Append>,
    appended: watch::Receiver<u64>,
    retention: Retention,
}

struct Shared {
    dir: PathBuf,
    options: Options,
    /// `None` while it is broken and being opened again.
    store: RwLock<Option<Arc<Store>>>,
}

impl EmbeddedLog {
    /// Opens the log in `dir`, or makes it.
    pub fn open(dir: &Path, options: Options, clock: Clock) -> Result<Self, LogError> {
        let store = Store::open(dir, &options)?;
        let id = store.id().clone();
        let retention = options.retention;
        let shared = Arc::new(Shared { dir: dir.to_owned(), options, store: RwLock::new(Some(Arc::new(store))) });
        let (appends, inbox) = channel();
        let (bump, appended) = watch::channel(0);
        let writer = Writer { shared: shared.clone(), clock, bump };
        std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|error| LogError::Broken { path: dir.display().to_string(), reason: error.to_string() })?;
        Ok(Self { id, shared, appends, appended, retention })
    }
}

impl EmbeddedLog {
    /// Removes the records of a partition before this offset for good, whatever retention says. One caller at a time.
    pub async fn forget(&self, partition: u32, before: u64) -> Result<(), LogError> {
        let store = self.shared.store()?;
        tokio::task::spawn_blocking(move || store.forget(partition, before))
            .await
            .map_err(|error| LogError::Unwritable(error.to_string()))?
    }
}

impl Shared {
    fn slot(&self) -> RwLockReadGuard<'_, Option<Arc<Store>>> {
        // The slot is only ever replaced as a whole, so a panic elsewhere leaves it sound.
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Result<Arc<Store>, LogError> {
        self.slot().clone().ok_or_else(|| LogError::Unwritable("a write failed; the log is being opened again".into()))
    }

    /// Closes a broken store and opens it anew. Its journal ends with the last whole batch.
    fn reopen(&self) -> Result<Arc<Store>, LogError> {
        let old = self.store.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut old) = old {
            // Readers hold the store for the length of one read.
            loop {
                match Arc::try_unwrap(old) {
                    Ok(store) => break drop(store),
                    Err(shared) => old = shared,
                }
                std::thread::yield_now();
            }
        }
        let store = Arc::new(Store::open(&self.dir, &self.options)?);
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store.clone());
        Ok(store)
    }

    /// Whether the disk takes a small file.
    fn probe(&self) -> Result<(), LogError> {
        let path = self.dir.join("probe");
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&path)?;
            std::io::Write::write_all(&mut file, &[0u8; PROBE_BYTES])?;
            file.sync_all()
        };
        let result = write().map_err(|error| LogError::Unwritable(format!("{}: {error}", self.dir.display())));
        // What is left of a failed probe must not take the last room.
        let _ = std::fs::remove_file(&path);
        result
    }
}

struct Writer {
    shared: Arc<Shared>,
    clock: Clock,
    bump: watch::Sender<u64>,
}

impl Writer {
    fn run(self, inbox: &Receiver<Append>) {
        let mut broken = false;
        loop {
            let first = match inbox.recv_timeout(REOPEN_AFTER) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if broken {
                broken = self.shared.probe().and_then(|()| self.shared.reopen().map(|_| ())).is_err();
                if !broken {
                    tracing::info!(dir = %self.shared.dir.display(), "the log is writable again");
                    // Records whose append was answered with an error may be there after all.
                    self.bump.send_modify(|n| *n += 1);
                }
            }
            let Some(first) = first else { continue };
            let group = collect(first, inbox);
            let now_us = (self.clock)();
            let written = self.shared.store().and_then(|store| store.append(&group_records(&group), now_us));
            match written {
                Ok(positions) => {
                    self.bump.send_modify(|n| *n += 1);
                    answer(group, positions);
                }
                Err(error) => {
                    if !broken {
                        tracing::error!(%error, "the log cannot be written");
                    }
                    broken = true;
                    let text = match error {
                        LogError::Unwritable(text) => text,
                        error => error.to_string(),
                    };
                    for append in group {
                        // Who no longer waits needs no answer.
                        let _ = append.answer.send(Err(LogError::Unwritable(text.clone())));
                    }
                }
            }
        }
    }
}

/// What waits, up to a limit, to share an fsync.
fn collect(first: Append, inbox: &Receiver<Append>) -> Vec<Append> {
    let mut bytes = first.bytes;
    let mut group = vec![first];
    while bytes < GROUP_BYTES {
        let Ok(next) = inbox.try_recv() else { break };
        bytes += next.bytes;
        group.push(next);
    }
    group
}

fn group_records(group: &[Append]) -> Vec<&Pending> {
    group.iter().flat_map(|append| &append.records).collect()
}

fn answer(group: Vec<Append>, positions: Vec<Position>) {
    let mut positions = positions.into_iter();
    for append in group {
        let own = positions.by_ref().take(append.records.len()).collect();
        // Who no longer waits needs no answer: the records are there all the same.
        let _ = append.answer.send(Ok(own));
    }
}

#[async_trait]
impl EventLog for EmbeddedLog {
    fn id(&self) -> &LogId {
        &self.id
    }

    fn partitions(&self) -> u32 {
        self.shared.options.partitions
    }

    async fn append(&self, batch: Vec<(u32, Event)>) -> Result<Vec<Position>, LogError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let records: Vec<Pending> = batch
            .iter()
            .map(|(partition, event)| {
                let mut frame = Vec::with_capacity(event.data.len() + 200);
                frame::encode(event, &mut frame);
                Pending { partition: *partition, frame }
            })
            .collect();
        // What is encoded is no longer needed, and others can use the room while this waits for the disk.
        drop(batch);
        let bytes = records.iter().map(|record| record.frame.len()).sum();
        let (answer, wait) = oneshot::channel();
        let gone = || LogError::Unwritable("the log's writer has ended".into());
        self.appends.send(Append { records, bytes, answer }).map_err(|_| gone())?;
        wait.await.map_err(|_| gone())?
    }

    async fn read(&self, partition: u32, from: u64, max_records: usize, max_bytes: usize) -> Result<Fetched, LogError> {
        let unreadable = |reason: String| LogError::Unreadable { partition, offset: from, reason };
        let store = self.shared.store().map_err(|error| unreadable(error.to_string()))?;
        // Bounded by the limits, and mostly from memory: handing it to another thread costs more than it spares.
        store.read(partition, from, max_records, max_bytes)
    }

    async fn bounds(&self, partition: u32) -> Result<(u64, u64), LogError> {
        Ok(self.shared.store()?.bounds(partition))
    }

    fn appended(&self) -> watch::Receiver<u64> {
        self.appended.clone()
    }

    async fn check_writable(&self) -> Result<(), LogError> {
        self.shared.store()?;
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || shared.probe())
            .await
            .map_err(|error| LogError::Unwritable(error.to_string()))?
    }

    async fn retain(&self, keep_from: &[u64], now_us: i64) -> Result<(), LogError> {
        if self.retention.max_age_us.is_none() && self.retention.max_bytes.is_none() {
            return Ok(());
        }
        let (store, retention, keep_from) = (self.shared.store()?, self.retention, keep_from.to_vec());
        tokio::task::spawn_blocking(move || store.retain(&keep_from, retention, now_us))
            .await
            .map_err(|error| LogError::Unwritable(error.to_string()))?
    }
}
