//! `counterbat redeliver`: recorded callbacks to a bot again.

use super::progress::{Meter, count};
use super::server::Server;
use crate::app::{self, Access};
use crate::config::Config;
use crate::console::redeliver::{Progress, Redelivery, Wish};
use crate::event::time::{format_us, parse_time_us};
use anyhow::{Context, Result, bail};

/// Send recorded callbacks to their bot again
///
/// Viber repeats a callback for about an hour and a half; after a longer outage of the bot, its messages are in the log but not with
/// the bot. This sends them once more, in the order in which they were received, with their signatures, to the bot's webhook
/// of now. What a bot answers to conversation_started reaches nobody: the moment for a welcome has passed. Nothing is
/// recorded anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  counterbat redeliver --account shop --from 2026-03-01T08:00:00Z --to 2026-03-01T11:30:00Z")]
pub struct RedeliverArgs {
    /// The bot
    #[arg(long, value_name = "NAME")]
    account: String,
    /// Callbacks received at or after this time (RFC 3339, or a date in UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_time_us)]
    from: i64,
    /// Callbacks received before this time (RFC 3339, or a date in UTC)
    #[arg(long, value_name = "TIME", value_parser = parse_time_us)]
    to: i64,
}

/// Runs the command. Fails when the bot did not take all of them.
pub async fn run(args: RedeliverArgs, config: Config) -> Result<()> {
    let wish = Wish { account: args.account, from: format_us(args.from), to: format_us(args.to) };
    let meter = Meter::of_records(0);
    let show = |progress: Progress| {
        meter.set_length(progress.total);
        meter.set_position(progress.passed());
    };
    let end = match app::access_to_read(&config).await? {
        Access::Server(server) => remote(&Server::new(&server)?, &wish, show).await?,
        Access::Offline(offline) => {
            let engine = offline.engine().await?;
            let mut redelivery = Redelivery::start(&engine, offline.gateway()?, &wish).await?;
            let end = loop {
                let progress = redelivery.step().await?;
                show(progress);
                if progress.done {
                    break progress;
                }
            };
            drop((redelivery, engine));
            offline.stop().await?;
            end
        }
    };
    meter.finish();
    println!("{}", serde_json::to_string(&end)?);
    match end.refused + end.undelivered {
        0 => Ok(()),
        failed => bail!(
            "{} not taken by the bot ({} refused, {} undelivered): mend the bot and send the same again, repeats do no harm to the log",
            count(failed, "callback"),
            end.refused,
            end.undelivered
        ),
    }
}

async fn remote(server: &Server, wish: &Wish, show: impl Fn(Progress)) -> Result<Progress> {
    let body = serde_json::to_vec(wish)?;
    let request = server.request(reqwest::Method::POST, "/api/v1/redeliver", "");
    let request = request.header("content-type", "application/json").body(body);
    let mut response = server.send(request).await?;
    let (mut text, mut last) = (Vec::new(), None);
    while let Some(piece) = response.chunk().await.context("the server stopped in the middle of it")? {
        text.extend_from_slice(&piece);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let progress: Progress = serde_json::from_slice(&line).context("the server answered something strange")?;
            show(progress);
            last = Some(progress);
        }
    }
    last.filter(|progress| progress.done).context("the server stopped in the middle of it")
}
