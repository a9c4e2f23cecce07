//! The running server that holds the data directory, asked over HTTP.

use crate::app::ServerInfo;
use crate::console::tokens::Token;
use anyhow::{Context, Result};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

/// The server's own word on why it does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Refused {
    pub detail: String,
    /// Line and column of what was sent, where it is about one place.
    pub position: Option<(u64, u64)>,
}

/// Talks to the console listener of a running server.
pub struct Server {
    client: Client,
    console: String,
    token: Token,
}

impl Server {
    /// The one that told so of itself.
    pub fn new(info: &ServerInfo) -> Result<Self> {
        // The server is on this machine: a proxy of the environment has no part in it.
        let client = Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        let console = info.console.trim_end_matches('/').to_owned();
        Ok(Server { client, console, token: info.token.clone() })
    }

    /// Posts a body; the answer's.
    pub async fn post(&self, path: &str, query: &str, body: Vec<u8>) -> Result<Vec<u8>> {
        let response = self.send(self.request(Method::POST, path, query).body(body)).await?;
        Ok(response.bytes().await.context("the server did not finish its answer")?.to_vec())
    }

    /// Gets what is to be read piece by piece.
    pub async fn get(&self, path: &str, query: &str) -> Result<Response> {
        self.send(self.request(Method::GET, path, query)).await
    }

    /// A request to a path of the console listener.
    pub fn request(&self, method: Method, path: &str, query: &str) -> RequestBuilder {
        let mark = if query.is_empty() { "" } else { "?" };
        let request = self.client.request(method, format!("{}{path}{mark}{query}", self.console));
        request.bearer_auth(self.token.reveal())
    }

    /// Sends a request. An answer that is no success becomes the error, a [`Refused`].
    pub async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request
            .send()
            .await
            .with_context(|| format!("a server holds the data directory, but does not answer at {}", self.console))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().or(problem["title"].as_str());
        Err(Refused {
            detail: detail.map_or_else(|| format!("the server answered {status}"), str::to_owned),
            position: problem["line"].as_u64().zip(problem["column"].as_u64()),
        }
        .into())
    }
}
