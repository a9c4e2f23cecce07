//! What becomes of sessions, as it is folded: the newest changes in one order, for whoever follows them.
//!
//! Each batch of changes has a number, which grows by one. Whoever names the last one it has been told of is told everything
//! behind it; where that is not known any more, or not sure, a reset says that what was told before is to be looked up
//! anew. Nobody holds up the fold: what does not fit is forgotten.

use crate::event::time::format_ms;
use crate::session::row::{Kind, SessionRow, SessionState};
use crate::state::split_user_key;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use utoipa::ToSchema;

/// So many changes are kept. Of a stretch with more none is told.
pub(super) const MOST: usize = 1 << 16;
/// So many are told at once, or the whole of one batch.
const AT_ONCE: usize = 1 << 12;

/// What became of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Opened,
    Updated,
    Closed,
    /// A late event has shown that there was none.
    Removed,
}

impl What {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            What::Opened => "opened",
            What::Updated => "updated",
            What::Closed => "closed",
            What::Removed => "removed",
        }
    }
}

/// A change of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub what: What,
    pub account: String,
    pub kind: String,
    /// The session after it (before it, where it is removed), as JSON.
    pub session: String,
}

/// A session as `sessions` has it: names, units and forms are those of SQL's answer in JSON.
#[derive(Serialize, ToSchema)]
pub struct Session<'a> {
    session_id: String,
    account: &'a str,
    user_id: &'a str,
    #[schema(required)]
    country: Option<&'a str>,
    kind: &'static str,
    state: &'static str,
    opened_at: String,
    expires_at: String,
    #[schema(required)]
    closed_at: Option<String>,
    #[schema(required)]
    close_reason: Option<&'static str>,
    opened_by_token: String,
    inbound: u32,
    outbound: u32,
    delivered: u32,
    seen: u32,
    failed: u32,
    charged: u32,
    overcharged: u32,
    #[schema(required)]
    first_response_ms: Option<i64>,
    last_event_at: String,
    #[schema(required)]
    cost: Option<String>,
    #[schema(required)]
    currency: Option<&'a str>,
    policy: &'a str,
}

impl Change {
    /// What has become of the session of the user with this key; `None` where there is none on either side.
    pub(super) fn of(user: &[u8], before: Option<&SessionRow>, after: Option<&SessionRow>) -> Option<Self> {
        let (account, user_id) = split_user_key(user)?;
        let row = after.or(before)?;
        let is_open = |row: &SessionRow| row.state == SessionState::Open;
        let what = match (before, after) {
            (_, None) => What::Removed,
            (None, Some(after)) if is_open(after) => What::Opened,
            (before, Some(after)) if !is_open(after) && before.is_none_or(is_open) => What::Closed,
            _ => What::Updated,
        };
        let shown = Session {
            session_id: hex::encode(row.session_id),
            account,
            user_id,
            country: row.country.as_deref(),
            kind: row.kind.as_str(),
            state: row.state.as_str(),
            opened_at: format_ms(row.opened_at_ms),
            expires_at: format_ms(row.expires_at_ms),
            closed_at: row.closed.map(|(at_ms, _)| format_ms(at_ms)),
            close_reason: row.closed.map(|(_, reason)| reason.as_str()),
            opened_by_token: row.opened_by_token.to_string(),
            inbound: row.inbound,
            outbound: row.outbound,
            delivered: row.delivered,
            seen: row.seen,
            failed: row.failed,
            charged: row.charged,
            overcharged: row.overcharged,
            first_response_ms: row.first_response_ms,
            last_event_at: format_ms(row.last_event_at_ms),
            cost: row.cost.map(|cost| cost.to_string()),
            currency: row.currency.as_ref().map(|currency| currency.as_str()),
            policy: &row.policy,
        };
        // Texts and numbers: nothing that JSON could not say.
        let session = serde_json::to_string(&shown).unwrap_or_default();
        Some(Self { what, account: account.into(), kind: row.kind.as_str().into(), session })
    }
}

/// How many sessions are open, by account and kind.
pub type Open = Vec<(String, String, i64)>;

/// What a stretch of a partition's log has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub partition: u32,
    /// The rebuild of the tables that the sessions belong to.
    pub rebuild: i64,
    /// From this offset on nothing else has changed.
    pub since: u64,
    /// The first offset of the stretch.
    pub from: u64,
    /// The offset behind it.
    pub to: u64,
    pub changes: Vec<Change>,
    /// Of the accounts that the changes are of, or of all.
    pub open: Open,
    /// Whether `open` is of all: none is open of those that it does not name.
    pub is_whole: bool,
}

/// What is told, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Batch(Arc<Batch>),
    /// Something between is not known: what was told before is to be looked up anew.
    Reset,
    /// Nothing has changed, but how many sessions are open in a partition is known now.
    Counted,
}

/// How far a partition has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub rebuild: i64,
    pub to: u64,
}

impl Told {
    fn is_older(self, other: Told) -> bool {
        (self.rebuild, self.to) < (other.rebuild, other.to)
    }
}

/// How far a partition has been told, and from where on nothing has changed up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub since: u64,
    pub told: Told,
}

/// How far somebody has been told: everything of the batches before `next`, and so many changes of that one. As text it has the
/// name of the feed before it: the numbers of another are others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    pub feed: String,
    pub next: u64,
    pub within: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.feed, self.next)?;
        if self.within == 0 { Ok(()) } else { write!(f, ".{}", self.within) }
    }
}

/// The text is none of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the id of an event of this stream")]
pub struct BadCursor;

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let (feed, place) = text.split_once('-').ok_or(BadCursor)?;
        let (next, within) = place.split_once('.').unwrap_or((place, "0"));
        let is_name = !feed.is_empty() && feed.len() <= 64 && feed.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let next = next.parse().map_err(|_| BadCursor)?;
        let within = within.parse().map_err(|_| BadCursor)?;
        if is_name { Ok(Cursor { feed: feed.to_owned(), next, within }) } else { Err(BadCursor) }
    }
}

/// The counters of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub account: String,
    pub open_service: i64,
    pub open_paid: i64,
}

/// What another process is told that follows this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where it is then.
    pub cursor: Cursor,
    /// Whether this is a beginning: what was told before has no connection with it.
    pub is_anew: bool,
    pub batches: Vec<Batch>,
    /// How far the partitions that are folded here have been told then.
    pub told: BTreeMap<u32, Reached>,
    /// All that is open in these partitions: in each of them at a beginning, else where it was counted anew.
    pub open: BTreeMap<u32, Open>,
}

#[derive(Default)]
struct Partition {
    /// `None` where nothing is known of it.
    told: Option<Told>,
    /// From this offset on nothing has changed.
    kept_to: u64,
    open: BTreeMap<(String, String), i64>,
    /// The number of what told how many are open of all accounts.
    whole_at: u64,
    /// Whether it was told by the fold of this process.
    is_own: bool,
}

#[derive(Default)]
struct Inner {
    /// The newest at the back, which has the number `next - 1`.
    news: VecDeque<(News, bool)>,
    next: u64,
    held: usize,
    partitions: BTreeMap<u32, Partition>,
    /// Of all partitions, by account.
    counters: BTreeMap<String, Counters>,
}

/// Notes how many are open in a partition, and so in all.
fn count(
    counters: &mut BTreeMap<String, Counters>,
    open: &mut BTreeMap<(String, String), i64>,
    (account, kind, n): (String, String, i64),
) {
    let of = counters.entry(account.clone()).or_default();
    of.account.clone_from(&account);
    let sum = if kind == Kind::Service.as_str() { &mut of.open_service } else { &mut of.open_paid };
    *sum += n - open.insert((account, kind), n).unwrap_or(0);
}

/// Notes how many are open in a partition, where those that are not named are not open.
fn count_all(
    counters: &mut BTreeMap<String, Counters>,
    known: &mut BTreeMap<(String, String), i64>,
    open: impl IntoIterator<Item = (String, String, i64)>,
) {
    let gone: Open = known.keys().map(|(account, kind)| (account.clone(), kind.clone(), 0)).collect();
    gone.into_iter().chain(open).for_each(|open| count(counters, known, open));
}

impl Inner {
    fn first(&self) -> u64 {
        self.next - self.news.len() as u64
    }

    fn push(&mut self, news: News, is_own: bool) {
        self.held += changes(&news);
        self.news.push_back((news, is_own));
        self.next += 1;
        while self.held > MOST
            && let Some((oldest, _)) = self.news.pop_front()
        {
            self.held -= changes(&oldest);
        }
    }

    /// Takes a batch; says whether there is anything new.
    fn take(&mut self, mut batch: Batch, is_own: bool) -> bool {
        let Batch { partition, rebuild, since, from, to, is_whole, .. } = batch;
        let known = self.partitions.entry(partition).or_default();
        let before = known.told;
        let goes_on = match before {
            // Another process works on tables that have been replaced, or folds anew what was told.
            Some(told) if rebuild < told.rebuild || rebuild == told.rebuild && to <= told.to => return false,
            Some(told) => told.rebuild == rebuild && (since..=from).contains(&told.to),
            // Of what another process may have folded before nothing is known.
            None => is_own,
        };
        let is_empty = batch.changes.is_empty();
        if is_own {
            batch.since = if before.is_some() && goes_on { known.kept_to } else { from };
        }
        if !is_empty || !goes_on || before.is_none() {
            known.kept_to = if is_empty { from } else { to };
        }
        (known.told, known.is_own) = (Some(Told { rebuild, to }), is_own);
        if is_whole {
            count_all(&mut self.counters, &mut known.open, batch.open.iter().cloned());
            known.whole_at = self.next;
        } else {
            batch.open.iter().cloned().for_each(|open| count(&mut self.counters, &mut known.open, open));
        }
        if !goes_on {
            // A part of it may have been told in other words, or something between never.
            self.push(News::Reset, is_own);
        }
        match batch.changes.len() {
            0 if is_whole && goes_on => self.push(News::Counted, is_own),
            0 => {}
            // No client is told so much at once.
            n if n > MOST => self.push(News::Reset, is_own),
            _ => self.push(News::Batch(Arc::new(batch)), is_own),
        }
        !is_empty || !goes_on
    }
}

fn changes(news: &News) -> usize {
    match news {
        News::Batch(batch) => batch.changes.len(),
        // What is empty would be kept for ever.
        News::Reset | News::Counted => 1,
    }
}

/// The newest changes. Hand it around in an `Arc`.
pub struct Feed {
    /// Which one it is: no other has ever had this name.
    name: String,
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    wanted: watch::Sender<bool>,
    /// Grows with each who asks.
    asked: AtomicU64,
    /// How often it had been asked when [`Feed::rest`] looked last.
    seen: AtomicU64,
}

impl Feed {
    /// One with this name, of letters and digits. Nothing is kept until it is wanted.
    pub fn new(name: String) -> Self {
        Self {
            name,
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
            wanted: watch::Sender::new(false),
            asked: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding the lock leaves whole batches behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has changes kept from now on, for as long as it is said again now and then.
    pub fn want(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// Forgets everything where nobody has asked since this was called last.
    pub fn rest(&self) {
        let asked = self.asked.load(Ordering::Relaxed);
        if self.seen.swap(asked, Ordering::Relaxed) != asked || !self.is_wanted() {
            return;
        }
        self.wanted.send_replace(false);
        let mut inner = self.lock();
        // Whoever knew everything up to here has a place that is not known any more either.
        *inner = Inner { next: inner.next + 1, ..Inner::default() };
    }

    /// Whether anybody asks.
    pub fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Whether anybody asks, and when that changes.
    pub fn wanted(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// Bumps when there is something new.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// How far a partition has been told.
    pub fn told(&self, partition: u32) -> Option<Told> {
        self.lock().partitions.get(&partition)?.told
    }

    /// Takes what the fold of this process has changed.
    pub fn take(&self, batch: Batch) {
        if self.lock().take(batch, true) {
            self.tell();
        }
    }

    /// Takes what another process has told.
    pub fn follow(&self, answer: Answer) {
        let Answer { is_anew, batches, told, open, .. } = answer;
        let mut guard = self.lock();
        // Field by field.
        let inner = &mut *guard;
        let mut is_new = is_anew;
        if is_anew {
            inner.push(News::Reset, false);
            for partition in told.keys() {
                inner.partitions.entry(*partition).or_default().told = None;
            }
        }
        for batch in batches {
            is_new |= inner.take(batch, false);
        }
        for (partition, open) in open {
            let known = inner.partitions.entry(partition).or_default();
            let is_older = |known: Told| told.get(&partition).is_some_and(|of| of.told.is_older(known));
            // Another process has it since.
            if known.told.is_some_and(is_older) {
                continue;
            }
            count_all(&mut inner.counters, &mut known.open, open);
        }
        for (partition, Reached { since, told }) in told {
            let known = inner.partitions.entry(partition).or_default();
            let goes_on = match known.told {
                Some(known) if told == known || told.is_older(known) => continue,
                Some(known) => known.rebuild == told.rebuild && (since..=told.to).contains(&known.to),
                None => false,
            };
            (known.told, known.is_own) = (Some(told), false);
            if !goes_on {
                known.kept_to = told.to;
                if !is_anew {
                    inner.push(News::Reset, false);
                    is_new = true;
                }
            }
        }
        drop(guard);
        if is_new {
            self.tell();
        }
    }

    /// The place behind everything.
    pub fn newest(&self) -> Cursor {
        Cursor { feed: self.name.clone(), next: self.lock().next, within: 0 }
    }

    /// What is behind a place, not all where it is much; the first is of the place's own number. A place that is not known any more
    /// is moved to the newest: then there is `None`, for something between.
    pub fn since(&self, cursor: &mut Cursor) -> Option<Vec<News>> {
        let inner = self.lock();
        if cursor.feed != self.name || !(inner.first()..=inner.next).contains(&cursor.next) {
            *cursor = Cursor { feed: self.name.clone(), next: inner.next, within: 0 };
            return None;
        }
        let at = usize::try_from(cursor.next - inner.first()).unwrap_or(usize::MAX);
        let mut many = 0;
        let mut found = Vec::new();
        for (news, _) in inner.news.range(at.min(inner.news.len())..) {
            found.push(news.clone());
            many += changes(news);
            if many >= AT_ONCE {
                break;
            }
        }
        Some(found)
    }

    /// What another process is told that has been told up to `after`, of what is folded here. Where something between is not
    /// known here either, it begins anew.
    pub fn answer(&self, after: Option<&Cursor>, owned: &[u32]) -> Answer {
        let inner = self.lock();
        let of_own = || inner.partitions.iter().filter(|(partition, known)| known.is_own && owned.contains(partition));
        let behind = |after: u64| inner.news.range(usize::try_from(after - inner.first()).unwrap_or(0)..);
        let is_known = |cursor: &&Cursor| {
            cursor.feed == self.name
                && (inner.first()..=inner.next).contains(&cursor.next)
                && !behind(cursor.next).any(|news| matches!(news, (News::Reset, true)))
        };
        let after = after.filter(is_known).map(|cursor| cursor.next);
        let (mut next, mut many) = (after.unwrap_or(inner.next), 0);
        let mut batches = Vec::new();
        for (news, is_own) in after.into_iter().flat_map(behind) {
            if many >= AT_ONCE {
                break;
            }
            next += 1;
            if let (News::Batch(batch), true) = (news, is_own) {
                many += batch.changes.len();
                batches.push(Batch::clone(batch));
            }
        }
        let reached = |known: &Partition| Some(Reached { since: known.kept_to, told: known.told? });
        let is_all = next == inner.next;
        let told = of_own().filter_map(|(partition, known)| Some((*partition, reached(known)?)));
        let open = |known: &Partition| {
            known.open.iter().map(|((account, kind), n)| (account.clone(), kind.clone(), *n)).collect()
        };
        let counted = of_own().filter(|(_, known)| after.is_none_or(|after| known.whole_at >= after));
        Answer {
            cursor: Cursor { feed: self.name.clone(), next, within: 0 },
            is_anew: after.is_none(),
            batches,
            told: if is_all { told.collect() } else { BTreeMap::new() },
            open: counted.map(|(partition, known)| (*partition, open(known))).collect(),
        }
    }

    /// How many sessions are open, by account, of those that are asked for.
    pub fn counters(&self, is_asked: impl Fn(&str) -> bool) -> Vec<Counters> {
        self.lock().counters.values().filter(|of| is_asked(&of.account)).cloned().collect()
    }
}

#[cfg(test)]
mod tests;
