//! Flags, exit codes, progress bars, table output.

mod account;
mod compare;
mod config;
mod demo;
mod explain;
mod export;
mod figures;
mod import;
mod progress;
mod rebuild;
mod redeliver;
mod sandbox;
mod serve;
mod server;
mod sql;
mod token;
mod verify;

use crate::app::{self, Access};
use crate::config::Config;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use server::Server;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Counts Viber bot billing sessions: relays, records, folds, and answers in SQL
#[derive(Debug, Parser)]
#[command(name = "counterbat", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    /// Settings to read [default: counterbat.toml, where it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory to work on, instead of the configured one
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Demo(demo::DemoArgs),
    Sandbox(sandbox::SandboxArgs),
    Sql(sql::SqlArgs),
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Rebuild(rebuild::RebuildArgs),
    Compare(compare::CompareArgs),
    Redeliver(redeliver::RedeliverArgs),
    Verify(verify::VerifyArgs),
    Explain(explain::ExplainArgs),
    Account(account::AccountArgs),
    Token(token::TokenArgs),
    Config(config::ConfigArgs),
}

/// Runs the program: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr(matches!(cli.command, Command::Serve(_) | Command::Sandbox(_) | Command::Rebuild(_)));
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Threads that nobody waits for any more have so long to end.
const LAST_WAIT: Duration = Duration::from_secs(5);

fn run(cli: Cli) -> Result<()> {
    if let Command::Config(args) = &cli.command
        && args.default
    {
        return config::print_default();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let done = match cli.command {
        // These have nothing to do with what the config says.
        Command::Demo(args) => runtime.block_on(demo::run(args, cli.data_dir)),
        Command::Sandbox(args) => runtime.block_on(sandbox::run(args)),
        Command::Token(args) => token::run(args),
        command => {
            // Names and values that are no Unicode cannot be ours.
            let env = std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
            let config = Config::load(cli.config.as_deref(), cli.data_dir.as_deref(), env)?;
            runtime.block_on(run_on_data(command, config))
        }
    };
    // What counts was waited for. What is still out then, as a call to a broker that does not come back, is left.
    runtime.shutdown_timeout(LAST_WAIT);
    done
}

/// Commands that work on the data directory.
async fn run_on_data(command: Command, config: Config) -> Result<()> {
    match command {
        Command::Serve(args) => serve::run(args, config).await,
        Command::Sql(args) => run_sql(args, config).await,
        Command::Import(args) => import::run(args, config).await,
        Command::Export(args) => export::run(args, config).await,
        Command::Rebuild(args) => rebuild::run(args, config).await,
        Command::Compare(args) => compare::run(args, config).await,
        Command::Redeliver(args) => redeliver::run(args, config).await,
        Command::Verify(args) => verify::run(args, config).await,
        Command::Explain(args) => explain::run(args, config).await,
        Command::Account(args) => account::run(args, config).await,
        Command::Config(args) => config::run(args, &config),
        Command::Demo(_) | Command::Sandbox(_) | Command::Token(_) => Ok(()),
    }
}

/// Waits for SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()> + Send> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    })
}

async fn run_sql(args: sql::SqlArgs, config: Config) -> Result<()> {
    match app::access_to_read(&config).await? {
        Access::Server(server) => sql::run_remote(args, &Server::new(&server)?).await,
        Access::Offline(offline) => {
            let engine = offline.engine().await?;
            let answered = sql::run_local(args, &engine).await;
            drop(engine);
            offline.stop().await?;
            answered
        }
    }
}

/// Text for people, JSON for machines; `RUST_LOG` says how much.
fn log_to_stderr(is_long_running: bool) {
    let default = if is_long_running { "warn,counterbat=info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() { log.init() } else { log.json().init() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_flags_are_sound() {
        Cli::command().debug_assert();
    }
}
