//! What can be made to go wrong while the sandbox runs.

use super::dice::{Dice, Purpose, chance};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The faults that are on. Shares are 0..1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Real ms between deciding a call and answering it.
    pub slow_ms: u64,
    /// Calls are not looked at: the connection is closed without an answer.
    pub down: bool,
    /// Calls answered with HTTP 500 and a page, without anything done.
    pub http_500: f64,
    /// Accepted sends and broadcasts whose connection is closed instead of answered.
    pub cut_after_accept: f64,
    /// In-session messages of billable bots that are reported and charged as out of session.
    pub misbill: f64,
    /// Messages of users that open a session and are never told to the bot.
    pub lost_openings: f64,
    /// Accepted messages that the user's device cannot show: `failed` instead of `delivered`. Some do with this off, too.
    pub unshowable: f64,
}

/// What one call meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    pub slow_ms: u64,
    pub down: bool,
    pub http_500: bool,
    pub cut: bool,
    pub misbill: bool,
}

/// The faults, and who meets them: decided by the seed and the number of the call or opening.
pub struct FaultSwitch {
    faults: Mutex<Faults>,
    dice: Dice,
    calls: AtomicU64,
    openings: AtomicU64,
}

impl FaultSwitch {
    /// All off.
    pub fn new(dice: Dice) -> Self {
        Self { faults: Mutex::default(), dice, calls: AtomicU64::new(0), openings: AtomicU64::new(0) }
    }

    /// The faults that are on.
    pub fn get(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches all faults.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// What the next call meets.
    pub fn next_call(&self) -> Fate {
        let faults = self.get();
        let mut rng = self.dice.roll(Purpose::Fault, 0, self.calls.fetch_add(1, Ordering::Relaxed));
        Fate {
            slow_ms: faults.slow_ms,
            down: faults.down,
            http_500: chance(&mut rng, faults.http_500),
            cut: chance(&mut rng, faults.cut_after_accept),
            misbill: chance(&mut rng, faults.misbill),
        }
    }

    /// Whether the message that opens the next session is lost.
    pub fn loses_opening(&self) -> bool {
        let share = self.get().lost_openings;
        chance(&mut self.dice.roll(Purpose::Fault, 1, self.openings.fetch_add(1, Ordering::Relaxed)), share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_meets_the_same_faults() {
        let fates = |seed| {
            let switch = FaultSwitch::new(Dice::new(seed));
            switch.set(Faults { http_500: 0.1, cut_after_accept: 0.5, ..Faults::default() });
            (0..1_000).map(|_| switch.next_call()).collect::<Vec<_>>()
        };
        let first = fates(1);
        assert_eq!(first, fates(1));
        assert_ne!(first, fates(2));
        let cut = first.iter().filter(|fate| fate.cut).count();
        assert!((430..570).contains(&cut), "{cut}");
        assert!(first.iter().all(|fate| !fate.misbill && !fate.down));
    }

    #[test]
    fn off_is_off() {
        let switch = FaultSwitch::new(Dice::new(1));
        assert!((0..100).all(|_| switch.next_call() == Fate::default() && !switch.loses_opening()));
    }
}
