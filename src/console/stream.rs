//! `GET /api/v1/stream`: what becomes of sessions, as it happens, as server-sent events (HTML, 9.2).
//!
//! | event | data |
//! |---|---|
//! | `opened`, `updated`, `closed`, `removed` | the session, as `/api/v1/sessions` shows it |
//! | `counters` | how many sessions are open, by account; soon, and then where that has changed |
//! | `reset` | something between has been forgotten: what the client knows of sessions is to be read anew |
//!
//! The id of an event says how far the client is. One that comes back with it (`Last-Event-ID`) to the same process is told what
//! has come since, and nothing twice; from another one, after a restart, or with what is no id, it gets a `reset`.

use super::cut::Cut;
use super::problem::Problem;
use crate::event::check_account_name;
use crate::event::time::format_us;
use crate::gateway::vault::Vault;
use crate::metrics::Metrics;
use crate::projector::feed::{Change, Counters, Cursor, Feed, News};
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
/// And for the first time after this: what is folded is counted where somebody asks, which all folds see within a second.
const FIRST_COUNTED: Duration = Duration::from_millis(1500);
/// So often something is sent at least.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
/// A client that takes nothing for so long is cut off.
const PATIENCE: Duration = Duration::from_secs(10);
/// A piece has about so many bytes at most, and so many pieces wait for a client that reads slowly.
const PIECE: usize = 64 << 10;
const PIECES: usize = 4;

/// The routes.
pub const ROUTES: &[&str] = &["/api/v1/stream"];

/// So long whoever reads has for the end of its answer.
const FAREWELL: Duration = Duration::from_secs(1);
const SEALED_FOR: &str = "stream";
/// Of a cursor as text.
const LONGEST_ID: usize = 64 + 1 + 20 + 1 + 20;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What is told from.
#[derive(Clone)]
pub struct Stream {
    pub feed: Arc<Feed>,
    /// Whether anything comes in there.
    pub is_fed: bool,
    /// Seals the ids of those who see some accounts only.
    pub vault: Arc<Vault>,
    pub metrics: Arc<Metrics>,
    /// The wall clock, in µs since the epoch.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// Becomes true when the process is about to end.
    pub halted: watch::Receiver<bool>,
}

impl Stream {
    /// The place that an id tells. Browsers do not come back from an error, so an id that nobody here has made, such as one
    /// from before a restart, is one of a feed that is not known.
    fn place(&self, id: &HeaderValue, asker: &Asker) -> Cursor {
        let opened = id.to_str().ok().and_then(|id| match asker.sight.accounts {
            None => id.parse().ok(),
            Some(_) => self.vault.open(SEALED_FOR, id).ok()?.trim_start().parse().ok(),
        });
        opened.unwrap_or_else(|| Cursor { feed: String::new(), next: 0, within: 0 })
    }
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
    if !stream.is_fed {
        return Err(Problem::unavailable(
            "no projector is heard of here: this process folds nothing, and [cluster] secret is not set",
        ));
    }
    stream.feed.want();
    let cursor = match headers.get(LAST_EVENT_ID) {
        Some(id) if !id.is_empty() => stream.place(id, &asker),
        _ => stream.feed.newest(),
    };
    let (pieces, sent) = mpsc::channel(PIECES);
    let cut = connection.map(|Extension(ConnectInfo(cut))| cut);
    let (sent_at, count_at) = (Instant::now(), Instant::now() + FIRST_COUNTED);
    let telling = Telling { stream, asker, filter, cursor, pieces, sent: sent_at, counted: None, count_at };
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

/// Why no more is told.
enum End {
    /// The client has left.
    Gone,
    /// It is there and does not read.
    Slow,
    /// The process is about to end.
    Halted,
}

/// One client that is told.
struct Telling {
    stream: Stream,
    asker: Arc<Asker>,
    filter: Filter,
    cursor: Cursor,
    pieces: mpsc::Sender<Bytes>,
    /// When something was sent last.
    sent: Instant,
    /// What was told of counters last.
    counted: Option<Vec<Counters>>,
    /// When they are looked at next.
    count_at: Instant,
}

impl Telling {
    async fn run(mut self, cut: Option<Cut>) {
        let metrics = self.stream.metrics.clone();
        metrics.stream_clients(1);
        match self.tell().await {
            Err(End::Slow) => {
                metrics.stream_cut();
                cut.inspect(Cut::cut);
            }
            Err(End::Halted) => {
                // The answer ends here, for whoever reads it.
                drop(self);
                tokio::time::sleep(FAREWELL).await;
                cut.inspect(Cut::cut);
            }
            Ok(()) | Err(End::Gone) => {}
        }
        metrics.stream_clients(-1);
    }

    async fn tell(&mut self) -> Result<(), End> {
        let (feed, mut halted) = (self.stream.feed.clone(), self.stream.halted.clone());
        let mut changed = feed.changed();
        // Where it begins: whoever is cut off before the first event comes back with this.
        self.send(format!("retry: 1000\nid: {}\n\n", self.id())).await?;
        loop {
            feed.want();
            changed.borrow_and_update();
            let is_all = self.send_news().await?;
            self.send_counters().await?;
            if !is_all {
                continue;
            }
            let (alive, due) = (self.sent + ALIVE_EVERY, self.count_at);
            tokio::select! {
                // The feed is there as long as its process.
                _ = changed.changed() => {}
                () = tokio::time::sleep_until(due) => {}
                () = self.pieces.closed() => return Err(End::Gone),
                () = async { drop(halted.wait_for(|halted| *halted).await) } => return Err(End::Halted),
            }
            if Instant::now() >= alive {
                // The place goes on where nothing of it is for this client, so it is told too.
                self.send(format!(": alive\nid: {}\n\n", self.id())).await?;
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    /// Sends what has come; says whether that was all.
    async fn send_news(&mut self) -> Result<bool, End> {
        let Some(found) = self.stream.feed.since(&mut self.cursor) else {
            self.send(self.reset()).await?;
            return Ok(false);
        };
        let (mut text, is_all) = (String::new(), found.is_empty());
        for news in found {
            match news {
                News::Reset => {
                    self.step();
                    text.push_str(&self.reset());
                }
                News::Counted => self.step(),
                News::Batch(batch) => {
                    for (n, change) in batch.changes.iter().enumerate().skip(self.cursor.within) {
                        if n + 1 == batch.changes.len() {
                            self.step();
                        } else {
                            self.cursor.within = n + 1;
                        }
                        if self.shows(change) {
                            let (what, id) = (change.what.as_str(), self.id());
                            // Writing to a text does not fail.
                            let _ = write!(text, "event: {what}\nid: {id}\ndata: {}\n\n", change.session);
                        }
                        if text.len() >= PIECE {
                            self.send(std::mem::take(&mut text)).await?;
                        }
                    }
                    // One of which a client claims to know more than there is.
                    if self.cursor.within > 0 {
                        self.step();
                    }
                }
            }
        }
        self.send(text).await?;
        Ok(is_all)
    }

    /// Goes on behind what has the number of the place.
    fn step(&mut self) {
        (self.cursor.next, self.cursor.within) = (self.cursor.next + 1, 0);
    }

    fn reset(&self) -> String {
        format!("event: reset\nid: {}\ndata: {{}}\n\n", self.id())
    }

    /// The id of an event. How much comes in of all accounts is nothing to those who see some.
    fn id(&self) -> String {
        let cursor = self.cursor.to_string();
        match self.asker.sight.accounts {
            None => cursor,
            // All of one length: that of the number tells something too.
            Some(_) => self.stream.vault.seal(SEALED_FOR, &format!("{cursor:>LONGEST_ID$}")),
        }
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
        self.stream.feed.counters(is_shown)
    }

    /// Sends the counters where they are others than were told, once in a while.
    async fn send_counters(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now < self.count_at {
            return Ok(());
        }
        self.count_at = now + COUNTED_EVERY;
        let counters = self.counters();
        if self.counted.as_ref() == Some(&counters) {
            return Ok(());
        }
        let data = json!({ "at": format_us((self.stream.clock)()), "accounts": counters });
        self.counted = Some(counters);
        self.send(format!("event: counters\ndata: {data}\n\n")).await
    }

    async fn send(&mut self, piece: String) -> Result<(), End> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut halted = self.stream.halted.clone();
        tokio::select! {
            taken = self.pieces.send(piece.into()) => taken.map_err(|_| End::Gone)?,
            () = tokio::time::sleep(PATIENCE) => return Err(End::Slow),
            () = async { drop(halted.wait_for(|halted| *halted).await) } => return Err(End::Halted),
        }
        self.sent = Instant::now();
        Ok(())
    }
}
