//! The running server that holds the data directory, asked over HTTP.

use anyhow::{Context, Result, anyhow};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;

/// Talks to the console listener of a running server.
pub struct Server {
    client: Client,
    console: String,
    token: Option<String>,
}

impl Server {
    /// `console` is its address as in `server.json`; `token` one of `[console] tokens` where there are any.
    pub fn new(console: &str, token: Option<&str>) -> Result<Self> {
        // The server is on this machine: a proxy of the environment has no part in it.
        let client = Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        let console = console.trim_end_matches('/').to_owned();
        Ok(Server { client, console, token: token.map(str::to_owned) })
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
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request; a problem document becomes the error.
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
        Err(match problem["detail"].as_str().or(problem["title"].as_str()) {
            Some(text) => anyhow!("{text}"),
            None => anyhow!("the server answered {status}"),
        })
    }
}
