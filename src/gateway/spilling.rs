//! An outage of the log: what cannot be asked for again waits in the spill, and is brought in when the log is back.

use super::recorder::batch;
use crate::event::{Event, Record};
use crate::log::spill::{Level, Spill, SpillError};
use crate::log::{EventLog, LogError};
use crate::metrics::Metrics;
use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// What is brought in at once.
const BATCH_RECORDS: usize = 2000;
const BATCH_BYTES: usize = 1 << 20;
/// How long a log that is away is left alone: from the first to the longest pause.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The spill, and the one who empties it.
pub struct Spilling {
    log: Arc<dyn EventLog>,
    spill: Spill,
    metrics: Arc<Metrics>,
    /// Whether the log refused something and has taken nothing since.
    away: AtomicBool,
    stirred: Notify,
    /// Appends begun before the log was known to be away: what they hold is in the spill as well.
    attempts: watch::Sender<usize>,
    /// Ids of events that came to the log so.
    landed: Mutex<HashSet<String>>,
    outage: Mutex<Option<Outage>>,
    drained: AtomicU64,
}

struct Outage {
    began: Instant,
    /// What was drained by then.
    drained: u64,
}

impl Spilling {
    pub fn new(log: Arc<dyn EventLog>, spill: Spill, metrics: Arc<Metrics>) -> Self {
        let spilling = Self {
            log,
            spill,
            metrics,
            away: AtomicBool::new(false),
            stirred: Notify::new(),
            attempts: watch::Sender::new(0),
            landed: Mutex::default(),
            outage: Mutex::default(),
            drained: AtomicU64::new(0),
        };
        let Level { events, bytes } = spilling.show();
        if events > 0 {
            tracing::warn!(events, bytes, "events from before this start wait for the log, and go into it first");
            spilling.begin();
        }
        spilling
    }

    /// Whether events may go straight to the log: it is there, and nothing waits that has to go before them.
    pub fn is_calm(&self) -> bool {
        !self.is_away() && self.spill.level().events == 0
    }

    /// Whether the log refused something and has taken nothing since.
    pub fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// Whether the spill takes more.
    pub async fn check(&self) -> Result<(), SpillError> {
        self.spill.check().await
    }

    /// The log did not take something.
    pub fn log_is_away(&self, reason: &str) {
        if !self.away.swap(true, Ordering::AcqRel) && self.begin() {
            tracing::error!(
                reason,
                "the log is away: what comes of calls waits in the spill; callbacks are left to Viber"
            );
        }
        self.stirred.notify_one();
    }

    /// Puts events at the end of the spill. `Ok` once they are durable.
    pub async fn put(&self, events: Vec<Event>) -> Result<(), LogError> {
        let n = events.len() as u64;
        let put = self.spill.put(events).await;
        self.show();
        self.stirred.notify_one();
        match &put {
            Ok(()) => self.metrics.spill.put(n),
            Err(error) => tracing::debug!(%error, "the spill cannot be written"),
        }
        put
    }

    /// Keeps an eye on an append of events that are put into the spill as well: if it succeeds, they are not brought in.
    pub fn attempt(
        self: &Arc<Self>,
        events: &[Event],
        append: impl Future<Output = Result<(), LogError>> + Send + 'static,
    ) {
        let ids: Vec<String> = events.iter().map(|event| event.id.clone()).collect();
        self.attempts.send_modify(|n| *n += 1);
        let spilling = self.clone();
        tokio::spawn(async move {
            if append.await.is_ok() {
                spilling.landed.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
            }
            spilling.attempts.send_modify(|n| *n -= 1);
        });
    }

    /// Empties the spill into the log, again and again until `stop`.
    pub async fn drain(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut pause = PAUSE;
        loop {
            while !*stop.borrow() && !self.is_calm() {
                let wait = match self.step().await {
                    Ok(()) => {
                        pause = PAUSE;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "what waits in the spill is not taken yet");
                        tokio::time::sleep(pause)
                    }
                };
                pause = (pause * 2).min(LONGEST_PAUSE);
                tokio::select! {
                    () = wait => {}
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            }
            self.end();
            tokio::select! {
                () = self.stirred.notified() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Brings in the oldest events, once the log is there.
    async fn step(&self) -> Result<(), LogError> {
        // To ask costs little, and leaves nothing behind that comes twice.
        self.log.check_writable().await.inspect_err(|error| self.log_is_away(&error.to_string()))?;
        // Those end in the time that an append may take. None is begun while anything waits.
        let mut attempts = self.attempts.subscribe();
        attempts.wait_for(|n| *n == 0).await.ok();
        let oldest = self.spill.oldest(BATCH_RECORDS, BATCH_BYTES).await?;
        if !oldest.is_empty() {
            self.bring_in(&oldest).await?;
        }
        self.away.store(false, Ordering::Release);
        self.show();
        Ok(())
    }

    async fn bring_in(&self, oldest: &[Record]) -> Result<(), LogError> {
        let events = {
            let landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
            let left = oldest.iter().map(|record| &record.event).filter(|event| !landed.contains(&event.id));
            left.cloned().collect::<Vec<Event>>()
        };
        self.log.append(batch(&*self.log, events)).await?;
        self.spill.forget(oldest).await?;
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        for record in oldest {
            landed.remove(&record.event.id);
        }
        self.metrics.spill.drained(oldest.len() as u64);
        self.drained.fetch_add(oldest.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Shows how much waits.
    fn show(&self) -> Level {
        let level = self.spill.level();
        self.metrics.spill.waits(level.events, level.bytes);
        level
    }

    /// Notes the beginning of an outage; false where there is one already.
    fn begin(&self) -> bool {
        let mut outage = self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = outage.is_none();
        outage.get_or_insert_with(|| Outage { began: Instant::now(), drained: self.drained.load(Ordering::Relaxed) });
        is_new
    }

    /// Tells of the end of an outage, if there was one.
    fn end(&self) {
        if !self.is_calm() {
            return;
        }
        let ended = self.outage.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Outage { began, drained }) = ended {
            let events = self.drained.load(Ordering::Relaxed) - drained;
            let seconds = began.elapsed().as_secs();
            tracing::info!(events, seconds, "the log is back and has all that waited for it");
        }
    }
}
