//! What clients of PostgreSQL ask beside the tables: `pg_catalog`, and the functions that go with it.

use super::catalog_functions::{Hidden, functions};
use super::catalog_tables::with_settings;
use super::engine::{CATALOG, Needs, Planner, SCHEMA, Surroundings};
use super::error::QueryError;
use super::generations::Generations;
use super::sight::Sight;
use super::value::is_token;
use super::views::VIEWS;
use async_trait::async_trait;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider, Session,
    TableProvider,
};
use datafusion::common::Result;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::{ExecutionPlan, empty::EmptyExec};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

pub(super) const PG_CATALOG: &str = "pg_catalog";

/// What a query over the wire finds, and what its text is read by.
pub(super) struct Postgres {
    pub surroundings: Surroundings,
    /// Reads what clients ask the catalog, and puts it in words that the engine knows.
    pub parser: PostgresCompatibilityParser,
    /// What the catalog tells of: the tables, and those of the generations, which are the same.
    listed: Arc<MemoryCatalogProvider>,
    hidden: Hidden,
}

const HIDDEN: &str = "select c.oid from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                      where n.nspname not in ('public', 'pg_catalog')";

impl Planner {
    /// Made once: the object ids in it must be the same from query to query.
    pub(super) async fn postgres(&self) -> Result<&Postgres, QueryError> {
        self.postgres.get_or_try_init(|| self.make_postgres()).await
    }

    async fn make_postgres(&self) -> Result<Postgres, QueryError> {
        let needs = Needs { views: VIEWS.iter().map(|view| view.name).collect(), ..Needs::default() };
        let state =
            self.state(&self.own, Default::default(), &[], &needs, &Generations::default(), &Sight::WHOLE).await?;
        let missing = || QueryError::Internal("there is no catalog".to_owned());
        let tables = state.catalog_list().catalog(CATALOG).and_then(|catalog| catalog.schema(SCHEMA));
        let listed = list(tables.ok_or_else(missing)?.as_ref()).await?;
        let catalog = Arc::new(MemoryCatalogProvider::new());
        catalog.register_schema(SCHEMA, Arc::new(listed))?;
        let catalogs = Arc::new(MemoryCatalogProviderList::new());
        datafusion::catalog::CatalogProviderList::register_catalog(&*catalogs, CATALOG.to_owned(), catalog.clone());
        let mut base = self.own.base.clone();
        base.register_catalog_list(catalogs);
        let context = SessionContext::new_with_state(base);
        setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| QueryError::from(*error))?;
        let hidden = Hidden::default();
        for function in functions(hidden.clone()) {
            context.register_udf(function);
        }
        let told = catalog.schema(PG_CATALOG).ok_or_else(missing)?;
        let pg_catalog: Arc<dyn SchemaProvider> = Arc::new(with_settings(told)?);
        catalog.register_schema(PG_CATALOG, pg_catalog.clone())?;
        let pg_catalog = Some(pg_catalog);
        let surroundings = Surroundings { base: context.state(), pg_catalog };
        Ok(Postgres { surroundings, parser: PostgresCompatibilityParser::new(), listed: catalog, hidden })
    }
}

impl Postgres {
    /// Lets the catalog tell of these generations.
    pub async fn list_generations(&self, names: &[String]) -> Result<(), QueryError> {
        let known = self.listed.schema_names().into_iter().filter(|name| ![SCHEMA, PG_CATALOG].contains(&&**name));
        let known: BTreeSet<String> = known.collect();
        let names: BTreeSet<String> = names.iter().cloned().collect();
        if known == names {
            return Ok(());
        }
        for name in known.difference(&names) {
            self.listed.deregister_schema(name, true)?;
        }
        for name in names.difference(&known) {
            if let Some(tables) = self.listed.schema(SCHEMA) {
                self.listed.register_schema(name, tables)?;
            }
        }
        let context = SessionContext::new_with_state(self.surroundings.base.clone());
        let batches = context.sql(HIDDEN).await?.collect().await?;
        let ids = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().values().to_vec());
        *self.hidden.write().unwrap_or_else(PoisonError::into_inner) = ids.collect();
        Ok(())
    }
}

/// The tables and views by name, kind and columns, these of the types that they have on the wire.
async fn list(tables: &dyn SchemaProvider) -> Result<MemorySchemaProvider, QueryError> {
    let listed = MemorySchemaProvider::new();
    let mut names = tables.table_names();
    names.sort_unstable();
    for name in names {
        let Some(table) = tables.table(&name).await? else { continue };
        let on_the_wire = |field: &Arc<Field>| match is_token(field) {
            true => field.as_ref().clone().with_data_type(DataType::Decimal128(20, 0)),
            false => field.as_ref().clone(),
        };
        let schema = Schema::new(table.schema().fields().iter().map(on_the_wire).collect::<Vec<_>>());
        listed.register_table(name, Arc::new(Listed { schema: Arc::new(schema), kind: table.table_type() }))?;
    }
    Ok(listed)
}

/// A table that is only told of.
#[derive(Debug)]
struct Listed {
    schema: SchemaRef,
    kind: TableType,
}

#[async_trait]
impl TableProvider for Listed {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        self.kind
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(EmptyExec::new(self.schema.clone())))
    }
}
