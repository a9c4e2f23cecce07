//! One client's session: its statements, settings and cursors.

use super::Server;
use super::answer::{self, Cursor};
use super::cancel::Interrupt;
use super::command::Command;
use super::copy::{Copied, Copy};
use super::error::{error, of_query, state};
use super::parameters::{self, Parameter};
use super::scram::Challenge;
use super::settings::Settings;
use super::types::{MOST_COLUMNS, fields};
use super::words::{Word, statements};
use crate::query::prepared::{Prepared, asks_catalog};
use crate::query::{Asker, QueryError, QueryStream, is_name_of_ours};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use datafusion::common::ScalarValue;
use pgwire::api::portal::{Format, Portal};
use pgwire::api::results::{FieldInfo, QueryResponse, Tag};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{MemPortalStore, PortalStore};
use pgwire::api::{ClientInfo, METADATA_APPLICATION_NAME, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::response::TransactionStatus;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A statement that was read.
#[derive(Debug, Clone)]
pub struct Statement {
    pub command: Command,
    /// What the engine is to answer.
    query: Arc<str>,
    /// Characters before it in what the client sent, where it is a part of that.
    before: Option<usize>,
    /// Where it was looked through before it is run.
    prepared: Option<Arc<Prepared>>,
}

impl Statement {
    /// The setting that it changes.
    pub fn sets(&self) -> Option<&str> {
        match &self.command {
            Command::Set { name, .. } | Command::Reset(Some(name)) => Some(name),
            _ => None,
        }
    }
}

/// What came of a statement.
pub enum Done {
    Rows(QueryResponse),
    Copy(Copy),
    Tag(Tag),
    /// And how the session stands to transactions from then on.
    Status(Tag, TransactionStatus),
}

/// Cursors that a client may have open.
const MOST_CURSORS: usize = 100;

/// How far a client has come in being let in.
#[derive(Debug, Clone, Default)]
pub enum Login {
    #[default]
    Started,
    Asked(Box<Challenge>),
}

/// What is known of a client.
pub struct Session {
    pub server: Arc<Server>,
    pub login: Mutex<Login>,
    /// The name of the token it came in by.
    pub token: Mutex<Option<String>>,
    /// As whom it asks.
    pub asker: Mutex<Arc<Asker>>,
    settings: Mutex<Settings>,
    cursors: Mutex<HashMap<String, Cursor>>,
    pub cancelled: watch::Sender<()>,
    pub pid: Mutex<Option<i32>>,
}

/// What it guards is whole whatever happened to who held it: nothing is done to it in several steps.
pub fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(pid) = *held(&self.pid) {
            self.server.cancels.remove(pid);
        }
    }
}

impl Session {
    pub fn new(server: Arc<Server>) -> Self {
        Self {
            server,
            login: Mutex::default(),
            token: Mutex::default(),
            asker: Mutex::new(Arc::new(Asker::ANYBODY)),
            settings: Mutex::default(),
            cursors: Mutex::default(),
            cancelled: watch::Sender::new(()),
            pid: Mutex::default(),
        }
    }

    /// Reads the statements of a text, and looks none of them through.
    pub fn read(sql: &str) -> PgWireResult<Vec<Statement>> {
        statements(sql).iter().map(|words| Self::statement(sql, words)).collect()
    }

    fn statement(sql: &str, words: &[Word]) -> PgWireResult<Statement> {
        let command = Command::of(sql, words)?;
        let characters = |start: usize| sql[..start].chars().count();
        if let Command::Copy(Copied { query, start, .. }) = &command {
            let (query, before) = (query.as_str().into(), start.map(characters));
            return Ok(Statement { command, query, before, prepared: None });
        }
        let start = match &command {
            Command::Declare { query, .. } => *query,
            _ => words.first().map_or(0, |word| word.start),
        };
        let end = words.last().map_or(sql.len(), |word| word.end);
        Ok(Statement { command, query: sql[start..end].into(), before: Some(characters(start)), prepared: None })
    }

    /// Sets what a client sends at its start, as far as that is known here.
    pub fn set_at_start(&self, name: &str, value: &str) -> PgWireResult<()> {
        held(&self.settings).start(name, value)
    }

    /// The value of a setting, for telling it the client.
    pub fn setting(&self, name: &str) -> Option<(&'static str, String)> {
        held(&self.settings).get(name).ok()
    }

    /// The error of a query of this client; the log is told where it is one of the catalog.
    fn failed(&self, application: &str, statement: &Statement, failed: &QueryError) -> PgWireError {
        let told = of_query(failed, &statement.query, statement.before);
        let is_ours = matches!(failed, QueryError::Refused(_) | QueryError::Timeout(_) | QueryError::Limit(_));
        if !is_ours && asks_catalog(&statement.query) && !names_tables(&statement.query) {
            self.server.tell_unknown(application, &statement.query, &told);
        }
        told
    }

    async fn ask(
        &self,
        application: &str,
        statement: &Statement,
        values: Vec<ScalarValue>,
        interrupt: &mut Interrupt,
    ) -> PgWireResult<QueryStream> {
        let (engine, asker) = (&self.server.engine, held(&self.asker).clone());
        interrupt
            .or(async {
                let answer = match &statement.prepared {
                    Some(prepared) => engine.answer(prepared, values, &asker).await,
                    None => engine.ask(&statement.query, &asker).await,
                };
                let answer = answer.map_err(|failed| self.failed(application, statement, &failed))?;
                bounded(&answer.schema())?;
                Ok(answer)
            })
            .await
    }

    /// Runs a statement. What it leaves to be described goes into `portals`.
    pub async fn run(
        &self,
        statement: &Statement,
        values: Vec<ScalarValue>,
        format: &Format,
        status: TransactionStatus,
        application: &str,
        portals: Option<&MemPortalStore<Statement>>,
    ) -> PgWireResult<Done> {
        let ends = matches!(statement.command, Command::Commit | Command::Rollback | Command::RollbackToSavepoint);
        if status == TransactionStatus::Error && !ends {
            let ignored = "current transaction is aborted, commands ignored until end of transaction block";
            return Err(error(state::FAILED_TRANSACTION, ignored));
        }
        let timeout = held(&self.settings).statement_timeout();
        let mut interrupt = Interrupt::new(&self.cancelled, timeout);
        let done = |tag: &str| Ok(Done::Tag(Tag::new(tag)));
        let to = |tag: &str, status| Ok(Done::Status(Tag::new(tag), status));
        match &statement.command {
            Command::Query => {
                self.tell(application);
                let answer = self.ask(application, statement, values, &mut interrupt).await?;
                Ok(Done::Rows(answer::response(answer, self.schema(statement), format, interrupt)))
            }
            Command::Copy(Copied { form, .. }) => {
                self.tell(application);
                let answer = self.ask(application, statement, values, &mut interrupt).await?;
                Ok(Done::Copy(Copy::new(answer, *form, interrupt)))
            }
            Command::Begin => to("BEGIN", TransactionStatus::Transaction),
            Command::Commit | Command::Rollback => {
                held(&self.cursors).retain(|_, cursor| cursor.holds);
                if let Some(portals) = portals {
                    portals.clear_portals();
                }
                let failed = status == TransactionStatus::Error || statement.command == Command::Rollback;
                to(if failed { "ROLLBACK" } else { "COMMIT" }, TransactionStatus::Idle)
            }
            Command::RollbackToSavepoint | Command::Savepoint(_) if status == TransactionStatus::Idle => {
                Err(error(state::NO_TRANSACTION, "savepoints are for transaction blocks"))
            }
            Command::RollbackToSavepoint => to("ROLLBACK", TransactionStatus::Transaction),
            Command::Savepoint(verb) => done(verb),
            Command::Set { name, value } => {
                held(&self.settings).set(name, value.clone())?;
                done("SET")
            }
            Command::SetTransaction => done("SET"),
            Command::Show(name) => self.show(name, format),
            Command::Reset(name) => {
                match name {
                    Some(name) => held(&self.settings).set(name, None)?,
                    None => held(&self.settings).reset(),
                }
                done("RESET")
            }
            Command::Discard => {
                held(&self.settings).reset();
                held(&self.cursors).clear();
                done("DISCARD ALL")
            }
            Command::Deallocate(name) => {
                if let (Some(portals), Some(name)) = (portals, name) {
                    portals.rm_statement(name);
                }
                done("DEALLOCATE")
            }
            Command::Unlisten => done("UNLISTEN"),
            Command::Declare { name, holds, .. } => {
                if held(&self.cursors).contains_key(name) {
                    return Err(error(state::CURSOR_EXISTS, format!("cursor \"{name}\" already exists")));
                }
                if held(&self.cursors).len() == MOST_CURSORS {
                    return Err(error(state::LIMIT, format!("there are {MOST_CURSORS} cursors open, the limit")));
                }
                self.tell(application);
                let answer = self.ask(application, statement, values, &mut interrupt).await?;
                held(&self.cursors).insert(name.clone(), Cursor::new(answer, *holds));
                if let Some(portals) = portals {
                    let own = Arc::new(StoredStatement::new(name.clone(), statement.clone(), Vec::new()));
                    portals.put_portal(Arc::new(Portal::new_cursor(name.clone(), own)));
                }
                done("DECLARE CURSOR")
            }
            Command::Fetch { cursor, rows, wanted } => {
                // Held by nobody else meanwhile: a client sends one statement at a time.
                let mut open = held(&self.cursors).remove(cursor).ok_or_else(|| no_cursor(cursor))?;
                self.tell(application);
                // Rows that were on their way at an error are lost, and the cursor with them: it must not go on behind a gap.
                let (fields, rows) = open.fetch(*rows, format, &mut interrupt).await?;
                held(&self.cursors).insert(cursor.clone(), open);
                match wanted {
                    true => Ok(Done::Rows(answer::known(fields, rows, "FETCH"))),
                    false => Ok(Done::Tag(Tag::new("MOVE").with_rows(rows.len()))),
                }
            }
            Command::Close(name) => {
                match name {
                    Some(name) => {
                        held(&self.cursors).remove(name).ok_or_else(|| no_cursor(name))?;
                        if let Some(portals) = portals {
                            portals.rm_portal(name);
                        }
                    }
                    None => held(&self.cursors).clear(),
                }
                done("CLOSE CURSOR")
            }
        }
    }

    /// The log is told of everybody who asks with a token, as that of the console is.
    fn tell(&self, application: &str) {
        if let Some(token) = &*held(&self.token) {
            tracing::info!(target: "counterbat::access", token, application, "asked");
        }
    }

    fn show(&self, name: &str, format: &Format) -> PgWireResult<Done> {
        let mut shown = Vec::new();
        if name.eq_ignore_ascii_case("all") {
            shown.extend(crate::query::SETTINGS.iter().filter_map(|(name, _)| self.setting(name)));
        } else {
            shown.push(held(&self.settings).get(name)?);
        }
        let schema = Arc::new(show_schema(name));
        let columns: Vec<ArrayRef> = match schema.fields().len() {
            1 => vec![Arc::new(StringArray::from_iter_values(shown.into_iter().map(|(_, value)| value)))],
            _ => {
                let (names, values): (Vec<&str>, Vec<String>) = shown.into_iter().unzip();
                vec![Arc::new(StringArray::from(names)), Arc::new(StringArray::from(values))]
            }
        };
        let fields = fields(&schema, format);
        let broken = |failed: arrow::error::ArrowError| error(state::INTERNAL, failed.to_string());
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(broken)?;
        let columns = super::values::Columns::new(&schema, &batch, &fields).map_err(broken)?;
        let rows: Result<Vec<_>, _> = (0..batch.num_rows()).map(|row| columns.row(row)).collect();
        Ok(Done::Rows(answer::known(fields, rows.map_err(broken)?, "SHOW")))
    }

    /// The columns of what a statement answers.
    fn schema(&self, statement: &Statement) -> Option<Arc<Schema>> {
        match &statement.command {
            Command::Query => statement.prepared.as_ref().map(|prepared| prepared.schema.clone()),
            // Of one that is open: it is described as a portal of its own.
            Command::Declare { name, .. } => held(&self.cursors).get(name).map(|cursor| cursor.schema.clone()),
            Command::Fetch { cursor, wanted: true, .. } => {
                held(&self.cursors).get(cursor).map(|cursor| cursor.schema.clone())
            }
            Command::Show(name) => Some(Arc::new(show_schema(name))),
            _ => None,
        }
    }

    /// The values that a portal was bound with.
    pub fn values(portal: &Portal<Statement>) -> PgWireResult<Vec<ScalarValue>> {
        let statement = &portal.statement;
        let wanted = statement.statement.prepared.as_ref().map(|prepared| prepared.parameters.as_slice());
        let wanted = wanted.unwrap_or_default();
        if portal.parameters.len() < wanted.len() {
            let (given, wanted) = (portal.parameters.len(), wanted.len());
            return Err(error(state::PROTOCOL, format!("{given} parameters are given, {wanted} are needed")));
        }
        let value = |(index, bytes): (usize, &Option<bytes::Bytes>)| {
            let is_binary = match &portal.parameter_format {
                Format::UnifiedText => false,
                Format::UnifiedBinary => true,
                Format::Individual(formats) => formats.get(index) == Some(&1),
            };
            let parameter = Parameter {
                number: index + 1,
                declared: statement.parameter_types.get(index).and_then(Option::as_ref),
                wanted: wanted.get(index).and_then(Option::as_ref),
            };
            let value = parameter.value(bytes.as_deref(), is_binary);
            value.map_err(|unfit| error(state::BAD_TEXT, unfit.to_string()))
        };
        portal.parameters.iter().enumerate().map(value).collect()
    }
}

/// Refuses an answer with more columns than the protocol has room for.
fn bounded(schema: &Schema) -> PgWireResult<()> {
    match schema.fields().len() {
        columns if columns <= MOST_COLUMNS => Ok(()),
        columns => {
            Err(error(state::TOO_MANY_COLUMNS, format!("an answer has {MOST_COLUMNS} columns at most, not {columns}")))
        }
    }
}

/// Whether it may read a table of ours: then its text may have somebody's data in it.
fn names_tables(sql: &str) -> bool {
    let names = |word: &Word| word.name().is_some_and(is_name_of_ours);
    statements(sql).iter().any(|words| words.iter().any(names))
}

fn no_cursor(name: &str) -> PgWireError {
    error(state::NO_CURSOR, format!("cursor \"{name}\" does not exist"))
}

fn show_schema(name: &str) -> Schema {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    if name.eq_ignore_ascii_case("all") {
        return Schema::new(vec![text("name"), text("setting")]);
    }
    Schema::new(vec![text(name)])
}

#[async_trait]
impl QueryParser for Session {
    type Statement = Statement;

    async fn parse_sql<C>(&self, client: &C, sql: &str, types: &[Option<Type>]) -> PgWireResult<Option<Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let application = client.metadata().get(METADATA_APPLICATION_NAME).map_or("", String::as_str);
        let mut read = Self::read(sql).inspect_err(|_| self.tell(application))?;
        let Some(mut statement) = read.pop() else { return Ok(None) };
        if !read.is_empty() {
            return Err(error(state::SYNTAX, "cannot insert multiple commands into a prepared statement"));
        }
        if matches!(statement.command, Command::Query | Command::Declare { .. }) {
            let mut interrupt = Interrupt::new(&self.cancelled, None);
            let declared = types.iter().map(|declared| declared.as_ref().and_then(parameters::natural)).collect();
            let asker = held(&self.asker).clone();
            let prepare = async {
                let prepared = self.server.engine.prepare(&statement.query, declared, &asker).await;
                let prepared = prepared.map_err(|failed| self.failed(application, &statement, &failed))?;
                bounded(&prepared.schema)?;
                Ok(prepared)
            };
            // One that goes on is told of when it runs.
            let prepared = interrupt.or(prepare).await.inspect_err(|_| self.tell(application))?;
            statement.prepared = Some(Arc::new(prepared));
        }
        Ok(Some(statement))
    }

    fn get_parameter_types(&self, statement: &Statement) -> PgWireResult<Vec<Type>> {
        let parameters = statement.prepared.as_ref().map(|prepared| prepared.parameters.as_slice());
        Ok(parameters.unwrap_or_default().iter().map(|wanted| parameters::told(wanted.as_ref())).collect())
    }

    fn get_result_schema(&self, statement: &Statement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        let schema = self.schema(statement);
        Ok(schema.map_or_else(Vec::new, |schema| fields(&schema, format.unwrap_or(&Format::UnifiedText))))
    }
}
