//! `counterbat import`: event files into the log, offline or through the running server.

use super::progress::{Meter, count};
use super::server::Server;
use crate::app::{self, Access, Offline};
use crate::config::Config;
use crate::transfer::chunk::{Chunk, read_chunks};
use crate::transfer::import::{self, SkipBad};
use crate::transfer::{Importer, Skipped, Summary, source};
use anyhow::{Context, Result, anyhow, bail};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// A file goes to a server in pieces of about this many bytes: each is answered, so nothing is sent long after a stop.
const PIECE_BYTES: usize = 16 << 20;
/// Reasons of bad lines shown on the terminal; all of the lines are in the file.
const REASONS_SHOWN: u64 = 10;

/// Append events from files to the log
///
/// Reads NDJSON, one structured-mode CloudEvent a line, plain or packed with gzip or zstd. Works on the data directory,
/// or through the server that holds it. Importing the same events again changes nothing: repeats are recognised.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat import march.ndjson.zst
  gunzip -c events.ndjson.gz | counterbat import --wait -
  counterbat import --skip-bad bad.ndjson old/*.ndjson.gz

An import stops at the first line that is no event, and at the first event that comes too late to change a row
(see [fold] allowed_lateness). What stands before is appended.")]
pub struct ImportArgs {
    /// Return only when all three tables contain the events
    #[arg(long)]
    pub wait: bool,
    /// Write lines that are no event to this file and go on
    #[arg(long, value_name = "FILE")]
    pub skip_bad: Option<PathBuf>,
    /// Append events that come too late; they change no row until `rebuild` folds them in
    #[arg(long)]
    pub late: bool,
    /// Files to read, in this order; - is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Runs the command. The summary goes to standard output as one JSON object.
pub async fn run(args: ImportArgs, config: Config) -> Result<()> {
    let meter = Meter::of_files(&args.files)?;
    let skip = args.skip_bad.as_deref().map(skip_file).transpose()?;
    let summary = match app::access(&config).await? {
        Access::Offline(offline) => import_offline(&args, *offline, skip, &meter).await?,
        Access::Server(server) => import_remote(&args, &Server::new(&server)?, skip, &meter).await?,
    };
    meter.finish();
    if summary.bad > 0
        && let Some(file) = &args.skip_bad
    {
        eprintln!("{} set aside in {}", count(summary.bad, "bad line"), file.display());
    }
    if summary.too_late > 0 {
        let events = count(summary.too_late, "event");
        eprintln!("{events} came too late and changed no row: `counterbat rebuild` folds them in");
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &summary)?;
    writeln!(out)?;
    Ok(())
}

/// Keeps bad lines as they are and names the first ones on standard error.
fn skip_file(path: &Path) -> Result<SkipBad> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut write = import::skip_to(BufWriter::new(file));
    let mut shown = 0;
    Ok(Box::new(move |skipped| {
        shown += 1;
        if shown <= REASONS_SHOWN {
            eprintln!("line {}: {}", skipped.line, skipped.reason);
        }
        write(skipped)
    }))
}

fn open(path: &Path, meter: &Meter) -> Result<Box<dyn Read + Send>> {
    let name = path.to_string_lossy();
    let raw: Box<dyn Read + Send> = if name == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot read {name}"))?)
    };
    source::unpack(meter.wrap(raw), &name).with_context(|| format!("cannot read {name}"))
}

async fn import_offline(args: &ImportArgs, offline: Offline, skip: Option<SkipBad>, meter: &Meter) -> Result<Summary> {
    // With --wait the fold runs while the events are appended; without, they are only appended.
    let projector = if args.wait { Some(offline.start_projector().await?) } else { None };
    let watermarks = match &projector {
        Some(projector) => {
            projector.wait_folded(&offline.log_ends().await?).await?;
            projector.status().partitions.iter().map(|partition| partition.watermark_ms).collect()
        }
        None => offline.watermarks().await?,
    };
    let mut importer = Importer::new(offline.log(), offline.clock(), watermarks, offline.allowed_lateness_ms())
        .append_late(args.late)
        .skip_bad(skip);
    meter.show_events(importer.appended());

    let result = import_files(args, &mut importer, meter).await;
    if let (Ok(_), Some(projector)) = (&result, &projector) {
        meter.say("writing the tables");
        projector.wait_committed(&offline.log_ends().await?).await?;
    }
    offline.stop().await?;
    result
}

async fn import_files(args: &ImportArgs, importer: &mut Importer, meter: &Meter) -> Result<Summary> {
    let mut all = Summary::default();
    for path in &args.files {
        let outcome = importer.run(open(path, meter)?, 1).await.with_context(|| path.display().to_string())?;
        all.add(&outcome.summary);
        if let Some(stop) = outcome.stopped {
            bail!("{}: {stop}. {} before it appended", path.display(), count(all.appended, "event"));
        }
    }
    Ok(all)
}

async fn import_remote(
    args: &ImportArgs,
    server: &Server,
    mut skip: Option<SkipBad>,
    meter: &Meter,
) -> Result<Summary> {
    let appended = meter.events();
    let mut all = Summary::default();
    for path in &args.files {
        let (mut pieces, reader) = pieces(open(path, meter)?, skip.take());
        while let Some(piece) = pieces.recv().await {
            let query = format!("late={}&first_line={}", u8::from(args.late), piece.first_line);
            let before = count(all.appended, "event");
            let answer = server.post("/api/v1/import", &query, piece.bytes).await;
            let answer = answer.map_err(|error| match all.appended {
                0 => anyhow!("{}: {error:#}", path.display()),
                _ => anyhow!("{}: {error:#}; {before} of earlier pieces appended", path.display()),
            })?;
            all.add(&serde_json::from_slice(&answer).context("the server's answer")?);
            appended.store(all.appended, Ordering::Relaxed);
        }
        let (bad, used) = reader.await?.with_context(|| format!("cannot read {}", path.display()))?;
        all.bad += bad;
        skip = used;
    }
    if args.wait {
        meter.say("writing the tables");
        server.post("/api/v1/import", "wait=1", Vec::new()).await?;
    }
    Ok(all)
}

type ReaderEnd = io::Result<(u64, Option<SkipBad>)>;

/// The file in blocks of whole lines, bad ones already set aside when `skip` takes them, else left for the server to
/// find.
fn pieces(
    source: impl Read + Send + 'static,
    mut skip: Option<SkipBad>,
) -> (mpsc::Receiver<Chunk>, tokio::task::JoinHandle<ReaderEnd>) {
    let (sender, receiver) = mpsc::channel(1);
    let reader = tokio::task::spawn_blocking(move || {
        let mut bad = 0;
        let mut failed = Ok(());
        let mut first_line = 1;
        read_chunks(source, PIECE_BYTES, |bytes| {
            let mut chunk = Chunk { first_line, bytes };
            first_line = chunk.next_line();
            if let Some(skip) = &mut skip {
                failed = chunk.blank_bad_lines(|skipped: Skipped<'_>| {
                    bad += 1;
                    skip(skipped)
                });
            }
            failed.is_ok() && sender.blocking_send(chunk).is_ok()
        })?;
        failed.map(|()| (bad, skip))
    });
    (receiver, reader)
}
