//! `counterbat compare`: what two generations make of the same events.

use super::server::Server;
use super::sql::{ask_engine, ask_server};
use crate::app::{self, Access};
use crate::config::Config;
use crate::gateway::accounts::AccountSummary;
use crate::lake::TableName;
use crate::query::Engine;
use crate::query::accounts::{NAMED_BY_EVENTS, check};
use crate::query::compare::Comparison;
use crate::query::output::{Format, Writer};
use anyhow::{Context, Result};
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use clap::ValueEnum;
use futures::TryStreamExt;
use std::collections::BTreeSet;
use std::io::Write;

/// Compare the live tables and a generation, or two generations
///
/// Sessions, charged messages, their cost as Viber reports it and what each policy says it is (predicted), by account,
/// country and month under both, then the rows that differ and in what. Messages without a price are missing in the costs,
/// and counted (unpriced). Costs of several currencies have no sum.
/// `live` are the live tables; generations are made by `counterbat rebuild --as NAME`. A generation holds the events up to
/// when it was made.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat compare live march_v2
  counterbat compare live march_v2 --accounts shop --rows 100 --format json")]
pub struct CompareArgs {
    /// One side: `live` or a generation
    a: String,
    /// The other side
    b: String,
    /// Only these accounts
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    accounts: Vec<String>,
    /// How to write it; in csv the parts are separated by an empty line
    #[arg(long, value_enum, default_value = "table")]
    format: CompareFormat,
    /// Show so many of the differing rows of each table
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompareFormat {
    /// Tables to look at
    Table,
    /// Comma-separated, each part with a head line
    Csv,
    /// One object
    Json,
}

/// Who answers.
enum Asked<'a> {
    Here(&'a Engine),
    There(&'a Server),
}

type Answer = (SchemaRef, Vec<RecordBatch>);

impl Asked<'_> {
    async fn ask(&self, sql: &str) -> Result<Answer> {
        let (schema, rows) = match self {
            Asked::Here(engine) => ask_engine(engine, sql, None).await?,
            Asked::There(server) => ask_server(server, sql, None).await?,
        };
        Ok((schema, rows.try_collect().await?))
    }
}

/// Runs the command.
pub async fn run(args: CompareArgs, config: Config) -> Result<()> {
    let comparison = Comparison::new(&args.a, &args.b, &args.accounts)?;
    let text = match app::access_to_read(&config).await? {
        Access::Server(server) => {
            let server = Server::new(&server)?;
            check_accounts(&args.accounts, &config, &server).await?;
            compare(&args, &comparison, &Asked::There(&server)).await?
        }
        Access::Offline(offline) => {
            let engine = offline.engine().await?;
            let text = match offline.directory().await?.check(&args.accounts).await {
                Ok(()) => compare(&args, &comparison, &Asked::Here(&engine)).await,
                Err(error) => Err(error.into()),
            };
            drop(engine);
            offline.stop().await?;
            text?
        }
    };
    std::io::stdout().write_all(&text).context("cannot write to standard output")
}

/// Refuses a name that no account of the server has.
async fn check_accounts(wanted: &[String], config: &Config, server: &Server) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut known: BTreeSet<String> = config.accounts.iter().map(|account| account.name.clone()).collect();
    // One that is no gateway does not know those added at run time.
    if let Ok(answer) = server.get("/api/v1/accounts", "").await {
        let answer = answer.bytes().await.context("the server did not finish its answer")?;
        let added: Vec<AccountSummary> =
            serde_json::from_slice(&answer).context("the server answered something strange")?;
        known.extend(added.into_iter().map(|account| account.name));
    }
    let (_, named) = Asked::There(server).ask(NAMED_BY_EVENTS).await?;
    let names = named.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten());
    known.extend(names.map(str::to_owned));
    Ok(check(wanted, &known)?)
}

async fn compare(args: &CompareArgs, comparison: &Comparison, asked: &Asked<'_>) -> Result<Vec<u8>> {
    let totals = asked.ask(&comparison.totals()).await?;
    let mut parts = Vec::new();
    for table in [TableName::Sessions, TableName::Messages] {
        let (_, counted) = asked.ask(&comparison.count_differing(table)).await?;
        let count = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().iter().flatten().sum::<i64>();
        let differing: i64 = counted.iter().map(count).sum();
        parts.push((table.as_str(), differing, asked.ask(&comparison.differing(table, args.rows)).await?));
    }
    let mut out = Vec::new();
    match args.format {
        CompareFormat::Json => {
            write!(out, "{{\"a\":{:?},\"b\":{:?},\"totals\":", args.a, args.b)?;
            out.extend(written(Format::Json, &totals)?.trim_ascii_end());
            for (name, differing, rows) in &parts {
                write!(out, ",\"{name}\":{{\"differing\":{differing},\"rows\":")?;
                out.extend(written(Format::Json, rows)?.trim_ascii_end());
                out.push(b'}');
            }
            out.extend(b"}\n");
        }
        CompareFormat::Csv => {
            out.extend(written(Format::Csv, &totals)?);
            for (_, _, rows) in &parts {
                out.push(b'\n');
                out.extend(written(Format::Csv, rows)?);
            }
        }
        CompareFormat::Table => {
            writeln!(out, "a is {}, b is {}; sessions opened and messages sent in a month", args.a, args.b)?;
            out.extend(written(Format::Table, &totals)?);
            for (name, differing, rows) in &parts {
                let shown: usize = rows.1.iter().map(RecordBatch::num_rows).sum();
                writeln!(out, "\n{name} that differ: {differing}")?;
                if shown > 0 {
                    out.extend(written(Format::Table, rows)?);
                }
                if (shown as i64) < *differing {
                    writeln!(out, "{shown} of them are shown (--rows)")?;
                }
            }
        }
    }
    Ok(out)
}

fn written(format: Format, (schema, batches): &Answer) -> Result<Vec<u8>> {
    let mut writer = Writer::new(format, schema.clone(), Vec::new())?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.finish()?)
}
