//! Generations in SQL: each is a schema that has the tables and views of the live one, made of its own rows.

use super::engine::{CATALOG, Needs, Planner, TABLES, sql_name};
use super::error::QueryError;
use super::sight::Sight;
use super::table::{PictureTable, Place};
use super::views::{VIEWS, View};
use crate::lake::picture::{Overlay, TableView};
use crate::lake::{AsOf, FileEntry, GenerationInfo, Kept, TableName, is_generation_name};
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::common::{ScalarValue, TableReference};
use datafusion::datasource::{ViewTable, provider_as_source};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, lit};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Notes a name that may be one of a generation's, and what it reads.
pub(super) fn note(
    generations: &mut BTreeMap<String, Needs>,
    name: &TableReference,
    state: &SessionState,
) -> Result<(), QueryError> {
    let Some(schema) = name.schema().filter(|schema| is_generation_name(schema)) else { return Ok(()) };
    if name.catalog().is_some_and(|catalog| catalog != CATALOG) {
        return Ok(());
    }
    let needs = generations.entry(schema.to_owned()).or_default();
    let mut names = vec![name.table().to_owned()];
    while let Some(name) = names.pop() {
        if let Some(table) = TABLES.into_iter().find(|table| sql_name(*table) == name) {
            needs.tables.insert(table);
        } else if let Some(view) = View::named(&name)
            && needs.views.insert(view.name)
        {
            let inner = state.resolve_table_references(&view.statement()?)?;
            names.extend(inner.into_iter().map(|name| name.table().to_owned()));
        }
    }
    Ok(())
}

/// The generations that a statement reads, and what of each.
#[derive(Default)]
pub(super) struct Generations(Vec<(Kept, Needs)>);

impl Generations {
    /// Finds those that are wanted, and has the live tables wanted that they are completed by.
    pub async fn find(planner: &Planner, needs: &mut Needs, at: Option<AsOf>) -> Result<Self, QueryError> {
        let mut wanted = std::mem::take(&mut needs.generations);
        if needs.lists_schemas {
            for name in planner.source.generations().await.map_err(QueryError::Internal)? {
                wanted.entry(name).or_default().views.extend(VIEWS.iter().map(|view| view.name));
            }
        }
        let mut found = Vec::new();
        for (name, own) in wanted {
            let Some(kept) = planner.source.generation(&name).await.map_err(QueryError::Internal)? else {
                return Err(unknown(planner, &name).await?);
            };
            if at.is_some() {
                return Err(QueryError::Refused(format!(
                    "{name} is a generation: it is as it was made, and has no earlier versions"
                )));
            }
            let completed = |table: &TableName| *table == TableName::Events || is_part(&kept.info);
            needs.tables.extend(own.tables.iter().filter(|table| completed(table)));
            found.push((kept, own));
        }
        if at.is_some() && needs.asks_partitions {
            return Err(QueryError::Refused(
                "how far the partitions had come then is not kept: what asks `partitions`, as statement_monthly and settled_months do, is answered as of now only".to_owned(),
            ));
        }
        if let (Some(AsOf::Version(_)), count) = (at, needs.tables.len())
            && count != 1
        {
            return Err(QueryError::Refused(format!(
                "each table has versions of its own, and the query reads {count}: ask one table at a version, or all of them at a time"
            )));
        }
        Ok(Self(found))
    }

    /// Makes a schema of each in the catalog of `state`.
    pub async fn register(
        &self,
        planner: &Planner,
        state: &SessionState,
        live: &BTreeMap<TableName, Arc<PictureTable>>,
        sight: &Sight,
    ) -> Result<(), QueryError> {
        for (kept, needs) in &self.0 {
            let catalog = state.catalog_list().catalog(CATALOG);
            let catalog = catalog.ok_or_else(|| QueryError::Internal("there is no catalog".to_owned()))?;
            let schema = Arc::new(MemorySchemaProvider::new());
            for table in TABLES {
                let provider = match (table, live.get(&table)) {
                    (TableName::Events, Some(live)) => Arc::new(events_of(planner, kept, live)?),
                    _ => Arc::new(own_table(planner, table, kept, needs, live.get(&table))?),
                };
                schema.register_table(sql_name(table).to_owned(), sight.of(provider))?;
            }
            for (name, table) in planner.reference.generation_tables(&kept.info, sight)? {
                schema.register_table(name.to_owned(), Arc::new(table))?;
            }
            let name = &kept.info.name;
            catalog.register_schema(name, schema.clone())?;
            let mut inside = state.clone();
            inside.config_mut().options_mut().catalog.default_schema.clone_from(name);
            for view in VIEWS.iter().filter(|view| needs.views.contains(view.name)) {
                let plan = inside.statement_to_plan(view.statement()?).await?;
                let view_table = ViewTable::new(plan, Some(view.sql.to_owned()));
                schema.register_table(view.name.to_owned(), Arc::new(view_table))?;
            }
        }
        Ok(())
    }
}

/// The events that a generation was made of.
fn events_of(planner: &Planner, kept: &Kept, live: &Arc<PictureTable>) -> Result<PictureTable, QueryError> {
    let of_partition = |(partition, end): (&u32, &u64)| {
        let (partition, end) = (i32::try_from(*partition).unwrap_or(i32::MAX), i64::try_from(*end).unwrap_or(i64::MAX));
        col("partition").eq(lit(partition)).and(col("\"offset\"").lt(lit(end)))
    };
    let folded = kept.info.positions.iter().map(of_partition).reduce(Expr::or).unwrap_or(lit(false));
    let plan = LogicalPlanBuilder::scan("live", provider_as_source(live.clone()), None)?.filter(folded)?.build()?;
    Ok(PictureTable::of_plan(planner.source.schema(TableName::Events), plan))
}

/// Whether only some of its rows were made anew.
fn is_part(info: &GenerationInfo) -> bool {
    !info.accounts.is_empty() || info.from_us.is_some()
}

/// A table of a generation: the rows that were made anew, and of the live ones those that were not.
fn own_table(
    planner: &Planner,
    table: TableName,
    kept: &Kept,
    needs: &Needs,
    live: Option<&Arc<PictureTable>>,
) -> Result<PictureTable, QueryError> {
    let lake = kept.lake.clone();
    let place = Place {
        store: planner.store.clone(),
        location: Arc::new(move |file: &FileEntry| lake.location(table, file)),
        partitions: planner.source.partitions(),
        users: planner.users.clone(),
    };
    let schema = planner.source.schema(table);
    if !needs.tables.contains(&table) {
        return Ok(PictureTable::new(table, schema, TableView::default(), &place)?);
    }
    let view = TableView::of(&kept.lake.table(table).snapshot(), Overlay::default());
    let own = PictureTable::new(table, schema.clone(), view, &place)?;
    let Some(live) = live.filter(|_| is_part(&kept.info)) else { return Ok(own) };
    let rest = LogicalPlanBuilder::scan("live", provider_as_source(live.clone()), None)?
        .filter(left_alone(table, &kept.info))?
        .build()?;
    let plan = LogicalPlanBuilder::scan("rebuilt", provider_as_source(Arc::new(own)), None)?.union(rest)?.build()?;
    Ok(PictureTable::of_plan(schema, plan))
}

/// The condition that a row was not made anew.
fn left_alone(table: TableName, info: &GenerationInfo) -> Expr {
    let at = if table == TableName::Sessions { "opened_at" } else { "sent_at" };
    let accounts = (!info.accounts.is_empty())
        .then(|| col("account").in_list(info.accounts.iter().map(|account| lit(account.as_str())).collect(), true));
    let before =
        info.from_us.map(|us| col(at).lt(lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())))));
    match (accounts, before) {
        (Some(accounts), Some(before)) => accounts.or(before),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => lit(false),
    }
}

async fn unknown(planner: &Planner, name: &str) -> Result<QueryError, QueryError> {
    let names = planner.source.generations().await.map_err(QueryError::Internal)?;
    let known = if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) };
    let message = format!("no generation named {name}; {known} (made by counterbat rebuild --as NAME)");
    Ok(QueryError::Plan { message, line: None, column: None })
}
