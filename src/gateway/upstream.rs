//! Viber's API, over one pooled client.

use axum::body::Bytes;
use axum::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, Method, StatusCode};
use std::time::{Duration, Instant};
use url::Url;

/// Headers of one connection, not of the message; and those that the client sets by itself. Without `accept-encoding`
/// the answer comes as it is to be recorded.
const OURS: [HeaderName; 12] = [
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Why there is no answer. The text is for the caller and says whether the call may have been carried out.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub enum Failure {
    #[error("counterbat cannot record the call now, so it was not sent: try again")]
    Unrecordable,
    #[error("Viber cannot be reached: the call was not sent")]
    NotSent,
    #[error("Viber did not answer in time: the call may have been sent")]
    TimedOut,
    #[error("the connection to Viber broke: the call may have been sent")]
    Broken,
}

impl Failure {
    /// The label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Unrecordable => "unrecordable",
            Failure::NotSent => "not_sent",
            Failure::TimedOut => "timed_out",
            Failure::Broken => "broken",
        }
    }
}

/// Viber's answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What came of a call, and how long it took.
pub struct Relayed {
    pub answer: Result<Answer, Failure>,
    pub took: Duration,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for calls to Viber cannot be made: {0}")]
pub struct UpstreamError(#[from] reqwest::Error);

/// Viber's API.
pub struct Upstream {
    client: reqwest::Client,
    base: String,
}

impl Upstream {
    /// At `url`; an answer is waited for `timeout` at most.
    pub fn new(url: &Url, timeout: Duration) -> Result<Self, UpstreamError> {
        let mut client = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(timeout.min(Duration::from_secs(10)))
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true);
        // A proxy of the environment is for what is outside.
        if matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            client = client.no_proxy();
        }
        Ok(Self { client: client.build()?, base: url.as_str().trim_end_matches('/').to_owned() })
    }

    /// Carries a call over, unchanged.
    pub async fn relay(
        &self,
        method: Method,
        name: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Relayed {
        let started = Instant::now();
        let mark = if query.is_some() { "?" } else { "" };
        let url = format!("{}/pa/{name}{mark}{}", self.base, query.unwrap_or_default());
        let request = self.client.request(method, url).headers(end_to_end(headers)).body(body);
        let answer = async {
            let response = request.send().await?;
            let (status, headers) = (response.status(), end_to_end(response.headers()));
            Ok(Answer { status, headers, body: response.bytes().await? })
        };
        let answer = answer.await.map_err(|error: reqwest::Error| {
            let failure = match () {
                () if error.is_connect() || error.is_builder() => Failure::NotSent,
                () if error.is_timeout() => Failure::TimedOut,
                () => Failure::Broken,
            };
            tracing::debug!(error = %error.without_url(), "no answer from Viber");
            failure
        });
        Relayed { answer, took: started.elapsed() }
    }
}

/// What of a message's headers is not of one connection.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    headers.iter().filter(|(name, _)| !OURS.contains(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}
