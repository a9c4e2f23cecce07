//! What is still to happen, in order of time.

use super::bot::Bot;
use super::delivery::Delivery;
use super::event::Event;
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Something to be done.
pub(super) enum Job {
    /// A callback is to be tried, or tried again.
    Deliver(Box<Delivery>),
    /// `delivered` or `failed` of a message.
    Receipt { bot: Arc<Bot>, user: Arc<str>, token: u64, event: Event },
    /// The user looks at the chat.
    Look { bot: Arc<Bot>, user: Arc<str> },
}

struct Due {
    at_us: i64,
    /// Order of making, among what is due at once.
    number: u64,
    job: Job,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

#[derive(Default)]
struct Inner {
    jobs: BinaryHeap<Reverse<Due>>,
    made: u64,
}

/// The jobs to come.
#[derive(Default)]
pub(super) struct Schedule {
    inner: Mutex<Inner>,
    /// There is an earlier one than before.
    pub sooner: Notify,
}

/// The next job, or when it is due.
pub(super) enum Next {
    /// It is due now: when it was, µs since the epoch, and what.
    Now(i64, Job),
    At(i64),
    Nothing,
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job in, for this time (µs since the epoch).
    pub fn put(&self, at_us: i64, job: Job) {
        let mut inner = self.lock();
        let is_sooner = inner.jobs.peek().is_none_or(|Reverse(first)| at_us < first.at_us);
        let number = inner.made;
        inner.made += 1;
        inner.jobs.push(Reverse(Due { at_us, number, job }));
        drop(inner);
        if is_sooner {
            self.sooner.notify_one();
        }
    }

    /// Takes the next job if it is due.
    pub fn next(&self, now_us: i64) -> Next {
        let mut inner = self.lock();
        match inner.jobs.peek() {
            None => Next::Nothing,
            Some(Reverse(first)) if first.at_us > now_us => Next::At(first.at_us),
            Some(_) => inner.jobs.pop().map_or(Next::Nothing, |Reverse(due)| Next::Now(due.at_us, due.job)),
        }
    }

    /// Jobs to come.
    pub fn len(&self) -> usize {
        self.lock().jobs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::bot::NewBot;
    use super::super::dice::Dice;
    use super::*;

    #[test]
    fn in_order_of_time_then_of_making() {
        let bot = Arc::new(Bot::new(&Dice::new(1), 0, NewBot::named("shop"), Vec::new()));
        let schedule = Schedule::default();
        for (at_us, user) in [(5, "c"), (3, "a"), (5, "d"), (3, "b"), (9, "e")] {
            schedule.put(at_us, Job::Look { bot: bot.clone(), user: user.into() });
        }
        let mut order = String::new();
        let next = loop {
            match schedule.next(5) {
                Next::Now(_, Job::Look { user, .. }) => order.push_str(&user),
                Next::At(at_us) => break at_us,
                _ => panic!("there is a later one"),
            }
        };
        assert_eq!((order.as_str(), next, schedule.len()), ("abcd", 9, 1));
    }
}
