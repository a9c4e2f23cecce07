//! The sandbox's time: a clock that may run fast.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// A clock that starts at a moment of the caller's and runs `speed` times as fast as the real one. It never goes back.
#[derive(Debug, Clone)]
pub struct SandboxTime {
    start_us: i64,
    began: Instant,
    speed: f64,
}

impl SandboxTime {
    /// Starts now, at `start_us` (µs since the epoch, UTC). `speed` is kept between a thousandth and a million; what is no
    /// number counts as 1.
    pub fn new(start_us: i64, speed: f64) -> Self {
        let speed = if speed.is_nan() { 1.0 } else { speed.clamp(1e-3, 1e6) };
        Self { start_us, began: Instant::now(), speed }
    }

    /// Starts at the real time.
    pub fn from_now(speed: f64) -> Self {
        Self::new(chrono::Utc::now().timestamp_micros(), speed)
    }

    /// µs since the epoch, UTC.
    pub fn now_us(&self) -> i64 {
        self.start_us.saturating_add((self.began.elapsed().as_secs_f64() * self.speed * 1e6) as i64)
    }

    /// ms since the epoch, UTC; finer parts cut off.
    pub fn now_ms(&self) -> i64 {
        self.now_us().div_euclid(1000)
    }

    /// How many times faster than real time.
    pub fn speed(&self) -> f64 {
        self.speed
    }

    /// Sleeps for a duration of this clock.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(self.real(duration)).await;
    }

    /// Sleeps until this clock shows `at_us`.
    pub async fn sleep_until_us(&self, at_us: i64) {
        let left_us = at_us.saturating_sub(self.now_us());
        if let Ok(left_us) = u64::try_from(left_us) {
            self.sleep(Duration::from_micros(left_us)).await;
        }
    }

    /// The clock as a function of µs since the epoch, for parts that shall live in the same time.
    pub fn clock(&self) -> Arc<dyn Fn() -> i64 + Send + Sync> {
        let time = self.clone();
        Arc::new(move || time.now_us())
    }

    fn real(&self, duration: Duration) -> Duration {
        // A century is as good as for ever, and within what timers take.
        Duration::from_secs_f64((duration.as_secs_f64() / self.speed).min(3.2e9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_at_its_speed_from_its_start() {
        let time = SandboxTime::new(1_760_000_000_000_000, 1e6);
        let (first, second) = (time.now_us(), (time.clock())());
        assert!(1_760_000_000_000_000 <= first && first <= second);
        assert_eq!(time.real(Duration::from_secs(1000)), Duration::from_millis(1));
        assert_eq!(SandboxTime::new(0, f64::NAN).speed(), 1.0);
        assert_eq!(SandboxTime::new(0, -3.0).speed(), 1e-3);
        assert!(SandboxTime::new(0, 1e-3).real(Duration::MAX) <= Duration::from_secs_f64(3.2e9));
    }
}
