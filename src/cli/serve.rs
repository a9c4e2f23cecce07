//! `counterbat serve`: the server.

use crate::app::{self, Listeners};
use crate::config::{Config, Role, Roles};
use anyhow::{Context, Result};
use std::io::Write;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Receive callbacks, relay calls, fold and answer, until told to stop
///
/// Prints the addresses it listens on: for bots and callbacks, for the console, and where [postgres] listen is set for
/// clients of PostgreSQL. SIGTERM and SIGINT end it in order: requests under way are answered and everything
/// is committed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat serve
  counterbat serve --roles gateway             as many as there is traffic for, around Kafka and an object store
  counterbat serve --roles projector,query")]
pub struct ServeArgs {
    /// What this process does: gateway, projector and query, with commas between [default: `roles` in the config, all
    /// without]
    ///
    /// gateway takes callbacks and relays calls, projector folds events into the tables, query answers SQL. Fewer than all
    /// need a log that processes can share: [log] kind = "kafka".
    #[arg(long, value_name = "ROLES", value_delimiter = ',')]
    roles: Vec<Role>,
}

/// Runs the command.
pub async fn run(args: ServeArgs, mut config: Config) -> Result<()> {
    if let Some(roles) = Roles::of(args.roles) {
        config.roles = roles;
    }
    config.check_roles()?;
    let stop = super::stop_signal()?;
    let gateway = match config.roles.has(Role::Gateway) {
        true => Some(bind("gateway", config.gateway.listen).await?),
        false => None,
    };
    let postgres = match config.postgres.listen.filter(|_| config.roles.has(Role::Query)) {
        Some(listen) => Some(bind("postgres", listen).await?),
        None => None,
    };
    let listeners = Listeners { gateway, console: bind("console", config.console.listen).await?, postgres };
    app::serve(&config, app::wall_clock(), listeners, stop, |server| {
        let mut out = std::io::stdout().lock();
        let gateway = server.gateway.iter().map(|address| format!("gateway {address}\n"));
        let postgres = server.postgres.iter().map(|address| format!("postgres {address}\n"));
        let others: String = gateway.chain(postgres).collect();
        // Whoever started it may not care to read.
        let _ = writeln!(out, "{others}console {}", server.console).and_then(|()| out.flush());
    })
    .await?;
    Ok(())
}

async fn bind(name: &str, listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("the {name} cannot listen on {listen} ([{name}] listen)"))
}
