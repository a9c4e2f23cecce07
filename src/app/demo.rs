//! `demo`: a Viber of our own, bots, users, and all of Counterbat in one process, in a time of their own.

use super::{AppError, Listeners, ServerInfo, serve};
use crate::config::{Account, Config, PolicyFrom, Secret, Size, Span, TokenSource};
use crate::sandbox::billing::Model;
use crate::sandbox::demo_bot::{BotHabits, DemoBot, DemoBotOptions};
use crate::sandbox::time::SandboxTime;
use crate::sandbox::traffic::{self, Habits};
use crate::sandbox::{BotInfo, Faults, NewBot, NewUser, Sandbox};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// Free out-of-session messages of the bot that pays beyond them: few, so that it soon does.
const SMALL_QUOTA: u64 = 100;

/// Lines of the sandbox's ledger, some hundred bytes each.
const LEDGER: usize = 500_000;

/// What a demo is made of.
pub struct DemoOptions {
    pub gateway: TcpListener,
    pub console: TcpListener,
    pub postgres: TcpListener,
    pub sandbox: TcpListener,
    pub data_dir: PathBuf,
    /// How many times faster than real time.
    pub speed: f64,
    pub seed: u64,
    /// Of each bot.
    pub users: usize,
    /// Share of answers in a session that Viber wrongly reports as charged, so that there is something to find.
    pub misbilled: f64,
}

/// A demo at work.
pub struct DemoInfo {
    pub server: ServerInfo,
    pub sandbox: Sandbox,
}

/// Runs until `stop`, then ends in order: first the users and bots, then the server. `ready` is told once all runs.
pub async fn demo(
    options: DemoOptions,
    stop: impl Future<Output = ()> + Send,
    ready: impl FnOnce(&DemoInfo),
) -> Result<(), AppError> {
    let failed =
        |what: &'static str| move |error: &dyn std::fmt::Display| AppError::Failed { what, reason: error.to_string() };
    let time = SandboxTime::from_now(options.speed);
    let (halt, halted) = watch::channel(false);
    let mut sandbox_options = crate::sandbox::Options::new(options.sandbox, time.clone(), options.seed, halted.clone());
    sandbox_options.ledger_entries = LEDGER;
    let sandbox = Sandbox::start(sandbox_options).map_err(|error| failed("the sandbox")(&error))?;
    let bots = add_bots(&sandbox, options.users).map_err(|error| failed("the sandbox")(&error))?;
    sandbox.set_faults(Faults { misbill: options.misbilled, ..Faults::default() });

    let config = config(&sandbox, &bots, options.data_dir)?;
    let (told, server) = oneshot::channel();
    let (end, ended) = oneshot::channel::<()>();
    let until_end = async {
        // Its sender goes away only at the end, which is one as well.
        let _ = ended.await;
    };
    let listeners =
        Listeners { gateway: Some(options.gateway), console: options.console, postgres: Some(options.postgres) };
    let serving = serve(&config, time.clock(), listeners, until_end, |server| {
        // Who waits for it is this function.
        let _ = told.send(server.clone());
    });
    tokio::pin!(serving);
    let server = tokio::select! {
        result = &mut serving => return result,
        server = server => server.map_err(|error| failed("the server")(&error))?,
    };

    let mut running = Vec::new();
    for (seed, bot) in (options.seed..).zip(&bots) {
        running.push(start_bot(bot, &server, &time, seed, halted.clone()).await?);
    }
    // Users come within the first minutes, and often: whoever watches does not wait for days.
    let habits = Habits {
        conversations_per_day: 2.0,
        arrive_within: std::time::Duration::from_secs(4 * 3600),
        ..Habits::default()
    };
    let users = tokio::spawn(write(sandbox.clone(), running.clone(), options.seed, habits, halted));
    let console = server.console.clone();
    ready(&DemoInfo { server, sandbox: sandbox.clone() });

    tokio::select! {
        result = &mut serving => return result,
        () = stop => {}
    }
    halt.send_replace(true);
    // How they end is of no matter: there is nothing to save.
    let _ = users.await;
    for bot in running {
        bot.stopped().await;
    }
    sandbox.stopped().await;
    tokio::select! {
        result = &mut serving => return result,
        () = fold_all(&console) => {}
    }
    let _ = end.send(());
    serving.await
}

/// Has everything in the log folded: whoever looks into kept data later goes by other policies.
async fn fold_all(console: &str) {
    let asked = reqwest::Client::builder().no_proxy().build().map(|client| {
        // A query sees all that was appended before it.
        client.post(format!("{console}/api/v1/sql")).body(r#"{"sql":"select count(*) from sessions"}"#).send()
    });
    if let Ok(asked) = asked
        && let Err(error) = asked.await
    {
        tracing::debug!(%error, "the end of the log is not folded");
    }
}

/// Users write once all bots have their webhooks: nobody would be told of the sessions they open before.
async fn write(sandbox: Sandbox, bots: Vec<DemoBot>, seed: u64, habits: Habits, mut halted: watch::Receiver<bool>) {
    let registered = async {
        for bot in &bots {
            bot.registered().await;
        }
    };
    tokio::select! {
        () = registered => {}
        // An error means that the sender has gone, which is a stop as well.
        () = async { drop(halted.wait_for(|halt| *halt).await) } => return,
    }
    traffic::run(sandbox, seed, habits, halted).await;
}

/// Three bots as they come: one without a contract, one that pays beyond its free messages, one that pays for each.
fn add_bots(sandbox: &Sandbox, users: usize) -> Result<Vec<(BotInfo, &'static str)>, Box<dyn std::error::Error>> {
    let pays = |name| NewBot { billable: true, free_quota: SMALL_QUOTA, ..NewBot::named(name) };
    let bots = [
        (NewBot::named("club"), "viber-2022"),
        (pays("shop"), "viber-2022"),
        (NewBot { model: Model::Y2024, ..pays("bank") }, "viber-2024"),
    ];
    let mut made = Vec::new();
    for (bot, policy) in bots {
        let bot = sandbox.add_bot(bot)?;
        sandbox.add_users(&bot.name, users, &NewUser::default())?;
        made.push((bot, policy));
    }
    Ok(made)
}

fn config(sandbox: &Sandbox, bots: &[(BotInfo, &str)], data_dir: PathBuf) -> Result<Config, AppError> {
    let url = sandbox.base_url().parse();
    let mut config = Config { data_dir, ..Config::default() };
    config.upstream.url =
        url.map_err(|_| AppError::Failed { what: "the sandbox", reason: "its address is no URL".to_owned() })?;
    config.relay.allow_private = true;
    // Everything soon, as there is a lot of time in a minute.
    config.log.tick_every = Span::seconds(1);
    config.gateway.watch_every = Span::seconds(5);
    config.lake.commit_every = Span::seconds(2);
    config.lake.snapshot_every = Span::seconds(5);
    config.fold.memory = Size::mib(128);
    config.accounts = bots
        .iter()
        .map(|(bot, policy)| Account {
            name: bot.name.to_string(),
            token: TokenSource::Inline(Secret::new(bot.token.clone())),
            policies: vec![PolicyFrom { valid_from_ms: None, policy: (*policy).to_owned() }],
            prices: None,
            limit: None,
            budget: BTreeMap::new(),
        })
        .collect();
    Ok(config)
}

async fn start_bot(
    (bot, _): &(BotInfo, &str),
    server: &ServerInfo,
    time: &SandboxTime,
    seed: u64,
    stop: watch::Receiver<bool>,
) -> Result<DemoBot, AppError> {
    let failed = |reason: String| AppError::Failed { what: "a demo bot", reason };
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| failed(error.to_string()))?;
    let options = DemoBotOptions {
        listener,
        name: bot.name.to_string(),
        token: bot.token.clone(),
        api_base: server.gateway.clone().unwrap_or_default(),
        time: time.clone(),
        seed,
        habits: BotHabits::default(),
        stop,
    };
    DemoBot::start(options).map_err(|error| failed(error.to_string()))
}
