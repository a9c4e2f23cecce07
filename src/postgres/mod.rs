//! The third listener: SQL for clients of PostgreSQL, by its protocol 3. It answers from the same engine as SQL over HTTP does,
//! and only reads.

mod answer;
mod arrays;
mod cancel;
mod command;
mod copy;
mod error;
mod handlers;
mod login;
mod measured;
mod negotiation;
mod numeric;
mod parameters;
mod scram;
mod session;
mod settings;
mod shape;
mod types;
mod values;
mod words;

use crate::config::ConsoleToken;
use crate::gateway::tls::Certificates;
use crate::query::Engine;
use cancel::Cancels;
use error::{fatal, state};
use handlers::Handlers;
use negotiation::{Begun, Socket};
use pgwire::api::{ClientInfo, NoopHandler, PgWireConnectionState, RandomPidSecretKeyGenerator};
use pgwire::error::PgWireError;
use pgwire::messages::PgWireFrontendMessage as Message;
use pgwire::tokio::server::{process_error, process_message};
use session::Session;
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_rustls::TlsAcceptor;

/// A client that has not come through its start by then is dropped. Nobody types a password meanwhile: clients ask for it first.
const START: Duration = Duration::from_secs(30);
/// After an error of accepting.
const PAUSE: Duration = Duration::from_millis(100);
/// Clients at a time; each costs a task and the memory of its answers' rows that it has not read.
const MOST_CLIENTS: usize = 200;
/// Those beside them that are told so, or cancel what another waits for; more are dropped.
const MOST_REFUSED: usize = 50;
/// Bytes of a message, a query with its parameters.
const LONGEST_MESSAGE: u32 = 1 << 20;
/// How often the files of a certificate are looked at.
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Different catalog queries without an answer that the log is told of.
const MOST_UNKNOWN: usize = 1000;
/// Characters of one.
const LONGEST_TOLD: usize = 4000;

/// What all clients are answered from.
pub struct Server {
    engine: Arc<Engine>,
    /// Empty: whoever reaches the listener is let in.
    tokens: Vec<ConsoleToken>,
    /// Of names that there are no tokens of, so that they cannot be told from others.
    disguise: [u8; 32],
    keys: RandomPidSecretKeyGenerator,
    cancels: Cancels,
    /// Catalog queries that the log was told of.
    unknown: Mutex<HashSet<String>>,
}

impl Server {
    /// A server that lets in whoever has one of `tokens`, or everybody where there are none.
    pub fn new(engine: Arc<Engine>, tokens: &[ConsoleToken]) -> Self {
        Self {
            engine,
            tokens: tokens.to_vec(),
            disguise: rand::random(),
            keys: RandomPidSecretKeyGenerator::default(),
            cancels: Cancels::default(),
            unknown: Mutex::default(),
        }
    }

    /// Tells the log, once, of a query of the catalog that has no answer.
    fn tell_unknown(&self, application: &str, sql: &str, error: &PgWireError) {
        // Whoever held it has not panicked: nothing that it does can.
        let Ok(mut unknown) = self.unknown.lock() else { return };
        let sql: String = sql.chars().take(LONGEST_TOLD).collect();
        if unknown.len() < MOST_UNKNOWN && unknown.insert(sql.clone()) {
            tracing::warn!(application, sql, %error, "a catalog query of a PostgreSQL client has no answer");
        }
    }
}

/// Serves until it is time to end, and then what is under way. With certificates it speaks TLS to those that wish it.
pub fn serve(
    listener: TcpListener,
    mut certificates: Option<Certificates>,
    server: Server,
    mut halted: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let server = Arc::new(server);
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSED));
    let mut renew = interval(RENEW_EVERY);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::spawn(async move {
        let mut clients = JoinSet::new();
        loop {
            let stream = tokio::select! {
                () = end(&mut halted) => break,
                stream = accept(&listener) => stream,
                _ = renew.tick() => {
                    certificates.iter_mut().for_each(Certificates::renew);
                    continue;
                }
                Some(_) = clients.join_next() => continue,
            };
            let place = places.clone().try_acquire_owned();
            let has_place = place.is_ok();
            let Ok(place) = place.or_else(|_| refusals.clone().try_acquire_owned()) else { continue };
            let (server, halted) = (server.clone(), halted.clone());
            let acceptor = certificates.as_ref().map(Certificates::acceptor);
            clients.spawn(async move {
                if let Err(error) = converse(server, stream, acceptor, has_place, halted).await {
                    tracing::debug!(%error, "a PostgreSQL client left without a word");
                }
                drop(place);
            });
        }
        drop(listener);
        while clients.join_next().await.is_some() {}
    })
}

/// Waits until it is time to end.
async fn end(halted: &mut watch::Receiver<bool>) {
    // The sender goes away only at the end, which is a stop as well.
    drop(halted.wait_for(|halt| *halt).await);
}

/// The next client. Goes on after errors, of which most are the client's and too many open files pass.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a PostgreSQL client could not be accepted");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Talks with a client until one of both has enough.
async fn converse(
    server: Arc<Server>,
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    has_place: bool,
    mut halted: watch::Receiver<bool>,
) -> io::Result<()> {
    let deadline = Instant::now() + START;
    let begun = tokio::select! {
        () = sleep_until(deadline) => return Ok(()),
        () = end(&mut halted) => return Ok(()),
        begun = negotiation::begin(stream, acceptor) => begun?,
    };
    let talk = Talk { server, has_place, deadline, halted };
    match begun {
        Begun::Plain(socket) => talk.hold(*socket).await,
        Begun::Tls(socket) => talk.hold(*socket).await,
    }
}

/// Whether a client is still to be let in.
fn is_start(state: PgWireConnectionState) -> bool {
    matches!(state, PgWireConnectionState::AwaitingStartup | PgWireConnectionState::AuthenticationInProgress)
}

/// A talk with a client.
struct Talk {
    server: Arc<Server>,
    has_place: bool,
    deadline: Instant,
    halted: watch::Receiver<bool>,
}

impl Talk {
    async fn hold<S>(mut self, mut socket: Socket<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
    {
        let handlers = Arc::new(Handlers(Arc::new(Session::new(self.server.clone()))));
        loop {
            let starts = is_start(socket.state());
            let message = tokio::select! {
                biased;
                () = end(&mut self.halted) => {
                    let stopping = fatal(state::STOPPING, "terminating connection: the server ends");
                    return process_error(&mut socket, stopping, false).await;
                }
                () = sleep_until(self.deadline), if starts => return Ok(()),
                message = futures::StreamExt::next(&mut socket) => message,
            };
            let message = match message {
                None | Some(Ok(Message::Terminate(_))) => return Ok(()),
                Some(Ok(message)) => message,
                Some(Err(PgWireError::IoError(error))) if error.kind() != io::ErrorKind::InvalidData => {
                    return Err(error);
                }
                Some(Err(error)) => {
                    return process_error(&mut socket, fatal(state::PROTOCOL, error.to_string()), false).await;
                }
            };
            let is_cancel = matches!(message, Message::CancelRequest(_));
            if !self.has_place && !is_cancel {
                let full =
                    fatal(state::TOO_MANY_CONNECTIONS, format!("sorry, there are {MOST_CLIENTS} clients already"));
                return process_error(&mut socket, full, false).await;
            }
            let is_extended = message.is_extended_query();
            let done = match (message, socket.state()) {
                // The library would gather all answers before it sends the first.
                (Message::Query(query), PgWireConnectionState::ReadyForQuery) => {
                    handlers.query(&mut socket, &query.query).await
                }
                (message, _) => {
                    let (noop, own) = (Arc::new(NoopHandler), || handlers.clone());
                    process_message(message, &mut socket, own(), noop.clone(), own(), noop, own()).await
                }
            };
            if starts && !is_start(socket.state()) {
                socket.get_mut().allow(LONGEST_MESSAGE);
            }
            match done {
                Ok(()) if is_cancel => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    process_error(&mut socket, error, is_extended).await?;
                    // Nobody is let in by an error.
                    if starts {
                        return Ok(());
                    }
                }
            }
        }
    }
}
