//! The bots' own webhooks: callbacks are handed on to them, byte for byte.

use super::SIGNATURE;
use super::addresses::{PublicOnly, names_private};
use super::upstream::end_to_end;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// More than this of an answer is not read. A welcome message is a request of Viber's, at most 30 KB.
const MAX_ANSWER: usize = 1 << 20;

/// Why a callback did not reach the bot. Viber sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undelivered {
    #[error("the bot cannot be reached")]
    Unreachable,
    #[error("the bot did not answer in time")]
    TimedOut,
    /// The operator's doing: `[relay] allow_private`.
    #[error("the bot's webhook is at a private address, which [relay] allow_private = false forbids")]
    Private,
}

impl Undelivered {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Undelivered::Unreachable => "unreachable",
            Undelivered::TimedOut => "timed_out",
            Undelivered::Private => "private",
        }
    }
}

/// What a bot answered.
#[derive(Debug)]
pub struct BotAnswer {
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    pub body: Bytes,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for the bots' webhooks cannot be made: {0}")]
pub struct BotsError(#[from] reqwest::Error);

/// The way to the bots, over one pooled client.
pub struct Bots {
    client: reqwest::Client,
    allow_private: bool,
}

impl Bots {
    /// Answers are waited for `timeout` at most; private addresses are reached only where allowed.
    pub fn new(timeout: Duration, allow_private: bool) -> Result<Self, BotsError> {
        let mut client = reqwest::Client::builder()
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            // A proxy would look names up by itself, past the check of addresses.
            .no_proxy();
        if !allow_private {
            client = client.dns_resolver(Arc::new(PublicOnly));
        }
        Ok(Self { client: client.build()?, allow_private })
    }

    /// Whether a webhook may be at this URL, as far as it can be told without looking the name up.
    pub fn may_reach(&self, url: &Url) -> bool {
        self.allow_private || !names_private(url)
    }

    /// Hands a callback on: the body as it came, the signature in the header and as `sig`, as bots look in either place.
    pub async fn deliver(
        &self,
        url: &str,
        headers: &HeaderMap,
        signature: &str,
        body: Bytes,
    ) -> Result<BotAnswer, Undelivered> {
        let mut url = Url::parse(url).map_err(|_| Undelivered::Unreachable)?;
        if !self.may_reach(&url) {
            return Err(Undelivered::Private);
        }
        url.query_pairs_mut().append_pair("sig", signature);
        let mut headers = end_to_end(headers);
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        if let Ok(signature) = HeaderValue::from_str(signature) {
            headers.insert(SIGNATURE, signature);
        }
        let asked = async {
            let mut response = self.client.post(url).headers(headers).body(body).send().await?;
            let (status, content_type) = (response.status(), response.headers().get(header::CONTENT_TYPE).cloned());
            let mut body = Vec::new();
            while let Some(piece) = response.chunk().await? {
                body.extend_from_slice(&piece);
                if body.len() > MAX_ANSWER {
                    break;
                }
            }
            Ok(BotAnswer { status, content_type, body: body.into() })
        };
        asked.await.map_err(|error: reqwest::Error| {
            let timed_out = error.is_timeout();
            tracing::debug!(error = %error.without_url(), "a callback did not reach the bot");
            if timed_out { Undelivered::TimedOut } else { Undelivered::Unreachable }
        })
    }
}
