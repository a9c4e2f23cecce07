//! Records of the embedded log on disk.
//!
//! Keyspace `records-<partition>`: offset, big-endian → append time (µs, 8 bytes) and frame. Keyspace `meta`: the log's
//! id, number of partitions, format, and the first offset of each partition.
//!
//! Offsets only grow, so no two files of such a keyspace overlap and none is ever merged with another: a record is
//! written to the journal and to one file.

use super::embedded::{Options, Retention};
use super::{Fetched, LogError, LogId, Position};
use crate::database_dir;
use crate::event::{Record, frame};
use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, UserValue};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use uuid::Uuid;

const FORMAT: &[u8] = b"2";
/// What a partition keeps in memory before it goes to a file.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// Records removed in one batch.
const RETAIN_BATCH: usize = 50_000;

/// A record that waits to be written.
pub(super) struct Pending {
    pub partition: u32,
    pub frame: Vec<u8>,
}

/// A partition's records and the offsets it has.
struct Partition {
    records: Keyspace,
    start: AtomicU64,
    end: AtomicU64,
}

pub(super) struct Store {
    path: PathBuf,
    id: LogId,
    db: Database,
    meta: Keyspace,
    partitions: Vec<Partition>,
    newest_us: AtomicI64,
}

impl Store {
    pub fn open(dir: &Path, options: &Options) -> Result<Self, LogError> {
        let path = dir.display().to_string();
        let broken = |reason: String| LogError::Broken { path: path.clone(), reason };
        let failed = |error: fjall::Error| match error {
            fjall::Error::Locked => LogError::InUse { path: path.clone() },
            fjall::Error::Io(error) => LogError::Unwritable(format!("{path}: {error}")),
            error => broken(error.to_string()),
        };
        database_dir::clear_unfinished(dir).map_err(|error| failed(error.into()))?;
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .max_journaling_size(512 << 20)
            .manual_journal_persist(true)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let meta = db.keyspace("meta", KeyspaceCreateOptions::default).map_err(failed)?;
        let get = |key: &str| -> Result<Option<String>, LogError> {
            let value = meta.get(key).map_err(failed)?;
            value.map(|value| String::from_utf8(value.to_vec()).map_err(|error| broken(error.to_string()))).transpose()
        };
        let id = match get("id")? {
            Some(id) => id,
            None => {
                let id = Uuid::now_v7().to_string();
                let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
                batch.insert(&meta, "id", id.as_str());
                batch.insert(&meta, "format", FORMAT);
                batch.insert(&meta, "partitions", options.partitions.to_string());
                batch.commit().map_err(failed)?;
                id
            }
        };
        let format = get("format")?.unwrap_or_default();
        if format.as_bytes() != FORMAT {
            return Err(broken(format!("format {format:?} is not known to this program")));
        }
        let made = get("partitions")?.and_then(|text| text.parse().ok()).unwrap_or(0);
        if made != options.partitions {
            return Err(LogError::Partitions { made, asked: options.partitions });
        }
        let options = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(MEMTABLE_BYTES)
                .expect_point_read_hits(true)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        };
        let mut partitions = Vec::new();
        let mut newest_us = 0;
        for partition in 0..made {
            let start = get(&format!("start/{partition}"))?.and_then(|text| text.parse().ok()).unwrap_or(0);
            let records = db.keyspace(&format!("records-{partition}"), options).map_err(failed)?;
            let end = match records.last_key_value() {
                Some(guard) => {
                    let (key, value) = guard.into_inner().map_err(failed)?;
                    newest_us = newest_us.max(appended_at(&value).unwrap_or(0));
                    offset_in(&key).map_or(start, |offset| offset + 1)
                }
                None => start,
            };
            let (start, end) = (AtomicU64::new(start), AtomicU64::new(end.max(start)));
            partitions.push(Partition { records, start, end });
        }
        let newest_us = AtomicI64::new(newest_us);
        Ok(Self { path: dir.to_owned(), id: LogId(id), db, meta, partitions, newest_us })
    }

    pub fn id(&self) -> &LogId {
        &self.id
    }

    pub fn bounds(&self, partition: u32) -> (u64, u64) {
        match self.partitions.get(partition as usize) {
            Some(held) => (held.start.load(Ordering::Acquire), held.end.load(Ordering::Acquire)),
            None => (0, 0),
        }
    }

    /// Writes records with one fsync. Only the writer thread calls this.
    pub fn append(&self, pending: &[&Pending], now_us: i64) -> Result<Vec<Position>, LogError> {
        let now_us = now_us.max(self.newest_us.load(Ordering::Relaxed));
        let mut ends: Vec<u64> = self.partitions.iter().map(|held| held.end.load(Ordering::Acquire)).collect();
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        let mut positions = Vec::with_capacity(pending.len());
        let stamp = &now_us.to_le_bytes()[..];
        for record in pending {
            let partition = record.partition;
            let held = self.partitions.get(partition as usize).zip(ends.get_mut(partition as usize));
            let Some((held, end)) = held else {
                return Err(LogError::Unwritable(format!("there is no partition {partition}")));
            };
            let mut parts = stamp.chain(&record.frame[..]);
            let value = UserValue::from_reader(&mut parts, 8 + record.frame.len());
            // Reading from memory cannot fail.
            let value = value.map_err(|error| LogError::Unwritable(error.to_string()))?;
            batch.insert(&held.records, end.to_be_bytes(), value);
            positions.push(Position { partition, offset: *end });
            *end += 1;
        }
        batch.commit().map_err(|error| self.unwritable(&error))?;
        self.newest_us.store(now_us, Ordering::Relaxed);
        for (held, end) in self.partitions.iter().zip(ends) {
            held.end.store(end, Ordering::Release);
        }
        Ok(positions)
    }

    pub fn read(&self, partition: u32, from: u64, max_records: usize, max_bytes: usize) -> Result<Fetched, LogError> {
        let (start, end) = self.bounds(partition);
        if from < start || from > end {
            return Err(LogError::Gone { log: self.id.clone(), partition, wanted: from, start, end });
        }
        let Some(held) = self.partitions.get(partition as usize) else { return Ok(Fetched::default()) };
        let unreadable = |offset: u64, reason: String| LogError::Unreadable { partition, offset, reason };
        let until = end.min(from.saturating_add(max_records.max(1) as u64));
        let mut records = Vec::with_capacity(usize::try_from(until - from).unwrap_or(0).min(max_records));
        let mut bytes = 0;
        for guard in held.records.range(from.to_be_bytes()..until.to_be_bytes()) {
            let wanted = from + records.len() as u64;
            let (key, value) = guard.into_inner().map_err(|error| unreadable(wanted, error.to_string()))?;
            if offset_in(&key) != Some(wanted) {
                return Err(unreadable(wanted, "the record is missing".into()));
            }
            let appended_at_us =
                appended_at(&value).ok_or_else(|| unreadable(wanted, "the record is too short".into()))?;
            let event = frame::decode(&value[8..]).map_err(|error| unreadable(wanted, error.to_string()))?;
            bytes += value.len();
            records.push(Record { offset: wanted, appended_at_us, event });
            if bytes >= max_bytes {
                break;
            }
        }
        let next = from + records.len() as u64;
        Ok(Fetched { records, next, end })
    }

    pub fn retain(&self, keep_from: &[u64], retention: Retention, now_us: i64) -> Result<(), LogError> {
        let bytes: u64 = self.partitions.iter().map(|held| held.records.disk_space()).sum();
        let too_big = retention.max_bytes.is_some_and(|max| bytes > max);
        for (partition, held) in (0u32..).zip(&self.partitions) {
            let keep_from = keep_from.get(partition as usize).copied().unwrap_or(0);
            let start = held.start.load(Ordering::Acquire);
            let limit = keep_from.min(held.end.load(Ordering::Acquire));
            // By size, a tenth goes at a time, until it fits again.
            let by_size = if too_big { start + (limit.saturating_sub(start)).div_ceil(10) } else { start };
            let mut cut = start;
            for guard in held.records.range(start.to_be_bytes()..limit.to_be_bytes()) {
                let (key, value) = guard.into_inner().map_err(|error| self.unwritable(&error))?;
                let old = match (retention.max_age_us, appended_at(&value)) {
                    (Some(max_age_us), Some(appended_at_us)) => now_us.saturating_sub(appended_at_us) > max_age_us,
                    _ => false,
                };
                if !old && cut >= by_size {
                    break;
                }
                cut = offset_in(&key).map_or(cut, |offset| offset + 1);
            }
            self.remove(partition, held, start, cut)?;
        }
        Ok(())
    }

    /// Removes the records of a partition before this offset, or all where that is past the end.
    pub fn forget(&self, partition: u32, before: u64) -> Result<(), LogError> {
        let Some(held) = self.partitions.get(partition as usize) else { return Ok(()) };
        let cut = before.min(held.end.load(Ordering::Acquire));
        self.remove(partition, held, held.start.load(Ordering::Acquire), cut)
    }

    fn remove(&self, partition: u32, held: &Partition, start: u64, cut: u64) -> Result<(), LogError> {
        let mut from = start;
        while from < cut {
            let until = cut.min(from + RETAIN_BATCH as u64);
            let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&self.meta, format!("start/{partition}"), until.to_string());
            for offset in from..until {
                batch.remove(&held.records, offset.to_be_bytes());
            }
            // Readers must not look for what is about to go.
            held.start.store(until, Ordering::Release);
            batch.commit().map_err(|error| self.unwritable(&error))?;
            from = until;
        }
        Ok(())
    }

    fn unwritable(&self, error: &fjall::Error) -> LogError {
        LogError::Unwritable(format!("{}: {error}", self.path.display()))
    }
}

fn offset_in(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

fn appended_at(value: &[u8]) -> Option<i64> {
    value.get(..8)?.try_into().ok().map(i64::from_le_bytes)
}
