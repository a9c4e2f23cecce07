//! `counterbat rebuild`: all tables anew from the archived events.

use crate::app::{self, Access};
use crate::config::Config;
use anyhow::{Result, bail};

/// Fold all archived events again into new tables
///
/// Uses the policies and settings of now, folds in what had come too late, and switches to the new tables when they are
/// complete: until then, and after a failure, the old ones stand. The server must be stopped.
#[derive(Debug, clap::Args)]
pub struct RebuildArgs {}

/// Runs the command.
pub async fn run(_args: RebuildArgs, config: Config) -> Result<()> {
    match app::access(&config).await? {
        Access::Offline(offline) => offline.rebuild().await.map_err(Into::into),
        Access::Server(server) => bail!(
            "a running server (process {}) holds {}: stop it, rebuild, and start it again",
            server.pid,
            config.data_dir.display(),
        ),
    }
}
