//! When a callback that was not acknowledged is tried again. Pure.

use std::time::Duration;

/// After which waits a callback is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule {
    /// The first waits.
    pub first: Vec<Duration>,
    /// Every later one.
    pub then: Duration,
    /// Retries in all, after the first attempt.
    pub retries: u32,
}

impl Default for RetrySchedule {
    /// 10, 60, 300, 600 s, then every 900 s: 10 retries in about 106 minutes.
    fn default() -> Self {
        Self { first: [10, 60, 300, 600].map(Duration::from_secs).into(), then: Duration::from_secs(900), retries: 10 }
    }
}

impl RetrySchedule {
    /// The wait after this many attempts have failed; `None` when that was the last.
    pub fn wait(&self, failed: u32) -> Option<Duration> {
        if failed == 0 || failed > self.retries {
            return None;
        }
        Some(self.first.get(failed as usize - 1).copied().unwrap_or(self.then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_retries_in_about_106_minutes() {
        let schedule = RetrySchedule::default();
        let waits: Vec<u64> = (1..).map_while(|failed| schedule.wait(failed)).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [10, 60, 300, 600, 900, 900, 900, 900, 900, 900]);
        assert_eq!(waits.iter().sum::<u64>() / 60, 106);
    }

    #[test]
    fn fewer_retries_than_waits() {
        let schedule = RetrySchedule { retries: 2, ..RetrySchedule::default() };
        assert_eq!(schedule.wait(2), Some(Duration::from_secs(60)));
        assert_eq!(schedule.wait(3), None);
        assert_eq!(RetrySchedule { retries: 0, ..RetrySchedule::default() }.wait(1), None);
    }
}
