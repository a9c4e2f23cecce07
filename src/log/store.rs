//! Records of the embedded log on disk.
//!
//! Keyspace `records`: (partition, offset), big-endian → append time (µs, 8 bytes) and frame. Keyspace `meta`: the log's
//! id, number of partitions, format, and the first offset of each partition.

use super::embedded::{Options, Retention};
use super::{LogError, LogId, Position};
use crate::event::{Record, frame};
use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use uuid::Uuid;

const FORMAT: &[u8] = b"1";
/// Records removed in one batch.
const RETAIN_BATCH: usize = 50_000;

/// A record that waits to be written.
pub(super) struct Pending {
    pub partition: u32,
    pub frame: Vec<u8>,
}

struct Bounds {
    start: AtomicU64,
    end: AtomicU64,
}

pub(super) struct Store {
    path: PathBuf,
    id: LogId,
    db: Database,
    meta: Keyspace,
    records: Keyspace,
    bounds: Vec<Bounds>,
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
        let db = Database::builder(dir)
            .cache_size(options.cache_bytes)
            .max_journaling_size(512 << 20)
            .manual_journal_persist(true)
            .worker_threads(1)
            .open()
            .map_err(failed)?;
        let meta = db.keyspace("meta", KeyspaceCreateOptions::default).map_err(failed)?;
        let records = || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(32 << 20)
                .expect_point_read_hits(true)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
        };
        let records = db.keyspace("records", records).map_err(failed)?;
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
        let mut bounds = Vec::new();
        let mut newest_us = 0;
        for partition in 0..made {
            let start = get(&format!("start/{partition}"))?.and_then(|text| text.parse().ok()).unwrap_or(0);
            let last = records.range(key(partition, 0)..key(partition + 1, 0)).next_back();
            let end = match last {
                Some(guard) => {
                    let (key, value) = guard.into_inner().map_err(failed)?;
                    newest_us = newest_us.max(appended_at(&value).unwrap_or(0));
                    offset_in(&key).map_or(start, |offset| offset + 1)
                }
                None => start,
            };
            bounds.push(Bounds { start: AtomicU64::new(start), end: AtomicU64::new(end.max(start)) });
        }
        let newest_us = AtomicI64::new(newest_us);
        Ok(Self { path: dir.to_owned(), id: LogId(id), db, meta, records, bounds, newest_us })
    }

    pub fn id(&self) -> &LogId {
        &self.id
    }

    pub fn bounds(&self, partition: u32) -> (u64, u64) {
        match self.bounds.get(partition as usize) {
            Some(bounds) => (bounds.start.load(Ordering::Acquire), bounds.end.load(Ordering::Acquire)),
            None => (0, 0),
        }
    }

    /// Writes records with one fsync. Only the writer thread calls this.
    pub fn append(&self, pending: &[&Pending], now_us: i64) -> Result<Vec<Position>, LogError> {
        let now_us = now_us.max(self.newest_us.load(Ordering::Relaxed));
        let mut ends: Vec<u64> = self.bounds.iter().map(|bounds| bounds.end.load(Ordering::Acquire)).collect();
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
        let mut positions = Vec::with_capacity(pending.len());
        for record in pending {
            let partition = record.partition;
            let Some(end) = ends.get_mut(partition as usize) else {
                return Err(LogError::Unwritable(format!("there is no partition {partition}")));
            };
            let mut value = Vec::with_capacity(8 + record.frame.len());
            value.extend_from_slice(&now_us.to_le_bytes());
            value.extend_from_slice(&record.frame);
            batch.insert(&self.records, key(partition, *end), value);
            positions.push(Position { partition, offset: *end });
            *end += 1;
        }
        batch.commit().map_err(|error| self.unwritable(&error))?;
        self.newest_us.store(now_us, Ordering::Relaxed);
        for (bounds, end) in self.bounds.iter().zip(ends) {
            bounds.end.store(end, Ordering::Release);
        }
        Ok(positions)
    }

    pub fn read(
        &self,
        partition: u32,
        from: u64,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Record>, LogError> {
        let (start, end) = self.bounds(partition);
        if from < start || from > end {
            return Err(LogError::Gone { log: self.id.clone(), partition, wanted: from, start, end });
        }
        let unreadable = |offset: u64, reason: String| LogError::Unreadable { partition, offset, reason };
        let until = end.min(from.saturating_add(max_records.max(1) as u64));
        let mut records = Vec::with_capacity(usize::try_from(until - from).unwrap_or(0).min(max_records));
        let mut bytes = 0;
        for guard in self.records.range(key(partition, from)..key(partition, until)) {
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
        Ok(records)
    }

    pub fn retain(&self, keep_from: &[u64], retention: Retention, now_us: i64) -> Result<(), LogError> {
        let too_big = retention.max_bytes.is_some_and(|max| self.records.disk_space() > max);
        for (partition, bounds) in (0u32..).zip(&self.bounds) {
            let keep_from = keep_from.get(partition as usize).copied().unwrap_or(0);
            let start = bounds.start.load(Ordering::Acquire);
            let limit = keep_from.min(bounds.end.load(Ordering::Acquire));
            // By size, a tenth goes at a time, until it fits again.
            let by_size = if too_big { start + (limit.saturating_sub(start)).div_ceil(10) } else { start };
            let mut cut = start;
            for guard in self.records.range(key(partition, start)..key(partition, limit)) {
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
            self.remove(partition, start, cut)?;
        }
        Ok(())
    }

    fn remove(&self, partition: u32, start: u64, cut: u64) -> Result<(), LogError> {
        let mut from = start;
        while from < cut {
            let until = cut.min(from + RETAIN_BATCH as u64);
            let mut batch = self.db.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(&self.meta, format!("start/{partition}"), until.to_string());
            for offset in from..until {
                batch.remove(&self.records, key(partition, offset));
            }
            // Readers must not look for what is about to go.
            self.bounds[partition as usize].start.store(until, Ordering::Release);
            batch.commit().map_err(|error| self.unwritable(&error))?;
            from = until;
        }
        Ok(())
    }

    fn unwritable(&self, error: &fjall::Error) -> LogError {
        LogError::Unwritable(format!("{}: {error}", self.path.display()))
    }
}

fn key(partition: u32, offset: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.to_be_bytes());
    key[4..].copy_from_slice(&offset.to_be_bytes());
    key
}

fn offset_in(key: &[u8]) -> Option<u64> {
    key.get(4..12)?.try_into().ok().map(u64::from_be_bytes)
}

fn appended_at(value: &[u8]) -> Option<i64> {
    value.get(..8)?.try_into().ok().map(i64::from_le_bytes)
}
