//! Message tokens: 64-bit numbers that carry the time they were made at.

use std::sync::atomic::{AtomicU64, Ordering};

/// ms since the epoch at which the numbers began, as real tokens have it.
const EPOCH_MS: i64 = 292_057_776_080;
/// Bits below the time.
const COUNTER_BITS: u32 = 22;

/// Makes tokens. Each is greater than all before it, whatever the clock does.
#[derive(Debug, Default)]
pub struct Tokens(AtomicU64);

impl Tokens {
    /// The next token, made at this time (ms since the epoch).
    pub fn next(&self, now_ms: i64) -> u64 {
        let floor = u64::try_from(now_ms.saturating_sub(EPOCH_MS)).unwrap_or(1) << COUNTER_BITS;
        let next = |last: u64| Some(floor.max(last + 1));
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        // The closure always gives a value, so there is a last one.
        last.ok().and_then(next).unwrap_or(floor)
    }
}

/// When a token was made, ms since the epoch.
pub fn made_at_ms(token: u64) -> i64 {
    (token >> COUNTER_BITS) as i64 + EPOCH_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    #[test]
    fn carries_its_time_and_needs_more_than_a_double() {
        let tokens = Tokens::default();
        let now_ms = 1_760_000_000_000;
        let token = tokens.next(now_ms);
        assert_eq!(made_at_ms(token), now_ms);
        assert!(token > 1 << 53, "{token}");
        assert_eq!(tokens.next(now_ms), token + 1);
        // A clock that goes back makes no token twice.
        assert_eq!(tokens.next(now_ms - 10), token + 2);
        assert!(tokens.next(-1) > token);
        // A real one of the fact sheet, within a fifth of a second.
        assert!((made_at_ms(6_156_995_941_556_922_051) - now_ms).abs() < 200);
    }

    #[test]
    fn unique_across_threads() {
        let tokens = Tokens::default();
        let all = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let own: Vec<u64> = (0..2_000).map(|n| tokens.next(1_760_000_000_000 + n / 500)).collect();
                    assert!(own.is_sorted_by(|a, b| a < b));
                    all.lock().unwrap().extend(own);
                });
            }
        });
        assert_eq!(all.lock().unwrap().len(), 8_000);
    }
}
