//! `/healthz`, `/readyz` and `/metrics`: for whatever watches the process.

use super::problem::Problem;
use crate::gateway::Gateway;
use crate::lake::Lake;
use crate::log::EventLog;
use crate::metrics::Metrics;
use crate::projector::ProjectorHandle;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// More records than this that wait to be folded are a backlog: answers would come late.
const MAX_LAG: u64 = 100_000;

/// What readiness is asked of.
#[derive(Clone)]
pub struct Health {
    pub log: Arc<dyn EventLog>,
    /// Each where this process has the role.
    pub projector: Option<ProjectorHandle>,
    pub gateway: Option<Gateway>,
    /// The tables of a process that answers from them alone.
    pub tables: Option<Arc<Lake>>,
}

/// `/healthz` and `/readyz`.
pub fn router(health: Health) -> Router {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(ready)).with_state(health)
}

/// Where the metrics are.
pub const METRICS: &str = "/metrics";

/// `/metrics`.
pub fn metrics(metrics: Arc<Metrics>) -> Router {
    Router::new().route(METRICS, get(render)).with_state(metrics)
}

impl Health {
    /// Why work would not go on as it should, in words; empty when it would.
    async fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        if let Some(gateway) = &self.gateway {
            match gateway.unrecorded() {
                0 => {}
                n => complaints.push(format!("{n} events of calls that Viber took wait for the log to be writable")),
            }
            if let Err(error) = gateway.check_recordable().await {
                complaints.push(error.to_string());
            }
            if gateway.is_spilling() {
                // Calls are taken and recorded. What hangs on the log waits for it, here as everywhere.
                return complaints;
            }
        } else if self.projector.is_some()
            && let Err(error) = self.log.check_writable().await
        {
            complaints.push(error.to_string());
        }
        if let Some(tables) = &self.tables
            && let Err(error) = tables.refresh().await
        {
            complaints.push(error.to_string());
        }
        if let Some(projector) = &self.projector {
            complaints.extend(self.complaints_of(projector).await);
        }
        complaints
    }

    async fn complaints_of(&self, projector: &ProjectorHandle) -> Vec<String> {
        let mut complaints = Vec::new();
        let status = projector.status();
        if let Some(error) = status.error {
            complaints.push(format!("the projector has stopped: {error}"));
        }
        if let Some(what) = status.recovering {
            complaints.push(format!("recovering: {what}"));
        } else if status.joining {
            complaints.push("the projector starts: it does not have its partitions yet".into());
        }
        let mut lag = 0;
        for (partition, status) in (0u32..).zip(&status.partitions).filter(|(_, status)| status.owned) {
            if let Some(error) = &status.error {
                complaints.push(format!("partition {partition} is not folded on: {error}"));
            }
            match self.log.bounds(partition).await {
                Ok((_, end)) => lag += end.saturating_sub(status.folded),
                Err(error) => complaints.push(error.to_string()),
            }
        }
        if lag > MAX_LAG {
            complaints.push(format!("{lag} records wait to be folded"));
        }
        complaints
    }
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "watch", security(()), responses((status = 200, description = "It does", body = String, content_type = "text/plain")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether work goes on as it should.
#[derive(Serialize, ToSchema)]
pub(super) struct Ready {
    ready: bool,
    /// Why not, in words.
    reasons: Vec<String>,
    /// Whether rows were made under policies or prices that are others now.
    rebuild_needed: bool,
}

/// Whether work goes on as it should.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "watch",
    security(()),
    responses((status = 200, description = "It does", body = Ready), (status = 503, description = "It does not", body = Ready))
)]
pub(super) async fn ready(State(health): State<Health>) -> Response {
    let reasons = health.complaints().await;
    let rebuild_needed = health.projector.is_some_and(|projector| projector.status().is_outdated());
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready: reasons.is_empty(), reasons, rebuild_needed })).into_response()
}

/// The metrics, as Prometheus takes them.
#[utoipa::path(get, path = METRICS, tag = "watch", responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"), Problem))]
pub(super) async fn render(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
