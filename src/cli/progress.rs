//! Progress of long commands: on standard error, and only where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const REFRESH: Duration = Duration::from_millis(200);

/// A bar over bytes or records, with rate and time left. Clones are one bar, gone from the screen with the first of them.
#[derive(Clone)]
pub struct Meter {
    bar: ProgressBar,
    ticker: Arc<std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Meter {
    /// Over the bytes of files; standard input among them leaves the end unknown.
    pub fn of_files(files: &[PathBuf]) -> io::Result<Self> {
        let mut total = Some(0);
        for file in files {
            let length = if file.as_os_str() == "-" { None } else { std::fs::metadata(file).ok().map(|m| m.len()) };
            total = total.zip(length).map(|(sum, length)| sum + length);
        }
        Ok(match total {
            Some(total) => {
                Self::new(ProgressBar::new(total), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left {msg}")
            }
            None => Self::of_stream_with("{spinner} {bytes} {bytes_per_sec} {msg}"),
        })
    }

    /// Over a known number of records.
    pub fn of_records(total: u64) -> Self {
        Self::new(ProgressBar::new(total), "{bar:30} {human_pos}/{human_len} records {per_sec}, {eta} left {msg}")
    }

    /// Over an answer of unknown length.
    pub fn of_stream() -> Self {
        Self::of_stream_with("{spinner} {elapsed} {msg}")
    }

    fn of_stream_with(template: &str) -> Self {
        Self::new(ProgressBar::new_spinner(), template)
    }

    fn new(bar: ProgressBar, template: &str) -> Self {
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(REFRESH);
        Meter { bar, ticker: Arc::default() }
    }

    /// Counts the bytes read.
    pub fn wrap(&self, source: impl Read + Send + 'static) -> impl Read + Send + 'static {
        self.bar.wrap_read(source)
    }

    /// A count to be shown beside the bar.
    pub fn events(&self) -> Arc<AtomicU64> {
        let events = Arc::new(AtomicU64::new(0));
        self.show_events(events.clone());
        events
    }

    /// Shows a count of events, and their rate, beside the bar.
    pub fn show_events(&self, events: Arc<AtomicU64>) {
        if self.bar.is_hidden() {
            return;
        }
        let bar = self.bar.clone();
        let started = tokio::time::Instant::now();
        let ticker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH).await;
                let events = events.load(Ordering::Relaxed);
                let rate = events as f64 / started.elapsed().as_secs_f64();
                bar.set_message(format!("· {events} events, {rate:.0}/s"));
            }
        });
        self.replace_ticker(Some(ticker));
    }

    /// Says what goes on now instead of the count.
    pub fn say(&self, what: &'static str) {
        self.replace_ticker(None);
        self.bar.set_message(what);
    }

    /// Sets the number of records.
    pub fn set_length(&self, length: u64) {
        self.bar.set_length(length);
    }

    /// Moves the bar.
    pub fn set_position(&self, position: u64) {
        self.bar.set_position(position);
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.replace_ticker(None);
        self.bar.finish_and_clear();
    }

    fn replace_ticker(&self, next: Option<tokio::task::JoinHandle<()>>) {
        let mut ticker = self.ticker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *ticker, next) {
            old.abort();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `1 event`, `2 events`.
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}
