//! The second listener: SQL over HTTP, import and export, rebuilds, redelivery, accounts, `/metrics`, health.
//!
//! It shows everything, so it asks for a token; or it listens on this machine only, and then it refuses what a web page of
//! somebody else makes a browser send. Health is told to everybody.

pub mod accounts;
pub mod cut;
pub mod directory;
pub mod explain;
pub mod health;
pub mod openapi;
pub mod problem;
pub mod rebuilds;
pub mod redeliver;
pub mod sessions;
pub mod sql;
pub mod standing;
pub mod stream;
pub mod tokens;
pub mod transfer;
pub mod users;
pub mod verify;

use crate::gateway::Gateway;
use crate::gateway::accounts::Accounts;
use crate::metrics::Metrics;
use crate::projector::Rebuilds;
use crate::projector::verify::Verifier;
use crate::query::Engine;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use directory::Directory;
use explain::Explainer;
use health::Health;
use problem::Problem;
use std::sync::Arc;
use std::time::Instant;
use stream::Stream;
use tokens::Tokens;
use transfer::Transfer;
use users::Users;

/// What the listener answers from; what is missing is not this process's role. Without `tokens` whoever reaches it may ask.
pub struct Console {
    pub engine: Option<Arc<Engine>>,
    pub transfer: Option<Transfer>,
    pub verifier: Option<Verifier>,
    pub explainer: Option<Explainer>,
    pub users: Option<Users>,
    pub stream: Option<Stream>,
    pub rebuilds: Option<(Rebuilds, Directory)>,
    pub gateway: Option<(Accounts, Gateway)>,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub tokens: Option<Tokens>,
}

/// All routes of the listener.
pub fn router(console: Console) -> Router {
    let Console { engine, transfer, verifier, explainer, users, stream, rebuilds, gateway, health, metrics, tokens } =
        console;
    let redelivery = match (&engine, &gateway) {
        (Some(engine), Some((_, gateway))) => {
            redeliver::router(redeliver::Parts { engine: engine.clone(), gateway: gateway.clone() })
        }
        (None, _) => lacking("query", redeliver::ROUTES),
        (_, None) => lacking("gateway", redeliver::ROUTES),
    };
    let closed = Router::new()
        .merge(engine.clone().map_or_else(|| lacking("query", sessions::ROUTES), sessions::router))
        .merge(engine.map_or_else(|| lacking("query", sql::ROUTES), sql::router))
        .merge(redelivery)
        .merge(transfer.map_or_else(|| lacking("projector", transfer::ROUTES), transfer::router))
        .merge(stream.map_or_else(|| lacking("query", stream::ROUTES), stream::router))
        .merge(users.map_or_else(|| lacking("query", users::ROUTES), users::router))
        .merge(explainer.map_or_else(|| lacking("query", explain::ROUTES), explain::router))
        .merge(verifier.map_or_else(|| lacking("projector", verify::ROUTES), verify::router))
        .merge(match rebuilds {
            Some((rebuilds, directory)) => rebuilds::router(rebuilds, directory),
            None => lacking("projector", rebuilds::ROUTES),
        })
        .merge(match gateway {
            Some((accounts, gateway)) => accounts::router(accounts, gateway),
            None => lacking("gateway", accounts::ROUTES),
        })
        .merge(health::metrics(metrics.clone()))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this address"));
    let open = health::router(health).merge(openapi::router());
    let routes = match tokens {
        // A page of somebody else has no token.
        Some(tokens) => tokens.guard(closed).merge(open),
        None => closed.merge(open).layer(middleware::from_fn(refuse_foreign)),
    };
    routes.layer(middleware::from_fn_with_state(metrics, watch))
}

/// Routes that are another process's to answer: one with this role.
fn lacking(role: &'static str, routes: &[&str]) -> Router {
    let answer = move || async move {
        Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("this process does not have the role {role}: ask one that has it (roles in its config, or serve --roles)"),
        )
        .titled("Role missing")
        .with("role", role)
    };
    routes.iter().fold(Router::new(), |router, route| router.route(route, any(answer)))
}

/// Times a request.
async fn watch(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    metrics.http_request(route, method.as_str(), response.status().as_u16(), started.elapsed());
    response
}

/// Refuses a request from a foreign page.
async fn refuse_foreign(request: Request, next: Next) -> Response {
    if is_foreign(request.headers()) {
        return Problem::new(
            StatusCode::FORBIDDEN,
            "the request comes from a web page of another origin, or was not sent to this machine by its own name",
        )
        .into_response();
    }
    next.run(request).await
}

/// Whether another site's page may have sent it: a browser says so, or it was sent to a name that is not this machine's
/// (a page's own name that was made to point here).
fn is_foreign(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_loopback(host) {
        return true;
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_none_or(|(_, from)| from != host)
}

/// Whether a `Host` names this machine itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_are_foreign() {
        let headers = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "127.0.0.1:8081".parse().unwrap());
            origin.map(|origin| headers.insert(header::ORIGIN, origin.parse().unwrap()));
            headers
        };
        assert!(!is_foreign(&headers(None)) && !is_foreign(&headers(Some("http://127.0.0.1:8081"))));
        assert!(is_foreign(&headers(Some("https://evil.example"))) && is_foreign(&headers(Some("null"))));
        for host in ["evil.example:8081", "evil.example", "10.0.0.1:8081", "127.0.0.1.evil.example"] {
            assert!(!is_loopback(host), "{host}");
        }
        for host in ["localhost:8081", "127.0.0.1", "[::1]:8081"] {
            assert!(is_loopback(host), "{host}");
        }
    }
}
