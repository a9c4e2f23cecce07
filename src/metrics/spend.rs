//! Money spent, counted exactly.

use super::register::{opts, register};
use crate::session::money::Currency;
use prometheus::{CounterVec, Registry};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// A counter of money by account and currency. Its sums are whole millionths: Prometheus has floats only, and what is
/// added up in floats goes astray.
pub(super) struct Spend {
    sums: Mutex<HashMap<(String, Currency), i128>>,
    shown: CounterVec,
}

impl Spend {
    pub fn new(registry: &Registry) -> Self {
        let opts = opts("spend_total", "Cost of messages, as it became known");
        let shown = register(registry, CounterVec::new(opts, &["account", "currency"]));
        Self { sums: Mutex::default(), shown }
    }

    /// Adds millionths.
    pub fn add(&self, account: &str, currency: Currency, micros: i128) {
        // The sums are whole at every moment, so those that a panic left locked are still good.
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = sums.entry((account.to_owned(), currency)).or_default();
        *sum += micros;
        let counter = self.shown.with_label_values(&[account, currency.as_str()]);
        counter.inc_by((*sum as f64 / 1e6 - counter.get()).max(0.0));
    }
}
