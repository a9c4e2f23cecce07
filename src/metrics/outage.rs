//! What waits on this machine for a log that is away.

use super::register::{opts, register};
use prometheus::{IntCounter, IntGauge, Registry};

/// The instruments of the spill.
pub struct SpillMetrics {
    events: IntGauge,
    bytes: IntGauge,
    spilled: IntCounter,
    drained: IntCounter,
}

impl SpillMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let gauge = |name, help| register(registry, IntGauge::with_opts(opts(name, help)));
        let counter = |name, help| register(registry, IntCounter::with_opts(opts(name, help)));
        Self {
            events: gauge("spill_events", "Events that wait on this machine for the log to be back"),
            bytes: gauge("spill_bytes", "Bytes of the events that wait on this machine for the log to be back"),
            spilled: counter("spilled_events_total", "Events put aside on this machine because the log was away"),
            drained: counter("drained_events_total", "Events brought from this machine into the log that is back"),
        }
    }

    /// So much waits now.
    pub fn waits(&self, events: u64, bytes: u64) {
        self.events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// So many events were put aside.
    pub fn put(&self, events: u64) {
        self.spilled.inc_by(events);
    }

    /// So many events were brought into the log.
    pub fn drained(&self, events: u64) {
        self.drained.inc_by(events);
    }
}
