//! `counterbat account`: the bots, looked at and changed in the data directory, or through the server that runs on it.

use super::server::Server;
use crate::app::{self, Access, Offline};
use crate::config::{Config, Span};
use crate::console::accounts::{AccountChange, KEEP_OLD, NewAccount, Rotation};
use crate::event::is_account_name;
use crate::gateway::accounts::{AccountSummary, Adjustment, Origin};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use reqwest::Method;
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

const PATH: &str = "/api/v1/accounts";

/// Add, pause, rotate and remove bots while the server runs
///
/// Accounts come from [[accounts]] in the config, which only an edit and a restart change, or from here: these are kept in
/// the data directory, their tokens encrypted under the key of [gateway] (key_file, key_env or key; made by `openssl rand
/// -hex 32`). Commands go through the server that runs on the data directory and count at once; without one they work
/// on the directory itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat account add shop --policy viber-2024 --token-file shop.token
  pass viber/shop | counterbat account add shop
  counterbat account rotate shop --keep-old 48h --token-env NEW_TOKEN
  counterbat account pause shop

A token is never a flag, as shells keep histories: it comes from a file, an environment variable or standard input.")]
pub struct AccountArgs {
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Debug, Subcommand)]
enum AccountCommand {
    /// List all accounts
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one account
    Show {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add an account
    ///
    /// Its callbacks are taken at /webhooks/NAME and its calls relayed from then on. An account that was removed comes back
    /// under its name with the policy it had.
    Add {
        /// 1 to 64 of a-z, 0-9, _ and -; part of its callback address and of every event, so it cannot be changed
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// Tariff it is folded under, one that is built in or of [fold] policy_files [default: that of [fold] policy]; fixed
        /// once the account is added, as its sessions are counted by it
        #[arg(long)]
        policy: Option<String>,
        /// Calls per second it may make, 0 for no limit [default: that of [gateway] requests_per_second]
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// Refuse an account's calls, with Viber's code for a suspended account (9); its callbacks are still recorded
    Pause {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
    /// Take a paused account's calls again
    Resume {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
    /// Give an account the new token that Viber issued
    ///
    /// The tokens it has stay valid for a while beside the new one, for calls as for the signatures of callbacks, so that
    /// nothing is refused while the bot is told the new token.
    Rotate {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
        /// How long the tokens before stay valid; 0s ends them now
        #[arg(long, value_name = "DURATION", default_value_t = KEEP_OLD, value_parser = Span::parse)]
        keep_old: Span,
        #[command(flatten)]
        token: TokenArgs,
    },
    /// Remove an account
    ///
    /// Its tokens are forgotten, its calls and callbacks refused. What was recorded stays and is folded as before, also by
    /// a rebuild.
    Remove {
        #[arg(value_name = "NAME", value_parser = name)]
        name: String,
    },
}

/// Where the token comes from; else from standard input.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct TokenArgs {
    /// Environment variable that holds the token
    #[arg(long, value_name = "VAR")]
    token_env: Option<String>,
    /// File that holds the token; without it and --token-env, standard input is read
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenArgs {
    /// White space around it is cut off.
    fn read(&self) -> Result<String> {
        let text = match (&self.token_env, &self.token_file) {
            (Some(variable), _) => {
                std::env::var(variable).map_err(|_| anyhow::anyhow!("environment variable {variable} is not set"))?
            }
            (None, Some(path)) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
            (None, None) => {
                if std::io::stdin().is_terminal() {
                    eprintln!("The token, then Enter and Ctrl-D:");
                }
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read the token from standard input")?;
                text
            }
        };
        match text.trim() {
            "" => bail!("there is no token: it comes by --token-file, --token-env or standard input"),
            token => Ok(token.to_owned()),
        }
    }
}

/// A name of the form that accounts have.
pub(super) fn name(text: &str) -> Result<String, String> {
    if is_account_name(text) { Ok(text.to_owned()) } else { Err("expected 1 to 64 of a-z, 0-9, _ and -".to_owned()) }
}

/// Runs the command.
pub async fn run(args: AccountArgs, config: Config) -> Result<()> {
    match app::access(&config).await? {
        Access::Server(server) => through_server(args.command, &Server::new(&server)?).await,
        Access::Offline(offline) => {
            let done = offline_run(args.command, &offline);
            offline.stop().await?;
            done
        }
    }
}

fn offline_run(command: AccountCommand, offline: &Offline) -> Result<()> {
    let accounts = offline.accounts()?;
    let paused = |paused| Adjustment { paused: Some(paused), ..Adjustment::default() };
    match command {
        AccountCommand::List { json } => print_all(&accounts.list(), json),
        AccountCommand::Show { name, json } => print_one(&accounts.show(&name)?, json),
        AccountCommand::Add { name, policy, limit, token } => {
            print_one(&accounts.add(&name, &token.read()?, policy.as_deref(), limit)?, false)
        }
        AccountCommand::Pause { name } => print_one(&accounts.adjust(&name, paused(true))?, false),
        AccountCommand::Resume { name } => print_one(&accounts.adjust(&name, paused(false))?, false),
        AccountCommand::Rotate { name, keep_old, token } => {
            print_one(&accounts.rotate(&name, &token.read()?, keep_old.0)?, false)
        }
        AccountCommand::Remove { name } => {
            accounts.remove(&name)?;
            offline.gateway()?.forget_webhook(&name).context("its webhook")?;
            print_removed(&name)
        }
    }
}

async fn through_server(command: AccountCommand, server: &Server) -> Result<()> {
    let of = |name: &str| format!("{PATH}/{name}");
    let paused = |paused| AccountChange { paused: Some(paused), limit: None };
    match command {
        AccountCommand::List { json } => {
            let all: Vec<AccountSummary> = answer(server.get(PATH, "").await?).await?;
            print_all(&all, json)
        }
        AccountCommand::Show { name, json } => print_one(&answer(server.get(&of(&name), "").await?).await?, json),
        AccountCommand::Add { name, policy, limit, token } => {
            let account = NewAccount { name, token: token.read()?, policy, limit };
            print_one(&send(server, Method::POST, PATH, &account).await?, false)
        }
        AccountCommand::Pause { name } => {
            print_one(&send(server, Method::PATCH, &of(&name), &paused(true)).await?, false)
        }
        AccountCommand::Resume { name } => {
            print_one(&send(server, Method::PATCH, &of(&name), &paused(false)).await?, false)
        }
        AccountCommand::Rotate { name, keep_old, token } => {
            let rotation = Rotation { token: token.read()?, keep_old };
            print_one(&send(server, Method::POST, &format!("{}/rotate", of(&name)), &rotation).await?, false)
        }
        AccountCommand::Remove { name } => {
            server.send(server.request(Method::DELETE, &of(&name), "")).await?;
            print_removed(&name)
        }
    }
}

async fn send(server: &Server, method: Method, path: &str, body: &impl Serialize) -> Result<AccountSummary> {
    let body = serde_json::to_vec(body).context("the request cannot be written")?;
    let request = server.request(method, path, "").header("content-type", "application/json").body(body);
    answer(server.send(request).await?).await
}

async fn answer<T: serde::de::DeserializeOwned>(response: reqwest::Response) -> Result<T> {
    let body = response.bytes().await.context("the server did not finish its answer")?;
    serde_json::from_slice(&body).context("the server answered something else than an account")
}

fn print_removed(name: &str) -> Result<()> {
    print(&format!("{name} is removed\n"))
}

fn print_one(account: &AccountSummary, json: bool) -> Result<()> {
    if json { print_json(account) } else { print_all(std::slice::from_ref(account), false) }
}

fn print_all(accounts: &[AccountSummary], json: bool) -> Result<()> {
    if json {
        return print_json(accounts);
    }
    let head = ["NAME", "FROM", "STATE", "POLICY", "LIMIT", "TOKENS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(accounts.iter().map(row)).collect();
    let widths: Vec<usize> =
        (0..6).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    print(&rows.iter().map(line).collect::<String>())
}

fn row(account: &AccountSummary) -> [String; 6] {
    let origin = match account.origin {
        Origin::Config => "config",
        Origin::Data => "data",
    };
    let limit = match account.limit {
        None => "default".to_owned(),
        Some(0) => "none".to_owned(),
        Some(limit) => format!("{limit}/s"),
    };
    let ends = account.tokens.iter().filter_map(|token| token.until.as_deref()).map(|end| format!(", one until {end}"));
    [
        account.name.clone(),
        origin.to_owned(),
        if account.paused { "paused" } else { "active" }.to_owned(),
        account.policy.clone().unwrap_or_else(|| "default".to_owned()),
        limit,
        format!("{}{}", account.tokens.len(), ends.collect::<String>()),
    ]
}

fn print_json(what: &(impl Serialize + ?Sized)) -> Result<()> {
    let text = serde_json::to_string_pretty(what).context("the answer cannot be written")?;
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
