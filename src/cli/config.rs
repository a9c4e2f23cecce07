//! `counterbat config`: the settings as they are read, or the manual of them.

use crate::config::{Config, DEFAULT_TOML};
use anyhow::{Context, Result};
use std::io::Write;

/// Check the settings and show what is in force, secrets left out
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Print every setting with its default and what it is for, ready to be edited
    #[arg(long)]
    pub default: bool,
}

/// Prints the manual.
pub fn print_default() -> Result<()> {
    print(DEFAULT_TOML)
}

/// Prints the settings in force.
pub fn run(_args: ConfigArgs, config: &Config) -> Result<()> {
    print(&toml::to_string(config).context("the settings cannot be written")?)
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
