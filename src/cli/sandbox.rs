//! `counterbat sandbox`: a Viber to try things on.

use crate::sandbox::billing::Model;
use crate::sandbox::demo_bot::{BotHabits, DemoBot, DemoBotOptions};
use crate::sandbox::time::SandboxTime;
use crate::sandbox::traffic::{self, Habits};
use crate::sandbox::{BotInfo, NewBot, NewUser, Options, Sandbox};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::watch;
use url::Url;

/// Run a double of Viber's bot API, with users who write
///
/// It has bots with tokens, users, subscriptions, billing sessions, quotas, receipts and signed
/// callbacks with retries, by Viber's rules. Nothing leaves this machine. Point your bot, or the
/// gateway's `[upstream] url`, at the address it prints instead of https://chatapi.viber.com, and
/// call set_webhook (http:// is fine here): users begin to write to you.
///
/// Look into it, and act for its users, under /sandbox/ on the same address:
///
///   GET  bots, users?bot=NAME, stats
///   GET  ledger?since=N&kind=calls|callbacks    all it accepted and told, as NDJSON
///   POST bots     {"name":"shop","billable":true,"balance":100}
///   POST users    {"bot":"shop","count":10,"user":{"country":"UA"}}
///   POST act      {"bot":"shop","user":"ID","action":"write","message":{…},"wait":true}
///                 actions: write, start, subscribe, unsubscribe, seen
///   PUT  faults   {"slow_ms":200,"down":false,"http_500":0.1,"cut_after_accept":0.1,
///                 "misbill":0.1,"lost_openings":0.1}, shares of 0..1; not named is off
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct SandboxArgs {
    /// Where to serve the API
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Tokens, users and all that is left to chance follow from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Bots: bot-1, bot-2, …
    #[arg(long, value_name = "N", default_value_t = 2)]
    bots: u32,
    /// Users of each bot
    #[arg(long, value_name = "N", default_value_t = 50)]
    users: u32,
    /// How many times faster than real time everything goes
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Run bots that answer, too, and have them send through the gateway (or sandbox) at this URL
    #[arg(long, value_name = "URL")]
    through: Option<Url>,
    /// Billing model: 2022 has free out-of-session messages each month, 2024 has none
    #[arg(long, value_name = "YEAR", default_value = "2022", value_parser = ["2022", "2024"])]
    model: String,
    /// The bots have a contract, and pay for what is not free
    #[arg(long)]
    billable: bool,
    /// Free out-of-session messages a month under the model of 2022
    #[arg(long, value_name = "N", default_value_t = crate::sandbox::billing::FREE_QUOTA)]
    free_quota: u64,
    /// Conversations a user begins in a day, on average
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    conversations: f64,
    /// Calls and callbacks the ledger keeps, at some 600 bytes each; the oldest go
    #[arg(long, value_name = "N", default_value_t = 2_000_000)]
    ledger: usize,
    /// Users do nothing by themselves
    #[arg(long)]
    quiet_users: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed| (0.001..=1e6).contains(speed));
    speed.ok_or_else(|| "not a number from 0.001 to 1000000".to_owned())
}

/// Runs the command.
pub async fn run(args: SandboxArgs) -> Result<()> {
    let stop = super::stop_signal()?;
    let listener = bind(args.listen).await?;
    let (halt, halted) = watch::channel(false);
    let time = SandboxTime::from_now(args.speed);
    let options = Options::new(listener, time, args.seed, halted.clone());
    let sandbox = Sandbox::start(Options { ledger_entries: args.ledger, ..options })?;
    let bots = add_bots(&sandbox, &args)?;
    let mut running = Vec::new();
    if let Some(through) = &args.through {
        for (number, bot) in bots.iter().enumerate() {
            running.push(start_bot(&sandbox, &args, bot, number as u64, through, halted.clone()).await?);
        }
    }
    if !args.quiet_users {
        let habits = Habits { conversations_per_day: args.conversations, ..Habits::default() };
        tokio::spawn(traffic::run(sandbox.clone(), args.seed, habits, halted));
    }
    // Whoever started it may not care to read.
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(hello(&sandbox, &bots, args.through.is_some()).as_bytes()).and_then(|()| out.flush());
    drop(out);
    stop.await;
    tracing::info!("stopping");
    halt.send_replace(true);
    for bot in running {
        bot.stopped().await;
    }
    sandbox.stopped().await;
    Ok(())
}

async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| format!("the sandbox cannot listen on {listen}"))
}

fn add_bots(sandbox: &Sandbox, args: &SandboxArgs) -> Result<Vec<BotInfo>> {
    let model = if args.model == "2024" { Model::Y2024 } else { Model::Y2022 };
    let mut bots = Vec::new();
    for n in 1..=args.bots {
        let named = NewBot::named(format!("bot-{n}"));
        let bot = sandbox.add_bot(NewBot { model, billable: args.billable, free_quota: args.free_quota, ..named })?;
        sandbox.add_users(&bot.name, args.users as usize, &NewUser::default())?;
        bots.push(bot);
    }
    Ok(bots)
}

async fn start_bot(
    sandbox: &Sandbox,
    args: &SandboxArgs,
    bot: &BotInfo,
    number: u64,
    through: &Url,
    stop: watch::Receiver<bool>,
) -> Result<DemoBot> {
    let options = DemoBotOptions {
        listener: bind(SocketAddr::new(args.listen.ip(), 0)).await?,
        name: bot.name.to_string(),
        token: bot.token.clone(),
        api_base: through.to_string(),
        time: sandbox.time().clone(),
        seed: args.seed.wrapping_add(number),
        habits: BotHabits::default(),
        stop,
    };
    Ok(DemoBot::start(options)?)
}

/// What there is, and how to begin.
fn hello(sandbox: &Sandbox, bots: &[BotInfo], bots_run: bool) -> String {
    let url = sandbox.base_url();
    let mut text = format!("sandbox {url}\n");
    // Writing to a string cannot fail.
    for bot in bots {
        let _ = writeln!(text, "bot {} {}", bot.name, bot.token);
    }
    let _ = write!(text, "\nFor a gateway before it, in counterbat.toml:\n\n  [upstream]\n  url = \"{url}\"\n");
    for bot in bots {
        let _ = write!(text, "\n  [[accounts]]\n  name = \"{}\"\n  token = \"{}\"\n", bot.name, bot.token);
    }
    if let Some(bot) = bots.first().filter(|_| !bots_run) {
        let _ = write!(
            text,
            "\nFor a bot of your own (its users write once it has a webhook):\n\n  curl {url}/pa/set_webhook -H 'X-Viber-Auth-Token: {}' \
             -d '{{\"url\":\"http://127.0.0.1:5000/\"}}'\n",
            bot.token
        );
    }
    let _ = write!(text, "\nWhat happens: curl {url}/sandbox/stats\n");
    text
}
