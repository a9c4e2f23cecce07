//! `verify`: whether the tables are what the log folds to.
//!
//! The tables are taken at one moment, at which all three have the same records of the log. Then each file is read and held
//! against what its table's log says of it; the archive is held against the log, offset by offset; and the archive is
//! folded anew, as for a lost state, and its rows held against those of the tables. Nothing is changed: the fold has a
//! state of its own, which is removed at the end.

mod archive;
pub mod report;
mod rows;

use super::recover::{Plan, plan, remove, replay_partition};
use super::{ProjectorError, ProjectorHandle, Settings};
use crate::lake::{FileEntry, Lake, TableName, TableSnapshot};
use crate::log::{self, EventLog};
use crate::state::State;
use arrow::array::RecordBatch;
use futures::stream::{self, StreamExt, TryStreamExt};
use report::{Finding, Progress, Summary, Told, TooLate};
use rows::{Comparison, Digests, Hasher};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many partitions are gone through side by side.
const SIDE_BY_SIDE: usize = 2;
/// Findings, and records that came too late, that are told one by one; all are counted.
const TOLD: u64 = 1000;
/// Between two words on how far it is, in rows.
const TELL_EVERY: u64 = 20_000;

/// What a verification works on.
#[derive(Clone)]
pub struct Verifier {
    pub log: Arc<dyn EventLog>,
    pub projector: ProjectorHandle,
    pub settings: Arc<Settings>,
    pub data_dir: PathBuf,
    /// One at a time.
    pub busy: Arc<tokio::sync::Mutex<()>>,
}

/// Removes what a verification has left that was killed.
pub(super) fn clean(data_dir: &Path) -> Result<(), ProjectorError> {
    Ok(remove(&dir(data_dir))?)
}

fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("verify")
}

/// Where the archive is folded anew; it goes with this.
struct Scratch<'a>(&'a Path);

impl<'a> Scratch<'a> {
    fn new(data_dir: &'a Path) -> Result<Self, ProjectorError> {
        clean(data_dir)?;
        Ok(Self(data_dir))
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // What stays is removed by the next one, or at the next start.
        clean(self.0).unwrap_or_else(|error| tracing::debug!(%error, "what a verification has made is still there"));
    }
}

impl Verifier {
    /// Commits what is folded, and verifies what is this process's to fold. Of a day that differs so many rows are `named`.
    pub async fn run(&self, named: usize, tell: &(dyn Fn(Told) + Send + Sync)) -> Result<Summary, ProjectorError> {
        let ends = log::ends(&*self.log).await?;
        let telling = Telling::new(tell);
        let lake = self.projector.lake();
        lake.refresh().await?;
        let rebuild = lake.rebuild();
        let point = match self.projector.commit_point(&ends).await {
            Ok(point) => Some(point),
            Err(ProjectorError::Behind { error, .. } | ProjectorError::Halted(error)) => {
                telling.find(Finding::Stalled { error });
                None
            }
            Err(error) => return Err(error),
        };
        let tables = match &point {
            Some(point) => point.tables.clone(),
            None => TableName::ALL.into_iter().map(|name| (name, lake.table(name).snapshot())).collect(),
        };
        let mut check = Check { verifier: self, tables, telling, named, summary: Mutex::default() };
        let marks = point.map(|point| point.partitions);
        check.files_and_rows(marks).await?;
        lake.refresh().await?;
        if lake.rebuild() != rebuild {
            let reason = "the tables were rebuilt meanwhile: verify again".to_owned();
            return Err(ProjectorError::Halted(reason));
        }
        let summary = check.end();
        tell(Told::Done(summary.clone()));
        Ok(summary)
    }
}

/// What was found, on its way to who asked.
pub(super) struct Telling<'a> {
    tell: &'a (dyn Fn(Told) + Send + Sync),
    done: AtomicU64,
    total: AtomicU64,
    /// By table.
    findings: Mutex<BTreeMap<String, u64>>,
    too_late: AtomicU64,
}

impl<'a> Telling<'a> {
    fn new(tell: &'a (dyn Fn(Told) + Send + Sync)) -> Self {
        Self {
            tell,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            findings: Mutex::default(),
            too_late: AtomicU64::new(0),
        }
    }

    pub fn find(&self, finding: Finding) {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        *findings.entry(finding.table().to_owned()).or_default() += 1;
        if findings.values().sum::<u64>() <= TOLD {
            (self.tell)(Told::Finding(finding));
        }
    }

    pub fn too_late(&self, record: TooLate) {
        if self.too_late.fetch_add(1, Ordering::Relaxed) < TOLD {
            (self.tell)(Told::TooLate(record));
        }
    }

    pub fn advance(&self, rows: u64) {
        let before = self.done.fetch_add(rows, Ordering::Relaxed);
        if before / TELL_EVERY != (before + rows) / TELL_EVERY {
            let total = self.total.load(Ordering::Relaxed);
            (self.tell)(Told::Progress(Progress { done: (before + rows).min(total), total }));
        }
    }
}

/// One verification under way.
struct Check<'a> {
    verifier: &'a Verifier,
    tables: BTreeMap<TableName, TableSnapshot>,
    telling: Telling<'a>,
    named: usize,
    summary: Mutex<Summary>,
}

/// By table and partition.
type TableDigests = BTreeMap<(TableName, u32), Digests>;

impl Check<'_> {
    /// `marks` tells, by partition, position and watermark that the tables have; `None` where they cannot be compared.
    async fn files_and_rows(&mut self, marks: Option<BTreeMap<u32, (u64, Option<i64>)>>) -> Result<(), ProjectorError> {
        let rows = |name: &TableName| self.tables[name].files.values().map(|file| file.rows).sum::<u64>();
        let of_table = |name: &TableName| rows(name) * if *name == TableName::Events { 3 } else { 2 };
        self.telling.total.store(TableName::ALL.iter().map(of_table).sum(), Ordering::Relaxed);
        let mut digests = TableDigests::new();
        for name in TableName::ALL {
            let unreadable = self.files(name, &mut digests).await?;
            // What cannot be read is not there: the rest is looked at all the same.
            let snapshot = self.tables.entry(name).or_default();
            let files = Arc::make_mut(&mut snapshot.files);
            unreadable.iter().for_each(|path| drop(files.remove(path)));
        }
        let partitions = self.verifier.log.partitions();
        let compares = marks.is_some();
        let events = self.tables.entry(TableName::Events).or_default();
        let marks = marks.unwrap_or_else(|| events.positions.iter().map(|(p, end)| (*p, (*end, None))).collect());
        for (partition, (position, watermark_ms)) in &marks {
            events.positions.insert(*partition, *position);
            events.watermarks.extend(watermark_ms.map(|watermark_ms| (*partition, watermark_ms)));
        }
        let lake = self.verifier.projector.lake();
        let (pinned, rebuilt) = (lake.pinned(self.tables.clone()), lake.rebuilt_to().await?);
        // Positions of now tell of records that a rebuild has folded in since, which is told in the end.
        let plan = plan(lake, &self.verifier.settings).await?;
        let scratch = Scratch::new(&self.verifier.data_dir)?;
        let (this, pinned, plan, rebuilt, digests) = (&*self, &pinned, &plan, &rebuilt, &digests);
        let ends: Vec<(u32, u64)> = marks.iter().map(|(partition, (end, _))| (*partition, *end)).collect();
        let gone_through = stream::iter(ends)
            .map(|(partition, end)| async move {
                let rebuilt = rebuilt.get(&partition).copied().unwrap_or(0);
                let log = &*this.verifier.log;
                let looked = archive::check(log, pinned, partition, end, rebuilt, &this.telling).await?;
                this.count(|summary| {
                    summary.log_records += looked.log_records;
                    summary.too_late += looked.too_late;
                    summary.tables.entry("events".to_owned()).or_default().compared += looked.archived;
                });
                match looked.is_whole && compares {
                    true => this.rows(pinned, plan, partition, digests).await,
                    false => Ok(()),
                }
            })
            .buffer_unordered(SIDE_BY_SIDE)
            .try_collect::<Vec<()>>()
            .await;
        drop(scratch);
        gone_through?;
        self.count(|summary| summary.others = (0..partitions).filter(|p| !marks.contains_key(p)).collect());
        Ok(())
    }

    fn count(&self, change: impl FnOnce(&mut Summary)) {
        change(&mut self.summary.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Reads every file of a table; the paths of those that cannot be read. Adds to the digests of days.
    async fn files(&self, name: TableName, digests: &mut TableDigests) -> Result<Vec<String>, ProjectorError> {
        let hasher = if name == TableName::Events { None } else { Some(Hasher::new(name)?) };
        let snapshot = &self.tables[&name];
        let table = self.verifier.projector.lake().table(name);
        let mut unreadable = Vec::new();
        let files: Vec<&FileEntry> = snapshot.files.values().collect();
        for file in &files {
            let mut of_span = file.span.map(|span| digests.entry((name, span.partition)).or_default());
            let mut digest = |batch: &RecordBatch| match (&hasher, &mut of_span) {
                (Some(hasher), Some(into)) => hasher.digest(batch, into),
                _ => Ok(()),
            };
            let audited = table.audit(file, &mut digest).await?;
            for fault in audited.faults {
                let table = name.as_str().to_owned();
                self.telling.find(Finding::File { table, path: file.path.clone(), fault });
            }
            if !audited.is_readable {
                unreadable.push(file.path.clone());
            }
            self.telling.advance(file.rows);
        }
        self.count(|summary| {
            let of = summary.tables.entry(name.as_str().to_owned()).or_default();
            (of.version, of.files) = (snapshot.version, files.len() as u64);
            of.rows = files.iter().map(|file| file.rows).sum();
        });
        Ok(unreadable)
    }

    /// Folds the archive of a partition anew, and holds the tables' rows against that.
    async fn rows(
        &self,
        pinned: &Lake,
        plan: &Plan,
        partition: u32,
        digests: &TableDigests,
    ) -> Result<(), ProjectorError> {
        let dir = dir(&self.verifier.data_dir).join(partition.to_string());
        let path = |error| super::recover::io(&dir, &error);
        std::fs::create_dir_all(&dir).map_err(path)?;
        let state = State::open(&dir, self.verifier.settings.state_bytes() / SIDE_BY_SIDE as u64)?;
        let told = AtomicU64::new(0);
        let advance = |done: u64| self.telling.advance(done - told.swap(done, Ordering::Relaxed));
        replay_partition(pinned, &state, plan, partition, &advance).await?;
        for name in [TableName::Messages, TableName::Sessions] {
            let snapshot = pinned.table(name).snapshot();
            let comparison = Comparison {
                lake: pinned,
                snapshot: &snapshot,
                table: name,
                partition,
                fold: state.overlay(),
                hasher: Hasher::new(name)?,
                named: self.named,
            };
            let none = Digests::new();
            let found = digests.get(&(name, partition)).unwrap_or(&none);
            let compared = comparison.run(found, &self.telling).await?;
            self.count(|summary| summary.tables.entry(name.as_str().to_owned()).or_default().compared += compared);
        }
        drop(state);
        Ok(remove(&dir)?)
    }

    /// What it all came to.
    fn end(self) -> Summary {
        let mut summary = self.summary.into_inner().unwrap_or_else(PoisonError::into_inner);
        let findings = self.telling.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        summary.findings = findings.values().sum();
        for (table, count) in findings.into_iter().filter(|(table, _)| !table.is_empty()) {
            summary.tables.entry(table).or_default().findings = count;
        }
        summary
    }
}
