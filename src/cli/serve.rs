//! `counterbat serve`: the server.

use crate::app;
use crate::config::Config;
use anyhow::{Context, Result};
use std::io::Write;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Receive callbacks, relay calls, fold and answer, until told to stop
///
/// Prints the addresses it listens on. SIGTERM and SIGINT end it in order: requests under way are answered and everything
/// is committed.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {}

/// Runs the command.
pub async fn run(_args: ServeArgs, config: Config) -> Result<()> {
    let stop = super::stop_signal()?;
    let gateway = bind("gateway", config.gateway.listen).await?;
    let console = bind("console", config.console.listen).await?;
    app::serve(&config, app::wall_clock(), gateway, console, stop, |server| {
        let mut out = std::io::stdout().lock();
        // Whoever started it may not care to read.
        let _ = writeln!(out, "gateway {}\nconsole {}", server.gateway, server.console).and_then(|()| out.flush());
    })
    .await?;
    Ok(())
}

async fn bind(name: &str, listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("the {name} cannot listen on {listen} ([{name}] listen)"))
}
