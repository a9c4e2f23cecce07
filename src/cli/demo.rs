//! `counterbat demo`: everything in one process, to look at.

use super::figures::Figures;
use super::server::Server;
use super::stop_signal;
use crate::app::{self, DemoInfo, DemoOptions, ServerInfo};
use crate::sandbox::time::SandboxTime;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// How often the summary is made anew: on a terminal, and elsewhere.
const SHOW_EVERY: Duration = Duration::from_millis(500);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// See it work: bots, users, a Viber of our own and the whole of Counterbat in one process
///
/// Three bots answer their users and send promos through the gateway to a double of Viber that bills them by Viber's rules;
/// time runs fast. Now and then that Viber charges what it should not: the verdicts tell. Nothing leaves this machine. The
/// data directory is a temporary one that goes away at the end, unless it is to be kept. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// How many times faster than real time: 60 is an hour a minute, 1440 a day a minute
    #[arg(long, value_name = "X", default_value_t = 60.0)]
    speed: f64,
    /// Users of each bot
    #[arg(long, value_name = "N", default_value_t = 200)]
    users: usize,
    /// What is left to chance follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Share of answers in a session that Viber wrongly charges
    #[arg(long, value_name = "SHARE", default_value_t = 0.02)]
    misbilled: f64,
    /// Keep the data directory at the end (one given with --data-dir is always kept)
    #[arg(long)]
    keep: bool,
    /// End by itself after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// Runs the command.
pub async fn run(args: DemoArgs, data_dir: Option<PathBuf>) -> Result<()> {
    let stop = stop_signal()?;
    let temporary = tempfile::Builder::new().prefix("counterbat-demo-").tempdir().context("no temporary directory")?;
    let (data_dir, is_kept) = match data_dir {
        Some(dir) => (dir, true),
        None => (temporary.path().join("data"), args.keep),
    };
    let options = DemoOptions {
        gateway: bind(8080).await?,
        console: bind(8081).await?,
        postgres: bind(5433).await?,
        sandbox: bind(8090).await?,
        data_dir: data_dir.clone(),
        speed: args.speed,
        seed: args.seed,
        users: args.users,
        misbilled: args.misbilled,
    };
    let until = async move {
        match args.seconds {
            Some(seconds) => {
                tokio::select! { () = stop => {}, () = tokio::time::sleep(Duration::from_secs(seconds)) => {} }
            }
            None => stop.await,
        }
    };
    let mut summary = None;
    let ended = app::demo(options, until, |info| {
        // Whoever started it may not care to read.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(hello(info, &data_dir).as_bytes()).and_then(|()| out.flush());
        summary = Some(tokio::spawn(show(info.server.clone(), info.sandbox.time().clone())));
    })
    .await;
    if let Some(summary) = summary {
        summary.abort();
    }
    ended?;
    if is_kept {
        // On purpose not removed: it is what was asked for.
        let _ = temporary.keep();
        println!("kept: {}", data_dir.display());
    }
    Ok(())
}

/// The usual port, or a free one where that is taken.
async fn bind(port: u16) -> Result<TcpListener> {
    match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind("127.0.0.1:0").await.context("no port is free on 127.0.0.1"),
    }
}

fn hello(info: &DemoInfo, data_dir: &Path) -> String {
    let exe = std::env::current_exe().map_or_else(|_| "counterbat".to_owned(), |path| path.display().to_string());
    let sql = format!("{exe} --data-dir {} sql", data_dir.display());
    let postgres = info.server.postgres.as_deref().unwrap_or_default();
    let psql = format!("postgresql://{postgres}/counterbat");
    format!(
        "Counterbat demo: bots club, shop and bank. Ctrl-C ends it.

gateway  {}     what the bots talk to instead of https://chatapi.viber.com
console  {}     POST /api/v1/sql, /metrics, /healthz, /readyz
postgres {}            SQL for clients of PostgreSQL: psql \"{psql}\"
sandbox  {}     the Viber behind it; what it did: /sandbox/stats, /sandbox/ledger

Ask it, in another terminal:

{sql} \"select account, kind, state, count(*) as sessions, sum(inbound) as inbound, sum(outbound) as outbound from sessions group by 1, 2, 3 order by 1, 2, 3\"
{sql} \"select account, billing_status, expected, verdict, count(*) as messages from messages group by 1, 2, 3, 4 order by 1, 2, 3, 4\"
{sql} \"select account, user_id, sent_at, message_token from messages where verdict = 'overcharged' order by sent_at desc limit 10\"

",
        info.server.gateway.as_deref().unwrap_or_default(),
        info.server.console,
        postgres,
        info.sandbox.base_url(),
    )
}

/// Shows what goes on, until dropped: in place on a terminal, a line now and then elsewhere.
async fn show(info: ServerInfo, time: SandboxTime) {
    let Ok(server) = Server::new(&info) else { return };
    let is_terminal = std::io::stderr().is_terminal();
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        bar.set_style(style);
    }
    let mut interval = tokio::time::interval(if is_terminal { SHOW_EVERY } else { TELL_EVERY });
    let (mut before, mut at) = (0.0, Instant::now());
    loop {
        interval.tick().await;
        let Ok(answer) = server.get("/metrics", "").await else { continue };
        let Ok(text) = answer.text().await else { continue };
        let figures = Figures::read(&text);
        let events = figures.sum("counterbat_events_total", &[]);
        let rate = (events - before) / at.elapsed().as_secs_f64().max(1e-3);
        (before, at) = (events, Instant::now());
        if is_terminal {
            bar.set_message(table(&figures, &time, rate));
        } else {
            eprintln!("{}", line(&figures, &time, rate));
        }
    }
}

/// What Viber reported, in words (Viber doc, billing_status).
const STATUSES: [(&str, &str); 6] = [
    ("0", "free"),
    ("1", "in session, no contract"),
    ("2", "in session"),
    ("3", "free out of session, no contract"),
    ("4", "free out of session"),
    ("5", "charged"),
];

fn table(figures: &Figures, time: &SandboxTime, rate: f64) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:12}{}", "time", clock(time));
    let _ = writeln!(text, "{:12}{:>9.0}   {rate:.0}/s", "events", figures.sum("counterbat_events_total", &[]));
    let _ = writeln!(
        text,
        "{:12}{:>9.0}   of {:.0}",
        "open",
        figures.sum("counterbat_sessions_open", &[]),
        figures.sum("counterbat_sessions_opened_total", &[])
    );
    for (number, words) in STATUSES {
        let messages = figures.sum("counterbat_messages_total", &[("billing_status", number)]);
        if messages > 0.0 {
            let _ = writeln!(text, "{:12}{messages:>9.0}   billing_status {number}: {words}", "messages");
        }
    }
    for (verdict, messages) in figures.by("counterbat_messages_total", "verdict") {
        let _ = writeln!(text, "{:12}{messages:>9.0}   {verdict}", "verdicts");
    }
    text
}

fn line(figures: &Figures, time: &SandboxTime, rate: f64) -> String {
    let statuses = figures.by("counterbat_messages_total", "billing_status");
    let statuses: Vec<String> = statuses.iter().map(|(status, n)| format!("{status}: {n:.0}")).collect();
    format!(
        "{}  {:.0} events ({rate:.0}/s)  {:.0} sessions open  messages by billing_status {{{}}}",
        clock(time),
        figures.sum("counterbat_events_total", &[]),
        figures.sum("counterbat_sessions_open", &[]),
        statuses.join(", ")
    )
}

fn clock(time: &SandboxTime) -> String {
    let now = chrono::DateTime::from_timestamp_micros(time.now_us()).unwrap_or_default();
    format!("{} UTC, {}x", now.format("%Y-%m-%d %H:%M:%S"), time.speed())
}
