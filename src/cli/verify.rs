//! `counterbat verify`: whether the tables are what the log folds to.

use super::progress::{Meter, count};
use super::server::Server;
use crate::app::{self, Access};
use crate::config::Config;
use crate::console::verify::NAMED;
use crate::event::shown::harmless;
use crate::projector::verify::report::{Finding, Summary, TableSummary, Told, TooLate};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Check that the tables are what the log folds to
///
/// Reads every file and holds it against its statistics, holds the archived events against the log, offset by offset, folds
/// them anew and compares every row of sessions and messages. Nothing is changed. Works on the data directory, or through
/// the server that runs on it, which goes on with its work meanwhile. Needs room for the fold's state of some partitions.
/// Exit code 1 when anything differs; events that came too late to be folded in are listed, and are no error.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat verify
  counterbat verify --format json --rows 100 > verify.json")]
pub struct VerifyArgs {
    /// How to write the result
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// How many rows to name of each table, log partition and day that differs
    #[arg(long, value_name = "N", default_value_t = NAMED)]
    rows: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables and words to read
    Table,
    /// One object
    Json,
}

/// What was told.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
    too_late: Vec<TooLate>,
    summary: Option<Summary>,
    failed: Option<String>,
}

impl Report {
    fn take(&mut self, told: Told, meter: &Meter) {
        match told {
            Told::Progress(progress) => {
                meter.set_length(progress.total);
                meter.set_position(progress.done);
            }
            Told::Finding(finding) => self.findings.push(finding),
            Told::TooLate(record) => self.too_late.push(record),
            Told::Done(summary) => self.summary = Some(summary),
            Told::Failed(reason) => self.failed = Some(reason),
        }
    }
}

/// Runs the command. Fails when anything differs.
pub async fn run(args: VerifyArgs, config: Config) -> Result<()> {
    let meter = Meter::of_records(0);
    let report = Mutex::new(Report::default());
    let tell = |told: Told| report.lock().unwrap_or_else(PoisonError::into_inner).take(told, &meter);
    match app::access_to_read(&config).await? {
        Access::Server(server) => remote(&Server::new(&server)?, args.rows, tell).await?,
        Access::Offline(offline) => {
            let verified = offline.verify(args.rows, &tell).await;
            let stopped = offline.stop().await;
            // What stands in the way of a commit is among the findings.
            if verified?.is_sound() {
                stopped?;
            }
        }
    }
    meter.finish();
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(reason) = report.failed {
        bail!("{reason}");
    }
    report.findings.sort_by_cached_key(|finding| (finding.table().to_owned(), finding.to_string()));
    let summary = report.summary.context("the server stopped in the middle of it")?;
    match args.format {
        Format::Table => print!("{}", table(&summary, &report.findings, &report.too_late)),
        Format::Json => println!("{:#}", json(&summary, &report.findings, &report.too_late)),
    }
    match summary.findings {
        0 => Ok(()),
        findings => bail!("the tables are not what the log folds to: {}", count(findings, "finding")),
    }
}

async fn remote(server: &Server, rows: usize, tell: impl Fn(Told)) -> Result<()> {
    const BROKEN: &str = "the server stopped in the middle of it";
    let request = server.request(reqwest::Method::POST, "/api/v1/verify", &format!("rows={rows}"));
    let mut response = server.send(request).await?;
    let mut text = Vec::new();
    while let Some(piece) = response.chunk().await.context(BROKEN)? {
        text.extend_from_slice(&piece);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            tell(serde_json::from_slice(&line).context("the server answered something strange")?);
        }
    }
    Ok(())
}

fn json(summary: &Summary, findings: &[Finding], too_late: &[TooLate]) -> serde_json::Value {
    let findings: Vec<serde_json::Value> = findings
        .iter()
        .map(|finding| {
            let mut value = serde_json::to_value(finding).unwrap_or_default();
            value["text"] = finding.to_string().into();
            value["remedy"] = finding.remedy().into();
            value
        })
        .collect();
    serde_json::json!({
        "sound": summary.is_sound(),
        "summary": summary,
        "findings": findings,
        "too_late": too_late,
    })
}

fn table(summary: &Summary, findings: &[Finding], too_late: &[TooLate]) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(&harmless(text.trim_end()));
        out.push('\n');
    };
    line(&format!("{:<10}{:>10}{:>10}{:>14}{:>14}{:>10}", "table", "version", "files", "rows", "compared", "findings"));
    for (name, of) in &summary.tables {
        let TableSummary { version, files, rows, compared, findings } = of;
        line(&format!("{name:<10}{version:>10}{files:>10}{rows:>14}{compared:>14}{findings:>10}"));
    }
    line(&format!("held against {} of the log", count(summary.log_records, "record")));
    if !summary.others.is_empty() {
        let others: Vec<String> = summary.others.iter().map(u32::to_string).collect();
        line(&format!("not looked at: partitions {}, which other processes fold; verify there", others.join(", ")));
    }
    if summary.too_late > 0 {
        line("");
        line(&format!(
            "not folded in, came too late: {}. `counterbat rebuild` folds them in",
            count(summary.too_late, "event")
        ));
        for TooLate { partition, offset, event_id } in too_late {
            line(&format!("  partition {partition}, offset {offset}: {event_id}"));
        }
        more(summary.too_late, too_late.len(), &mut line);
    }
    // One remedy for all findings it is the same for.
    let mut remedies: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    findings.iter().for_each(|finding| remedies.entry(finding.remedy()).or_default().push(finding));
    for (remedy, findings) in remedies {
        line("");
        findings.iter().for_each(|finding| line(&finding.to_string()));
        line(&format!("  what to do: {remedy}"));
    }
    more(summary.findings, findings.len(), &mut line);
    if summary.is_sound() {
        line("");
        line("the tables are what the log folds to");
    }
    out
}

/// Says how many are counted and not shown.
fn more(all: u64, shown: usize, line: &mut impl FnMut(&str)) {
    let rest = all.saturating_sub(shown as u64);
    if rest > 0 {
        line(&format!("  and {rest} more"));
    }
}
