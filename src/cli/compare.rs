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
/// Users by whose rows a partition is cut into slices.
const SAMPLE: u64 = 2_000;

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

    /// Rows of so many numbers.
    async fn numbers<const N: usize>(&self, sql: &str) -> Result<Vec<[u64; N]>> {
        let (_, batches) = self.ask(sql).await?;
        let rows = batches.iter().flat_map(|batch| {
            let number = |row: usize, column: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            (0..batch.num_rows()).map(move |row| std::array::from_fn(|column| number(row, column).unsigned_abs()))
        });
        Ok(rows.collect())
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
        let (rows, slices) = slices(table, comparison, most, asked).await?;
        meter.say(table.as_str());
        meter.set_length(rows);
        let (mut differing, mut shown) = (0, None);
        for (done, slice) in (0u64..).zip(&slices) {
            meter.set_position(rows / slices.len() as u64 * done);
            let counted = asked.numbers(&comparison.count_differing(table, slice)).await?;
            let of_slice: u64 = counted.iter().map(|[differing]| differing).sum();
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

/// How many rows there are, and all users, in slices of about `most` rows each.
async fn slices(table: TableName, comparison: &Comparison, most: u64, asked: &Asked<'_>) -> Result<(u64, Vec<Slice>)> {
    let spread = asked.numbers(&comparison.spread(table)).await?;
    let rows = spread.iter().map(|[_, rows, _]| rows).sum();
    if rows <= most {
        return Ok((rows, vec![Slice::WHOLE]));
    }
    let (mut slices, mut together, mut rows_together) = (Vec::new(), Vec::new(), 0);
    for [partition, rows, users] in spread {
        let partition = u32::try_from(partition).unwrap_or(u32::MAX);
        if rows > most {
            let one_in = (users / SAMPLE).max(1);
            let (_, found) = asked.ask(&comparison.sample(table, partition, one_in)).await?;
            let sample: Vec<(String, u64)> = found.iter().flat_map(sampled).collect();
            slices.extend(Slice::cut(partition, &sample, rows.div_ceil(most)));
            continue;
        }
        if rows_together + rows > most {
            slices.push(Slice::of(std::mem::take(&mut together)));
            rows_together = 0;
        }
        together.push(partition);
        rows_together += rows;
    }
    if !together.is_empty() {
        slices.push(Slice::of(together));
    }
    Ok((rows, slices))
}

fn sampled(batch: &RecordBatch) -> impl Iterator<Item = (String, u64)> {
    let rows = batch.column(1).as_primitive::<Int64Type>().iter().flatten().map(i64::unsigned_abs);
    batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned).zip(rows)
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
