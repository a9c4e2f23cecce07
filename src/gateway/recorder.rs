//! The way into the log.
//!
//! Callbacks go straight, or are left to Viber's repeats. What comes of a call cannot be asked for again: where the log
//! does not take it, it goes to the [`spill`](super::spilling), if there is one, and in order behind what waits there.

use super::clock::Clock;
use super::gap::{Gap, Passage};
use super::record::Call;
use super::spilling::Spilling;
use crate::event::Event;
use crate::log::partitioner::partition;
use crate::log::spill::{Spill, SpillError};
use crate::log::{EventLog, LogError};
use crate::metrics::Metrics;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// For so long after an append or a probe the log counts as writable.
const WRITABLE_FOR: Duration = Duration::from_secs(1);
/// A log that has not taken an event by then is away: whoever called waits for Viber's answer. Longer than an append
/// takes under load, shorter than a change of leader among brokers.
const APPEND_PATIENCE: Duration = Duration::from_secs(1);

/// How calls are recorded. By default straight into the log, and refused when that cannot be.
#[derive(Default)]
pub struct Recording {
    /// Takes what the log does not; `None` where both would be on the same disk.
    pub spill: Option<Spill>,
    /// Keeps which calls have passed unrecorded; `None` where nobody tells of them.
    pub gap: Option<Gap>,
    /// Whether calls pass when they cannot be recorded and there is a [`Gap`]; else they are refused.
    pub pass_unrecordable: bool,
    /// Whether the start of a send is recorded before it is relayed.
    pub intent: bool,
}

/// The way into the log. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    log: Arc<dyn EventLog>,
    metrics: Arc<Metrics>,
    spilling: Option<Arc<Spilling>>,
    gap: Option<Gap>,
    pass_unrecordable: bool,
    intent: bool,
    /// When the log was last known to be writable.
    known: Arc<Mutex<Option<Instant>>>,
    probing: Arc<tokio::sync::Mutex<()>>,
    /// Events that wait in memory to be recorded although what they tell of is done.
    waiting: Arc<AtomicU64>,
    pub(super) tasks: TaskTracker,
    stop: Arc<watch::Sender<bool>>,
    chores: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// A call that may be relayed.
pub struct Permit(Option<Passage>);

impl Recorder {
    /// Into this log. Starts to bring in what waits from before.
    pub fn new(log: Arc<dyn EventLog>, recording: Recording, metrics: Arc<Metrics>, clock: Arc<Clock>) -> Self {
        let Recording { spill, gap, pass_unrecordable, intent } = recording;
        let spilling = spill.map(|spill| Arc::new(Spilling::new(log.clone(), spill, metrics.clone())));
        let recorder = Self {
            log,
            metrics,
            spilling,
            gap,
            pass_unrecordable,
            intent,
            known: Arc::default(),
            probing: Arc::default(),
            waiting: Arc::default(),
            tasks: TaskTracker::new(),
            stop: Arc::new(watch::Sender::new(false)),
            chores: Arc::default(),
        };
        let mut chores = Vec::new();
        if let Some(spilling) = &recorder.spilling {
            chores.push(tokio::spawn(spilling.clone().drain(recorder.stop.subscribe())));
        }
        if let Some(gap) = recorder.gap.clone() {
            let (recorder, stop) = (recorder.clone(), recorder.stop.subscribe());
            chores.push(tokio::spawn(async move { gap.watch(&recorder, &clock, stop).await }));
        }
        recorder.chores.lock().unwrap_or_else(PoisonError::into_inner).extend(chores);
        recorder
    }

    /// Appends events to the log, each to the partition of its user. `Ok` once they are durable.
    pub async fn append(&self, events: Vec<Event>) -> Result<(), LogError> {
        let started = Instant::now();
        let appended = self.log.append(batch(&*self.log, events)).await;
        self.metrics.append_took(started.elapsed());
        self.know(appended.is_ok());
        appended.map(|_| ())
    }

    /// Appends a callback, which comes again where the log is away.
    pub async fn append_callback(&self, event: Event) -> Result<(), LogError> {
        if self.spilling.as_ref().is_some_and(|spilling| spilling.is_away()) {
            return Err(LogError::Unwritable("it is away, and is asked for in the background".into()));
        }
        let appended = self.append(vec![event]).await;
        if let (Some(spilling), Err(error)) = (&self.spilling, &appended) {
            spilling.log_is_away(&error.to_string());
        }
        appended
    }

    /// Makes sure that what comes of a call can be recorded, before it is relayed; records the start of a send, which the
    /// call then has the id of.
    pub async fn admit(&self, call: &mut Call, clock: &Clock) -> Result<Permit, LogError> {
        let recordable = if self.intent && call.is_send() {
            let (id, event) = call.started(clock);
            let recorded = self.record_start(event).await;
            call.id = recorded.is_ok().then_some(id);
            recorded
        } else {
            self.check_recordable().await
        };
        let Err(error) = recordable else { return Ok(Permit(None)) };
        match &self.gap {
            Some(gap) if self.pass_unrecordable => {
                let passage = gap.pass(&call.account.name, &call.method, clock.call_us(), &error).await;
                self.metrics.passed_unrecorded(&call.account.name);
                Ok(Permit(Some(passage)))
            }
            _ => Err(error),
        }
    }

    /// Records what came of a call; of one that passed because it could not be recorded, only where it can be after all.
    pub async fn finish(&self, permit: Permit, events: Vec<Event>) {
        let Some(passage) = permit.0 else { return self.append_surely(events).await };
        if self.check_recordable().await.is_ok() && self.record(&events).await.is_ok() {
            passage.was_recorded();
        }
    }

    /// Records what must not be lost although it was carried out already: when neither log nor spill takes it, it is tried
    /// again in the background until one does.
    pub async fn append_surely(&self, events: Vec<Event>) {
        let Err(error) = self.record(&events).await else { return };
        let ids: Vec<&str> = events.iter().map(|event| event.id.as_str()).take(10).collect();
        tracing::error!(%error, ?ids, events = events.len(), "a relayed call is not recorded yet; trying on");
        let (recorder, n) = (self.clone(), events.len() as u64);
        self.wait_for_log(n);
        self.tasks.spawn(async move {
            let mut pause = Duration::from_millis(100);
            loop {
                tokio::time::sleep(pause).await;
                match recorder.record(&events).await {
                    Ok(()) => {
                        recorder.no_longer_waits(n);
                        tracing::info!(events = n, "a relayed call is recorded at last");
                        return;
                    }
                    Err(error) => tracing::warn!(%error, events = n, "a relayed call is still not recorded"),
                }
                pause = (pause * 2).min(Duration::from_secs(5));
            }
        });
    }

    /// Appends events, or spills them where the log does not take them soon, or where others wait in the spill.
    pub(super) async fn record(&self, events: &[Event]) -> Result<(), LogError> {
        let Some(spilling) = &self.spilling else { return self.append(events.to_vec()).await };
        if spilling.is_calm() {
            let (recorder, copy) = (self.clone(), events.to_vec());
            let mut appending = Box::pin(async move { recorder.append(copy).await });
            match tokio::time::timeout(APPEND_PATIENCE, &mut appending).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => spilling.log_is_away(&error.to_string()),
                Err(_) => {
                    spilling.log_is_away("an event was not taken within a second");
                    // It may still be taken, and need not be drained then.
                    spilling.attempt(events, appending);
                }
            }
        }
        let Err(error) = spilling.put(events.to_vec()).await else { return Ok(()) };
        // With both of them, order is what gives way.
        if spilling.is_away() { Err(error) } else { self.append(events.to_vec()).await }
    }

    /// Records the start of a call, unless that fills the spill too far.
    async fn record_start(&self, event: Event) -> Result<(), LogError> {
        if let Some(spilling) = &self.spilling
            && !spilling.is_calm()
        {
            self.check_spill(spilling).await?;
        }
        self.record(&[event]).await
    }

    /// Whether what comes of a call could be recorded now. Costs nothing while appends succeed.
    pub async fn check_recordable(&self) -> Result<(), LogError> {
        let Some(spilling) = &self.spilling else { return self.check_writable().await };
        if spilling.is_calm() {
            let Err(error) = self.check_writable().await else { return Ok(()) };
            spilling.log_is_away(&error.to_string());
        }
        self.check_spill(spilling).await
    }

    /// Whether the spill takes more; one that is broken matters only while the log is away.
    async fn check_spill(&self, spilling: &Spilling) -> Result<(), LogError> {
        match spilling.check().await {
            Ok(()) => Ok(()),
            Err(SpillError::Broken(_)) if !spilling.is_away() => self.check_writable().await,
            Err(error) => Err(LogError::Unwritable(error.to_string())),
        }
    }

    /// Whether an append would be taken now. Costs nothing while appends succeed.
    async fn check_writable(&self) -> Result<(), LogError> {
        if self.is_known() {
            return Ok(());
        }
        // One probe answers for all who wait.
        let _probing = self.probing.lock().await;
        if self.is_known() {
            return Ok(());
        }
        let checked = self.log.check_writable().await;
        self.know(checked.is_ok());
        checked
    }

    /// Whether anything waits in the spill, or the log is known to be away.
    pub fn is_spilling(&self) -> bool {
        self.spilling.as_ref().is_some_and(|spilling| !spilling.is_calm())
    }

    /// How many events wait in memory for the log.
    pub fn unrecorded(&self) -> u64 {
        self.waiting.load(Ordering::Acquire)
    }

    /// Waits until every relayed call is recorded, for `patience` at most; says whether all were. What waits in the spill
    /// is recorded.
    pub async fn close(&self, patience: Duration) -> bool {
        self.tasks.close();
        let all = tokio::time::timeout(patience, self.tasks.wait()).await.is_ok();
        self.stop.send_replace(true);
        let chores = std::mem::take(&mut *self.chores.lock().unwrap_or_else(PoisonError::into_inner));
        for mut chore in chores {
            // What is on its way into the log would come twice.
            if tokio::time::timeout(patience, &mut chore).await.is_err() {
                chore.abort();
            }
        }
        all
    }

    fn wait_for_log(&self, n: u64) {
        self.metrics.unrecorded(self.waiting.fetch_add(n, Ordering::AcqRel) + n);
    }

    fn no_longer_waits(&self, n: u64) {
        self.metrics.unrecorded(self.waiting.fetch_sub(n, Ordering::AcqRel) - n);
    }

    fn know(&self, writable: bool) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = writable.then(Instant::now);
    }

    fn is_known(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < WRITABLE_FOR)
    }
}

/// The events with their partitions.
pub(super) fn batch(log: &dyn EventLog, events: Vec<Event>) -> Vec<(u32, Event)> {
    let partitions = log.partitions();
    events.into_iter().map(|event| (partition(event.key().as_bytes(), partitions), event)).collect()
}
