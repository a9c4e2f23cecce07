//! `serve`: the parts that the roles of this process need, over one log, until told to stop.

use super::access::{ServerInfo, remove_server_info, write_server_info};
use super::figures::{watch_disk, watch_figures};
use super::gateway::{serve_gateway, watch_webhooks};
use super::listeners::{Public, listen_console, local, postgres_certificates};
use super::membership::Member;
use super::projector::{Running, ended, retain};
use super::ticks::tick;
use super::{AppError, Base, Brokers, Clock};
use crate::config::{Config, Role};
use crate::console::directory::Directory;
use crate::console::health::Health;
use crate::console::stream::Stream;
use crate::console::tokens::{Token, Tokens};
use crate::console::transfer::Transfer;
use crate::console::{self, Console};
use crate::lake::Lake;
use crate::postgres;
use crate::projector::{ProjectorHandle, Rebuilds};
use crate::query::Engine;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Requests under way get so long to end, beside the time their answer from outside may take.
const DRAIN: Duration = Duration::from_secs(5);
/// The others are told within this that the process ends, where the brokers answer.
const FAREWELL: Duration = Duration::from_secs(8);

/// Bound sockets.
pub struct Listeners {
    /// For the role gateway, which needs it.
    pub gateway: Option<TcpListener>,
    pub console: TcpListener,
    /// For clients of PostgreSQL, by the role query.
    pub postgres: Option<TcpListener>,
}

/// Serves until `stop`, then ends in order: no new requests, those under way answered, everything committed. `ready` is
/// told the addresses once all parts work. All parts go by `clock`.
pub async fn serve(
    config: &Config,
    clock: Clock,
    listeners: Listeners,
    stop: impl Future<Output = ()> + Send,
    ready: impl FnOnce(&ServerInfo),
) -> Result<(), AppError> {
    config.check_roles()?;
    // One that cannot be read or is too short is told now, not when the first one asks.
    config.cluster.read_secret()?;
    let base = Base::open(config, clock, Brokers::Awaited).await?;
    let has = |role| config.roles.has(role);
    let console_address = local(&listeners.console)?;
    let member = Member::new(&base, console_address)?;
    let public = listeners.gateway.filter(|_| has(Role::Gateway)).map(|tcp| Public::new(tcp, config)).transpose()?;
    let certificates = postgres_certificates(config)?;
    let own_url = public.as_ref().map(Public::address).transpose()?;
    let gateway = match &own_url {
        Some(own_url) => Some(serve_gateway(&base, own_url).await?),
        None => None,
    };
    let mut running = if has(Role::Projector) { Some(base.start_projector().await?) } else { None };
    let projector = running.as_ref().map(|running| running.handle.clone());
    let lake = match &projector {
        Some(projector) => Some(projector.lake().clone()),
        None if has(Role::Query) => Some(base.tables_of_this_log().await?),
        None => None,
    };
    let rebuilds = match &running {
        Some(running) => Some(base.rebuilds(running).await?),
        None => None,
    };
    let token = Token::random();
    let (halt, halted) = watch::channel(false);
    let engine = match lake.clone().filter(|_| has(Role::Query)) {
        Some(lake) => Some(Arc::new(base.engine(lake, projector.as_ref())?)),
        None => None,
    };
    let directory = match (&engine, &projector) {
        (Some(engine), _) => Some(base.directory(engine.clone())),
        // What it does not answer itself, it asks.
        (None, Some(projector)) => {
            Some(base.directory(Arc::new(base.engine(projector.lake().clone(), Some(projector))?)))
        }
        (None, None) => None,
    };
    let asked =
        engine.clone().map(|engine| base.stream(projector.is_some(), halted.clone()).map(|told| (engine, told)));
    let mut console = open_console(
        &base,
        asked.transpose()?,
        gateway.clone(),
        projector.as_ref(),
        rebuilds.clone().zip(directory),
        lake.clone(),
        &token,
    )?;
    if let Some(projector) = &projector {
        console = console.merge(base.answers(projector)?);
    }
    let gateway = gateway.map(|(_, gateway)| gateway);

    let mut serving = vec![listen_console(listeners.console, console, halted.clone())];
    let mut chores = Vec::new();
    let postgres = listeners.postgres.zip(engine.clone());
    let postgres_address = postgres.as_ref().map(|(listener, _)| local(listener)).transpose()?;
    if let Some((listener, engine)) = postgres {
        let server = postgres::Server::new(engine, &config.console.tokens);
        serving.push(postgres::serve(listener, certificates, server, halted.clone()));
    }
    if let (Some(public), Some(gateway)) = (public, &gateway) {
        serving.push(public.listen(gateway.router(), halted.clone()));
        chores.push(watch_webhooks(&base, gateway.clone()));
    }
    if gateway.is_some() || projector.is_some() {
        chores.push(tick(&base, halted.clone()));
    }
    if let Some(projector) = &projector {
        chores.push(retain(&base, projector.clone(), halted.clone()));
    }
    chores.push(base.rest_feed());
    chores.push(watch_disk(base.metrics.clone(), base.dir.path.clone()));
    if let Some(engine) = engine {
        chores.push(watch_figures(&base, engine));
        chores.extend(base.follow_changes()?);
    }
    chores.extend(lake.filter(|_| has(Role::Query)).and_then(|lake| base.follow_tables(&lake)));
    let membership = member.map(|member| member.tell(projector.as_ref(), halted));
    let console = format!("http://{console_address}");
    let postgres = postgres_address.map(|address| address.to_string());
    let server = ServerInfo { console, gateway: own_url, postgres, pid: std::process::id(), token };
    write_server_info(&base.dir.path, &server)?;
    ready(&server);
    let roles: Vec<&str> = config.roles.iter().map(Role::as_str).collect();
    tracing::info!(gateway = server.gateway, console = server.console, postgres = server.postgres, roles = roles.join(","), log = %base.log.id(), "serving");

    let failure = tokio::select! {
        () = stop => None,
        failure = fails(running.as_mut()) => Some(failure),
    };
    if failure.is_none() {
        tracing::info!("stopping");
    }
    // Nobody listens where the tasks have ended already.
    let _ = halt.send(true);
    // A call may wait for Viber that long, and must be recorded when it answers.
    let patience = DRAIN + config.upstream.timeout.0.max(config.relay.timeout.0);
    drain(serving, patience).await;
    if let Some(gateway) = &gateway
        && !gateway.drain(patience).await
    {
        tracing::error!("relayed calls could not be recorded before the end");
    }
    if let Some(mut membership) = membership
        && tokio::time::timeout(FAREWELL, &mut membership).await.is_err()
    {
        membership.abort();
    }
    chores.iter().for_each(JoinHandle::abort);
    if let Some(rebuilds) = rebuilds {
        rebuilds.stop().await;
    }
    let stopped = match (failure, running) {
        (Some(error), _) => Err(error),
        (None, Some(running)) => running.stop().await,
        (None, None) => Ok(()),
    };
    remove_server_info(&base.dir.path)?;
    stopped
}

/// Waits for the end of the projector, which must not be before it is told to.
async fn fails(running: Option<&mut Running>) -> AppError {
    let Some(running) = running else { return std::future::pending().await };
    let early = || AppError::Failed { what: "the projector", reason: "it ended".to_owned() };
    ended((&mut running.task).await).err().unwrap_or_else(early)
}

/// Waits until what is under way is answered, for `patience` at most.
async fn drain(mut serving: Vec<JoinHandle<()>>, patience: Duration) {
    let drained = async {
        for listener in &mut serving {
            // How it ended was told by itself.
            let _ = listener.await;
        }
    };
    if tokio::time::timeout(patience, drained).await.is_err() {
        tracing::warn!("requests still under way are cut off");
        serving.iter().for_each(JoinHandle::abort);
    }
}

fn open_console(
    base: &Base,
    asked: Option<(Arc<Engine>, Stream)>,
    gateway: Option<(crate::gateway::accounts::Accounts, crate::gateway::Gateway)>,
    projector: Option<&ProjectorHandle>,
    rebuilds: Option<(Rebuilds, Directory)>,
    lake: Option<Arc<Lake>>,
    local: &Token,
) -> Result<axum::Router, AppError> {
    let (engine, stream) = asked.unzip();
    let transfer = projector.map(|projector| Transfer {
        log: base.log.clone(),
        projector: projector.clone(),
        allowed_lateness_ms: base.config.fold.allowed_lateness.as_ms(),
        clock: base.clock.clone(),
    });
    let explainer = match (&engine, &lake) {
        (Some(engine), Some(lake)) => Some(base.explainer(engine.clone(), lake.clone())?),
        _ => None,
    };
    let health = Health {
        log: base.log.clone(),
        projector: projector.cloned(),
        gateway: gateway.as_ref().map(|(_, gateway)| gateway.clone()),
        tables: lake.filter(|_| projector.is_none()),
    };
    let tokens = &base.config.console.tokens;
    Ok(console::router(Console {
        users: engine.is_some().then(|| base.users(projector)).transpose()?,
        stream,
        engine,
        explainer,
        transfer,
        verifier: projector.map(|projector| base.verifier(projector)).transpose()?,
        rebuilds,
        gateway,
        health,
        metrics: base.metrics.clone(),
        tokens: (!tokens.is_empty()).then(|| Tokens::new(tokens, local)),
    }))
}
