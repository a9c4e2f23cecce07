//! Sending a recorded callback to its bot again.

use super::Gateway;
use super::bots::Undelivered;
use crate::event::shown::brief;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};

/// Why an account's callbacks cannot be sent again.
#[derive(Debug, thiserror::Error)]
pub enum RedeliverError {
    #[error("there is no account `{}`", brief(.0))]
    UnknownAccount(String),
    /// The bot must call `set_webhook` first.
    #[error("account `{0}` has no webhook: its bot has not called set_webhook through this gateway")]
    NoWebhook(String),
}

impl Gateway {
    /// The time it is here, in µs.
    pub fn now_us(&self) -> i64 {
        self.clock.now_us()
    }

    /// Whether an account's callbacks could be sent again now.
    pub fn check_redelivery(&self, account: &str) -> Result<(), RedeliverError> {
        if self.accounts.named(account).is_none() {
            return Err(RedeliverError::UnknownAccount(account.to_owned()));
        }
        match self.registrations.confirmed(account) {
            Some(_) => Ok(()),
            None => Err(RedeliverError::NoWebhook(account.to_owned())),
        }
    }

    /// Sends a callback to the bot's webhook of now; the bot's status, or `None` where it did not ask for such events.
    pub async fn deliver_again(
        &self,
        account: &str,
        event: &str,
        signature: &str,
        body: Bytes,
    ) -> Result<Option<StatusCode>, Undelivered> {
        let Some(webhook) = self.registrations.target(account, event).await else { return Ok(None) };
        let answer = self.bots.deliver(&webhook.url, &HeaderMap::new(), signature, body).await?;
        Ok(Some(answer.status))
    }
}
