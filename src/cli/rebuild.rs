//! `counterbat rebuild`: all tables anew from the archived events.

use super::progress::Meter;
use crate::app::{self, Access};
use crate::config::Config;
use crate::projector::Progress;
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
        Access::Offline(offline) => {
            let meter = Meter::of_records(0);
            offline.rebuild(|progress| show(&meter, progress)).await?;
            meter.finish();
            Ok(())
        }
        Access::Server(file) => bail!(
            "a running server (process {}) holds {}: stop it, rebuild, and start it again",
            file.pid,
            config.data_dir.display(),
        ),
    }
}

fn show(meter: &Meter, progress: Progress) {
    match progress {
        Progress::Folding { done, total } => {
            meter.set_length(total);
            meter.set_position(done);
        }
        Progress::Writing => meter.say("writing the tables"),
        Progress::Switching => meter.say("switching to them"),
    }
}
