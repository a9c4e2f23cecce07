//! A gap in the record: calls that passed although nothing could be written down of them.
//!
//! How many passed, of which account and method, is kept in a small file, which is durable before the call is relayed where
//! the disk allows it. Once calls can be recorded again, two events of each account name what is missing.

use super::clock::Clock;
use super::recorder::Recorder;
use crate::durable_file::{self, DurableFileError};
use crate::event::time::format_us;
use crate::event::{Event, GAP_CLOSED_TYPE, GAP_OPENED_TYPE, SOURCE_PREFIX};
use crate::log::LogError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use uuid::Uuid;

/// How often it is asked whether calls can be recorded again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The gaps that nothing was told of yet: one at most, but while it is being told. Cheap to clone.
#[derive(Clone)]
pub struct Gap(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: Mutex<State>,
    /// The newest version that was written, or tried. One writer at a time.
    written: tokio::sync::Mutex<u64>,
}

#[derive(Default)]
struct State {
    /// The last one grows.
    gaps: Vec<Open>,
    /// The first so many are being told of, and grow no more.
    closing: usize,
    /// Calls that have passed and are not over.
    passing: u64,
    /// Grows with every change.
    version: u64,
}

/// What is kept of a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Open {
    id: Uuid,
    /// By account.
    missing: BTreeMap<String, Missing>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Missing {
    /// When its first call passed, µs since the epoch, UTC.
    since_us: i64,
    /// By method.
    calls: BTreeMap<String, u64>,
}

/// A call that passes unrecorded. It counts as missing unless it is recorded after all.
pub struct Passage {
    gap: Gap,
    account: String,
    method: String,
    is_recorded: bool,
}

impl Gap {
    /// With what an earlier run left in this file.
    pub fn open(path: PathBuf) -> Result<Self, DurableFileError> {
        let state = State { gaps: durable_file::read(&path)?.unwrap_or_default(), ..State::default() };
        Ok(Self(Arc::new(Inner { path, state: Mutex::new(state), written: tokio::sync::Mutex::new(0) })))
    }

    /// Lets a call pass that cannot be recorded, for this reason. It is counted durably when this returns, unless the disk
    /// takes nothing at all.
    pub async fn pass(&self, account: &str, method: &str, now_us: i64, reason: &LogError) -> Passage {
        {
            let mut state = self.state();
            if state.gaps.len() == state.closing {
                tracing::error!(%reason, "calls pass unrecorded from now on, and are counted as missing");
                state.gaps.push(Open { id: Uuid::now_v7(), missing: BTreeMap::new() });
            }
            if let Some(open) = state.gaps.last_mut() {
                let missing = open.missing.entry(account.to_owned());
                let missing = missing.or_insert_with(|| Missing { since_us: now_us, calls: BTreeMap::new() });
                *missing.calls.entry(method.to_owned()).or_default() += 1;
            }
            state.passing += 1;
            state.version += 1;
        }
        self.write().await;
        Passage { gap: self.clone(), account: account.to_owned(), method: method.to_owned(), is_recorded: false }
    }

    /// Closes the gap whenever calls can be recorded again, until `stop`.
    pub async fn watch(self, recorder: &Recorder, clock: &Clock, mut stop: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // Its sender goes away only at the end, which is a stop as well.
                _ = stop.wait_for(|stop| *stop) => return,
            }
            let is_open = !self.state().gaps.is_empty();
            if is_open && recorder.check_recordable().await.is_ok() {
                self.close(recorder, clock.now_us()).await;
            }
        }
    }

    async fn close(&self, recorder: &Recorder, now_us: i64) {
        let (closing, events) = {
            let mut state = self.state();
            // Who is under way may be recorded after all. It is soon over, and nobody passes any more.
            if state.passing > 0 {
                return;
            }
            state.closing = state.gaps.len();
            let events: Vec<Event> = state.gaps.iter().flat_map(|open| open.events(now_us)).collect();
            (state.closing, events)
        };
        let recorded = recorder.record(&events).await;
        {
            let mut state = self.state();
            state.closing = 0;
            if recorded.is_ok() {
                state.gaps.drain(..closing);
                state.version += 1;
            }
        }
        // A kill before the file is gone tells of the gap twice, under the same ids.
        match recorded {
            Ok(()) => tracing::warn!(events = events.len(), "calls are recorded again, and what is missing is told"),
            Err(error) => tracing::debug!(%error, "the gap is not told of yet"),
        }
        self.write().await;
    }

    /// Writes what is to be kept, unless somebody has done so by the time it is this one's turn.
    async fn write(&self) {
        let mut written = self.0.written.lock().await;
        let (version, gaps) = {
            let state = self.state();
            (state.version, state.gaps.clone())
        };
        if *written >= version {
            return;
        }
        let path = self.0.path.clone();
        let write = move || match gaps.is_empty() {
            true => durable_file::remove(&path),
            false => durable_file::write(&path, &gaps),
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "which calls pass unrecorded is known until the next start only"),
            Err(error) => tracing::error!(%error, "which calls pass unrecorded was not written"),
        }
        *written = version;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Counts are changed one after the other, and none can panic between.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Passage {
    /// The call was recorded after all.
    pub fn was_recorded(mut self) {
        self.is_recorded = true;
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut state = self.gap.state();
        state.passing -= 1;
        if self.is_recorded
            && let Some(open) = state.gaps.last_mut()
            && let Some(missing) = open.missing.get_mut(&self.account)
            && let Some(calls) = missing.calls.get_mut(&self.method)
        {
            *calls = calls.saturating_sub(1);
        }
    }
}

impl Open {
    /// Two events of each account, in their order in time.
    fn events(&self, now_us: i64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut add = |account: &str, what: &str, kind: &str, time_us: i64, data: &Value| {
            events.push(Event {
                id: format!("{}/{what}", self.id),
                source: format!("{SOURCE_PREFIX}{account}"),
                kind: kind.to_owned(),
                time_us: Some(time_us),
                content_type: Some("application/json".to_owned()),
                data: data.to_string().into_bytes(),
                ..Event::default()
            });
        };
        for (account, missing) in &self.missing {
            let calls: BTreeMap<&String, &u64> = missing.calls.iter().filter(|(_, calls)| **calls > 0).collect();
            if calls.is_empty() {
                continue;
            }
            let id = self.id.to_string();
            add(account, "opened", GAP_OPENED_TYPE, missing.since_us, &json!({ "gap_id": id }));
            let closed = json!({ "gap_id": id, "opened_at": format_us(missing.since_us), "calls": calls });
            add(account, "closed", GAP_CLOSED_TYPE, now_us, &closed);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> LogError {
        LogError::Unwritable("full".into())
    }

    #[tokio::test]
    async fn what_passes_is_counted_on_disk_unless_it_was_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gap.json");
        let gap = Gap::open(path.clone()).unwrap();
        drop(gap.pass("shop", "send_message", 5_000_000, &reason()).await);
        let recorded = gap.pass("shop", "broadcast_message", 6_000_000, &reason()).await;
        let reason = reason();
        let passages = (0..20).map(|_| gap.pass("shop", "send_message", 7_000_000, &reason));
        drop(futures::future::join_all(passages).await);
        // As a kill would leave it.
        let after_kill = Gap::open(path).unwrap().state().gaps[0].clone();
        assert_eq!(
            after_kill.missing["shop"].calls,
            BTreeMap::from([("broadcast_message".into(), 1), ("send_message".into(), 21)])
        );
        recorded.was_recorded();
        let open = gap.state().gaps[0].clone();
        let events = open.events(9_000_000);
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].kind.as_str(), events[0].time_us), (GAP_OPENED_TYPE, Some(5_000_000)));
        assert_eq!((events[1].kind.as_str(), events[1].time_us), (GAP_CLOSED_TYPE, Some(9_000_000)));
        let data: Value = serde_json::from_slice(&events[1].data).unwrap();
        assert_eq!(data["calls"], json!({ "send_message": 21 }));
        assert_eq!(data["opened_at"], "1970-01-01T00:00:05.000Z");
        assert_eq!(data["gap_id"], open.id.to_string());
    }
}
