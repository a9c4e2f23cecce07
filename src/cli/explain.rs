//! `counterbat explain`: what became of an event, a message, a session or a user, and why.

use super::server::Server;
use crate::app::{self, Access};
use crate::config::Config;
use crate::console::explain::Wish;
use crate::explain::words;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::Value;

/// Tell what became of an event, a message, a session or a user, and why
///
/// For each of its events: when it was received, whether it counts, of what it is a copy, which session it was folded into
/// and by which rule, and what Viber reported beside what the rules say. Works on the data directory, or through the server
/// that runs on it. It reads all events of the user.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat explain 6156995993335728388
  counterbat explain --account shop 'dGVzdC11c2VyLTAx=='
  counterbat explain delivered/6156995993335728388/dGVzdC11c2VyLTAx==")]
pub struct ExplainArgs {
    /// How to write it
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// The account, where several know it
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// An event id, a message token, a session id or a user id
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Sentences
    Text,
    /// What `GET /api/v1/explain` answers
    Json,
}

/// Runs the command.
pub async fn run(args: ExplainArgs, config: Config) -> Result<()> {
    let wish = Wish { q: args.id, account: args.account };
    let explanation = match app::access_to_read(&config).await? {
        Access::Server(server) => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            query.append_pair("q", &wish.q).extend_pairs(wish.account.iter().map(|account| ("account", account)));
            let answer = Server::new(&server)?.get("/api/v1/explain", &query.finish()).await?;
            let answer = answer.bytes().await.context("the server did not finish its answer")?;
            serde_json::from_slice(&answer).context("the server answered something strange")?
        }
        Access::Offline(offline) => {
            let explained = offline.explainer().await?.explain(&wish).await;
            offline.stop().await?;
            serde_json::to_value(explained?).context("cannot write it as JSON")?
        }
    };
    match args.format {
        Format::Json => println!("{explanation:#}"),
        Format::Text => print!("{}", text(&explanation)),
    }
    Ok(())
}

/// The sentences in an answer.
fn text(explanation: &Value) -> String {
    let stories = explanation["stories"].as_array().map_or(&[][..], Vec::as_slice);
    let mut text = stories.iter().map(words::of_story).collect::<Vec<_>>().join("\n");
    if let Some(more @ 1..) = explanation["more"].as_u64() {
        text.push_str(&format!("\nand {more} more users: name one of them\n"));
    }
    text
}
