//! Plans and runs queries: one picture each, within limits.

use super::calendar::{Calendar, Part};
use super::catalog::{PG_CATALOG, Postgres};
use super::error::{QueryError, distance};
use super::freshness::Freshness;
use super::functions::{DeliveryWindow, IntervalTimes, PartitionOf, SliceOf, UnsignedToken};
use super::generations::{self, Generations};
use super::guard;
use super::numbers;
use super::patterns;
use super::reference::{ACCOUNT_POLICIES, PARTITIONS, POLICIES, Reference};
use super::sight::{Asker, Sight};
use super::table::{PictureTable, Place};
use super::table_functions;
use super::tame;
use super::users::UserFilters;
use super::views::{VIEWS, View};
use super::workers::{Work, Workers};
use crate::lake::picture::TableView;
use crate::lake::{AsOf, FileEntry, Kept, TableName};
use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
    SchemaProvider,
};
use datafusion::common::TableReference;
use datafusion::datasource::ViewTable;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionConfig};
use datafusion::sql::parser::Statement;
use futures::{Stream, StreamExt, stream};
use object_store::ObjectStore;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// Tables of one moment.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    pub tables: BTreeMap<TableName, TableView>,
    pub freshness: Freshness,
    /// The committed watermark of each partition (ms), where `events` is among the tables.
    pub watermarks_ms: Vec<Option<i64>>,
}

/// Where the tables come from.
#[async_trait]
pub trait Pictures: Send + Sync {
    /// One consistent picture of `tables`, with everything appended up to now, or what of it can be had.
    async fn take(&self, tables: &[TableName]) -> Result<Picture, String>;
    /// The tables as they were committed, with nothing laid over them.
    async fn take_past(&self, _tables: &[TableName], _at: AsOf) -> Result<Picture, QueryError> {
        Err(QueryError::Past("these tables have no older versions".to_owned()))
    }
    /// The generation of this name, `None` where none is kept under it.
    async fn generation(&self, _name: &str) -> Result<Option<Kept>, String> {
        Ok(None)
    }
    /// The names of all that are kept.
    async fn generations(&self) -> Result<Vec<String>, String> {
        Ok(Vec::new())
    }
    /// How many the log has: with a user's key they tell in which files the user's sessions and messages are.
    fn partitions(&self) -> u32;
    /// The columns of a table.
    fn schema(&self, table: TableName) -> SchemaRef;
    /// The object store the files lie in, and the URL to register it under (scheme and host).
    fn object_store(&self) -> (url::Url, Arc<dyn ObjectStore>);
    /// Where a file lies in that store.
    fn location(&self, table: TableName, file: &FileEntry) -> object_store::path::Path;
}

/// How much a query may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of an answer. More is an error, never a shorter answer.
    pub max_rows: u64,
    /// Working time of a query; waiting for whoever reads the answer does not count.
    pub timeout: Duration,
    /// Memory of all queries together for sorting, grouping and joining; beyond it they spill to disk or fail.
    pub memory_bytes: usize,
}

/// Answers SQL, on threads of its own: an expensive query does not hold up whoever else works in this process, and its
/// time limit is kept even while it computes without pause.
pub struct Engine {
    pub(super) planner: Arc<Planner>,
    workers: Workers,
}

pub(super) struct Planner {
    pub source: Arc<dyn Pictures>,
    limits: Limits,
    pub own: Surroundings,
    /// Made for the first who speaks PostgreSQL.
    pub postgres: OnceCell<Postgres>,
    pub reference: Reference,
    pub store: ObjectStoreUrl,
    pub users: Arc<UserFilters>,
}

/// What a query finds beside the tables.
pub(super) struct Surroundings {
    /// Functions and settings.
    pub base: SessionState,
    /// The catalog that clients of PostgreSQL ask.
    pub pg_catalog: Option<Arc<dyn SchemaProvider>>,
}

/// As of when the tables are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Now,
    Then(AsOf),
    /// Not at all: only the columns are asked for.
    Never,
}

impl At {
    fn of(past: Option<AsOf>) -> Self {
        past.map_or(At::Now, At::Then)
    }
}

/// An answer: its columns, then its rows as they are found. Dropping it ends the query.
pub struct QueryStream {
    schema: SchemaRef,
    freshness: Freshness,
    batches: stream::BoxStream<'static, Result<RecordBatch, QueryError>>,
}

impl QueryStream {
    /// The columns of the answer.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// How new the rows are that it was made from.
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.batches.as_mut().poll_next(context)
    }
}

const NOT_KNOWN_THEN: &str = "the tables are not known as they were then";
pub(super) const CATALOG: &str = "counterbat";
pub(super) const SCHEMA: &str = "public";
pub(super) const TABLES: [TableName; 3] = [TableName::Events, TableName::Sessions, TableName::Messages];

/// The name of a table in SQL.
pub fn sql_name(table: TableName) -> &'static str {
    match table {
        TableName::Events => "events",
        TableName::Sessions => "sessions",
        TableName::Messages => "messages",
    }
}

impl Engine {
    /// An engine over `source` and what its rows refer to. Fails when its object store cannot be addressed.
    pub fn new(source: Arc<dyn Pictures>, reference: Reference, limits: Limits) -> Result<Engine, QueryError> {
        let (url, store) = source.object_store();
        let store_url = ObjectStoreUrl::parse(&url[..url::Position::BeforePath])?;
        let runtime: Arc<RuntimeEnv> =
            RuntimeEnvBuilder::new().with_memory_pool(Arc::new(FairSpillPool::new(limits.memory_bytes))).build_arc()?;
        runtime.register_object_store(store_url.as_ref(), store);
        let mut state = SessionStateBuilder::new()
            .with_config(config(limits))
            .with_runtime_env(runtime)
            .with_default_features()
            .build();
        let window = DeliveryWindow::new(reference.delivery_window_ms);
        let own = [
            ScalarUDF::new_from_impl(UnsignedToken::default()),
            ScalarUDF::new_from_impl(IntervalTimes::default()),
            ScalarUDF::new_from_impl(SliceOf::default()),
            ScalarUDF::new_from_impl(PartitionOf::new(source.partitions())),
            ScalarUDF::new_from_impl(window),
        ];
        let of_calendar = Part::ALL.map(|part| ScalarUDF::new_from_impl(Calendar::new(part)));
        for function in own.into_iter().chain(of_calendar) {
            datafusion::execution::FunctionRegistry::register_udf(&mut state, Arc::new(function))?;
        }
        tame::tame(&mut state)?;
        let workers = Workers::start().map_err(|error| QueryError::Internal(error.to_string()))?;
        let own = Surroundings { base: state, pg_catalog: None };
        let users = Arc::new(UserFilters::empty());
        let planner = Planner { source, limits, own, postgres: OnceCell::new(), reference, store: store_url, users };
        Ok(Engine { planner: Arc::new(planner), workers })
    }

    /// Answers one statement, of all rows.
    pub async fn query(&self, sql: &str) -> Result<QueryStream, QueryError> {
        self.query_as_of(sql, None, &Asker::ANYBODY).await
    }

    /// Answers one statement from the tables as they were committed then, or as they are now.
    pub async fn query_as_of(&self, sql: &str, at: Option<AsOf>, asker: &Asker) -> Result<QueryStream, QueryError> {
        let (planner, sql, sight) = (self.planner.clone(), sql.to_owned(), asker.sight.clone());
        self.run(asker, async move { planner.start(&sql, at, &sight).await }).await
    }

    /// Runs what `start` finds.
    pub(super) async fn run(
        &self,
        asker: &Asker,
        start: impl Future<Output = Result<(SendableRecordBatchStream, Freshness), QueryError>> + Send + 'static,
    ) -> Result<QueryStream, QueryError> {
        let limits = asker.within(self.planner.limits);
        let started = Instant::now();
        let (heads, head) = oneshot::channel();
        // One batch ahead of whoever reads.
        let (batches, receiver) = mpsc::channel(1);
        let work = self.workers.spawn(async move {
            let (mut found, freshness) = match start.await {
                Ok(found) => found,
                // Whoever asked has gone when it cannot be told.
                Err(error) => return drop(heads.send(Err(error))),
            };
            if heads.send(Ok((found.schema(), freshness))).is_err() {
                return;
            }
            while let Some(batch) = found.next().await {
                if batches.send(batch.map_err(QueryError::from)).await.is_err() {
                    return;
                }
            }
        });
        let head = timeout(limits.timeout, head).await.map_err(|_| QueryError::Timeout(limits.timeout))?;
        let (schema, freshness) = match head {
            Ok(head) => head?,
            Err(_) => return Err(work.panicked().await),
        };
        let run = Run { receiver, work, rows: 0, left: limits.timeout.saturating_sub(started.elapsed()) };
        let batches = stream::try_unfold(run, move |run| run.next(limits));
        Ok(QueryStream { schema, freshness, batches: batches.boxed() })
    }

    /// Finds out something about a query, where queries run and within their time.
    pub(super) async fn find_out<T: Send + 'static>(
        &self,
        asker: &Asker,
        work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let limit = asker.within(self.planner.limits).timeout;
        let (tell, told) = oneshot::channel();
        // Whoever asked has gone when it cannot be told.
        let work = self.workers.spawn(async move { drop(tell.send(work.await)) });
        match timeout(limit, told).await.map_err(|_| QueryError::Timeout(limit))? {
            Ok(found) => found,
            Err(_) => Err(work.panicked().await),
        }
    }
}

/// Runs a plan of this session.
pub(super) async fn execute(
    state: &SessionState,
    plan: &LogicalPlan,
    freshness: Freshness,
) -> Result<(SendableRecordBatchStream, Freshness), QueryError> {
    let physical = state.create_physical_plan(plan).await?;
    Ok((execute_stream(physical, state.task_ctx())?, freshness))
}

impl Planner {
    async fn start(
        &self,
        sql: &str,
        at: Option<AsOf>,
        sight: &Sight,
    ) -> Result<(SendableRecordBatchStream, Freshness), QueryError> {
        let (state, plan, freshness) = self.plan(&self.own, guard::parse(sql)?, At::of(at), sight).await?;
        execute(&state, &plan, freshness).await
    }

    /// The plan of a statement that was looked through, and the session that it is of.
    pub(super) async fn plan(
        &self,
        surroundings: &Surroundings,
        mut statement: Statement,
        at: At,
        sight: &Sight,
    ) -> Result<(SessionState, LogicalPlan, Freshness), QueryError> {
        if sight.accounts.is_some() {
            guard::refuse_explain(&statement)?;
        }
        table_functions::expand(&mut statement)?;
        numbers::make_doubles(&mut statement);
        patterns::translate(&mut statement)?;
        let mut needs = Needs::of(&surroundings.base, &statement)?;
        let past = if let At::Then(past) = at { Some(past) } else { None };
        let generations = Generations::find(self, &mut needs, past).await?;
        if at == At::Never {
            needs.tables.clear();
        }
        let tables: Vec<TableName> = needs.tables.iter().copied().collect();
        let picture = match past {
            _ if tables.is_empty() => Picture::default(),
            Some(past) => self.source.take_past(&tables, past).await.map_err(|error| match error {
                // How often all of them were committed is nothing to those who see some rows.
                QueryError::Past(_) if sight.accounts.is_some() => QueryError::Past(NOT_KNOWN_THEN.to_owned()),
                error => error,
            })?,
            None => self.source.take(&tables).await.map_err(QueryError::Internal)?,
        };
        let state =
            self.state(surroundings, picture.tables, &picture.watermarks_ms, &needs, &generations, sight).await?;
        let plan = state.statement_to_plan(statement).await.map_err(|error| unknown_table(error.into()))?;
        only_reads(&plan)?;
        Ok((state, plan, picture.freshness))
    }

    /// A session that sees so much of the tables as they are in `pictures`; those not needed are there by their columns only.
    pub(super) async fn state(
        &self,
        surroundings: &Surroundings,
        mut pictures: BTreeMap<TableName, TableView>,
        watermarks_ms: &[Option<i64>],
        needs: &Needs,
        generations: &Generations,
        sight: &Sight,
    ) -> Result<SessionState, QueryError> {
        let schema = Arc::new(MemorySchemaProvider::new());
        let mut live = BTreeMap::new();
        for table in TABLES {
            let source = self.source.clone();
            let place = Place {
                store: self.store.clone(),
                location: Arc::new(move |file: &FileEntry| source.location(table, file)),
                partitions: self.source.partitions(),
                users: self.users.clone(),
            };
            let view = match pictures.remove(&table) {
                Some(view) => view,
                None if needs.tables.contains(&table) => {
                    return Err(QueryError::Internal(format!("there is no picture of {}", sql_name(table))));
                }
                None => TableView::default(),
            };
            let provider = Arc::new(PictureTable::new(table, self.source.schema(table), view, &place)?);
            schema.register_table(sql_name(table).to_owned(), sight.of(provider.clone()))?;
            live.insert(table, provider);
        }
        for (name, table) in self.reference.tables(watermarks_ms, sight)? {
            schema.register_table(name.to_owned(), Arc::new(table))?;
        }
        let catalog = Arc::new(MemoryCatalogProvider::new());
        catalog.register_schema(SCHEMA, schema.clone())?;
        if let Some(pg_catalog) = &surroundings.pg_catalog {
            catalog.register_schema(PG_CATALOG, pg_catalog.clone())?;
        }
        let catalogs = Arc::new(MemoryCatalogProviderList::new());
        catalogs.register_catalog(CATALOG.to_owned(), catalog);
        let mut state = surroundings.base.clone();
        state.register_catalog_list(catalogs);
        state.mark_start_execution();
        for view in VIEWS.iter().filter(|view| needs.views.contains(view.name)) {
            let plan = state.statement_to_plan(view.statement()?).await?;
            schema.register_table(view.name.to_owned(), Arc::new(ViewTable::new(plan, Some(view.sql.to_owned()))))?;
        }
        generations.register(self, &state, &live, sight).await?;
        Ok(state)
    }
}

/// A query at work.
struct Run {
    receiver: mpsc::Receiver<Result<RecordBatch, QueryError>>,
    work: Work,
    rows: u64,
    left: Duration,
}

impl Run {
    async fn next(mut self, limits: Limits) -> Result<Option<(RecordBatch, Run)>, QueryError> {
        let started = Instant::now();
        let next = timeout(self.left, self.receiver.recv()).await.map_err(|_| QueryError::Timeout(limits.timeout))?;
        let Some(batch) = next else {
            // Without its last batch an answer must not look whole.
            return self.work.end().await.map(|()| None);
        };
        let batch = batch?;
        self.left = self.left.saturating_sub(started.elapsed());
        self.rows += batch.num_rows() as u64;
        if self.rows > limits.max_rows {
            let most = limits.max_rows;
            return Err(QueryError::Limit(format!(
                "the answer has more than {most} rows, the limit; ask for less, with LIMIT or by a condition"
            )));
        }
        Ok(Some((batch, self)))
    }
}

fn config(limits: Limits) -> SessionConfig {
    // With little memory a query of many parts has less than a whole batch for each.
    let batch_rows = (limits.memory_bytes >> 16).clamp(512, 8192);
    let mut config = SessionConfig::new()
        .with_target_partitions(2)
        .with_batch_size(batch_rows)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    // An amount times 1.2 stays an amount: 1.2 is a decimal number, not the nearest that a double has.
    options.sql_parser.parse_float_as_decimal = true;
    // Plain strings: every client reads them.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.optimizer.expand_views_at_output = true;
    // It may be put above a sort, under a projection that computes, and what was ordered comes out in turns.
    options.optimizer.enable_round_robin_repartition = false;
    // What a sort lays aside for merging must not be all that there is.
    let aside = &mut options.execution.sort_spill_reservation_bytes;
    *aside = (*aside).min(limits.memory_bytes / 32);
    options.execution.time_zone = Some("UTC".to_owned());
    config
}

/// Planning already lets nothing through that the guard has not seen; this holds should the two ever disagree.
fn only_reads(plan: &LogicalPlan) -> Result<(), QueryError> {
    let reads = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    reads.verify_plan(plan).map_err(|error| QueryError::Refused(error.strip_backtrace()))
}

/// What a statement reads.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub tables: BTreeSet<TableName>,
    pub views: BTreeSet<&'static str>,
    /// By name, of schemas that are generations.
    pub generations: BTreeMap<String, Needs>,
    /// Whether it asks how far the partitions have come.
    pub asks_partitions: bool,
    /// Whether it asks what there is.
    pub lists_schemas: bool,
}

impl Needs {
    fn of(state: &SessionState, statement: &Statement) -> Result<Needs, QueryError> {
        let mut needs = Needs::default();
        let mut names = state.resolve_table_references(statement)?;
        while let Some(name) = names.pop() {
            needs.lists_schemas |= name.schema() == Some("information_schema");
            if !is_ours(&name) {
                generations::note(&mut needs.generations, &name, state)?;
                continue;
            }
            if let Some(table) = TABLES.into_iter().find(|table| sql_name(*table) == name.table()) {
                needs.tables.insert(table);
            } else if let Some(view) = View::named(name.table())
                && needs.views.insert(view.name)
            {
                names.extend(state.resolve_table_references(&view.statement()?)?);
            } else if name.table() == PARTITIONS {
                // How far they have come is known with this table.
                needs.asks_partitions = true;
                needs.tables.insert(TableName::Events);
            }
        }
        if needs.lists_schemas {
            // To list their columns; their rows are not read.
            needs.views.extend(VIEWS.iter().map(|view| view.name));
        }
        Ok(needs)
    }
}

fn is_ours(name: &TableReference) -> bool {
    name.catalog().is_none_or(|catalog| catalog == CATALOG) && name.schema().is_none_or(|schema| schema == SCHEMA)
}

/// Whether a table or view of ours has this name.
pub fn is_name_of_ours(name: &str) -> bool {
    TABLES.iter().any(|table| sql_name(*table) == name)
        || [POLICIES, ACCOUNT_POLICIES, PARTITIONS].contains(&name)
        || View::named(name).is_some()
}

/// Adds what there is to an error about a table that there is not.
fn unknown_table(error: QueryError) -> QueryError {
    let QueryError::Plan { message, line, column } = error else { return error };
    let wanted = message.strip_prefix("table '").and_then(|rest| rest.split_once("' not found")).map(|(name, _)| name);
    let Some(wanted) = wanted else { return QueryError::Plan { message, line, column } };
    let tables = TABLES.iter().map(|table| sql_name(*table)).chain([POLICIES, ACCOUNT_POLICIES, PARTITIONS]);
    let names: Vec<&str> = tables.chain(VIEWS.iter().map(|view| view.name)).collect();
    let near = names.iter().map(|name| (distance(&wanted.to_lowercase(), name), name));
    let near = near.filter(|(far, _)| *far <= 2.max(wanted.len() / 3)).min();
    let hint = near.map(|(_, name)| format!("; did you mean {name}?")).unwrap_or_default();
    let message = format!("no table named {wanted}{hint}; there are: {}", names.join(", "));
    QueryError::Plan { message, line, column }
}
