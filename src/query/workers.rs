//! Threads that queries run on.

use super::error::QueryError;
use std::future::Future;
use std::io;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

const THREADS: usize = 2;

/// A runtime that can be dropped anywhere.
pub(super) struct Workers {
    /// None only while it is dropped.
    runtime: Option<Runtime>,
}

impl Workers {
    pub(super) fn start() -> io::Result<Workers> {
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("query").enable_all().build()?;
        Ok(Workers { runtime: Some(runtime) })
    }

    /// Starts work that ends, at its next pause, when the result is dropped.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Work {
        Work { task: self.runtime.as_ref().map(|runtime| runtime.spawn(work)) }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for the threads is not allowed within another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Work at hand.
pub(super) struct Work {
    task: Option<JoinHandle<()>>,
}

impl Work {
    /// Waits for its end; an error if it did not come to it.
    pub(super) async fn end(mut self) -> Result<(), QueryError> {
        match self.task.take() {
            Some(task) => task.await.map_err(|error| QueryError::Internal(format!("the query broke down: {error}"))),
            None => Err(QueryError::Internal("queries are no longer answered".to_owned())),
        }
    }

    /// The error to tell when it ended without a word.
    pub(super) async fn panicked(self) -> QueryError {
        let error = self.end().await.err();
        error.unwrap_or_else(|| QueryError::Internal("the query ended without an answer".to_owned()))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
