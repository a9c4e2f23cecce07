//! A bot: what it is called, the tokens it may use, and how often.

use super::clock::Now;
use super::limit::Bucket;
use super::signature::Verifier;
use crate::event::SOURCE_PREFIX;
use crate::metrics::{Callbacks, Metrics};
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A token, and until when it is valid.
pub struct Token {
    text: String,
    verifier: Verifier,
    /// ms since the epoch, UTC; `None` has no end.
    until_ms: Option<i64>,
}

impl Token {
    /// Valid until then, in ms since the epoch, UTC.
    pub fn new(text: String, until_ms: Option<i64>) -> Self {
        Self { verifier: Verifier::new(&text), text, until_ms }
    }

    pub(super) fn until_ms(&self) -> Option<i64> {
        self.until_ms
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        digest(&self.text)
    }
}

/// Whether what ends then is valid now; `None` has no end. Both in ms since the epoch.
pub(super) fn is_valid(until_ms: Option<i64>, now_ms: i64) -> bool {
    until_ms.is_none_or(|until_ms| now_ms < until_ms)
}

/// What a token is looked up by: how long that takes says nothing of the token.
pub(super) fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// A bot as it is now. A change to it makes another one of the same name.
pub struct Account {
    pub name: String,
    /// `/accounts/<name>`.
    pub source: String,
    newest: Token,
    /// Those it had before.
    older: Vec<Token>,
    paused: bool,
    limit: u32,
    bucket: Arc<Mutex<Bucket>>,
    callbacks: OnceLock<Callbacks>,
    now: Now,
}

/// What an account is made of.
pub(super) struct Made {
    pub name: String,
    pub newest: Token,
    pub older: Vec<Token>,
    pub paused: bool,
    /// Requests per second; 0 is no limit.
    pub limit: u32,
    pub now: Now,
}

impl Account {
    /// Takes the place of `before`, whose calls count on where the limit is the same.
    pub(super) fn new(made: Made, before: Option<&Account>) -> Self {
        let Made { name, newest, older, paused, limit, now } = made;
        let bucket = match before {
            Some(before) if before.limit == limit => before.bucket.clone(),
            _ => Arc::new(Mutex::new(Bucket::new(limit))),
        };
        let source = format!("{SOURCE_PREFIX}{name}");
        Self { name, source, newest, older, paused, limit, bucket, callbacks: OnceLock::new(), now }
    }

    /// Its callback counters, made with its first callback.
    pub fn callbacks(&self, metrics: &Metrics) -> &Callbacks {
        self.callbacks.get_or_init(|| metrics.callbacks(&self.name))
    }

    /// The text without its tokens, wherever they stand in it.
    pub fn redact(&self, mut text: String) -> String {
        for token in self.tokens() {
            if text.contains(&token.text) {
                text = text.replace(&token.text, "(token)");
            }
        }
        text
    }

    /// Whether the signature is that of the body under a token that is valid now. Every token is tried, each in the same
    /// time wherever the signature differs.
    pub fn verify(&self, signature: &str, body: &[u8]) -> bool {
        let now_ms = (self.now)().div_euclid(1000);
        self.tokens()
            .map(|token| token.verifier.verify(signature, body) & is_valid(token.until_ms, now_ms))
            .fold(false, |found, verified| found | verified)
    }

    /// Its newest token, for calls of our own.
    pub fn token(&self) -> &str {
        &self.newest.text
    }

    /// Whether its calls are refused and its callbacks recorded only.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether a call may be made now; if so it counts against the limit.
    pub fn admits_call(&self) -> bool {
        if self.limit == 0 {
            return true;
        }
        // The bucket is whole at every moment, so one that a panic left locked is still good.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).admits((self.now)())
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = &Token> {
        std::iter::once(&self.newest).chain(&self.older)
    }
}
