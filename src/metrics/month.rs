//! Money and free messages of the UTC month, and the disk.

use super::register::{opts, register};
use prometheus::{GaugeVec, IntGauge, Registry};

/// The instruments of the month.
pub struct MonthMetrics {
    budget: GaugeVec,
    spend: GaugeVec,
    quota_left: GaugeVec,
}

impl MonthMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let gauges = |name, help, labels: &[&str]| register(registry, GaugeVec::new(opts(name, help), labels));
        let of_money = ["account", "currency"];
        Self {
            budget: gauges("budget", "What an account may cost in a UTC month, by the config", &of_money),
            spend: gauges("month_spend", "Cost of the messages of this UTC month that Viber charged", &of_money),
            quota_left: gauges(
                "quota_left_ratio",
                "Share of this UTC month's free out-of-session messages that is left",
                &["account"],
            ),
        }
    }

    /// What an account may cost. One without series of its own is left out: one value cannot stand for many.
    pub fn budget(&self, account: Option<&str>, currency: &str, budget: f64) {
        if let Some(account) = account {
            self.budget.with_label_values(&[account, currency]).set(budget);
        }
    }

    /// Cost by account and currency, and what is left of free messages by account: replace what was there.
    pub fn set_month<'a>(
        &self,
        spend: impl IntoIterator<Item = (&'a str, &'a str, f64)>,
        quota_left: impl IntoIterator<Item = (&'a str, f64)>,
    ) {
        self.spend.reset();
        for (account, currency, sum) in spend {
            self.spend.with_label_values(&[account, currency]).set(sum);
        }
        self.quota_left.reset();
        for (account, ratio) in quota_left {
            self.quota_left.with_label_values(&[account]).set(ratio);
        }
    }
}

/// The instruments of the data directory's disk.
pub(super) struct DiskMetrics {
    bytes: IntGauge,
    free: IntGauge,
}

impl DiskMetrics {
    pub fn new(registry: &Registry) -> Self {
        let gauge = |name, help| register(registry, IntGauge::with_opts(opts(name, help)));
        Self {
            bytes: gauge("disk_bytes", "Size of the disk that the data directory is on"),
            free: gauge("disk_free_bytes", "What of it is free"),
        }
    }

    pub fn set(&self, bytes: u64, free: u64) {
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.free.set(i64::try_from(free).unwrap_or(i64::MAX));
    }
}
