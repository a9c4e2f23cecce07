//! `counterbat export`: the log as a file, offline or from the running server.

use super::progress::{Meter, count};
use super::server::Server;
use crate::app::{self, Access, Offline};
use crate::config::Config;
use crate::event::time::{format_us, parse_time_us};
use crate::transfer::source::Sink;
use crate::transfer::{Exporter, Filter};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Write the log to a file that `import` reads
///
/// One structured-mode CloudEvent a line, those of a user in the order in which they were appended; a name ending in .gz
/// or .zst packs the file, - is standard output. The last line is a tick that carries how far time had come. Imported
/// into an empty data directory, the file gives the same tables.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat export all.ndjson.zst
  counterbat export --from 2026-03-01T00:00:00Z --to 2026-04-01T00:00:00Z --account shop - | head")]
pub struct ExportArgs {
    /// Only events received at or after this time (RFC 3339, or a date in UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_time_us)]
    pub from: Option<i64>,
    /// Only events received before this time (RFC 3339, or a date in UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_time_us)]
    pub to: Option<i64>,
    /// Only events of this account
    #[arg(long, value_name = "NAME")]
    pub account: Option<String>,
    /// The file to write; - is standard output
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs the command. The file appears under its name only when it is complete.
pub async fn run(args: ExportArgs, config: Config) -> Result<()> {
    let access = app::access_to_read(&config).await?;
    let mut sink = Sink::create(&args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    let exported = match access {
        Access::Offline(offline) => export_offline(&args, *offline, &mut sink).await,
        Access::Server(server) => export_remote(&args, &Server::new(&server)?, &mut sink).await,
    };
    match exported {
        Ok(exported) => {
            sink.finish().with_context(|| format!("cannot write {}", args.file.display()))?;
            eprintln!("{} exported", count(exported, "event"));
            Ok(())
        }
        Err(error) => {
            sink.abandon().ok();
            Err(error)
        }
    }
}

fn say_trimmed(trimmed: &BTreeMap<u32, u64>) {
    for (partition, first) in trimmed {
        eprintln!("partition {partition} starts at offset {first}: retention has removed what lay before");
    }
}

async fn export_offline(args: &ExportArgs, offline: Offline, sink: &mut Sink) -> Result<u64> {
    let filter = Filter { from_us: args.from, to_us: args.to, account: args.account.clone() };
    let mut exporter = Exporter::open(offline.log(), filter).await?;
    say_trimmed(exporter.trimmed());
    let meter = Meter::of_records(exporter.passed().0);
    while let Some(block) = exporter.next_block().await? {
        sink.write_all(&block).context("cannot write")?;
        meter.set_position(exporter.passed().1);
    }
    meter.finish();
    let exported = exporter.exported();
    drop(exporter);
    offline.stop().await?;
    Ok(exported)
}

async fn export_remote(args: &ExportArgs, server: &Server, sink: &mut Sink) -> Result<u64> {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, time) in [("from", args.from), ("to", args.to)] {
        if let Some(time) = time {
            query.append_pair(name, &format_us(time));
        }
    }
    if let Some(account) = &args.account {
        query.append_pair("account", account);
    }
    let mut response = server.get("/api/v1/export", &query.finish()).await?;
    let trimmed = response.headers().get(crate::console::transfer::TRIMMED_HEADER);
    if let Some(trimmed) = trimmed.and_then(|value| value.to_str().ok()) {
        let pairs = trimmed.split(',').filter_map(|pair| pair.split_once(':'));
        say_trimmed(&pairs.filter_map(|(p, first)| Some((p.parse().ok()?, first.parse().ok()?))).collect());
    }
    let meter = Meter::of_stream();
    let events = meter.events();
    let mut lines = 0;
    while let Some(block) = response.chunk().await.context("the server stopped in the middle of the export")? {
        sink.write_all(&block).context("cannot write")?;
        lines += block.iter().filter(|b| **b == b'\n').count() as u64;
        events.store(lines, Ordering::Relaxed);
    }
    meter.finish();
    // The closing tick is no event of the log.
    Ok(lines.saturating_sub(1))
}
