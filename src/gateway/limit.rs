//! How often an account may call: a token bucket. Time is handed in.

/// What may be saved up, in seconds' worth of requests.
const BURST_SECONDS: u64 = 2;
const MICROS: u64 = 1_000_000;

/// A bucket that fills at a steady rate up to two seconds' worth, and is full at first.
#[derive(Debug)]
pub struct Bucket {
    /// Requests per second; 0 is no limit.
    rate: u32,
    /// Millionths of requests that may be made now.
    saved: u64,
    /// When it was filled last, in µs.
    filled_us: i64,
}

impl Bucket {
    /// For so many requests per second; 0 is no limit.
    pub fn new(rate: u32) -> Self {
        Self { rate, saved: full(rate), filled_us: i64::MIN }
    }

    /// Whether a request may be made at this time, in µs; if so it is counted. Time that goes back fills nothing.
    pub fn admits(&mut self, now_us: i64) -> bool {
        if self.rate == 0 {
            return true;
        }
        let passed_us = u64::try_from(now_us.saturating_sub(self.filled_us)).unwrap_or(0);
        // In a µs comes a millionth of the rate.
        self.saved = self.saved.saturating_add(passed_us.saturating_mul(u64::from(self.rate))).min(full(self.rate));
        self.filled_us = now_us;
        match self.saved.checked_sub(MICROS) {
            Some(left) => {
                self.saved = left;
                true
            }
            None => false,
        }
    }
}

fn full(rate: u32) -> u64 {
    u64::from(rate) * BURST_SECONDS * MICROS
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_760_000_000_000_000;
    const SECOND: i64 = 1_000_000;

    fn admitted(bucket: &mut Bucket, tries: u32, now_us: i64) -> u32 {
        (0..tries).map(|_| u32::from(bucket.admits(now_us))).sum()
    }

    #[test]
    fn two_seconds_worth_at_once_then_the_rate() {
        let mut bucket = Bucket::new(5);
        assert_eq!(admitted(&mut bucket, 100, START), 10);
        assert_eq!(admitted(&mut bucket, 100, START + SECOND), 5);
        assert_eq!(admitted(&mut bucket, 100, START + SECOND + SECOND / 5), 1);
        assert_eq!(admitted(&mut bucket, 100, START + SECOND + SECOND / 5), 0);
        assert_eq!(admitted(&mut bucket, 100, START + 3600 * SECOND), 10);
    }

    #[test]
    fn a_rate_is_kept_over_time_however_the_requests_fall() {
        let mut bucket = Bucket::new(3);
        let admitted: u32 = (0..100_000).map(|n| admitted(&mut bucket, 1, START + n * 1_003)).sum();
        // 100.3 seconds at 3 a second, and the 6 of the start.
        assert_eq!(admitted, 306);
    }

    #[test]
    fn none_is_no_limit_and_time_that_goes_back_gives_nothing() {
        assert_eq!(admitted(&mut Bucket::new(0), 1000, START), 1000);
        let mut bucket = Bucket::new(1);
        assert_eq!(admitted(&mut bucket, 9, START), 2);
        assert_eq!(admitted(&mut bucket, 9, START - 3600 * SECOND), 0);
        assert_eq!(admitted(&mut bucket, 9, START - 3599 * SECOND), 1);
    }
}
