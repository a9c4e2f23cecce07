//! One partition's fold, in memory over the state: records in, changed rows out.
//!
//! Users that changed since the last state batch live in the *active* layer; while a batch is being written, those of
//! that batch are the *frozen* layer. What is in neither is read from the state.

use super::delta::{Delta, Laying};
use super::feed::{self, Change, Open};
use super::{ProjectorError, Settings};
use crate::event::{Disposition, Fact, Origin, Reading, Record, read};
use crate::lake::rows::{EventRow, EventRows};
use crate::log::partitioner;
use crate::metrics::Tally;
use crate::session::row::{Kind, SessionRow, SessionState};
use crate::session::{Rows, Standing, Terms, change};
use crate::state::overlay::{Laid, LaidRow, OverlayKey, RowId, hour_of};
use crate::state::{Entry, PartitionMark, State, UserKey, split_user_key, user_key};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;
use std::sync::Arc;

/// About what an entry costs in memory besides its key, in bytes.
const ENTRY_BYTES: usize = 600;

/// Users and timers that changed since a state batch.
#[derive(Default)]
pub(super) struct Layer {
    pub users: FxHashMap<UserKey, Entry>,
    pub timers: BTreeSet<(i64, UserKey)>,
    /// Timers of older layers or of the state that were served.
    pub served: Vec<(i64, UserKey)>,
}

/// Where the records of a batch come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The log: records are archived from `archive_from` on, and counted.
    Log { archive_from: u64 },
    /// The archive: nothing is archived or counted.
    Archive,
}

/// The fold of one partition.
pub(super) struct Worker {
    partition: u32,
    settings: Arc<Settings>,
    state: State,
    active: Layer,
    frozen: Option<Arc<Layer>>,
    mark: PartitionMark,
    open: FxHashMap<(String, Kind), i64>,
    terms: FxHashMap<String, Arc<Terms>>,
    /// How many accounts had a policy of their own when `terms` was begun.
    policies: usize,
    bytes: usize,
    /// Whether a record in a wrong partition was told of.
    told_misplaced: bool,
    /// Whether deltas tell what became of sessions.
    tells: bool,
}

/// A user taken up by the batch at hand, with its rows as they were shown last.
struct Touched {
    entry: Entry,
    before: Rows,
}

impl Worker {
    pub fn new(partition: u32, settings: Arc<Settings>, state: State, mark: PartitionMark) -> Self {
        let open = mark.open.iter().map(|(account, kind, n)| ((account.clone(), *kind), *n)).collect();
        Self {
            partition,
            settings,
            state,
            active: Layer::default(),
            frozen: None,
            mark,
            open,
            terms: FxHashMap::default(),
            policies: 0,
            bytes: 0,
            told_misplaced: false,
            tells: false,
        }
    }

    /// Goes by these settings from now on.
    pub fn go_by(&mut self, settings: Arc<Settings>) {
        self.settings = settings;
        self.terms.clear();
    }

    /// Has deltas tell what became of sessions, or not.
    pub fn tell_changes(&mut self, tells: bool) {
        self.tells = tells;
    }

    /// The rebuild of the tables that the rows belong to.
    pub fn rebuild(&self) -> i64 {
        self.mark.rebuild
    }

    /// How many sessions are open: of the accounts of these changes, or of all.
    pub fn open_sessions(&self, of: Option<&[Change]>) -> Open {
        let asked = of.map(|changes| changes.iter().map(|change| &*change.account).collect::<FxHashSet<&str>>());
        let is_asked = |account: &str| asked.as_ref().is_none_or(|asked| asked.contains(account));
        let open = self.open.iter().filter(|((account, _), _)| is_asked(account));
        open.map(|((account, kind), n)| (account.clone(), kind.as_str().to_owned(), *n)).collect()
    }

    /// The next offset to fold.
    pub fn position(&self) -> u64 {
        self.mark.position
    }

    /// Whether rows were made under policies or prices that are others now.
    pub fn is_outdated(&self) -> bool {
        self.mark.is_outdated
    }

    /// About how many bytes wait for the next state batch.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands over what changed, to be written; it stays readable until [`Worker::thaw`].
    pub fn freeze(&mut self) -> (PartitionMark, Arc<Layer>) {
        let layer = Arc::new(std::mem::take(&mut self.active));
        self.frozen = Some(layer.clone());
        self.bytes = 0;
        let mut mark = self.mark.clone();
        mark.open = self.open.iter().map(|((account, kind), n)| (account.clone(), *kind, *n)).collect();
        mark.open.sort_by(|a, b| (&a.0, a.1.as_str()).cmp(&(&b.0, b.1.as_str())));
        (mark, layer)
    }

    /// Lets go of the frozen layer, now that the state has it.
    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Moves time on without a record, as ticks do that the archive does not keep.
    pub fn advance(&mut self, watermark_ms: i64, position: u64) -> Result<Delta, ProjectorError> {
        let start = self.mark.watermark_ms;
        self.mark.watermark_ms = self.mark.watermark_ms.max(Some(watermark_ms));
        self.mark.position = self.mark.position.max(position);
        self.finish(start, FxHashMap::default(), EventRows::default(), Tally::default())
    }

    /// Goes on to `next`: what lies before it is no record.
    pub fn pass(&mut self, next: u64) -> Result<Delta, ProjectorError> {
        let start = self.mark.watermark_ms;
        self.mark.position = self.mark.position.max(next);
        self.finish(start, FxHashMap::default(), EventRows::default(), Tally::default())
    }

    /// Folds records, which follow the position. `recorded` are the dispositions the archive has for them.
    pub fn fold(
        &mut self,
        records: &[Record],
        recorded: Option<&[Disposition]>,
        source: Source,
    ) -> Result<Delta, ProjectorError> {
        self.learn_policies();
        let start = self.mark.watermark_ms;
        let mut touched: FxHashMap<UserKey, Touched> = FxHashMap::default();
        let mut events = match source {
            Source::Log { .. } => EventRows::sized_for(records),
            Source::Archive => EventRows::default(),
        };
        let mut tally = Tally::default();
        for (n, record) in records.iter().enumerate() {
            let mut reading = read(&record.event, record.appended_at_us);
            self.check_partition(record, &mut reading, source);
            let too_late_by_record = recorded.is_some_and(|recorded| recorded[n] == Disposition::TooLate);
            let disposition = if too_late_by_record && self.settings.lateness_ms.is_some() && !self.settings.any_age {
                Disposition::TooLate
            } else {
                self.apply(&reading, start, &mut touched)?
            };
            if let Source::Log { archive_from } = source
                && !record.event.is_tick()
            {
                count(&mut tally, &reading, disposition);
                if record.offset >= archive_from {
                    events.push(&EventRow { partition: self.partition, record, reading: &reading, disposition });
                }
            }
            self.mark.watermark_ms = self.mark.watermark_ms.max(Some(reading.time_ms));
            self.mark.position = record.offset + 1;
            self.mark.appended_us = record.appended_at_us;
        }
        let mut delta = self.finish(start, touched, events, tally)?;
        if source == Source::Archive {
            delta.tally = Tally::default();
        }
        Ok(delta)
    }

    fn check_partition(&mut self, record: &Record, reading: &mut Reading<'_>, source: Source) {
        if record.event.is_tick() {
            return;
        }
        let wanted = partitioner::partition(record.event.key().as_bytes(), self.settings.partitions);
        if wanted == self.partition {
            return;
        }
        // What is no event at all says nothing of how its producer finds partitions; what is archived was told of then.
        let is_telling = reading.malformed.is_none() && source != Source::Archive;
        if is_telling && !std::mem::replace(&mut self.told_misplaced, true) {
            tracing::warn!(
                partition = self.partition,
                offset = record.offset,
                wanted,
                "a record is in a wrong partition: it is malformed, and so are others like it that follow. Producers must \
                 find the partition by murmur2 of the key: with librdkafka set partitioner=murmur2_random, with the Java \
                 client leave the default partitioner"
            );
        }
        reading.malformed =
            Some("the record is in a wrong partition: producers must use Kafka's default murmur2 partitioner");
        reading.fact = None;
        reading.country = None;
    }

    fn apply(
        &mut self,
        reading: &Reading<'_>,
        start: Option<i64>,
        touched: &mut FxHashMap<UserKey, Touched>,
    ) -> Result<Disposition, ProjectorError> {
        if reading.malformed.is_some() {
            return Ok(Disposition::Malformed);
        }
        let (Some(account), Some(user)) = (reading.account, reading.user) else { return Ok(Disposition::Info) };
        if reading.fact.is_none() && reading.country.is_none() {
            return Ok(Disposition::Info);
        }
        let terms = self.terms(account);
        let key = user_key(account, user);
        if let Some(touched) = touched.get_mut(&key) {
            return Ok(touched.entry.user.apply(reading, self.mark.watermark_ms, &terms));
        }
        let mut entry = self.take(&key)?;
        let before = shown(&entry, account, user, start, &terms);
        let disposition = entry.user.apply(reading, self.mark.watermark_ms, &terms);
        touched.insert(key, Touched { entry, before });
        Ok(disposition)
    }

    /// How things stand with a user at `now_ms`, with everything folded so far.
    pub fn standing(&self, account: &str, name: &str, now_ms: i64) -> Result<Standing, ProjectorError> {
        let key = user_key(account, name);
        let terms = Arc::new(self.settings.terms(account));
        let layers = [Some(&self.active), self.frozen.as_deref()];
        let known = layers.into_iter().flatten().find_map(|layer| layer.users.get(&key));
        Ok(match known {
            Some(entry) => entry.user.standing(account, name, now_ms, &terms),
            None => {
                let entry = self.state.user(self.partition, &key)?.unwrap_or_default();
                entry.user.standing(account, name, now_ms, &terms)
            }
        })
    }

    /// The user's entry, from the newest layer that has it.
    fn take(&mut self, key: &UserKey) -> Result<Entry, ProjectorError> {
        if let Some(entry) = self.active.users.remove(key) {
            return Ok(entry);
        }
        if let Some(entry) = self.frozen.as_ref().and_then(|frozen| frozen.users.get(key)) {
            return Ok(entry.clone());
        }
        Ok(self.state.user(self.partition, key)?.unwrap_or_default())
    }

    /// Serves timers, compares rows, settles, and sets the next timers.
    fn finish(
        &mut self,
        start: Option<i64>,
        mut touched: FxHashMap<UserKey, Touched>,
        events: EventRows,
        mut tally: Tally,
    ) -> Result<Delta, ProjectorError> {
        let (mut rows, mut changes) = (Vec::new(), Vec::new());
        if let Some(watermark_ms) = self.mark.watermark_ms {
            for key in self.serve(watermark_ms)? {
                if touched.contains_key(&key) {
                    continue;
                }
                let Some((account, user)) = split_user_key(&key) else { continue };
                let terms = self.terms(account);
                let entry = self.take(&key)?;
                let before = shown(&entry, account, user, start, &terms);
                touched.insert(key, Touched { entry, before });
            }
            for (key, touched) in touched {
                self.settle(key, touched, watermark_ms, (&mut rows, &mut changes, &mut tally));
            }
            self.mark.served_ms = Some(watermark_ms);
        }
        let events = events.finish();
        self.bytes += events.as_ref().map_or(0, |batch| batch.get_array_memory_size());
        Ok(Delta {
            partition: self.partition,
            position: self.mark.position,
            watermark_ms: self.mark.watermark_ms,
            events,
            rows,
            tally,
            changes: self.tells.then_some(changes),
        })
    }

    /// Users whose timers are due, each once.
    fn serve(&mut self, watermark_ms: i64) -> Result<FxHashSet<UserKey>, ProjectorError> {
        let mut due = FxHashSet::default();
        let after_ms = self.mark.served_ms;
        let range =
            (after_ms.map_or(i64::MIN, |after_ms| after_ms + 1), Box::from([]))..(watermark_ms + 1, Box::from([]));
        if range.start >= range.end {
            return Ok(due);
        }
        let mut old = self.state.due(self.partition, after_ms, watermark_ms)?;
        if let Some(frozen) = &self.frozen {
            old.extend(frozen.timers.range(range).cloned());
        }
        due.extend(old.iter().map(|(_, key)| key.clone()));
        self.active.served.extend(old);
        while self.active.timers.first().is_some_and(|(due_ms, _)| *due_ms <= watermark_ms) {
            due.extend(self.active.timers.pop_first().map(|(_, key)| key));
        }
        Ok(due)
    }

    fn settle(
        &mut self,
        key: UserKey,
        touched: Touched,
        watermark_ms: i64,
        (rows, changes, tally): (&mut Vec<Laying>, &mut Vec<Change>, &mut Tally),
    ) {
        let Some((account, user)) = split_user_key(&key) else { return };
        let terms = self.terms(account);
        let Touched { mut entry, before } = touched;
        let after = entry.user.rows(account, user, watermark_ms, &terms);
        for changed in change::sessions(&before, &after) {
            let id = |row: &SessionRow| (RowId::Session(row.session_id), hour_of(row.opened_at_ms));
            self.lay(Laid::Sessions, &key, changed.before.map(id), changed.after.map(id), rows, || {
                changed.after.cloned().map_or(LaidRow::Gone, LaidRow::Session)
            });
            self.count_session(account, changed.before, changed.after, tally);
            // What is more than anybody is told is not written down.
            if self.tells && changes.len() <= feed::MOST {
                changes.extend(Change::of(&key, changed.before, changed.after));
            }
        }
        for changed in change::messages(&before, &after) {
            let id =
                |row: &crate::session::row::MessageRow| (RowId::Message(row.message_token), hour_of(row.sent_at_ms));
            self.lay(Laid::Messages, &key, changed.before.map(id), changed.after.map(id), rows, || {
                changed.after.cloned().map_or(LaidRow::Gone, LaidRow::Message)
            });
            match (changed.before, changed.after) {
                (None, Some(row)) => tally.message_folded(account, row),
                (Some(old), Some(new)) => tally.message_changed(account, old, new),
                (Some(_), None) => tally.corrected("message"),
                _ => {}
            }
        }
        for _ in 0..entry.user.settle(account, user, watermark_ms, &terms) {
            tally.receipt_unmatched();
        }
        entry.armed_ms = entry.armed_ms.filter(|armed_ms| *armed_ms > watermark_ms);
        if let Some(due_ms) = after.due_ms
            && entry.armed_ms.is_none_or(|armed_ms| due_ms < armed_ms)
        {
            self.active.timers.insert((due_ms, key.clone()));
            entry.armed_ms = Some(due_ms);
        }
        self.bytes += ENTRY_BYTES + key.len() + 80 * (after.messages.len() + after.sessions.len());
        self.active.users.insert(key, entry);
    }

    fn lay(
        &self,
        table: Laid,
        user: &UserKey,
        before: Option<(RowId, i64)>,
        after: Option<(RowId, i64)>,
        rows: &mut Vec<Laying>,
        row: impl FnOnce() -> LaidRow,
    ) {
        let key = |(id, hour)| OverlayKey { table, partition: self.partition, hour, user: user.clone(), id };
        if let Some(old) = before
            && before != after
        {
            rows.push(Laying { key: key(old), row: LaidRow::Gone, fresh: false });
        }
        if let Some(new) = after {
            rows.push(Laying { key: key(new), row: row(), fresh: before != after });
        }
    }

    fn count_session(
        &mut self,
        account: &str,
        before: Option<&SessionRow>,
        after: Option<&SessionRow>,
        tally: &mut Tally,
    ) {
        let is_open = |row: Option<&SessionRow>| i64::from(row.is_some_and(|row| row.state == SessionState::Open));
        let Some(any) = after.or(before) else { return };
        let change = is_open(after) - is_open(before);
        if change != 0 {
            *self.open.entry((account.to_owned(), any.kind)).or_default() += change;
            tally.sessions_open_delta(account, any.kind, change);
        }
        let closed = |row: Option<&SessionRow>| row.and_then(|row| row.closed);
        match (before, after) {
            (None, Some(row)) => tally.session_opened(account, row.kind),
            (Some(_), None) => tally.corrected("session"),
            _ => {}
        }
        match (closed(before), closed(after)) {
            (None, Some((_, reason))) => tally.session_closed(account, any.kind, reason),
            (Some(old), Some(new)) if old != new => tally.corrected("session"),
            (Some(_), None) if after.is_some() => tally.corrected("session"),
            _ => {}
        }
    }

    /// Looks up the terms again when an account has come in. An account's policy is known before its first event is in
    /// the log, so between two batches is soon enough.
    fn learn_policies(&mut self) {
        let policies = self.settings.policies.count();
        if std::mem::replace(&mut self.policies, policies) != policies {
            let terms = std::mem::take(&mut self.terms);
            // What came in before its account was made known was folded under the default.
            let is_other =
                |(account, old): (&String, &Arc<Terms>)| self.settings.terms(account).policies != old.policies;
            self.mark.is_outdated |= terms.iter().any(is_other);
        }
    }

    fn terms(&mut self, account: &str) -> Arc<Terms> {
        if let Some(terms) = self.terms.get(account) {
            return terms.clone();
        }
        let terms = Arc::new(self.settings.terms(account));
        self.terms.insert(account.to_owned(), terms.clone());
        // The mark tells from now on that there are rows of it.
        self.open.entry((account.to_owned(), Kind::Service)).or_default();
        terms
    }
}

/// The rows of a user as they were shown at the watermark before the batch.
fn shown(entry: &Entry, account: &str, user: &str, start: Option<i64>, terms: &Terms) -> Rows {
    start.map_or_else(Rows::default, |start_ms| entry.user.rows(account, user, start_ms, terms))
}

fn count(tally: &mut Tally, reading: &Reading<'_>, disposition: Disposition) {
    tally.event_folded(disposition);
    if let (Disposition::Fact, Origin::Callback, Some(account), Some(Fact::Receipt(kind, _))) =
        (disposition, reading.origin, reading.account, &reading.fact)
    {
        tally.receipt_folded(account, kind.as_str());
    }
}
