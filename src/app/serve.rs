//! `serve`: both listeners over one log and one projector, until told to stop.

use super::access::{ServerInfo, remove_server_info, write_server_info};
use super::{AppError, Base, Clock, ended};
use crate::config::Config;
use crate::console::tokens::{Token, Tokens};
use crate::console::{self, health::Health, transfer::Transfer};
use crate::event::{Event, TICK_TYPE};
use crate::gateway::accounts::Accounts;
use crate::gateway::bots::Bots;
use crate::gateway::registrations::Registrations;
use crate::gateway::tls::{CertificateFiles, TlsListener};
use crate::gateway::upstream::Upstream;
use crate::gateway::{self, Gateway};
use crate::log::EventLog;
use crate::projector::ProjectorHandle;
use axum::Router;
use axum::serve::{Listener, ListenerExt};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

/// Requests under way get so long to end, beside the time their answer from outside may take.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the log is looked at for what retention may remove.
const RETAIN_EVERY: Duration = Duration::from_secs(300);
/// How often the files of a certificate are looked at.
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Where ticks come from.
const TICK_SOURCE: &str = "/counterbat";

/// Serves until `stop`, then ends in order: no new requests, those under way answered, everything committed. `ready` is
/// told the addresses once all parts work. All parts go by `clock`.
pub async fn serve(
    config: &Config,
    clock: Clock,
    gateway_listener: TcpListener,
    console_listener: TcpListener,
    stop: impl Future<Output = ()> + Send,
    ready: impl FnOnce(&ServerInfo),
) -> Result<(), AppError> {
    let base = Base::open(config, clock).await?;
    let public = Public::new(gateway_listener, config)?;
    let server = ServerInfo {
        console: address("http", &console_listener)?,
        gateway: public.address()?,
        pid: std::process::id(),
        token: Token::random(),
    };
    let accounts = base.accounts_to_serve()?;
    let gateway = open_gateway(&base, accounts.clone(), &server.gateway)?;
    let mut running = base.start_projector().await?;
    let console = open_console(&base, &running.handle, accounts, &gateway, &server.token)?;

    let (halt, halted) = watch::channel(false);
    let mut listeners = [
        public.listen(gateway.router(), halted.clone()),
        listen(without_delay(console_listener), console, halted.clone()),
    ];
    let chores = [
        tick(&base, halted.clone()),
        retain(&base, running.handle.clone(), halted),
        watch_webhooks(&base, gateway.clone()),
    ];
    write_server_info(&base.dir.path, &server)?;
    ready(&server);
    tracing::info!(gateway = server.gateway, console = server.console, log = %base.log.id(), "serving");

    let failure = tokio::select! {
        () = stop => None,
        result = &mut running.task => Some(ended(result).err().unwrap_or_else(|| failed("the projector", "it ended"))),
    };
    if failure.is_none() {
        tracing::info!("stopping");
    }
    // Nobody listens where the tasks have ended already.
    let _ = halt.send(true);
    let drained = async {
        for listener in &mut listeners {
            // How it ended was told by itself.
            let _ = listener.await;
        }
    };
    // A call may wait for Viber that long, and must be recorded when it answers.
    let patience = DRAIN + config.upstream.timeout.0.max(config.relay.timeout.0);
    if tokio::time::timeout(patience, drained).await.is_err() {
        tracing::warn!("requests still under way are cut off");
        listeners.iter().for_each(JoinHandle::abort);
    }
    if !gateway.drain(patience).await {
        tracing::error!("relayed calls could not be recorded before the end");
    }
    chores.iter().for_each(JoinHandle::abort);
    let stopped = match failure {
        Some(error) => Err(error),
        None => running.stop().await,
    };
    remove_server_info(&base.dir.path)?;
    stopped
}

fn failed(what: &'static str, reason: &str) -> AppError {
    AppError::Failed { what, reason: reason.to_owned() }
}

/// Puts the gateway together. `own_url` is where it listens.
pub(super) fn open_gateway(base: &Base, accounts: Accounts, own_url: &str) -> Result<Gateway, AppError> {
    let config = &base.config;
    if accounts.is_empty() {
        tracing::warn!(
            "there are no accounts, so every callback and call is refused: `counterbat account add` adds one, or [[accounts]] \
             in the config and a restart"
        );
    }
    Ok(Gateway::new(gateway::Parts {
        log: base.log.clone(),
        accounts,
        upstream: Upstream::new(&config.upstream.url, config.upstream.timeout.0)?,
        bots: Bots::new(config.relay.timeout.0, config.relay.allow_private)?,
        registrations: Registrations::open(&base.dir.path.join("webhooks"))?,
        public_url: match &config.public_url {
            Some(url) => url.clone(),
            None => own_url.parse().map_err(|_| failed("a listener", "its address is no URL"))?,
        },
        metrics: base.metrics.clone(),
        now: base.clock.clone(),
    }))
}

fn open_console(
    base: &Base,
    projector: &ProjectorHandle,
    accounts: Accounts,
    gateway: &Gateway,
    local: &Token,
) -> Result<Router, AppError> {
    let engine = Arc::new(base.engine(projector)?);
    let transfer = Transfer {
        log: base.log.clone(),
        projector: projector.clone(),
        allowed_lateness_ms: base.config.fold.allowed_lateness.as_ms(),
        clock: base.clock.clone(),
    };
    let health = Health { log: base.log.clone(), projector: projector.clone(), gateway: gateway.clone() };
    let configured = &base.config.console.tokens;
    let tokens = (!configured.is_empty()).then(|| Tokens::new(configured, local));
    Ok(console::router(engine, transfer, accounts, health, base.metrics.clone(), tokens))
}

/// The gateway's listener.
enum Public {
    Plain(TcpListener),
    Tls(Box<TlsListener>),
}

impl Public {
    fn new(tcp: TcpListener, config: &Config) -> Result<Self, AppError> {
        let Some(tls) = config.gateway.tls.clone() else { return Ok(Public::Plain(tcp)) };
        let files = CertificateFiles { cert: tls.cert, key: tls.key };
        Ok(Public::Tls(Box::new(TlsListener::new(tcp, files, RENEW_EVERY)?)))
    }

    fn address(&self) -> Result<String, AppError> {
        match self {
            Public::Plain(listener) => address("http", listener),
            Public::Tls(listener) => address("https", &**listener),
        }
    }

    fn listen(self, router: Router, halted: watch::Receiver<bool>) -> JoinHandle<()> {
        match self {
            Public::Plain(listener) => listen(without_delay(listener), router, halted),
            Public::Tls(listener) => listen(*listener, router, halted),
        }
    }
}

fn address(scheme: &str, listener: &impl Listener<Addr = SocketAddr>) -> Result<String, AppError> {
    let local = listener.local_addr().map_err(|error| failed("a listener", &error.to_string()))?;
    Ok(format!("{scheme}://{local}"))
}

fn without_delay(listener: TcpListener) -> impl Listener<Addr = SocketAddr> {
    listener.tap_io(|stream| {
        // Answers are small: waiting to fill a packet only delays them. It works without, too.
        let _ = stream.set_nodelay(true);
    })
}

fn listen(
    listener: impl Listener<Addr = SocketAddr>,
    router: Router,
    mut halted: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let serving = axum::serve(listener, router).with_graceful_shutdown(async move {
        // The sender goes away only at the end, which is a stop as well.
        let _ = halted.wait_for(|halt| *halt).await;
    });
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "a listener ended");
        }
    })
}

/// Looks now and then where Viber sends the callbacks.
fn watch_webhooks(base: &Base, gateway: Gateway) -> JoinHandle<()> {
    let every = base.config.gateway.watch_every.0;
    tokio::spawn(async move {
        if !every.is_zero() {
            gateway::watch(gateway, every).await;
        }
    })
}

/// Tells partitions without traffic that time goes on.
fn tick(base: &Base, halted: watch::Receiver<bool>) -> JoinHandle<()> {
    let (log, clock, every) = (base.log.clone(), base.clock.clone(), base.config.log.tick_every.0);
    tokio::spawn(async move {
        if every.is_zero() {
            return;
        }
        let mut seen = vec![None; log.partitions() as usize];
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*halted.borrow() {
            interval.tick().await;
            for (partition, seen) in (0u32..).zip(&mut seen) {
                if let Err(error) = tick_idle(&*log, partition, seen, clock()).await {
                    tracing::debug!(%error, partition, "no tick");
                }
            }
        }
    })
}

/// Ticks a partition whose end is still where it was `seen`.
async fn tick_idle(
    log: &dyn EventLog,
    partition: u32,
    seen: &mut Option<u64>,
    now_us: i64,
) -> Result<(), crate::log::LogError> {
    let (_, end) = log.bounds(partition).await?;
    if seen.replace(end) != Some(end) {
        return Ok(());
    }
    let tick = Event {
        id: Uuid::now_v7().to_string(),
        source: TICK_SOURCE.to_owned(),
        kind: TICK_TYPE.to_owned(),
        time_us: Some(now_us),
        content_type: Some("application/json".to_owned()),
        data: b"{}".to_vec(),
        ..Event::default()
    };
    let positions = log.append(vec![(partition, tick)]).await?;
    *seen = positions.last().map(|position| position.offset + 1);
    Ok(())
}

/// Removes from the log what the tables have and retention lets go.
fn retain(base: &Base, projector: ProjectorHandle, halted: watch::Receiver<bool>) -> JoinHandle<()> {
    let (log, clock) = (base.log.clone(), base.clock.clone());
    let is_on = base.config.log.retention_age.is_some() || base.config.log.retention_size.is_some();
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(RETAIN_EVERY);
        while is_on && !*halted.borrow() {
            interval.tick().await;
            let archived: Vec<u64> = projector.status().partitions.iter().map(|part| part.archived).collect();
            if let Err(error) = log.retain(&archived, clock()).await {
                tracing::warn!(%error, "old records could not be removed from the log");
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::embedded::{EmbeddedLog, Options, Retention};

    #[tokio::test]
    async fn only_idle_partitions_are_ticked() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { partitions: 2, cache_bytes: 1 << 20, retention: Retention::default() };
        let log = EmbeddedLog::open(dir.path(), options, Arc::new(|| 5)).unwrap();
        let mut seen = [None, None];
        for round in 0..3 {
            if round == 1 {
                log.append(vec![(1, Event::default())]).await.unwrap();
            }
            for partition in 0..2 {
                tick_idle(&log, partition, &mut seen[partition as usize], 7).await.unwrap();
            }
        }
        assert_eq!(log.bounds(0).await.unwrap().1, 2);
        assert_eq!(log.bounds(1).await.unwrap().1, 2);
        let ticks = log.read(0, 0, 10, 1000).await.unwrap().records;
        assert!(ticks.iter().all(|record| record.event.is_tick() && record.event.time_us == Some(7)));
    }
}
