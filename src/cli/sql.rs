//! `counterbat sql`: a query on the data directory, or through the server that runs on it.

use super::server::{Refused, Server};
use crate::console::sql::{ARROW, FRESHNESS};
use crate::event::time::{format_us, parse_time_us};
use crate::lake::AsOf;
use crate::query::freshness::COMPLETE;
use crate::query::output::{Format, Writer};
use crate::query::{Asker, Engine, QueryError};
use anyhow::{Context, Result, anyhow};
use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use clap::ValueEnum;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;

/// Ask the tables in SQL
///
/// Tables: events, sessions, messages, policies, account_policies, partitions. Views: usage_daily, spend_daily,
/// quota_monthly, billing_audit, open_sessions, user_timeline and more; some take an argument, as usage_daily('Europe/Kyiv'). SHOW TABLES and SHOW
/// COLUMNS FROM … describe them. Everything recorded up to now is seen; nothing can be changed. With --at and --version
/// the tables are read as other engines would have read them then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  counterbat sql \"SELECT account, count(*) FROM sessions GROUP BY account\"
  counterbat sql --format parquet --output march.parquet - < march.sql")]
pub struct SqlArgs {
    /// How to write the answer
    #[arg(long, value_enum, default_value = "table")]
    pub format: OutputFormat,
    /// Write the answer to this file, which appears when it is complete, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Read the one table of the query at this version of its Delta log
    #[arg(long, value_name = "N", conflicts_with = "at")]
    pub version: Option<u64>,
    /// Read the tables as they were committed at this time (RFC 3339, or a date in UTC); older versions are kept for a day
    #[arg(long, value_name = "TIME", value_parser = parse_time_us)]
    pub at: Option<i64>,
    /// The query; - reads it from standard input
    #[arg(value_name = "QUERY")]
    pub query: String,
}

/// What `--format` can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table to look at
    Table,
    /// Comma-separated, with a head line
    Csv,
    /// An array of objects
    Json,
    /// An object a line
    Ndjson,
    /// A Parquet file
    Parquet,
}

impl From<OutputFormat> for Format {
    fn from(format: OutputFormat) -> Format {
        match format {
            OutputFormat::Table => Format::Table,
            OutputFormat::Csv => Format::Csv,
            OutputFormat::Json => Format::Json,
            OutputFormat::Ndjson => Format::Ndjson,
            OutputFormat::Parquet => Format::Parquet,
        }
    }
}

impl SqlArgs {
    fn as_of(&self) -> Option<AsOf> {
        self.version.map(AsOf::Version).or(self.at.map(AsOf::At))
    }

    fn sql(&self) -> Result<String> {
        if self.query != "-" {
            return Ok(self.query.clone());
        }
        let mut sql = String::new();
        io::stdin().read_to_string(&mut sql).context("cannot read the query from standard input")?;
        Ok(sql)
    }
}

/// Answers from an engine in this process.
pub async fn run_local(args: SqlArgs, engine: &Engine) -> Result<()> {
    let sql = args.sql()?;
    let Answered { schema, freshness, rows } = ask_engine(engine, &sql, args.as_of()).await?;
    tell_age(&freshness);
    write(&args, schema, rows).await
}

type Rows = BoxStream<'static, Result<RecordBatch>>;

/// An answer as it comes.
pub(super) struct Answered {
    pub schema: SchemaRef,
    /// How old its rows may be, see [`tell_age`].
    pub freshness: String,
    pub rows: Rows,
}

/// Asks an engine in this process.
pub(super) async fn ask_engine(engine: &Engine, sql: &str, at: Option<AsOf>) -> Result<Answered> {
    let answer = engine.query_as_of(sql, at, &Asker::ANYBODY).await;
    let answer = answer.map_err(|error| shown(sql, &error.message(), error.position()))?;
    let (schema, freshness) = (answer.schema(), answer.freshness().header());
    let rows = answer.map_err(|error: QueryError| anyhow!("{error}")).boxed();
    Ok(Answered { schema, freshness, rows })
}

/// Answers through the server that holds the data directory.
pub async fn run_remote(args: SqlArgs, server: &Server) -> Result<()> {
    let sql = args.sql()?;
    let Answered { schema, freshness, rows } = ask_server(server, &sql, args.as_of()).await?;
    tell_age(&freshness);
    write(&args, schema, rows).await
}

/// Asks through the server.
pub(super) async fn ask_server(server: &Server, sql: &str, at: Option<AsOf>) -> Result<Answered> {
    let body = match at {
        None => json!({ "sql": sql }),
        Some(AsOf::Version(version)) => json!({ "sql": sql, "version": version }),
        Some(AsOf::At(us)) => json!({ "sql": sql, "at": format_us(us) }),
    };
    let request = server
        .request(Method::POST, "/api/v1/sql", "")
        .header("accept", ARROW)
        .header("content-type", "application/json")
        .body(body.to_string());
    let response = server.send(request).await.map_err(|error| match error.downcast::<Refused>() {
        Ok(refused) => shown(sql, &refused.detail, refused.position),
        Err(error) => error,
    })?;
    let freshness =
        response.headers().get(FRESHNESS).and_then(|told| told.to_str().ok()).unwrap_or(COMPLETE).to_owned();
    let (schema, rows) = decoded(Box::pin(response.bytes_stream())).await?;
    Ok(Answered { schema, freshness, rows: rows.boxed() })
}

/// Says where, by the header [`FRESHNESS`] of an answer, the newest rows of some partitions are missing.
pub(super) fn tell_age(freshness: &str) {
    if freshness != COMPLETE {
        eprintln!("some rows are older than what was recorded: {freshness}");
    }
}

/// An error with the line of the query it is about and a mark under the place.
fn shown(sql: &str, message: &str, position: Option<(u64, u64)>) -> anyhow::Error {
    let Some((line, column)) = position else { return anyhow!("{message}") };
    let nth = |number: u64| usize::try_from(number).ok()?.checked_sub(1);
    let place = format!("{message} (line {line}, column {column})");
    match nth(line).and_then(|line| sql.lines().nth(line)).zip(nth(column)) {
        Some((text, column)) if column <= text.chars().count() => {
            let indent: String = text.chars().take(column).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            anyhow!("{place}\n  {text}\n  {indent}^")
        }
        _ => anyhow!("{place}"),
    }
}

/// The columns and the batches of an Arrow stream that arrives in pieces.
async fn decoded<S, B, E>(mut pieces: S) -> Result<(SchemaRef, impl Stream<Item = Result<RecordBatch>>)>
where
    S: Stream<Item = Result<B, E>> + Unpin,
    B: Into<bytes::Bytes>,
    E: std::error::Error + Send + Sync + 'static,
{
    const BROKEN: &str = "the server broke off its answer";
    let mut decoder = StreamDecoder::new();
    let mut buffer = Buffer::from(Vec::<u8>::new());
    let mut first = None;
    while decoder.schema().is_none() && first.is_none() {
        let piece = pieces.next().await.context(BROKEN)?.context(BROKEN)?;
        // What is left of the piece before belongs to a message whose rest is in this one; the decoder holds that part.
        buffer = Buffer::from(piece.into());
        first = decoder.decode(&mut buffer).context(BROKEN)?;
    }
    let schema = decoder.schema().context(BROKEN)?;
    let state = (pieces, decoder, buffer, first);
    let batches = stream::try_unfold(state, |(mut pieces, mut decoder, mut buffer, mut first)| async move {
        loop {
            if let Some(batch) = first.take() {
                return Ok(Some((batch, (pieces, decoder, buffer, first))));
            }
            first = decoder.decode(&mut buffer).context(BROKEN)?;
            if first.is_none() {
                match pieces.next().await {
                    Some(piece) => buffer = Buffer::from(piece.context(BROKEN)?.into()),
                    None => {
                        decoder.finish().context(BROKEN)?;
                        return Ok(None);
                    }
                }
            }
        }
    });
    Ok((schema, batches))
}

async fn write(args: &SqlArgs, schema: SchemaRef, rows: impl Stream<Item = Result<RecordBatch>>) -> Result<()> {
    match &args.output {
        None => {
            let out = BufWriter::new(io::stdout());
            let written = write_to(args.format, schema, rows, out).await;
            match written {
                // Whoever read has seen enough, as `head` does.
                Err(error) if is_broken_pipe(&error) => Ok(()),
                written => written.map(drop),
            }
        }
        Some(path) => {
            let partial = Partial::create(path)?;
            let file = partial.file.try_clone().context("cannot write")?;
            write_to(args.format, schema, rows, BufWriter::new(file)).await?;
            partial.complete()
        }
    }
}

async fn write_to<W: Write + Send>(
    format: OutputFormat,
    schema: SchemaRef,
    rows: impl Stream<Item = Result<RecordBatch>>,
    out: W,
) -> Result<W> {
    let mut rows = pin!(rows);
    let mut writer = Writer::new(format.into(), schema, out).context("cannot write")?;
    while let Some(batch) = rows.try_next().await? {
        writer.write(&batch).context("cannot write")?;
    }
    writer.finish().context("cannot write")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}

/// A file that gets its name when it is complete, and is removed when it does not become so.
struct Partial {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    complete: bool,
}

impl Partial {
    fn create(path: &Path) -> Result<Partial> {
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(hidden);
        let file = File::create(&partial).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Partial { file, partial, path: path.to_owned(), complete: false })
    }

    fn complete(mut self) -> Result<()> {
        let done = self.file.sync_all().and_then(|()| fs::rename(&self.partial, &self.path));
        done.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            // What fails here leaves a hidden file beside the one asked for, no more.
            fs::remove_file(&self.partial).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::ServerInfo;
    use crate::console::tokens::Token;
    use crate::query::tests::engine;
    use std::sync::Arc;

    async fn serve() -> Server {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = crate::console::sql::router(Arc::new(engine()));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let (console, token) = (format!("http://{address}"), Token::random());
        Server::new(&ServerInfo { console, gateway: None, postgres: None, pid: 0, token }).unwrap()
    }

    fn args(format: OutputFormat, output: &Path, query: &str) -> SqlArgs {
        SqlArgs { format, output: Some(output.to_owned()), version: None, at: None, query: query.to_owned() }
    }

    #[tokio::test]
    async fn near_and_far_give_the_same() {
        let (dir, server, engine) = (tempfile::tempdir().unwrap(), serve().await, engine());
        let sql = "SELECT * FROM sessions ORDER BY session_id";
        for format in [OutputFormat::Table, OutputFormat::Csv, OutputFormat::Json, OutputFormat::Ndjson] {
            let (near, far) = (dir.path().join("near"), dir.path().join("far"));
            run_local(args(format, &near, sql), &engine).await.unwrap();
            run_remote(args(format, &far, sql), &server).await.unwrap();
            let near = fs::read_to_string(near).unwrap();
            assert!(near.contains("18446744073709551615"), "{near}");
            assert_eq!(near, fs::read_to_string(far).unwrap());
        }
        let none = "SELECT * FROM sessions WHERE false";
        run_remote(args(OutputFormat::Json, &dir.path().join("none"), none), &server).await.unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("none")).unwrap(), "[]\n");
    }

    #[tokio::test]
    async fn errors_show_the_place_and_leave_no_file() {
        let (dir, server, engine) = (tempfile::tempdir().unwrap(), serve().await, engine());
        let file = dir.path().join("answer");
        let wrong = || args(OutputFormat::Csv, &file, "SELECT account,\n  usr_id FROM sessions");
        let near = run_local(wrong(), &engine).await.unwrap_err().to_string();
        let far = run_remote(wrong(), &server).await.unwrap_err().to_string();
        assert!(near.ends_with("(line 2, column 3)\n    usr_id FROM sessions\n    ^"), "{near}");
        assert_eq!(near, far);
        let broken = "SELECT 1 / (inbound - inbound) FROM sessions";
        run_local(args(OutputFormat::Csv, &file, broken), &engine).await.unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_console_negotiates_and_explains() {
        let server = serve().await;
        let ask = async |accept: &str, body: &str| {
            let request = server.request(Method::POST, "/api/v1/sql", "");
            let response = request.header("accept", accept).body(body.to_owned()).send().await.unwrap();
            let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
            (response.status().as_u16(), kind, response.text().await.unwrap())
        };
        let one = r#"{"sql":"SELECT 1 AS a"}"#;
        let answer = |kind: &str, text: &str| (200, kind.to_owned(), text.to_owned());
        assert_eq!(ask("*/*", one).await, answer("application/json", "[{\"a\":1}]\n"));
        assert_eq!(ask("text/html, text/*;q=0.5", one).await, answer("text/csv", "a\n1\n"));
        assert_eq!(ask("application/x-ndjson", one).await, answer("application/x-ndjson", "{\"a\":1}\n"));
        for (accept, body, status) in [
            ("text/html", one, 406),
            ("*/*", "SELECT 1", 400),
            ("*/*", r#"{"sql":"SELEC 1"}"#, 400),
            ("*/*", r#"{"sql":"DROP TABLE events"}"#, 403),
            ("*/*", r#"{"sql":"SELECT x"}"#, 422),
        ] {
            let (got, kind, text) = ask(accept, body).await;
            assert_eq!((got, kind.as_str()), (status, "application/problem+json"), "{body}: {text}");
        }
        let (_, _, text) = ask("*/*", r#"{"sql":"SELECT\n  x FROM events"}"#).await;
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&problem["line"], &problem["column"]), (&2.into(), &3.into()), "{text}");
    }
}
