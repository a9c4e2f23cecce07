//! The gateway's clock: an answer never precedes its question (spec §2).

use crate::event::reading::MAX_AHEAD_MS;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Microseconds since the epoch, UTC.
pub type Now = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Local time, and the newest callback timestamp that was believed.
pub struct Clock {
    now: Now,
    newest_us: AtomicI64,
}

impl Clock {
    /// Over a local clock.
    pub fn new(now: Now) -> Self {
        Self { now, newest_us: AtomicI64::new(i64::MIN) }
    }

    /// Local time.
    pub fn now_us(&self) -> i64 {
        (self.now)()
    }

    /// A callback with this timestamp was accepted at `now_us`. One too far ahead is not believed.
    pub fn saw(&self, timestamp_ms: i64, now_us: i64) {
        if let Some(timestamp_us) = timestamp_ms.checked_mul(1000)
            && timestamp_us <= now_us.saturating_add(MAX_AHEAD_MS * 1000)
        {
            self.newest_us.fetch_max(timestamp_us, Ordering::AcqRel);
        }
    }

    /// The time of a call answered now: local time, or the newest callback's where that is ahead, by 5 minutes at most.
    pub fn call_us(&self) -> i64 {
        let now_us = self.now_us();
        let newest_us = self.newest_us.load(Ordering::Acquire);
        // Beyond that the local clock was set back.
        if newest_us <= now_us.saturating_add(MAX_AHEAD_MS * 1000) { newest_us.max(now_us) } else { now_us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_never_before_the_newest_callback() {
        let now_us = 1_760_000_000_000_000;
        let clock = Clock::new(Arc::new(move || now_us));
        assert_eq!(clock.call_us(), now_us);
        clock.saw(now_us / 1000 + 2_000, now_us);
        clock.saw(now_us / 1000 - 9_000, now_us);
        clock.saw(i64::MAX, now_us);
        clock.saw(now_us / 1000 + MAX_AHEAD_MS + 1, now_us);
        assert_eq!(clock.call_us(), now_us + 2_000_000);
    }
}
