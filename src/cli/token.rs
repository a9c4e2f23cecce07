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
        /// As JSON: name, token, sha256 and scram
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub fn run(args: TokenArgs) -> Result<()> {
    let TokenCommand::New { name, json } = args.command;
    let token = Token::random();
    let (secret, sha256, scram) = (token.reveal(), hex::encode(token.sha256()), token.scram().to_string());
    let text = if json {
        format!("{}\n", serde_json::json!({ "name": name, "token": secret, "sha256": sha256, "scram": scram }))
    } else {
        eprintln!("The token, shown this once, and what belongs under [console] in the config:");
        format!("{secret}\ntokens = [{{ name = \"{name}\", sha256 = \"{sha256}\", scram = \"{scram}\" }}]\n")
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
