//! What becomes of sessions, as it is folded: the newest changes of each partition, for whoever follows them.
//!
//! Each change has a place: the batch of its partition that gave it, and its number in there. Whoever names the place it has
//! come to is told everything behind it, or that this is not known any more. Nobody holds up the fold: what does not fit
//! is forgotten.

use crate::event::time::format_ms;
use crate::session::row::{Kind, SessionRow, SessionState};
use crate::state::split_user_key;
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use utoipa::ToSchema;

/// So many changes of all partitions are kept.
const MOST: usize = 1 << 16;
/// So many are told at once.
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
    pub account: CompactString,
    pub kind: CompactString,
    /// The session after it (before it, where it is removed), as JSON.
    pub session: Arc<str>,
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
        let session = serde_json::to_string(&shown).unwrap_or_default().into();
        Some(Self { what, account: account.into(), kind: row.kind.as_str().into(), session })
    }
}

/// The changes of one batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The next offset to fold after it.
    pub position: u64,
    pub changes: Vec<Change>,
}

/// How many sessions are open, by account and kind.
pub type Open = Vec<(CompactString, CompactString, i64)>;

/// A part of what became of a partition's sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The rebuild of the tables that the sessions belong to.
    pub rebuild: i64,
    /// From this offset on.
    pub from: u64,
    /// Up to this one.
    pub to: u64,
    pub batches: Vec<Batch>,
    /// Of all accounts, or of those that the batches are of.
    pub open: Open,
}

#[derive(Default)]
struct Ring {
    part: Part,
    /// Whether anything is known.
    is_begun: bool,
    /// Where it was begun.
    begun_at: u64,
    batches: VecDeque<Arc<Batch>>,
    held: usize,
    open: BTreeMap<(CompactString, CompactString), i64>,
}

impl Ring {
    /// Whether what follows `from` follows what is here.
    fn goes_on(&self, rebuild: i64, from: u64) -> bool {
        self.is_begun && self.part.rebuild == rebuild && from <= self.part.to
    }

    /// Says whether there are new changes, and whether others are open now.
    fn take(&mut self, part: Part, most: usize) -> (bool, bool) {
        let Part { rebuild, from, to, batches, open } = part;
        if !self.goes_on(rebuild, from) {
            let part = Part { rebuild, from, to: from, ..Part::default() };
            *self = Ring { part, is_begun: true, begun_at: from, ..Ring::default() };
        }
        let (mut is_new, mut is_counted_anew) = (false, false);
        // Another process has folded it anew from an earlier place: what it tells again is known.
        let known: Vec<Arc<Batch>> = match from < self.part.to {
            true => self.batches.iter().filter(|batch| batch.position > from).cloned().collect(),
            false => Vec::new(),
        };
        for Batch { position, mut changes } in batches {
            if position <= self.part.to {
                continue;
            }
            changes.retain(|change| !known.iter().any(|batch| batch.changes.contains(change)));
            if !changes.is_empty() {
                self.held += changes.len();
                self.batches.push_back(Arc::new(Batch { position, changes }));
                is_new = true;
            }
            self.part.to = position;
        }
        self.part.to = self.part.to.max(to);
        for (account, kind, n) in open {
            is_counted_anew |= self.open.insert((account, kind), n) != Some(n);
        }
        while self.held > most && self.batches.len() > 1 {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.held -= oldest.changes.len();
            self.part.from = oldest.position;
        }
        (is_new, is_counted_anew)
    }
}

/// How far somebody has followed a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Everything of the batches up to here.
    pub position: u64,
    /// Of the batch that ends at the first: so many changes.
    pub within: Option<(u64, usize)>,
}

/// How far somebody has followed all partitions; as text `rebuild-position.position.…`, with `-partition.end.n` where it is
/// within a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    pub rebuild: i64,
    /// By partition; `None` where nothing has been told of it.
    pub places: Vec<Option<Place>>,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.rebuild)?;
        for (n, place) in self.places.iter().enumerate() {
            let dot = if n == 0 { "" } else { "." };
            match place {
                Some(place) => write!(f, "{dot}{}", place.position)?,
                None => write!(f, "{dot}x")?,
            }
        }
        let within = (0..).zip(&self.places).find_map(|(n, place): (usize, _)| Some((n, (*place)?.within?)));
        if let Some((partition, (end, n))) = within {
            write!(f, "-{partition}.{end}.{n}")?;
        }
        Ok(())
    }
}

/// The text is none of a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not the id of an event of this stream")]
pub struct BadCursor;

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(BadCursor);
        let number = |text: &str| text.parse::<u64>().map_err(|_| BadCursor);
        let rebuild = next()?.parse().map_err(|_| BadCursor)?;
        let place = |text: &str| match text {
            "x" => Ok(None),
            text => Ok(Some(Place { position: number(text)?, within: None })),
        };
        let mut places = next()?.split('.').map(place).collect::<Result<Vec<_>, _>>()?;
        if let Ok(within) = next() {
            let numbers = within.split('.').map(number).collect::<Result<Vec<_>, _>>()?;
            let [partition, end, n] = numbers[..] else { return Err(BadCursor) };
            let index = |n: u64| usize::try_from(n).map_err(|_| BadCursor);
            let place = places.get_mut(index(partition)?).and_then(Option::as_mut).ok_or(BadCursor)?;
            place.within = Some((end, index(n)?));
        }
        if next().is_ok() { Err(BadCursor) } else { Ok(Cursor { rebuild, places }) }
    }
}

/// The counters of an account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub account: CompactString,
    pub open_service: i64,
    pub open_paid: i64,
}

/// What is told at once.
#[derive(Debug, Default)]
pub struct News {
    /// Whether something between has been forgotten.
    pub is_torn: bool,
    /// By partition, with how many changes of each batch are known already.
    pub batches: Vec<(usize, Arc<Batch>, usize)>,
    /// Where each partition is when these are told.
    pub until: Vec<Option<u64>>,
    pub rebuild: i64,
    /// Whether there is more.
    pub has_more: bool,
}

/// The newest changes. Hand it around in an `Arc`.
pub struct Feed {
    rings: Mutex<Vec<Ring>>,
    changed: watch::Sender<u64>,
    wanted: watch::Sender<bool>,
    /// Bumps when others are open.
    counted: AtomicU64,
}

impl Feed {
    /// Of a log with so many partitions. Nothing is kept until it is wanted.
    pub fn new(partitions: u32) -> Self {
        let rings = (0..partitions).map(|_| Ring::default()).collect();
        Self {
            rings: Mutex::new(rings),
            changed: watch::Sender::new(0),
            wanted: watch::Sender::new(false),
            counted: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Ring>> {
        // A panic while holding the lock leaves whole changes behind.
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has changes kept from now on.
    pub fn want(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    /// Whether anybody has ever asked.
    pub fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Becomes true when somebody asks first.
    pub fn wanted(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// Bumps when there is something new.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether what a partition gives from `from` on follows what is known; otherwise all that is open is to be told first.
    pub fn goes_on(&self, partition: u32, rebuild: i64, from: u64) -> bool {
        self.lock().get(partition as usize).is_some_and(|ring| ring.goes_on(rebuild, from))
    }

    /// Takes what became of a partition. What is known is passed over; where something lies between, what was known before
    /// is forgotten.
    pub fn take(&self, partition: u32, part: Part) {
        let mut rings = self.lock();
        let most = MOST / rings.len().max(1);
        let Some(ring) = rings.get_mut(partition as usize) else { return };
        let (is_new, is_counted_anew) = ring.take(part, most);
        drop(rings);
        if is_counted_anew {
            self.counted.fetch_add(1, Ordering::Release);
        }
        if is_new || is_counted_anew {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Everywhere the newest.
    pub fn newest(&self) -> Cursor {
        let rings = self.lock();
        let place = |ring: &Ring| ring.is_begun.then_some(Place { position: ring.part.to, within: None });
        Cursor {
            rebuild: rings.iter().map(|ring| ring.part.rebuild).max().unwrap_or(0),
            places: rings.iter().map(place).collect(),
        }
    }

    /// What has come since: not all where it is much.
    pub fn since(&self, cursor: &Cursor) -> News {
        let rings = self.lock();
        let rebuild = rings.iter().map(|ring| ring.part.rebuild).max().unwrap_or(0);
        let mut news = News {
            rebuild,
            is_torn: rebuild != cursor.rebuild && cursor.places.iter().any(Option::is_some),
            ..News::default()
        };
        let mut many = 0;
        for (n, ring) in rings.iter().enumerate() {
            let place = cursor.places.get(n).copied().flatten();
            news.until.push(match (ring.is_begun, place) {
                (false, place) => place.map(|place| place.position),
                (true, place) => Some(ring.part.to.max(place.map_or(0, |place| place.position))),
            });
            if !ring.is_begun {
                continue;
            }
            // Where nothing was known when it was asked first, everything has come since.
            let place = place.unwrap_or(Place { position: ring.begun_at, within: None });
            news.is_torn |= place.position < ring.part.from;
            for batch in ring.batches.iter().filter(|batch| batch.position > place.position) {
                if many >= AT_ONCE {
                    news.has_more = true;
                    news.until[n] = Some(
                        news.batches.last().filter(|last| last.0 == n).map_or(place.position, |last| last.1.position),
                    );
                    break;
                }
                let known = place.within.filter(|(end, _)| *end == batch.position).map_or(0, |(_, known)| known);
                many += batch.changes.len();
                news.batches.push((n, batch.clone(), known));
            }
        }
        if news.is_torn {
            news.batches.clear();
            news.until = rings.iter().map(|ring| ring.is_begun.then_some(ring.part.to)).collect();
        }
        news
    }

    /// What another process is told of a partition that it has followed up to `after`: from there on, or from now on where it
    /// has followed nothing; `None` where nothing is known here.
    pub fn part(&self, partition: u32, after: Option<(i64, u64)>) -> Option<Part> {
        let rings = self.lock();
        let ring = rings.get(partition as usize).filter(|ring| ring.is_begun)?;
        let open = |(key, n): (&(CompactString, CompactString), &i64)| (key.0.clone(), key.1.clone(), *n);
        let Part { rebuild, from, to, .. } = ring.part;
        let goes_on = after.filter(|(theirs, position)| *theirs == rebuild && (from..=to).contains(position));
        let Some((_, after)) = goes_on else {
            let open = ring.open.iter().map(open).collect();
            return Some(Part { rebuild, from: to, to, batches: Vec::new(), open });
        };
        let (mut batches, mut many) = (Vec::new(), 0);
        for batch in ring.batches.iter().filter(|batch| batch.position > after) {
            batches.push(Batch::clone(batch));
            many += batch.changes.len();
            if many >= AT_ONCE {
                break;
            }
        }
        let to = if many >= AT_ONCE { batches.last().map_or(to, |batch| batch.position) } else { to };
        let is_told = |key: &(CompactString, CompactString)| {
            batches.iter().flat_map(|batch| &batch.changes).any(|change| change.account == key.0)
        };
        let open = ring.open.iter().filter(|(key, _)| is_told(key)).map(open).collect();
        Some(Part { rebuild, from: after, to, batches, open })
    }

    /// Another number each time [`Feed::counters`] have changed.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Acquire)
    }

    /// How many sessions are open, by account.
    pub fn counters(&self) -> Vec<Counters> {
        let mut accounts: BTreeMap<CompactString, Counters> = BTreeMap::new();
        for ((account, kind), n) in self.lock().iter().flat_map(|ring| &ring.open) {
            let counters = accounts.entry(account.clone()).or_default();
            counters.account = account.clone();
            match kind.as_str() {
                kind if kind == Kind::Service.as_str() => counters.open_service += n,
                _ => counters.open_paid += n,
            }
        }
        accounts.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: u64) -> Change {
        Change { what: What::Opened, account: "shop".into(), kind: "service".into(), session: n.to_string().into() }
    }

    /// A part from one offset to another with a batch at each offset between, of one change that has its number.
    fn part(from: u64, to: u64) -> Part {
        let batches = (from + 1..=to).map(|position| Batch { position, changes: vec![change(position)] });
        Part { rebuild: 0, from, to, batches: batches.collect(), open: Vec::new() }
    }

    fn told(news: &News) -> Vec<String> {
        let of = |(_, batch, known): &(usize, Arc<Batch>, usize)| {
            batch.changes[*known..].iter().map(|change| change.session.to_string()).collect::<Vec<_>>()
        };
        news.batches.iter().flat_map(of).collect()
    }

    fn at(positions: &[Option<u64>]) -> Cursor {
        let place = |position| Place { position, within: None };
        Cursor { rebuild: 0, places: positions.iter().map(|position| position.map(place)).collect() }
    }

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        let mut cursor = at(&[Some(12), None, Some(7)]);
        cursor.rebuild = 3;
        assert_eq!(cursor.to_string(), "3-12.x.7");
        assert_eq!(cursor.to_string().parse(), Ok(cursor.clone()));
        cursor.places[2] = Some(Place { position: 7, within: Some((9, 4)) });
        assert_eq!(cursor.to_string(), "3-12.x.7-2.9.4");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for bad in ["", "3", "3-", "a-1", "3-1.b", "3-1-0.2", "3-1-1.2.3", "3-x-0.2.3", "3-1-0.2.3-4", "3-1-0.2.-3"] {
            assert_eq!(bad.parse::<Cursor>(), Err(BadCursor), "{bad}");
        }
    }

    #[test]
    fn each_is_told_what_has_come_since() {
        let feed = Feed::new(2);
        let before = feed.newest();
        feed.take(0, part(100, 103));
        assert_eq!(told(&feed.since(&before)), ["101", "102", "103"], "it was asked before anything was known");
        assert_eq!(told(&feed.since(&feed.newest())), [""; 0]);
        assert_eq!(told(&feed.since(&at(&[Some(102), None]))), ["103"]);
        feed.take(0, part(103, 104));
        feed.take(1, part(5, 6));
        assert_eq!(told(&feed.since(&at(&[Some(103), None]))), ["104", "6"]);
        let within = Cursor {
            rebuild: 0,
            places: vec![
                Some(Place { position: 102, within: Some((103, 1)) }),
                Some(Place { position: 6, within: None }),
            ],
        };
        assert_eq!(told(&feed.since(&within)), ["104"]);
        // Nothing is known of what lies before the beginning.
        assert!(feed.since(&at(&[Some(99), Some(6)])).is_torn);
        assert!(!feed.since(&at(&[Some(100), Some(6)])).is_torn);
    }

    #[test]
    fn what_is_folded_anew_is_told_once() {
        let feed = Feed::new(1);
        feed.take(0, part(100, 110));
        // Another process has taken the partition over from where it was committed, in batches of its own.
        let again = Batch { position: 112, changes: (104..=112).map(change).collect() };
        feed.take(0, Part { rebuild: 0, from: 103, to: 112, batches: vec![again], open: Vec::new() });
        assert_eq!(told(&feed.since(&at(&[Some(108)]))), ["109", "110", "111", "112"]);
        feed.take(0, part(104, 112));
        assert_eq!(told(&feed.since(&at(&[Some(112)]))), [""; 0]);
    }

    #[test]
    fn what_lies_between_is_not_passed_over_in_silence() {
        let feed = Feed::new(1);
        feed.take(0, part(100, 103));
        feed.take(0, part(105, 106));
        assert!(feed.since(&at(&[Some(103)])).is_torn);
        let news = feed.since(&at(&[Some(103)]));
        assert_eq!((told(&news), news.until.clone()), (Vec::new(), vec![Some(106)]));
        // Other tables: other sessions.
        feed.take(0, Part { rebuild: 1, ..part(106, 107) });
        assert!(feed.since(&at(&[Some(106)])).is_torn);
    }

    #[test]
    fn what_is_not_kept_is_missed() {
        let feed = Feed::new(1);
        let most = MOST as u64;
        feed.take(0, part(0, most + 10));
        assert!(feed.since(&at(&[Some(9)])).is_torn);
        let (mut cursor, mut seen) = (at(&[Some(10)]), 0);
        loop {
            let news = feed.since(&cursor);
            assert!(!news.is_torn && news.batches.len() <= AT_ONCE);
            seen += news.batches.len() as u64;
            cursor = at(&news.until);
            if !news.has_more {
                break;
            }
        }
        assert_eq!((seen, cursor), (most, at(&[Some(most + 10)])));
    }

    #[test]
    fn another_process_follows() {
        let (here, there) = (Feed::new(1), Feed::new(1));
        let after = |feed: &Feed| feed.newest().places[0].map(|place| (feed.newest().rebuild, place.position));
        let open = |n| vec![("shop".into(), "service".into(), n)];
        assert_eq!(here.part(0, None), None, "nothing is known there either");
        here.take(0, Part { open: open(3), ..part(100, 103) });
        there.take(0, here.part(0, after(&there)).unwrap());
        assert_eq!(there.counters()[0].open_service, 3);
        let cursor = there.newest();
        here.take(0, Part { open: open(5), ..part(103, 106) });
        there.take(0, here.part(0, after(&there)).unwrap());
        assert_eq!(told(&there.since(&cursor)), ["104", "105", "106"]);
        assert_eq!(there.counters()[0].open_service, 5);
        assert_eq!(there.newest(), here.newest());
        // It was away while the other forgot.
        here.take(0, part(200, 201));
        there.take(0, here.part(0, after(&there)).unwrap());
        assert!(there.since(&cursor).is_torn);
    }
}
