//! Ends what a client no longer waits for.

use super::error::{error, state};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::startup::SecretKey;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Who can be interrupted, by the number and the key that only they and their clients know.
#[derive(Default)]
pub struct Cancels(Mutex<HashMap<i32, (SecretKey, watch::Sender<()>)>>);

impl Cancels {
    pub fn add(&self, pid: i32, key: SecretKey, cancelled: watch::Sender<()>) {
        if let Ok(mut all) = self.0.lock() {
            all.insert(pid, (key, cancelled));
        }
    }

    pub fn remove(&self, pid: i32) {
        if let Ok(mut all) = self.0.lock() {
            all.remove(&pid);
        }
    }

    /// Interrupts what this client waits for, if anything.
    pub fn cancel(&self, pid: i32, key: &SecretKey) {
        let Ok(all) = self.0.lock() else { return };
        if let Some((known, cancelled)) = all.get(&pid)
            && known.eq_value(key)
        {
            cancelled.send_replace(());
        }
    }
}

/// What may interrupt a statement.
#[derive(Clone)]
pub struct Interrupt {
    cancelled: watch::Receiver<()>,
    deadline: Option<(Instant, Duration)>,
}

impl Interrupt {
    /// From now on, and after `timeout`.
    pub fn new(cancelled: &watch::Sender<()>, timeout: Option<Duration>) -> Self {
        Self { cancelled: cancelled.subscribe(), deadline: timeout.map(|timeout| (Instant::now() + timeout, timeout)) }
    }

    /// Does something that may be interrupted.
    pub async fn or<T>(&mut self, work: impl Future<Output = PgWireResult<T>>) -> PgWireResult<T> {
        let deadline = self.deadline;
        let late = async {
            match deadline {
                Some((deadline, timeout)) => {
                    sleep_until(deadline).await;
                    timeout
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Ok(()) = self.cancelled.changed() => Err(PgWireError::QueryCanceled),
            timeout = late => {
                Err(error(state::CANCELLED, format!("canceling statement due to statement timeout of {timeout:?}")))
            }
            done = work => done,
        }
    }
}
