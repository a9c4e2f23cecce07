//! Instruments with verb methods, over a registry of their own (spec §6).
//!
//! Nothing here is global: whoever counts is handed a [`Metrics`]. The fold counts into a [`Tally`], plain numbers of one
//! batch, which is applied when the batch is shown. Label values come from known lists or from the config; whatever else
//! a caller sends is counted as `other`, so strangers cannot make series.

mod month;
mod outage;
mod register;
mod spend;
mod tally;

use month::DiskMetrics;
pub use month::MonthMetrics;
pub use outage::SpillMetrics;
pub use tally::Tally;

use crate::session::row::{Kind, Verdict};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};
use register::{counters, histogram, histograms, opts, register};
use spend::Spend;
use std::collections::HashSet;
use std::sync::RwLock;
use std::time::Duration;

/// The events of callbacks that are counted by name.
const EVENTS: [&str; 10] = [
    "message",
    "delivered",
    "seen",
    "failed",
    "subscribed",
    "unsubscribed",
    "conversation_started",
    "webhook",
    "action",
    "client_status",
];
/// The methods of calls that are counted by name.
const METHODS: [&str; 7] =
    ["send_message", "broadcast_message", "set_webhook", "get_account_info", "get_user_details", "get_online", "post"];
/// The label value of what has no name of its own.
const OTHER: &str = "other";

/// Which accounts have series of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountLabels {
    All,
    /// The first so many with traffic; the rest together are `other`.
    First(usize),
    /// All together are `other`.
    None,
}

/// Why a request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    UnknownAccount,
    MissingSignature,
    BadSignature,
    TooLarge,
    BadToken,
    /// The body did not arrive whole.
    Incomplete,
    LogUnwritable,
    /// The account is paused.
    Paused,
    /// Over the account's limit.
    RateLimited,
}

impl Rejection {
    const ALL: [Rejection; 9] = [
        Rejection::UnknownAccount,
        Rejection::MissingSignature,
        Rejection::BadSignature,
        Rejection::TooLarge,
        Rejection::BadToken,
        Rejection::Incomplete,
        Rejection::LogUnwritable,
        Rejection::Paused,
        Rejection::RateLimited,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Rejection::UnknownAccount => "unknown_account",
            Rejection::MissingSignature => "missing_signature",
            Rejection::BadSignature => "bad_signature",
            Rejection::TooLarge => "too_large",
            Rejection::BadToken => "bad_token",
            Rejection::Incomplete => "incomplete",
            Rejection::LogUnwritable => "log_unwritable",
            Rejection::Paused => "paused",
            Rejection::RateLimited => "rate_limited",
        }
    }
}

/// The instruments. Share in an `Arc`.
pub struct Metrics {
    registry: Registry,
    accounts: AccountLabels,
    named: RwLock<HashSet<String>>,
    callbacks: IntCounterVec,
    calls: IntCounterVec,
    messages: IntCounterVec,
    sessions_opened: IntCounterVec,
    sessions_closed: IntCounterVec,
    sessions_open: IntGaugeVec,
    charged: IntCounterVec,
    spend: Spend,
    unpriced: IntCounterVec,
    rebuild_needed: IntGauge,
    receipts: IntCounterVec,
    receipts_unmatched: IntCounter,
    events: IntCounterVec,
    corrections: IntCounterVec,
    rejected: IntCounterVec,
    lag_records: IntGaugeVec,
    lag_seconds: GaugeVec,
    clock_offset: Gauge,
    http: HistogramVec,
    relays: IntCounterVec,
    relay: Histogram,
    upstream_failures: IntCounterVec,
    unrecorded: IntGauge,
    passed_unrecorded: IntCounterVec,
    unknown_calls: IntGaugeVec,
    /// Of the UTC month.
    pub money: MonthMetrics,
    disk: DiskMetrics,
    /// Of what waits on this machine for the log.
    pub spill: SpillMetrics,
    webhook_elsewhere: IntGaugeVec,
    append: Histogram,
    upstream: Histogram,
    commit: HistogramVec,
    overlays: HistogramVec,
    overlay_bytes: IntCounter,
    partitions_behind: IntGauge,
    stream_clients: IntGauge,
    stream_cut: IntCounter,
}

impl Metrics {
    /// All at 0. Series whose labels are known from the start exist at once.
    pub fn new(accounts: AccountLabels) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            callbacks: counters(r, "callbacks_total", "Signed callbacks received", &["account", "event"]),
            calls: counters(r, "calls_total", "API calls relayed, by Viber's status", &["account", "method", "status"]),
            messages: counters(
                r,
                "messages_total",
                "Messages sent, by what Viber reported and what the rules say of it",
                &["account", "billing_status", "verdict"],
            ),
            sessions_opened: counters(r, "sessions_opened_total", "Sessions opened", &["account", "kind"]),
            sessions_closed: counters(r, "sessions_closed_total", "Sessions closed", &["account", "kind", "reason"]),
            sessions_open: register(
                r,
                IntGaugeVec::new(opts("sessions_open", "Sessions that are open"), &["account", "kind"]),
            ),
            charged: counters(
                r,
                "charged_messages_total",
                "Messages that Viber reported as charged",
                &["account", "country"],
            ),
            spend: Spend::new(r),
            unpriced: counters(
                r,
                "unpriced_messages_total",
                "Messages that Viber reported as charged and that have no price",
                &["account"],
            ),
            rebuild_needed: register(
                r,
                IntGauge::with_opts(opts(
                    "rebuild_needed",
                    "1 while there are rows that were made under policies or prices that are others now",
                )),
            ),
            receipts: counters(r, "receipts_total", "Receipts of messages", &["account", "event"]),
            receipts_unmatched: register(
                r,
                IntCounter::with_opts(opts("receipts_unmatched_total", "Receipts whose message never came")),
            ),
            events: counters(r, "events_total", "Records folded, by what became of them", &["disposition"]),
            corrections: counters(r, "corrections_total", "Rows already counted that a later fact changed", &["kind"]),
            rejected: counters(r, "rejected_total", "Requests turned away by the gateway", &["reason"]),
            lag_records: register(
                r,
                IntGaugeVec::new(opts("lag_records", "Records appended but not folded yet"), &["partition"]),
            ),
            lag_seconds: register(
                r,
                GaugeVec::new(opts("lag_seconds", "Age of the newest folded record while more wait"), &["partition"]),
            ),
            clock_offset: register(
                r,
                Gauge::with_opts(opts(
                    "clock_offset_seconds",
                    "How far the newest callback timestamp was ahead of the local clock",
                )),
            ),
            http: histograms(
                r,
                "http_request_seconds",
                "Time from a request's headers to its answer",
                &["route", "method", "code"],
            ),
            relays: counters(
                r,
                "relays_total",
                "Callbacks handed on to the bots' webhooks, by what came of it",
                &["account", "outcome"],
            ),
            relay: histogram(r, "relay_seconds", "Time of a callback's relay to the bot"),
            upstream_failures: counters(
                r,
                "upstream_failures_total",
                "Calls that Viber did not answer, by how they failed",
                &["reason"],
            ),
            unrecorded: register(
                r,
                IntGauge::with_opts(opts(
                    "unrecorded_events",
                    "Events of carried-out calls that wait for the log to be writable again",
                )),
            ),
            passed_unrecorded: counters(
                r,
                "passed_unrecorded_total",
                "Calls that were relayed although they could not be recorded",
                &["account"],
            ),
            unknown_calls: register(
                r,
                IntGaugeVec::new(
                    opts("unknown_calls", "Sends of the last hour that were started and have no result"),
                    &["account"],
                ),
            ),
            money: MonthMetrics::new(r),
            disk: DiskMetrics::new(r),
            spill: SpillMetrics::new(r),
            webhook_elsewhere: register(
                r,
                IntGaugeVec::new(
                    opts("webhook_elsewhere", "1 where Viber sends an account's callbacks past this gateway"),
                    &["account"],
                ),
            ),
            append: histogram(r, "append_seconds", "Time of a durable append to the log, as the gateway saw it"),
            upstream: histogram(r, "upstream_seconds", "Time of a call to Viber"),
            commit: histograms(r, "commit_seconds", "Time of a commit to a table", &["table"]),
            overlays: histograms(
                r,
                "overlay_seconds",
                "Time of asking another node what is to be laid over the tables, by what came of it",
                &["outcome"],
            ),
            overlay_bytes: register(
                r,
                IntCounter::with_opts(opts(
                    "overlay_bytes_total",
                    "Bytes of rows that other nodes have laid over the tables",
                )),
            ),
            stream_clients: register(
                r,
                IntGauge::with_opts(opts("stream_clients", "Clients that follow what becomes of sessions")),
            ),
            stream_cut: register(
                r,
                IntCounter::with_opts(opts(
                    "stream_clients_cut_total",
                    "Clients of the stream that were cut off because they did not read",
                )),
            ),
            partitions_behind: register(
                r,
                IntGauge::with_opts(opts(
                    "partitions_behind",
                    "Partitions that the last query saw only as they are committed",
                )),
            ),
            named: RwLock::default(),
            accounts,
            registry,
        };
        metrics.start();
        metrics
    }

    fn start(&self) {
        use prometheus::process_collector::ProcessCollector;
        // Fails only when its names are taken, and none of ours begins with `process_`.
        let _ = self.registry.register(Box::new(ProcessCollector::for_self()));
        for disposition in crate::event::Disposition::ALL {
            self.events.with_label_values(&[disposition.as_str()]);
        }
        for reason in Rejection::ALL {
            self.rejected.with_label_values(&[reason.as_str()]);
        }
        for reason in ["not_sent", "timed_out", "broken"] {
            self.upstream_failures.with_label_values(&[reason]);
        }
        for kind in ["session", "message", "verdict", "cost"] {
            self.corrections.with_label_values(&[kind]);
        }
    }

    /// The text Prometheus reads.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// The counters of an account's callbacks. Made once per account and kept by the gateway.
    pub fn callbacks(&self, account: &str) -> Callbacks {
        let label = self.account(account).unwrap_or(OTHER);
        // A counter that is there from the start has its first increase seen.
        self.passed_unrecorded.with_label_values(&[label]);
        Callbacks(std::array::from_fn(|n| {
            let event = EVENTS.get(n).copied().unwrap_or(OTHER);
            self.callbacks.with_label_values(&[label, event])
        }))
    }

    /// A call was relayed. `status` is Viber's, `None` where there was no answer or none in it.
    pub fn call_relayed(&self, account: &str, method: &str, status: Option<i64>) {
        let method = if METHODS.contains(&method) { method } else { OTHER };
        let text;
        let status = match status {
            None => "none",
            Some(n @ 0..=99) => {
                text = n.to_string();
                &text
            }
            Some(_) => OTHER,
        };
        self.calls.with_label_values(&[self.account(account).unwrap_or(OTHER), method, status]).inc();
    }

    /// A request was turned away.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected.with_label_values(&[reason.as_str()]).inc();
    }

    /// A request was answered. `route` is its pattern, never its path.
    pub fn http_request(&self, route: &str, method: &str, code: u16, took: Duration) {
        self.http_timer(route, method, code).observe(took.as_secs_f64());
    }

    /// The histogram of one kind of answer, for callers that answer often.
    pub fn http_timer(&self, route: &str, method: &str, code: u16) -> Histogram {
        let method = if matches!(method, "GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH") {
            method
        } else {
            OTHER
        };
        self.http.with_label_values(&[route, method, &code.to_string()])
    }

    /// An append became durable, or failed.
    pub fn append_took(&self, took: Duration) {
        self.append.observe(took.as_secs_f64());
    }

    /// Viber answered, or did not.
    pub fn upstream_took(&self, took: Duration) {
        self.upstream.observe(took.as_secs_f64());
    }

    /// A call had no answer.
    pub fn upstream_failed(&self, reason: &str) {
        self.upstream_failures.with_label_values(&[reason]).inc();
    }

    /// A callback was handed on to its bot, or could not be.
    pub fn callback_relayed(&self, account: &str, outcome: &str, took: Duration) {
        self.relays.with_label_values(&[self.account(account).unwrap_or(OTHER), outcome]).inc();
        self.relay.observe(took.as_secs_f64());
    }

    /// How many events of carried-out calls wait for the log.
    pub fn unrecorded(&self, events: u64) {
        self.unrecorded.set(i64::try_from(events).unwrap_or(i64::MAX));
    }

    /// A call was relayed although it could not be recorded.
    pub fn passed_unrecorded(&self, account: &str) {
        self.passed_unrecorded.with_label_values(&[self.account(account).unwrap_or(OTHER)]).inc();
    }

    /// By account, how many sends of the last day have no result although they should have one: replaces what was there.
    pub fn set_unknown_calls<'a>(&self, calls: impl IntoIterator<Item = (&'a str, i64)>) {
        self.unknown_calls.reset();
        for (account, n) in calls {
            self.unknown_calls.with_label_values(&[self.account(account).unwrap_or(OTHER)]).add(n);
        }
    }

    /// How large the disk of the data directory is and what of it is free, in bytes.
    pub fn disk(&self, bytes: u64, free: u64) {
        self.disk.set(bytes, free);
    }

    /// The name that an account's series have; `None` where it has none of its own.
    pub fn shown<'a>(&self, account: &'a str) -> Option<&'a str> {
        self.account(account)
    }

    /// Whether Viber sends an account's callbacks past this gateway. Accounts without series of their own are left out:
    /// one value cannot stand for many.
    pub fn webhook_elsewhere(&self, account: &str, is_elsewhere: bool) {
        if let Some(account) = self.account(account) {
            self.webhook_elsewhere.with_label_values(&[account]).set(i64::from(is_elsewhere));
        }
    }

    /// How far a callback's timestamp was ahead of the local clock (negative: behind).
    pub fn clock_offset(&self, seconds: f64) {
        self.clock_offset.set(seconds);
    }

    /// Another node was asked what is to be laid over the tables.
    pub fn overlay_fetched(&self, outcome: &str, bytes: usize, took: Duration) {
        self.overlays.with_label_values(&[outcome]).observe(took.as_secs_f64());
        self.overlay_bytes.inc_by(bytes as u64);
    }

    /// So many clients more (or fewer) follow what becomes of sessions.
    pub fn stream_clients(&self, more: i64) {
        self.stream_clients.add(more);
    }

    /// One was cut off.
    pub fn stream_cut(&self) {
        self.stream_cut.inc();
    }

    /// How many partitions a query saw only as they are committed.
    pub fn partitions_behind(&self, partitions: usize) {
        self.partitions_behind.set(i64::try_from(partitions).unwrap_or(i64::MAX));
    }

    /// A commit to a table took so long.
    pub fn commit_seconds(&self, table: &str, seconds: f64) {
        self.commit.with_label_values(&[table]).observe(seconds);
    }

    /// What a partition has still to fold.
    pub fn lag(&self, partition: u32, records: u64, seconds: f64) {
        let partition = partition.to_string();
        self.lag_records.with_label_values(&[&partition]).set(i64::try_from(records).unwrap_or(i64::MAX));
        self.lag_seconds.with_label_values(&[&partition]).set(seconds);
    }

    /// The open sessions as a start finds them, in any number of parts by account and kind: replaces what was there.
    pub fn set_sessions_open<'a>(&self, open: impl IntoIterator<Item = (&'a str, Kind, i64)>) {
        self.sessions_open.reset();
        for (account, kind, n) in open {
            self.sessions_open.with_label_values(&[self.account(account).unwrap_or(OTHER), kind.as_str()]).add(n);
        }
    }

    /// Whether there are rows that were made under policies or prices that are others now.
    pub fn set_rebuild_needed(&self, is_needed: bool) {
        self.rebuild_needed.set(i64::from(is_needed));
    }

    /// Counts what a batch gave.
    pub fn apply(&self, tally: &Tally) {
        for (disposition, n) in tally.events() {
            self.events.with_label_values(&[disposition.as_str()]).inc_by(n);
        }
        for ((account, status, verdict), n) in &tally.messages {
            let labels = [self.account(account).unwrap_or(OTHER), billing_label(*status), Verdict::as_str(*verdict)];
            self.messages.with_label_values(&labels).inc_by(*n);
        }
        for ((account, country), n) in &tally.charged {
            let labels = [self.account(account).unwrap_or(OTHER), country_label(country.as_deref())];
            self.charged.with_label_values(&labels).inc_by(*n);
        }
        for ((account, currency), micros) in &tally.spent {
            self.spend.add(self.account(account).unwrap_or(OTHER), *currency, *micros);
        }
        for (account, n) in &tally.unpriced {
            self.unpriced.with_label_values(&[self.account(account).unwrap_or(OTHER)]).inc_by(*n);
        }
        for ((account, kind), n) in &tally.opened {
            self.sessions_opened.with_label_values(&[self.account(account).unwrap_or(OTHER), kind.as_str()]).inc_by(*n);
        }
        for ((account, kind, reason), n) in &tally.closed {
            let labels = [self.account(account).unwrap_or(OTHER), kind.as_str(), reason.as_str()];
            self.sessions_closed.with_label_values(&labels).inc_by(*n);
        }
        for ((account, kind), n) in &tally.open {
            self.sessions_open.with_label_values(&[self.account(account).unwrap_or(OTHER), kind.as_str()]).add(*n);
        }
        for ((account, event), n) in &tally.receipts {
            self.receipts.with_label_values(&[self.account(account).unwrap_or(OTHER), event]).inc_by(*n);
        }
        self.receipts_unmatched.inc_by(tally.unmatched);
        for (kind, n) in &tally.corrected {
            self.corrections.with_label_values(&[kind]).inc_by(*n);
        }
    }

    /// The label of an account, where it has one of its own.
    fn account<'a>(&self, account: &'a str) -> Option<&'a str> {
        let limit = match self.accounts {
            AccountLabels::All => return Some(account),
            AccountLabels::None => return None,
            AccountLabels::First(limit) => limit,
        };
        // The set is whole at every moment, so one that a panic left locked is still good.
        let named = self.named.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if named.contains(account) {
            return Some(account);
        }
        if named.len() >= limit {
            return None;
        }
        drop(named);
        let mut named = self.named.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let has_room = named.len() < limit || named.contains(account);
        if has_room {
            named.insert(account.to_owned());
        }
        has_room.then_some(account)
    }
}

/// The counters of one account's callbacks, by event.
#[derive(Clone)]
pub struct Callbacks([IntCounter; EVENTS.len() + 1]);

impl Callbacks {
    /// A callback with this event was appended.
    pub fn received(&self, event: &str) {
        let at = EVENTS.iter().position(|known| *known == event).unwrap_or(EVENTS.len());
        self.0[at].inc();
    }
}

fn billing_label(status: Option<i32>) -> &'static str {
    match status {
        None => "none",
        Some(0) => "0",
        Some(1) => "1",
        Some(2) => "2",
        Some(3) => "3",
        Some(4) => "4",
        Some(5) => "5",
        Some(_) => OTHER,
    }
}

fn country_label(country: Option<&str>) -> &str {
    match country {
        None => "none",
        Some(code) if code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase()) => code,
        Some(_) => OTHER,
    }
}

#[cfg(test)]
mod tests;
