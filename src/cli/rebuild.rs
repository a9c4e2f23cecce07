//! `counterbat rebuild`: tables anew from the archived events, in the place of the live ones or beside them.

use super::progress::Meter;
use super::server::Server;
use crate::app::{self, Access};
use crate::config::Config;
use crate::event::time::{format_us, parse_time_us};
use crate::lake::GenerationInfo;
use crate::projector::{Listing, Phase, Progress, Report, Wish};
use crate::session::Policy;
use anyhow::{Context, Result, bail};
use reqwest::{Method, Response};
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

const PATH: &str = "/api/v1/rebuilds";
/// How often a server is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// Fold all archived events again into new tables
///
/// Folds in what had come too late, and switches to the new tables when they are complete: until then, and after a failure,
/// the old ones stand. A running server does it while traffic goes on, and goes on with it after a restart; else the command
/// does. With --as the tables are kept beside the live ones, as a schema in SQL, and nothing is switched.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat rebuild
  counterbat rebuild --as march_v2 --policy viber-2024 --from 2026-03-01T00:00:00Z
  counterbat sql \"SELECT count(*) FROM march_v2.sessions\"
  counterbat compare live march_v2
  counterbat rebuild --drop march_v2")]
pub struct RebuildArgs {
    /// Keep the tables beside the live ones under this name ([a-z][a-z0-9_]{0,62})
    #[arg(long = "as", value_name = "NAME")]
    keep_as: Option<String>,
    /// Policy to fold under: a built-in one, or a TOML file; without --as it must be the configured one
    #[arg(long, value_name = "NAME|FILE")]
    policy: Option<String>,
    /// Accounts to fold anew; the rows of others stay as they are. Needs --as
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', requires = "keep_as")]
    accounts: Vec<String>,
    /// Leave rows with an earlier reference time (opened_at, sent_at) as they are (RFC 3339, or a date in UTC). Needs --as
    #[arg(long, value_name = "TIME", value_parser = parse_time_us, requires = "keep_as")]
    from: Option<i64>,
    /// Show the generations that are kept, and rebuilds that are at work or have failed
    #[arg(long, conflicts_with_all = ["keep_as", "policy", "accounts", "from", "drop"])]
    list: bool,
    /// Remove a generation, or give up a rebuild that is not finished
    #[arg(long, value_name = "NAME", conflicts_with_all = ["keep_as", "policy", "accounts", "from"])]
    drop: Option<String>,
}

impl RebuildArgs {
    fn wish(&self) -> Result<Wish> {
        let mut wish = Wish {
            keep_as: self.keep_as.clone(),
            accounts: self.accounts.clone(),
            from: self.from.map(format_us),
            ..Wish::default()
        };
        match &self.policy {
            // The names of the built-in ones have neither.
            Some(file) if file.contains(['/', '.']) => {
                let text = std::fs::read_to_string(Path::new(file)).with_context(|| format!("cannot read {file}"))?;
                Policy::parse_own(&text).with_context(|| file.clone())?;
                wish.policy_toml = Some(text);
            }
            name => wish.policy.clone_from(name),
        }
        Ok(wish)
    }
}

/// Runs the command. What was rebuilt goes to standard output as one JSON object.
pub async fn run(args: RebuildArgs, config: Config) -> Result<()> {
    let access = app::access_to_read(&config).await?;
    if args.list {
        let listing = match access {
            Access::Server(server) => read(Server::new(&server)?.get(PATH, "").await?).await?,
            Access::Offline(offline) => {
                let listing = offline.rebuilds().await?.list().await?;
                offline.stop().await?;
                listing
            }
        };
        return print(&table(&listing));
    }
    if let Some(name) = &args.drop {
        match access {
            Access::Server(server) => {
                let server = Server::new(&server)?;
                server.send(server.request(Method::DELETE, &format!("{PATH}/{name}"), "")).await?;
            }
            Access::Offline(offline) => {
                offline.rebuilds().await?.drop(name).await?;
                offline.stop().await?;
            }
        }
        return print(&format!("{name} is dropped\n"));
    }
    let (wish, meter) = (args.wish()?, Meter::of_records(0));
    let report = match access {
        Access::Server(server) => remote(&Server::new(&server)?, &wish, &meter).await?,
        Access::Offline(offline) => {
            let shown = meter.clone();
            offline.rebuild(wish, move |progress| show(&shown, progress)).await?
        }
    };
    meter.finish();
    print(&format!("{}\n", summary(&report)))
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T> {
    let body = response.bytes().await.context("the server did not finish its answer")?;
    serde_json::from_slice(&body).context("the server answered something strange")
}

/// Asks a server for it, and follows it to its end.
async fn remote(server: &Server, wish: &Wish, meter: &Meter) -> Result<Report> {
    let request = server.request(Method::POST, PATH, "").header("content-type", "application/json");
    let mut report: Report = read(server.send(request.body(serde_json::to_vec(wish)?)).await?).await?;
    while !report.job.has_ended() {
        if let Some(progress) = report.progress {
            show(meter, progress);
        }
        tokio::time::sleep(ASK_EVERY).await;
        let path = format!("{PATH}/{}", report.job.name);
        report = read(server.get(&path, "").await?).await?;
    }
    match report.job.error {
        Some(error) => bail!("the rebuild was given up: {error}"),
        None => Ok(report),
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

fn summary(report: &Report) -> serde_json::Value {
    let reach = report.job.reach.clone().unwrap_or_default();
    serde_json::json!({
        "name": report.job.name,
        "kept": report.job.wish.keep_as.is_some(),
        "events": reach.events,
        "up_to": reach.up_to_us.map(format_us),
    })
}

fn table(listing: &Listing) -> String {
    let head = ["NAME", "STATE", "MADE AT", "UP TO", "EVENTS", "SIZE", "OF", "POLICY"].map(str::to_owned);
    let at_work = |report: &&Report| !report.job.has_ended() || report.job.phase == Phase::Failed;
    let rows: Vec<[String; 8]> = std::iter::once(head)
        .chain(listing.generations.iter().map(generation))
        .chain(listing.rebuilds.iter().filter(at_work).map(rebuild))
        .collect();
    let widths: Vec<usize> =
        (0..8).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn generation(info: &GenerationInfo) -> [String; 8] {
    [
        info.name.clone(),
        "kept".to_owned(),
        format_us(info.made_us),
        info.up_to_us.map(format_us).unwrap_or_default(),
        info.events.to_string(),
        format!("{} B", info.bytes),
        of(&info.accounts, info.from_us.map(format_us)),
        info.policies.clone(),
    ]
}

fn rebuild(report: &Report) -> [String; 8] {
    let job = &report.job;
    let state = match (&job.error, report.progress) {
        (Some(error), _) => format!("failed: {error}"),
        (None, Some(Progress::Folding { done, total })) => format!("folding, {}%", done * 100 / total.max(1)),
        (None, Some(Progress::Writing)) => "writing".to_owned(),
        (None, Some(Progress::Switching)) => "switching".to_owned(),
        (None, None) => "waiting".to_owned(),
    };
    let wish = &job.wish;
    let none = String::new;
    [
        job.name.clone(),
        state,
        none(),
        none(),
        none(),
        none(),
        of(&wish.accounts, wish.from.clone()),
        job.policies.clone(),
    ]
}

/// What was folded anew, in words.
fn of(accounts: &[String], from: Option<String>) -> String {
    let accounts = if accounts.is_empty() { "all".to_owned() } else { accounts.join(",") };
    from.map_or(accounts.clone(), |from| format!("{accounts} from {from}"))
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
