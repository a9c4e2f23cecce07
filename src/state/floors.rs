//! Below which hours nothing is laid over the tables. Rows that were taken off leave marks in the database until it is
//! compacted, and to pass over a mark takes as long as to read a row.

use super::overlay::{Laid, hour_in, partition_in};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// A table and a partition.
pub(super) type Place = (Laid, u32);

/// The least hour of each place.
type Hours = HashMap<Place, i64>;

/// What is known of all places.
#[derive(Default)]
pub(super) struct Floors {
    /// Held by whoever lays rows, until they are there.
    laying: RwLock<()>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// No row has an earlier hour; of places that are not there nothing is known.
    floors: Hours,
    /// What is laid from now on is noted there.
    watches: Vec<Weak<Mutex<Hours>>>,
}

/// What was known at one moment, and what has been laid since.
pub(super) struct Watch {
    floors: Hours,
    since: Arc<Mutex<Hours>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole after every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Rows that are about to be laid.
#[derive(Default)]
pub(super) struct Laying(Hours);

impl Laying {
    /// Takes note of the bytes of an overlay key.
    pub fn add(&mut self, key: &[u8]) {
        let place = key.first().and_then(|tag| Laid::of(*tag)).zip(partition_in(key));
        if let Some(place) = place {
            let hour = hour_in(key).unwrap_or(i64::MIN);
            self.0.entry(place).and_modify(|least| *least = hour.min(*least)).or_insert(hour);
        }
    }
}

impl Floors {
    /// Lays rows by `lay`.
    pub fn lay<T>(&self, rows: &Laying, lay: impl FnOnce() -> T) -> T {
        if rows.0.is_empty() {
            return lay();
        }
        let _laying = self.laying.read().unwrap_or_else(PoisonError::into_inner);
        // Before they can be seen; and once more for those who began to watch between.
        self.lower(&rows.0);
        let laid = lay();
        self.lower(&rows.0);
        laid
    }

    fn lower(&self, rows: &Hours) {
        let mut known = lock(&self.known);
        for (place, hour) in rows {
            known.floors.entry(*place).and_modify(|floor| *floor = (*hour).min(*floor));
        }
        for since in known.watches.iter().filter_map(Weak::upgrade) {
            let mut since = lock(&since);
            for (place, hour) in rows {
                since.entry(*place).and_modify(|least| *least = (*hour).min(*least)).or_insert(*hour);
            }
        }
    }

    /// To be begun before a view of the rows is taken, and kept as long as that.
    pub fn watch(&self) -> Watch {
        let (mut known, since) = (lock(&self.known), Arc::default());
        known.watches.retain(|watch| watch.strong_count() > 0);
        known.watches.push(Arc::downgrade(&since));
        Watch { floors: known.floors.clone(), since }
    }

    /// A view that was taken after `watch` was begun has no row of a place before this hour.
    pub fn raise(&self, watch: &Watch, place: Place, hour: i64) {
        // Of those who are at it, some may have begun before the watch.
        let Ok(_alone) = self.laying.try_write() else { return };
        let since = lock(&watch.since).get(&place).copied().unwrap_or(i64::MAX);
        lock(&self.known).floors.insert(place, hour.min(since));
    }
}

impl Watch {
    /// No row of a view that was taken since it began has an earlier hour; `None` where that is not known.
    pub fn floor(&self, place: Place) -> Option<i64> {
        let floor = *self.floors.get(&place)?;
        Some(lock(&self.since).get(&place).map_or(floor, |hour| floor.min(*hour)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::overlay::{OverlayKey, RowId};
    use super::super::{State, user_key};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn key(hour: i64) -> Vec<u8> {
        let (table, id) = (super::Laid::Messages, RowId::Message(7));
        OverlayKey { table, partition: 1, hour, user: user_key("bot", "ann"), id }.to_bytes()
    }

    fn hours(view: &super::super::OverlayView) -> BTreeSet<i64> {
        let mut hours = BTreeSet::new();
        let each = |key: &[u8], _: &[u8]| {
            hours.insert(super::hour_in(key).unwrap());
            Ok(())
        };
        view.rows(super::Laid::Messages, 1, each).unwrap();
        hours
    }

    #[derive(Debug, Clone)]
    enum Step {
        Lay(i64),
        Lift(i64),
        View,
        /// The view taken so many views ago.
        Read(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (-3..6i64).prop_map(Step::Lay),
            3 => (-3..6i64).prop_map(Step::Lift),
            2 => Just(Step::View),
            4 => (0..4usize).prop_map(Step::Read),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn a_view_shows_the_rows_of_its_moment(steps in prop::collection::vec(step(), 1..80)) {
            let dir = tempfile::tempdir().unwrap();
            let state = State::open(dir.path(), 1 << 20).unwrap();
            let (mut there, mut views) = (BTreeSet::new(), Vec::new());
            for step in steps {
                let mut batch = state.batch();
                match step {
                    Step::Lay(hour) => {
                        batch.lay(&key(hour), b"row");
                        there.insert(hour);
                    }
                    Step::Lift(hour) => {
                        batch.lift(&key(hour));
                        there.remove(&hour);
                    }
                    Step::View => views.push((state.overlay(), there.clone())),
                    Step::Read(back) => {
                        if let Some((view, then)) = views.len().checked_sub(back + 1).map(|at| &views[at]) {
                            prop_assert_eq!(&hours(view), then);
                        }
                    }
                }
                batch.commit().unwrap();
            }
            prop_assert_eq!(hours(&state.overlay()), there);
        }
    }

    #[test]
    fn what_is_being_laid_while_a_view_is_read_is_seen_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), 1 << 20).unwrap();
        let mut rows = super::Laying::default();
        rows.add(&key(2));
        let place = (super::Laid::Messages, 1);
        // A view is taken and read to its end while a row is on its way.
        state.floors.lay(&rows, || {
            let view = state.overlay();
            assert!(hours(&view).is_empty());
            assert_eq!(state.floors.watch().floor(place), None, "somebody is still at it");
        });
        assert!(hours(&state.overlay()).is_empty());
        assert_eq!(state.floors.watch().floor(place), Some(i64::MAX));
        state.floors.lay(&rows, || ());
        assert_eq!(state.floors.watch().floor(place), Some(2));
    }
}
