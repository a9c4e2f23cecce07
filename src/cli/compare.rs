//! `counterbat compare`: what two generations make of the same events.

use super::progress::Meter;
use super::server::Server;
use super::sql::{Answered, ask_engine, ask_server, tell_age};
use crate::app::{self, Access};
use crate::config::Config;
use crate::gateway::accounts::AccountSummary;
use crate::lake::TableName;
use crate::query::Engine;
use crate::query::accounts::{NAMED_BY_EVENTS, check};
use crate::query::compare::{Comparison, Slice, order};
use crate::query::output::{Format, Writer};
use anyhow::{Context, Result};
use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{Int64Type, SchemaRef};
use clap::ValueEnum;
use futures::TryStreamExt;
use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Compare the live tables and a generation, or two generations
///
/// Sessions, charged messages, their cost as Viber reports it and what each policy says it is (predicted), by account,
/// country and month under both, then the rows that differ and in what. Messages without a price are missing in the costs,
/// and counted (unpriced). Costs of several currencies have no sum.
/// Large tables are compared some users at a time, so that beside a server that takes in events the parts may be of moments
/// one after another.
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

/// What a row takes of `[sql] memory` while it is joined, with room for what else a query holds.
const ROW_BYTES: u64 = 1024;
/// Partitions of the log.
const PARTITIONS: &str = "select count(*) from partitions";
/// Rows by whose users a partition is cut into slices.
const SAMPLE: u64 = 10_000;

/// Who answers.
enum By<'a> {
    Here(&'a Engine),
    There(&'a Server),
}

/// Whoever answers, and what was said already of the age of its answers.
struct Asked<'a> {
    by: By<'a>,
    told: Mutex<BTreeSet<String>>,
}

type Answer = (SchemaRef, Vec<RecordBatch>);

impl<'a> Asked<'a> {
    fn new(by: By<'a>) -> Self {
        Self { by, told: Mutex::default() }
    }

    async fn ask(&self, sql: &str) -> Result<Answer> {
        let Answered { schema, freshness, rows } = match self.by {
            By::Here(engine) => ask_engine(engine, sql, None).await?,
            By::There(server) => ask_server(server, sql, None).await?,
        };
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(freshness.clone()) {
            tell_age(&freshness);
        }
        Ok((schema, rows.try_collect().await?))
    }

    /// A number, told by a query.
    async fn number(&self, sql: &str) -> Result<u64> {
        let (_, rows) = self.ask(sql).await?;
        let number = rows.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().iter().flatten());
        Ok(number.sum::<i64>().unsigned_abs())
    }
}

/// Runs the command.
pub async fn run(args: CompareArgs, config: Config) -> Result<()> {
    let comparison = Comparison::new(&args.a, &args.b, &args.accounts)?;
    let most = config.sql.memory.0 / ROW_BYTES;
    let text = match app::access_to_read(&config).await? {
        Access::Server(server) => {
            let server = Server::new(&server)?;
            check_accounts(&args.accounts, &config, &server).await?;
            compare(&args, &comparison, most, &Asked::new(By::There(&server))).await?
        }
        Access::Offline(offline) => {
            let engine = offline.engine().await?;
            let text = match offline.directory().await?.check(&args.accounts).await {
                Ok(()) => compare(&args, &comparison, most, &Asked::new(By::Here(&engine))).await,
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
    let (_, named) = Asked::new(By::There(server)).ask(NAMED_BY_EVENTS).await?;
    let names = named.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten());
    known.extend(names.map(str::to_owned));
    Ok(check(wanted, &known)?)
}

/// `most` rows are joined at once.
async fn compare(args: &CompareArgs, comparison: &Comparison, most: u64, asked: &Asked<'_>) -> Result<Vec<u8>> {
    let meter = Meter::of_records(0);
    meter.say("summing up");
    let totals = asked.ask(&comparison.totals()).await?;
    let mut parts = Vec::new();
    for table in [TableName::Sessions, TableName::Messages] {
        let rows = asked.number(&comparison.count(table)).await?;
        let slices = slices(table, rows, comparison, most, asked).await?;
        meter.say(table.as_str());
        meter.set_length(rows);
        let (mut differing, mut shown) = (0, None);
        for (done, slice) in (0u64..).zip(&slices) {
            meter.set_position(rows / slices.len() as u64 * done);
            let of_slice = asked.number(&comparison.count_differing(table, slice)).await?;
            differing += of_slice;
            // Where none does the columns are asked for, once.
            let wanted = args.rows.min(of_slice);
            if wanted > 0 || shown.is_none() {
                let found = asked.ask(&comparison.differing(table, wanted, slice)).await?;
                shown = Some(match shown {
                    None => found,
                    Some(shown) => first(table, args.rows, shown, found)?,
                });
            }
        }
        parts.extend(shown.map(|shown| (table.as_str(), differing, shown)));
    }
    meter.finish();
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
                if (shown as u64) < *differing {
                    writeln!(out, "{shown} of them are shown (--rows)")?;
                }
            }
        }
    }
    Ok(out)
}

/// All users, in slices of about `most` of the `rows` each.
async fn slices(
    table: TableName,
    rows: u64,
    comparison: &Comparison,
    most: u64,
    asked: &Asked<'_>,
) -> Result<Vec<Slice>> {
    if rows <= most {
        return Ok(vec![Slice::WHOLE]);
    }
    let partitions = u32::try_from(asked.number(PARTITIONS).await?).unwrap_or(u32::MAX).max(1);
    let of_partition = rows / u64::from(partitions);
    let mut slices = Vec::new();
    for partition in 0..partitions {
        let (_, sample) = asked.ask(&comparison.sample(table, partition, (of_partition / SAMPLE).max(1))).await?;
        let users = sample.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten());
        let users: Vec<String> = users.map(str::to_owned).collect();
        slices.extend(Slice::of_partition(partition, &users, of_partition.div_ceil(most)));
    }
    Ok(slices)
}

/// The first so many rows of both answers, in their order.
fn first(table: TableName, rows: u64, (schema, one): Answer, (_, other): Answer) -> Result<Answer> {
    let all = concat_batches(&schema, one.iter().chain(&other))?;
    let column = |place: usize| SortColumn { values: all.column(place).clone(), options: None };
    let columns: Vec<SortColumn> = order(table).into_iter().map(column).collect();
    let rows = usize::try_from(rows).unwrap_or(usize::MAX);
    let first = take_record_batch(&all, &lexsort_to_indices(&columns, Some(rows))?)?;
    Ok((schema, vec![first]))
}

fn written(format: Format, (schema, batches): &Answer) -> Result<Vec<u8>> {
    let mut writer = Writer::new(format, schema.clone(), Vec::new())?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.finish()?)
}
