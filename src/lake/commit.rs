//! Commits: all of a change or nothing, and none by a process whose partition another has taken over.
//!
//! A commit is a JSON file under a name that must be new. What it expects is held against the very snapshot it is built
//! on: when the name is taken, the snapshot is brought up to date, and all is looked at again.

use super::data_file::format_date;
use super::snapshot::{Mark, Step, rebuild_app};
use super::store::Created;
use super::table::lock;
use super::{Clash, FileEntry, Lake, LakeError, Table, TableSnapshot, schema};
use bytes::Bytes;
use deltalake::kernel::transaction::CommitData;
use deltalake::kernel::{Action, Add, Remove, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// How often a commit is tried on the next version when others take the names.
const TRIES: usize = 20;

/// What a commit changes.
#[derive(Debug, Default)]
pub struct Change {
    pub add: Vec<FileEntry>,
    pub remove: Vec<FileEntry>,
    /// By partition: the position expected in the table, and the new one.
    pub positions: BTreeMap<u32, (Option<u64>, u64)>,
    /// By partition, in ms.
    pub watermarks: BTreeMap<u32, i64>,
    /// By partition, in µs: when the record before the new position was appended to the log.
    pub appended_us: BTreeMap<u32, i64>,
    /// What is being done, for the commit's information.
    pub operation: &'static str,
}

impl Change {
    /// The partitions whose owner alone may commit this.
    fn partitions(&self) -> BTreeSet<u32> {
        let files = self.add.iter().chain(&self.remove).filter_map(|file| Some(file.span?.partition));
        let marks = self.positions.keys().chain(self.watermarks.keys()).chain(self.appended_us.keys());
        files.chain(marks.copied()).collect()
    }
}

impl Lake {
    /// Makes this process the owner of these partitions, and of no others: one commit per table raises their owner
    /// numbers, and from then on whoever held them before is refused. After an error it may own them in some tables only.
    pub async fn claim(&self, partitions: &[u32]) -> Result<(), LakeError> {
        for table in self.tables.values() {
            table.claim(partitions).await?;
        }
        Ok(())
    }

    /// Whether this process owns these partitions in all tables, as far as they were read.
    pub fn holds(&self, partitions: &[u32]) -> bool {
        self.tables.values().all(|table| {
            let (held, owners) = (table.held(), table.snapshot().owners);
            partitions.iter().all(|own| held.contains_key(own) && held.get(own) == owners.get(own))
        })
    }

    /// Forgets what is owned, without a commit: for a process that leaves its partitions to others. What it commits is no
    /// longer held against an owner, so it must commit nothing for them.
    pub fn release(&self) {
        for table in self.tables.values() {
            lock(&table.held).clear();
        }
    }
}

impl Table {
    /// By partition, the owner number that this process claimed it with; see [`Lake::claim`].
    pub fn held(&self) -> BTreeMap<u32, i64> {
        lock(&self.held).clone()
    }

    /// Commits a change: all of it, or nothing. After [`LakeError::Store`] it may have been committed or not:
    /// [`Table::refresh`] tells.
    pub async fn commit(&self, change: Change) -> Result<TableSnapshot, LakeError> {
        self.commit_with(change, true, Vec::new()).await
    }

    /// [`Table::commit`]; `data_change` is false where rows are only laid out anew.
    pub(super) async fn commit_with(
        &self,
        change: Change,
        data_change: bool,
        extra: Vec<Transaction>,
    ) -> Result<TableSnapshot, LakeError> {
        let transactions: Vec<_> = extra.into_iter().chain(self.transactions(&change)).collect();
        let committed = self.commit_on(|base| {
            self.check_base(base, &change)?;
            commit_bytes(self, &change, data_change, transactions.clone())
        });
        let committed = committed.await;
        if matches!(committed, Err(LakeError::Conflict { .. })) {
            // Nobody will commit these files any more.
            let mut pending = lock(&self.pending);
            for file in &change.add {
                pending.remove(&file.path);
            }
        }
        committed
    }

    /// Makes these files all that the table has, whoever owns their partitions, where its rows come from the rebuild that
    /// this one follows: `rebuilds` are the two. Another process may do the same.
    pub(super) async fn replace_all(
        &self,
        add: Vec<FileEntry>,
        rebuilds: (i64, i64),
        mut extra: Vec<Transaction>,
    ) -> Result<TableSnapshot, LakeError> {
        let (follows, rebuild) = rebuilds;
        extra.push(Transaction::new(rebuild_app(&self.log), rebuild));
        let change = |base: &TableSnapshot| Change {
            add: add.clone(),
            remove: base.files.values().cloned().collect(),
            operation: "adopt generation",
            ..Change::default()
        };
        let committed = self.commit_on(|base| match base.rebuild {
            found if found == follows => commit_bytes(self, &change(base), true, extra.clone()),
            found => {
                let (table, clash) = (self.name().as_str(), Clash::Rebuilt { found });
                Err(LakeError::Conflict { table, partition: None, clash })
            }
        });
        committed.await
    }

    async fn claim(&self, partitions: &[u32]) -> Result<(), LakeError> {
        let mut held = BTreeMap::new();
        if !partitions.is_empty() {
            let change = Change { operation: "claim partitions", ..Change::default() };
            let next = |base: &TableSnapshot, partition: &u32| base.owners.get(partition).map_or(1, |owner| owner + 1);
            let committed = self.commit_on(|base| {
                let raise = |partition: &u32| self.transaction_of(Mark::Owner, *partition, next(base, partition));
                commit_bytes(self, &change, false, partitions.iter().map(raise).collect())
            });
            let owners = committed.await?.owners;
            held.extend(partitions.iter().filter_map(|partition| Some((*partition, *owners.get(partition)?))));
        }
        *lock(&self.held) = held;
        Ok(())
    }

    /// Commits what `bytes` makes of the snapshot that the commit is built on.
    async fn commit_on(
        &self,
        bytes: impl Fn(&TableSnapshot) -> Result<Bytes, LakeError>,
    ) -> Result<TableSnapshot, LakeError> {
        let _one = self.committing.lock().await;
        for _ in 0..TRIES {
            let base = self.snapshot();
            let (commit, old, new) = (bytes(&base)?, base.version, base.version + 1);
            let unanswered = |error| {
                lock(&self.unanswered).insert(fingerprint(&commit));
                error
            };
            match self.store.create(&self.commit_path(new), commit.clone()).await.map_err(unanswered)? {
                // What the caller expects of the tables is from before that.
                Created::Exists if self.follow().await? => {
                    return Err(self.store.failed(&"a commit that had failed has arrived after all"));
                }
                Created::Exists => {}
                Created::Yes if self.is_newest(old).await.map_err(unanswered)? => {
                    let step = Step::from(base).follow(&commit, &self.log, self.partitions);
                    let step = step.ok_or_else(|| LakeError::Damaged("a commit of its own".to_owned()))?;
                    return Ok(self.take(step));
                }
                // This process slept while others committed and cleaned up: the name was free because it is past.
                Created::Yes => {
                    self.load_whole().await?;
                    let whole = self.snapshot();
                    if whole.version == new {
                        return Ok(whole);
                    }
                }
            }
        }
        Err(self.store.failed(&"others commit faster than this process"))
    }

    fn check_base(&self, base: &TableSnapshot, change: &Change) -> Result<(), LakeError> {
        let conflict = |partition, clash| LakeError::Conflict { table: self.name().as_str(), partition, clash };
        let held = lock(&self.held);
        for partition in change.partitions() {
            let (ours, found) = (held.get(&partition).copied(), base.owners.get(&partition).copied());
            if let Some(ours) = ours.filter(|ours| found != Some(*ours)) {
                return Err(conflict(Some(partition), Clash::Owner { held: ours, found }));
            }
        }
        for (partition, (expected, _)) in &change.positions {
            let found = base.positions.get(partition).copied();
            if found != *expected {
                return Err(conflict(Some(*partition), Clash::Position { expected: *expected, found }));
            }
        }
        match change.remove.iter().find(|file| !base.files.contains_key(&file.path)) {
            Some(file) => Err(conflict(file.span.map(|span| span.partition), Clash::File(file.path.clone()))),
            None => Ok(()),
        }
    }

    fn transaction_of(&self, mark: Mark, partition: u32, value: i64) -> Transaction {
        let now_ms = chrono::Utc::now().timestamp_millis();
        Transaction::new_with_last_update(mark.app_id(&self.log, partition), value, Some(now_ms))
    }

    fn transactions(&self, change: &Change) -> Vec<Transaction> {
        let positions = change.positions.iter().map(|(partition, (_, position))| {
            (Mark::Position, *partition, i64::try_from(*position).unwrap_or(i64::MAX))
        });
        let watermarks = change.watermarks.iter().map(|(partition, ms)| (Mark::Watermark, *partition, *ms));
        let appended = change.appended_us.iter().map(|(partition, us)| (Mark::Appended, *partition, *us));
        let all = positions.chain(watermarks).chain(appended);
        all.map(|(mark, partition, value)| self.transaction_of(mark, partition, value)).collect()
    }
}

/// What a commit is known by.
pub(super) fn fingerprint(commit: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    commit.hash(&mut hasher);
    hasher.finish()
}

/// The commit, as the Delta protocol asks for it. No two have the same bytes.
fn commit_bytes(
    table: &Table,
    change: &Change,
    data_change: bool,
    transactions: Vec<Transaction>,
) -> Result<Bytes, LakeError> {
    let now_ms = chrono::Utc::now().timestamp_millis();
    let partition_values = |file: &FileEntry| -> HashMap<String, Option<String>> {
        file.date.map(|date| ("date".to_owned(), Some(format_date(date)))).into_iter().collect()
    };
    let removes = change.remove.iter().map(|file| {
        Action::Remove(Remove {
            path: file.path.clone(),
            data_change,
            deletion_timestamp: Some(now_ms),
            extended_file_metadata: Some(true),
            partition_values: Some(partition_values(file)),
            size: Some(i64::try_from(file.size).unwrap_or(i64::MAX)),
            ..Remove::default()
        })
    });
    let adds = change.add.iter().map(|file| {
        Action::Add(Add {
            path: file.path.clone(),
            partition_values: partition_values(file),
            size: i64::try_from(file.size).unwrap_or(i64::MAX),
            modification_time: now_ms,
            data_change,
            stats: file.stats.clone(),
            ..Add::default()
        })
    });
    let partition_by = match schema::partition_columns(table.name()) {
        [] => None,
        columns => Some(columns.iter().map(|column| (*column).to_owned()).collect()),
    };
    let operation = DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
    let metadata = HashMap::from([
        ("counterbat".to_owned(), serde_json::Value::from(change.operation)),
        ("counterbatCommit".to_owned(), serde_json::Value::from(uuid::Uuid::now_v7().to_string())),
    ]);
    CommitData::new(removes.chain(adds).collect(), operation, metadata, transactions)
        .get_bytes()
        .map_err(|error| LakeError::Damaged(error.to_string()))
}
