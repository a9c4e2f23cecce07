//! What clients of PostgreSQL ask beside the tables: `pg_catalog`, and the functions that go with it.

use super::engine::{CATALOG, Needs, Planner, SCHEMA, Surroundings};
use super::error::QueryError;
use super::generations::Generations;
use super::sight::Sight;
use super::value::is_token;
use super::views::VIEWS;
use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider, Session,
    TableProvider,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TableType, TypeSignature, Volatility,
};
use datafusion::physical_plan::{ExecutionPlan, empty::EmptyExec};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

pub(super) const PG_CATALOG: &str = "pg_catalog";

/// The settings of PostgreSQL that clients ask for, as they are here. 16 is the version whose catalog is told.
pub const SETTINGS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("lc_collate", "C"),
    ("lc_monetary", "C"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", "16.6"),
    ("server_version_num", "160006"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("TimeZone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "on"),
];

/// What a query over the wire finds, and what its text is read by.
pub(super) struct Postgres {
    pub surroundings: Surroundings,
    /// Reads what clients ask the catalog, and puts it in words that the engine knows.
    pub parser: PostgresCompatibilityParser,
    /// What the catalog tells of: the tables, and those of the generations, which are the same.
    listed: Arc<MemoryCatalogProvider>,
    hidden: Hidden,
}

/// Object ids of tables that are found by the name of their schema only.
type Hidden = Arc<RwLock<HashSet<i32>>>;

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
        let visible = ScalarUDF::new_from_impl(Visible { hidden: hidden.clone(), signature: any_arguments() });
        for function in functions().chain([visible]) {
            context.register_udf(function);
        }
        let pg_catalog = Some(catalog.schema(PG_CATALOG).ok_or_else(missing)?);
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

/// Functions that clients ask about things that there are none of here.
fn functions() -> impl Iterator<Item = ScalarUDF> {
    let version = format!("PostgreSQL 16.6 (Counterbat {})", env!("CARGO_PKG_VERSION"));
    let (yes, no, nothing) = (ScalarValue::from(true), ScalarValue::from(false), ScalarValue::Utf8(None));
    let constants = [
        ("version", ScalarValue::from(version)),
        ("pg_is_in_recovery", no.clone()),
        ("pg_is_other_temp_schema", no),
        ("pg_my_temp_schema", ScalarValue::from(0_i32)),
        ("pg_function_is_visible", yes.clone()),
        ("pg_type_is_visible", yes),
    ];
    let nothings = [
        "col_description",
        "inet_server_addr",
        "obj_description",
        "pg_get_function_arguments",
        "pg_get_function_result",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_serial_sequence",
        "pg_get_triggerdef",
        "pg_get_viewdef",
        "shobj_description",
    ];
    let nothings = nothings.map(|name| (name, nothing.clone()));
    let constant = |(name, value)| ScalarUDF::new_from_impl(Constant { name, value, signature: any_arguments() });
    let setting = ScalarUDF::new_from_impl(CurrentSetting { signature: any_arguments() });
    constants.into_iter().chain(nothings).map(constant).chain([setting])
}

fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Stable)
}

/// The same whatever it is asked about.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// `pg_table_is_visible(oid) -> bool`: whether the table is found without its schema.
#[derive(Debug)]
struct Visible {
    hidden: Hidden,
    signature: Signature,
}

impl PartialEq for Visible {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hidden, &other.hidden)
    }
}

impl Eq for Visible {}

impl Hash for Visible {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl ScalarUDFImpl for Visible {
    fn name(&self) -> &str {
        "pg_table_is_visible"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let Some(ids) = columns.first() else { return Ok(ColumnarValue::Scalar(ScalarValue::Boolean(None))) };
        let ids = datafusion::arrow::compute::cast(ids, &DataType::Int32)?;
        let hidden = self.hidden.read().unwrap_or_else(PoisonError::into_inner);
        let visible: BooleanArray =
            ids.as_primitive::<Int32Type>().iter().map(|id| id.map(|id| !hidden.contains(&id))).collect();
        Ok(ColumnarValue::Array(Arc::new(visible) as ArrayRef))
    }
}

/// `current_setting(name) -> text`: NULL where there is none of the name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CurrentSetting {
    signature: Signature,
}

impl ScalarUDFImpl for CurrentSetting {
    fn name(&self) -> &str {
        "current_setting"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let Some(names) = columns.first() else { return Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None))) };
        let names = datafusion::arrow::compute::cast(names, &DataType::Utf8)?;
        let value =
            |name: &str| SETTINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        let values: StringArray = names.as_string::<i32>().iter().map(|name| name.and_then(value)).collect();
        Ok(ColumnarValue::Array(Arc::new(values) as ArrayRef))
    }
}
