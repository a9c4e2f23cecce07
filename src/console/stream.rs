//! `GET /api/v1/stream`: what becomes of sessions, as it happens, as server-sent events (HTML, 9.2).
//!
//! | event | data |
//! |---|---|
//! | `opened`, `updated`, `closed`, `removed` | the session, as `/api/v1/sessions` shows it |
//! | `counters` | how many sessions are open, by account; at once, and then where that has changed |
//! | `reset` | something between has been forgotten: what the client knows of sessions is to be read anew |
//!
//! The id of an event says how far the client is. One that comes back with it (`Last-Event-ID`) is told what has come since,
//! by any process that knows it still.

use super::cut::Cut;
use super::problem::Problem;
use crate::event::check_account_name;
use crate::event::time::format_us;
use crate::metrics::Metrics;
use crate::projector::feed::{Change, Counters, Cursor, Feed, Place};
use crate::query::Asker;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Extension, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use serde_json::json;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use utoipa::IntoParams;

/// Changes that come soon after each other are sent together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Counters are told so often at most.
const COUNTED_EVERY: Duration = Duration::from_secs(1);
/// So often something is sent at least.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A client that takes nothing for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// A piece has about so many bytes at most, and so many pieces wait for a client that reads slowly.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/stream"];

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What is told from.
#[derive(Clone)]
pub struct Stream {
    pub feed: Arc<Feed>,
    pub metrics: Arc<Metrics>,
    /// The wall clock, in µs since the epoch.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Becomes true when the process is about to end.
    pub halted: watch::Receiver<bool>,
}

/// The route.
pub fn router(stream: Stream) -> Router {
    Router::new().route(ROUTES[0], get(follow)).with_state(stream)
}

/// Which sessions.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    account: Option<String>,
    /// `service` or `paid`.
    #[param(pattern = "^(service|paid)$")]
    kind: Option<String>,
}

/// What becomes of sessions, as it happens, as server-sent events: `opened`, `updated`, `closed`, `removed` with the session,
/// `counters`, and `reset` where something between has been forgotten.
#[utoipa::path(
    get,
    path = ROUTES[0],
    tag = "ask",
    params(Filter, ("last-event-id" = Option<String>, Header, description = "The id of the last event that came: what has come since is told")),
    responses((status = 200, description = "Events without end", content_type = "text/event-stream", body = String), Problem)
)]
pub(super) async fn follow(
    State(stream): State<Stream>,
    asker: Option<Extension<Arc<Asker>>>,
    connection: Option<Extension<ConnectInfo<Cut>>>,
    headers: HeaderMap,
    filter: Result<Query<Filter>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(filter) = filter?;
    let asker = asker.map_or_else(|| Arc::new(Asker::ANYBODY), |Extension(asker)| asker);
    if let Some(account) = &filter.account {
        check_account_name(account).map_err(|error| Problem::bad_request(format!("account: {error}")))?;
        if !asker.sight.sees(account) {
            return Err(Problem::new(StatusCode::FORBIDDEN, "the token shows no sessions of this account"));
        }
    }
    if let Some(kind) = filter.kind.as_deref().filter(|kind| !["service", "paid"].contains(kind)) {
        return Err(Problem::bad_request(format!("kind: `{kind}` is none of service, paid")));
    }
    stream.feed.want();
    let newest = stream.feed.newest();
    let cursor = match headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or_default()) {
        None | Some("") => newest,
        Some(id) => {
            let cursor: Cursor = id.parse().map_err(|error| Problem::bad_request(format!("Last-Event-ID: {error}")))?;
            if cursor.places.len() != newest.places.len() {
                return Err(Problem::bad_request("Last-Event-ID: it is of a log with another number of partitions"));
            }
            cursor
        }
    };
    let (pieces, sent) = mpsc::channel(PIECES);
    let cut = connection.map(|Extension(ConnectInfo(cut))| cut);
    let telling = Telling { stream, asker, filter, cursor, pieces, counted: None };
    tokio::spawn(telling.run(cut));
    let body = futures::stream::unfold(sent, |mut sent| async move {
        let piece = sent.recv().await?;
        Some((Ok::<Bytes, Infallible>(piece), sent))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // A proxy that gathers an answer before it sends it on would hold all of this back.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// The client takes no more.
struct Gone {
    /// Whether it is there and does not read.
    is_slow: bool,
}

/// One client that is told.
struct Telling {
    stream: Stream,
    asker: Arc<Asker>,
    filter: Filter,
    cursor: Cursor,
    pieces: mpsc::Sender<Bytes>,
    /// Which counters were looked at last, what was told of them, and when.
    counted: Option<(u64, Vec<Counters>, Instant)>,
}

impl Telling {
    async fn run(mut self, cut: Option<Cut>) {
        let metrics = self.stream.metrics.clone();
        metrics.stream_clients(1);
        if let Err(Gone { is_slow: true }) = self.tell().await {
            metrics.stream_cut();
            cut.inspect(Cut::cut);
        }
        metrics.stream_clients(-1);
    }

    async fn tell(&mut self) -> Result<(), Gone> {
        let (feed, mut halted) = (self.stream.feed.clone(), self.stream.halted.clone());
        let mut changed = feed.changed();
        // Where it begins: whoever is cut off before the first event comes back with this.
        self.send(format!("retry: 1000\nid: {}\n\n", self.cursor)).await?;
        loop {
            changed.borrow_and_update();
            let has_more = self.send_news().await?;
            self.send_counters().await?;
            if has_more {
                continue;
            }
            let due = self.counted.as_ref().map_or_else(Instant::now, |(_, _, at)| *at + COUNTED_EVERY);
            let alive = Instant::now() + ALIVE_EVERY;
            tokio::select! {
                // The feed is there as long as its process.
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(due), if self.has_counters() => {}
                // The place goes on where nothing of it is for this client, so it is told too.
                () = tokio::time::sleep_until(alive) => self.send(format!(": alive\nid: {}\n\n", self.cursor)).await?,
                () = self.pieces.closed() => return Err(Gone { is_slow: false }),
                _ = halted.wait_for(|halted| *halted) => return Ok(()),
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    /// Sends what has come; says whether there is more.
    async fn send_news(&mut self) -> Result<bool, Gone> {
        let news = self.stream.feed.since(&self.cursor);
        let mut text = String::new();
        self.cursor.rebuild = news.rebuild;
        for (partition, batch, known) in &news.batches {
            for (n, change) in batch.changes.iter().enumerate().skip(*known) {
                let is_last = n + 1 == batch.changes.len();
                let before = self.cursor.places[*partition].map_or(0, |place| place.position);
                self.cursor.places[*partition] = Some(match is_last {
                    true => Place { position: batch.position, within: None },
                    false => Place { position: before, within: Some((batch.position, n + 1)) },
                });
                if !self.shows(change) {
                    continue;
                }
                // Writing to a text does not fail.
                let _ =
                    write!(text, "event: {}\nid: {}\ndata: {}\n\n", change.what.as_str(), self.cursor, change.session);
                if text.len() >= PIECE {
                    self.send(std::mem::take(&mut text)).await?;
                }
            }
        }
        let place = |position| Place { position, within: None };
        self.cursor.places = news.until.iter().map(|until| until.map(place)).collect();
        if news.is_torn {
            let _ = write!(text, "event: reset\nid: {}\ndata: {{}}\n\n", self.cursor);
        }
        self.send(text).await?;
        Ok(news.has_more)
    }

    fn shows(&self, change: &Change) -> bool {
        self.asker.sight.sees(&change.account)
            && self.filter.account.as_deref().is_none_or(|account| account == change.account)
            && self.filter.kind.as_deref().is_none_or(|kind| kind == change.kind)
    }

    fn counters(&self) -> Vec<Counters> {
        let is_shown = |account: &str| {
            self.asker.sight.sees(account) && self.filter.account.as_deref().is_none_or(|asked| asked == account)
        };
        let mut counters = self.stream.feed.counters();
        counters.retain(|counters| is_shown(&counters.account));
        counters
    }

    /// Whether there may be other counters than were told.
    fn has_counters(&self) -> bool {
        self.counted.as_ref().is_none_or(|(seen, _, _)| *seen != self.stream.feed.counted())
    }

    async fn send_counters(&mut self) -> Result<(), Gone> {
        let is_soon = self.counted.as_ref().is_some_and(|(_, _, at)| at.elapsed() < COUNTED_EVERY);
        if is_soon || !self.has_counters() {
            return Ok(());
        }
        let (seen, counters) = (self.stream.feed.counted(), self.counters());
        let is_told = self.counted.as_ref().is_some_and(|(_, told, _)| *told == counters);
        let data = json!({ "at": format_us((self.stream.clock)()), "accounts": counters });
        self.counted = Some((seen, counters, Instant::now()));
        if is_told {
            return Ok(());
        }
        self.send(format!("event: counters\ndata: {data}\n\n")).await
    }

    async fn send(&self, piece: String) -> Result<(), Gone> {
        if piece.is_empty() {
            return Ok(());
        }
        match tokio::time::timeout(PATIENCE, self.pieces.send(piece.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Gone { is_slow: false }),
            Err(_) => Err(Gone { is_slow: true }),
        }
    }
}
