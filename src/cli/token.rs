//! `counterbat token`: tokens that the console takes.

use super::account;
use crate::console::tokens::Token;
use anyhow::{Context, Result};
use clap::Subcommand;
use std::io::Write;

/// Make tokens for those who may ask the console
#[derive(Debug, clap::Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it, with the line that belongs into the config
    ///
    /// It is a viewer's, who asks SQL and metrics: of all accounts, or of some. --operator makes one that may do everything.
    /// The token is shown this once: it is stored nowhere, and the config has only its SHA-256 and, for clients of PostgreSQL
    /// whose user is NAME and whose password is the token, a verifier of SCRAM-SHA-256. The line goes under [console];
    /// of a further token, what is between the brackets goes into those that are there, after a comma. To take a token back,
    /// remove it from the config. The server reads it when it starts.
    #[command(after_help = "Send it as `authorization: Bearer <token>`:
  curl -H \"authorization: Bearer $TOKEN\" -d '{\"sql\": \"select 1\"}' https://counterbat.example/api/v1/sql
or where [postgres] listen is set:
  psql 'host=counterbat.example port=5433 dbname=counterbat user=NAME' (the token is the password)")]
    New {
        /// What the log calls whoever uses it: 1 to 64 of a-z, 0-9, _ and -
        #[arg(value_name = "NAME", value_parser = account::name)]
        name: String,
        /// Lets it do all that the console offers: import, export, rebuild, verify, redeliver, change accounts
        #[arg(long, conflicts_with = "accounts")]
        operator: bool,
        /// Shows it only rows of these accounts
        #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = account::name)]
        accounts: Vec<String>,
        /// Shows it `events.data`: what users and bots have written
        #[arg(long)]
        data: bool,
        /// As JSON: name, token, sha256, scram, role, accounts and data
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: TokenArgs) -> Result<()> {
    let TokenCommand::New { name, operator, accounts, data, json } = args.command;
    let role = if operator { "operator" } else { "viewer" };
    let token = Token::random();
    let (secret, sha256, scram) = (token.reveal(), hex::encode(token.sha256()), token.scram().to_string());
    let text = if json {
        let told = serde_json::json!({
            "name": name, "token": secret, "sha256": sha256, "scram": scram, "role": role, "accounts": accounts, "data": data
        });
        format!("{told}\n")
    } else {
        eprintln!("The token, shown this once, and what belongs under [console] in the config:");
        let mut rights = format!("role = \"{role}\"");
        if !accounts.is_empty() {
            rights.push_str(&format!(", accounts = {accounts:?}"));
        }
        if data {
            rights.push_str(", data = true");
        }
        format!("{secret}\ntokens = [{{ name = \"{name}\", sha256 = \"{sha256}\", scram = \"{scram}\", {rights} }}]\n")
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
