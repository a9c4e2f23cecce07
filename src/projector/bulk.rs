//! Folds the archive of a partition from its beginning, user by user, into an empty state and new tables.
//!
//! What [`super::worker`] gives event by event comes of it as well, but each user is taken up once and each row written
//! once: that is all that makes a rebuild of a long history fast. A kill costs what was folded of the partition.

use super::buckets::fresh_span;
use super::by_user::{ByUser, Next, Part, TellRead, Told, columns};
use super::job::Scope;
use super::refold::Folded;
use super::span_rows::SpanRows;
use super::{ProjectorError, Settings};
use crate::lake::{Change, EventsLayout, FileEntry, Lake, LakeError, Table, TableName};
use crate::session::row::{Kind, MessageRow, SessionId, SessionRow, SessionState};
use crate::session::{Rows, Terms, User, change};
use crate::state::overlay::Laid;
use crate::state::overlay::{LaidRow, OverlayKey, RowId, hour_of};
use crate::state::{Batch, Entry, PartitionMark, State, split_user_key};
use arrow::array::RecordBatch;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// About what a user in the state costs in memory until it is written, besides its key, and each row that it still has.
const ENTRY_BYTES: usize = 400;
const ROW_BYTES: usize = 80;
/// After so many facts of a user what is settled of it is put aside: looking for a fact among those that are not takes
/// longer the more there are. Few in unit tests.
const FACTS_AT_ONCE: usize = if cfg!(test) { 3 } else { 256 };

/// What is folded, and where to.
pub(super) struct Bulk<'a> {
    pub lake: &'a Lake,
    /// The new tables.
    pub generation: &'a Lake,
    pub state: &'a State,
    pub settings: &'a Arc<Settings>,
    pub scope: &'a Scope,
    /// A folder for what memory does not hold.
    pub room: &'a Path,
    pub partition: u32,
    /// Where the archive ends.
    pub end: u64,
}

impl Bulk<'_> {
    /// Folds all there is. `note` makes durable how far the state is, with its last batch; where an event has come too late,
    /// nothing is noted.
    pub async fn run(
        &self,
        layout: &EventsLayout,
        tell: TellRead,
        note: impl FnOnce(Batch, PartitionMark) -> Result<(), ProjectorError>,
    ) -> Result<Folded, ProjectorError> {
        let partitions = self.settings.partitions;
        let part = Part { partition: self.partition, partitions, lateness_ms: self.settings.lateness_ms };
        let mut by_user = ByUser::new(self.lake, layout, part, self.room, tell)?;
        let mut fold = Fold::new(self);
        loop {
            match by_user.next().await? {
                Next::Batch(batch) => {
                    fold.watermark_ms = by_user.reading().mark.watermark_ms.unwrap_or(i64::MIN);
                    tokio::task::block_in_place(|| fold.take(&batch))?;
                }
                Next::End => break,
                Next::TooLate => return Ok(Folded::TooLate),
            }
        }
        let (mut mark, accounts) = {
            let mut reading = by_user.reading();
            (std::mem::take(&mut reading.mark), std::mem::take(&mut reading.accounts))
        };
        fold.watermark_ms = mark.watermark_ms.unwrap_or(i64::MIN);
        tokio::task::block_in_place(|| fold.end_user())?;
        mark.is_outdated = fold.is_outdated();
        let Fold { mut rows, batch, mut open, .. } = fold;
        // What a run that was cut off has left may have come to light only now.
        self.generation.refresh().await?;
        for name in [TableName::Messages, TableName::Sessions] {
            self.commit(self.generation.table(name), &mut rows).await?;
        }
        for account in accounts {
            open.entry((account, Kind::Service)).or_default();
        }
        mark.open = open.into_iter().map(|((account, kind), n)| (account, kind, n)).collect();
        mark.open.sort_by(|a, b| (&a.0, a.1.as_str()).cmp(&(&b.0, b.1.as_str())));
        mark.served_ms = mark.watermark_ms;
        // Ticks are not archived: without this an idle partition would seem to be behind for ever.
        mark.position = mark.position.max(self.end);
        tokio::task::block_in_place(|| note(batch, mark))?;
        Ok(Folded::All)
    }

    /// Puts the rows of a table in the place of what a run before this one, cut off, may have left.
    async fn commit(&self, table: &Table, rows: &mut SpanRows) -> Result<(), ProjectorError> {
        let is_ours = |file: &&FileEntry| file.span.is_some_and(|span| span.partition == self.partition);
        let remove: Vec<FileEntry> = table.snapshot().files.values().filter(is_ours).cloned().collect();
        let add = rows.write(table).await?;
        if !add.is_empty() || !remove.is_empty() {
            table.commit(Change { add, remove, operation: "rebuild", ..Change::default() }).await?;
        }
        Ok(())
    }
}

/// A user whose facts are being taken in.
struct OneUser {
    key: Arc<[u8]>,
    terms: Arc<Terms>,
    user: User,
    facts: usize,
    /// The rows as they were shown when time was moved on last, and those that are to be written, which may say more: what
    /// is forgotten of a session takes nothing off its row.
    shown: Rows,
    laid: LaidRows,
}

/// Rows by hour and id.
#[derive(Default)]
struct LaidRows {
    sessions: BTreeMap<(i64, SessionId), SessionRow>,
    messages: BTreeMap<(i64, u64), MessageRow>,
}

struct Fold<'a> {
    bulk: &'a Bulk<'a>,
    /// Where time is once everything is folded.
    watermark_ms: i64,
    terms: FxHashMap<String, Arc<Terms>>,
    current: Option<OneUser>,
    rows: SpanRows,
    batch: Batch,
    /// About how many bytes are in the batch.
    bytes: usize,
    open: FxHashMap<(String, Kind), i64>,
}

impl<'a> Fold<'a> {
    fn new(bulk: &'a Bulk<'a>) -> Self {
        let (rows, batch) = (SpanRows::new(bulk.room), bulk.state.batch());
        let (terms, open) = Default::default();
        Self { bulk, watermark_ms: i64::MIN, terms, current: None, rows, batch, bytes: 0, open }
    }

    fn take(&mut self, batch: &RecordBatch) -> Result<(), ProjectorError> {
        let damaged = |what: &str| LakeError::Damaged(format!("{what}, on the way through the sort by user"));
        let (users, told) = columns(batch).ok_or_else(|| damaged("other columns"))?;
        for row in 0..batch.num_rows() {
            let key = users.value(row);
            if self.current.as_ref().is_none_or(|current| *current.key != *key) {
                self.end_user()?;
                let (account, _) = split_user_key(key).ok_or_else(|| damaged("a user's key"))?;
                let terms = self.terms(account);
                let (user, shown, laid) = Default::default();
                self.current = Some(OneUser { key: key.into(), terms, user, facts: 0, shown, laid });
            }
            let told: Told = borsh::from_slice(told.value(row)).map_err(|error| damaged(&error.to_string()))?;
            let Some(mut current) = self.current.take() else { continue };
            if let Some(watermark_ms) = told.watermark_ms
                && current.is_to_be_moved_on(&told, watermark_ms)
            {
                let settled = current.move_on(watermark_ms);
                self.write(&current.key, settled)?;
            }
            current.take(&told);
            self.current = Some(current);
        }
        Ok(())
    }

    /// Writes what has come of the current user.
    fn end_user(&mut self) -> Result<(), ProjectorError> {
        let Some(mut current) = self.current.take() else { return Ok(()) };
        let Some((account, name)) = split_user_key(&current.key) else { return Ok(()) };
        let partition = self.bulk.partition;
        let rows = current.user.rows(account, name, self.watermark_ms, &current.terms);
        for row in rows.sessions.iter().filter(|row| row.state == SessionState::Open) {
            *self.open.entry((account.to_owned(), row.kind)).or_default() += 1;
        }
        current.user.settle(account, name, self.watermark_ms, &current.terms);
        let armed_ms = rows.due_ms;
        self.bytes += ENTRY_BYTES + current.key.len() + ROW_BYTES * (rows.sessions.len() + rows.messages.len());
        current.laid.lay(&current.shown, rows);
        let OneUser { key, user, laid, .. } = current;
        self.write(&key, laid)?;
        self.batch.set_user(partition, &key, &Entry { armed_ms, user });
        if let Some(due_ms) = armed_ms {
            self.batch.arm(partition, due_ms, &key);
        }
        if self.bytes >= self.bulk.settings.layer_bytes() {
            self.bytes = 0;
            std::mem::replace(&mut self.batch, self.bulk.state.batch()).commit()?;
        }
        Ok(())
    }

    fn write(&mut self, key: &Arc<[u8]>, laid: LaidRows) -> Result<(), ProjectorError> {
        let (partition, watermark_ms) = (self.bulk.partition, Some(self.watermark_ms));
        for ((hour, id), row) in laid.sessions {
            if self.has(Laid::Sessions, key, hour, RowId::Session(id), || LaidRow::Session(row.clone())) {
                self.rows.session(fresh_span(partition, hour, watermark_ms), key, row);
            }
        }
        for ((hour, token), row) in laid.messages {
            if self.has(Laid::Messages, key, hour, RowId::Message(token), || LaidRow::Message(row.clone())) {
                self.rows.message(fresh_span(partition, hour, watermark_ms), key, row);
            }
        }
        self.rows.make_room()
    }

    fn has(&self, table: Laid, user: &[u8], hour: i64, id: RowId, row: impl FnOnce() -> LaidRow) -> bool {
        let scope = self.bulk.scope;
        let key = || OverlayKey { table, partition: self.bulk.partition, hour, user: user.into(), id };
        *scope == Scope::default() || scope.has(&key(), &row())
    }

    /// Whether an account has got another policy since it was folded.
    fn is_outdated(&self) -> bool {
        self.terms.iter().any(|(account, terms)| self.bulk.settings.terms(account).policies != terms.policies)
    }

    fn terms(&mut self, account: &str) -> Arc<Terms> {
        if let Some(terms) = self.terms.get(account) {
            return terms.clone();
        }
        let terms = Arc::new(self.bulk.settings.terms(account));
        self.terms.insert(account.to_owned(), terms.clone());
        terms
    }
}

impl OneUser {
    fn take(&mut self, told: &Told) {
        self.facts += 1;
        let Told { t_ms, token, fact, country, watermark_ms } = told;
        self.user.hear(*t_ms, *token, fact.as_ref(), country.as_ref(), *watermark_ms, &self.terms);
    }

    /// Whether time is to be moved on before this is taken in: event by event, a message may be forgotten by now that is not
    /// yet, and a copy of it counts as another one.
    fn is_to_be_moved_on(&self, told: &Told, watermark_ms: i64) -> bool {
        let is_overdue = |token| self.user.is_overdue(token, watermark_ms, &self.terms);
        self.facts >= FACTS_AT_ONCE || told.token.is_some_and(is_overdue)
    }

    /// Moves the user's time on. The rows that nothing can change any more.
    fn move_on(&mut self, watermark_ms: i64) -> LaidRows {
        self.facts = 0;
        let Some((account, name)) = split_user_key(&self.key) else { return LaidRows::default() };
        let rows = self.user.rows(account, name, watermark_ms, &self.terms);
        self.laid.lay(&self.shown, rows);
        self.user.settle(account, name, watermark_ms, &self.terms);
        self.shown = self.user.rows(account, name, watermark_ms, &self.terms);
        let mut settled = std::mem::take(&mut self.laid);
        let sessions: FxHashSet<_> = self.shown.sessions.iter().map(session_key).collect();
        let messages: FxHashSet<_> = self.shown.messages.iter().map(message_key).collect();
        self.laid.sessions = settled.sessions.extract_if(.., |key, _| sessions.contains(key)).collect();
        self.laid.messages = settled.messages.extract_if(.., |key, _| messages.contains(key)).collect();
        settled
    }
}

impl LaidRows {
    /// Lays what has changed.
    fn lay(&mut self, before: &Rows, after: Rows) {
        if before.sessions.is_empty() && before.messages.is_empty() {
            self.sessions.extend(after.sessions.into_iter().map(|row| (session_key(&row), row)));
            self.messages.extend(after.messages.into_iter().map(|row| (message_key(&row), row)));
            return;
        }
        for changed in change::sessions(before, &after) {
            changed.before.map(|row| self.sessions.remove(&session_key(row)));
            self.sessions.extend(changed.after.map(|row| (session_key(row), row.clone())));
        }
        for changed in change::messages(before, &after) {
            changed.before.map(|row| self.messages.remove(&message_key(row)));
            self.messages.extend(changed.after.map(|row| (message_key(row), row.clone())));
        }
    }
}

fn session_key(row: &SessionRow) -> (i64, SessionId) {
    (hour_of(row.opened_at_ms), row.session_id)
}

fn message_key(row: &MessageRow) -> (i64, u64) {
    (hour_of(row.sent_at_ms), row.message_token)
}
