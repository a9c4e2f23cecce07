//! What clients of PostgreSQL ask beside the tables: `pg_catalog`, and the functions that go with it.

use super::catalog_words::EMPTY;
use super::engine::{CATALOG, Needs, Planner, SCHEMA, Surroundings};
use super::error::QueryError;
use super::generations::Generations;
use super::sight::Sight;
use super::value::is_token;
use super::views::VIEWS;
use async_trait::async_trait;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemTable, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, SchemaProvider,
    Session, TableProvider,
};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TableType, TypeSignature, Volatility,
};
use datafusion::physical_plan::{ExecutionPlan, empty::EmptyExec};
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use std::collections::{BTreeMap, BTreeSet, HashSet};
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

/// Those that no client sets.
const FIXED: [&str; 9] = [
    "in_hot_standby",
    "integer_datetimes",
    "is_superuser",
    "lc_collate",
    "max_identifier_length",
    "max_index_keys",
    "server_encoding",
    "server_version",
    "server_version_num",
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
        let told = catalog.schema(PG_CATALOG).ok_or_else(missing)?;
        let pg_catalog: Arc<dyn SchemaProvider> =
            Arc::new(WithSettings { told, settings: settings()?, empty: empty()? });
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

const PG_SETTINGS: &str = "pg_settings";

/// `pg_catalog` with the settings that there are here, and what tells of keys: there are none.
#[derive(Debug)]
struct WithSettings {
    told: Arc<dyn SchemaProvider>,
    settings: Arc<MemTable>,
    /// Tables of `information_schema` without rows.
    empty: BTreeMap<&'static str, Arc<MemTable>>,
}

#[async_trait]
impl SchemaProvider for WithSettings {
    fn table_names(&self) -> Vec<String> {
        self.told.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        if name == PG_SETTINGS {
            return Ok(Some(self.settings.clone()));
        }
        if let Some(empty) = self.empty.get(name) {
            return Ok(Some(empty.clone()));
        }
        self.told.table(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.empty.contains_key(name) || self.told.table_exist(name)
    }
}

/// The tables of `information_schema` that tell of keys, with their columns (SQL:2016, part 11).
fn empty() -> Result<BTreeMap<&'static str, Arc<MemTable>>> {
    let table = |name: &'static str| {
        let columns: &[&str] = match name {
            "table_constraints" => {
                &["constraint", "table", "constraint_type", "is_deferrable", "initially_deferred", "enforced"]
            }
            "key_column_usage" => {
                &["constraint", "table", "column_name", "ordinal_position", "position_in_unique_constraint"]
            }
            "referential_constraints" => {
                &["constraint", "unique_constraint", "match_option", "update_rule", "delete_rule"]
            }
            _ => &["table", "column_name", "constraint"],
        };
        let fields = columns.iter().flat_map(|column| match *column {
            // What is named has three parts.
            "constraint" | "table" | "unique_constraint" => {
                ["catalog", "schema", "name"].map(|part| format!("{column}_{part}")).to_vec()
            }
            other => vec![other.to_owned()],
        });
        let fields = fields.map(|name| {
            let is_number = name.contains("position");
            Field::new(name, if is_number { DataType::Int32 } else { DataType::Utf8 }, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok((name, Arc::new(MemTable::try_new(schema, vec![Vec::new()])?)))
    };
    EMPTY.into_iter().map(table).collect()
}

/// The columns that PostgreSQL's `pg_settings` has; of a setting its name and its value are known.
fn settings() -> Result<Arc<MemTable>> {
    let names: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(name, _)| name)));
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(_, value)| value)));
    let context = |name: &str| if FIXED.contains(&name) { "internal" } else { "user" };
    let contexts: ArrayRef = Arc::new(StringArray::from_iter_values(SETTINGS.iter().map(|(name, _)| context(name))));
    let columns = [
        ("name", DataType::Utf8),
        ("setting", DataType::Utf8),
        ("unit", DataType::Utf8),
        ("category", DataType::Utf8),
        ("short_desc", DataType::Utf8),
        ("extra_desc", DataType::Utf8),
        ("context", DataType::Utf8),
        ("vartype", DataType::Utf8),
        ("source", DataType::Utf8),
        ("min_val", DataType::Utf8),
        ("max_val", DataType::Utf8),
        ("enumvals", DataType::new_list(DataType::Utf8, true)),
        ("boot_val", DataType::Utf8),
        ("reset_val", DataType::Utf8),
        ("sourcefile", DataType::Utf8),
        ("sourceline", DataType::Int32),
        ("pending_restart", DataType::Boolean),
    ];
    let value = |(name, data_type): &(&str, DataType)| match *name {
        "name" => names.clone(),
        "setting" | "boot_val" | "reset_val" => values.clone(),
        "context" => contexts.clone(),
        _ => new_null_array(data_type, SETTINGS.len()),
    };
    let rows = columns.iter().map(value).collect();
    let fields = columns.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(schema.clone(), rows)?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
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
        ("current_catalog", ScalarValue::from(CATALOG)),
        ("pg_function_is_visible", yes.clone()),
        ("pg_type_is_visible", yes),
        // How many bytes a table has is not told by its files alone; and there are no types but those of the protocol.
        ("pg_relation_size", ScalarValue::Int64(None)),
        ("pg_table_size", ScalarValue::Int64(None)),
        ("pg_total_relation_size", ScalarValue::Int64(None)),
        ("to_regtype", ScalarValue::Int32(None)),
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
        "pg_size_pretty",
        "pg_tablespace_location",
        "shobj_description",
    ];
    let nothings = nothings.map(|name| (name, nothing.clone()));
    let constant = |(name, value)| ScalarUDF::new_from_impl(Constant { name, value, signature: any_arguments() });
    let setting = ScalarUDF::new_from_impl(CurrentSetting { signature: any_arguments() });
    let format = ScalarUDF::new_from_impl(Format { signature: Signature::variadic_any(Volatility::Immutable) });
    constants.into_iter().chain(nothings).map(constant).chain([setting, format])
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

/// `format(pattern, …) -> text` with `%s`, `%I` for names, `%L` for texts, and `%%`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Format {
    signature: Signature,
}

impl ScalarUDFImpl for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let texts = columns.iter().map(|column| datafusion::arrow::compute::cast(column, &DataType::Utf8));
        let texts = texts.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        let value = |column: &ArrayRef, row: usize| {
            let column = column.as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let Some((patterns, values)) = texts.split_first() else {
            return exec_err!("format: there is no pattern");
        };
        let filled = (0..patterns.len()).map(|row| match value(patterns, row) {
            Some(pattern) => filled(&pattern, values.iter().map(|column| value(column, row))).map(Some),
            None => Ok(None),
        });
        Ok(ColumnarValue::Array(Arc::new(filled.collect::<Result<StringArray>>()?) as ArrayRef))
    }
}

/// A pattern with these values in it.
fn filled(pattern: &str, mut values: impl Iterator<Item = Option<String>>) -> Result<String> {
    let mut out = String::new();
    let mut parts = pattern.chars();
    while let Some(next) = parts.next() {
        if next != '%' {
            out.push(next);
            continue;
        }
        let kind = parts.next();
        if kind == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else { return exec_err!("format: there are too few values for `{pattern}`") };
        let is_plain = |name: &str| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit())
        };
        match (kind, value) {
            (Some('s'), value) => out.push_str(&value.unwrap_or_default()),
            (Some('I'), Some(name)) if is_plain(&name) => out.push_str(&name),
            (Some('I'), Some(name)) => out.push_str(&format!("\"{}\"", name.replace('"', "\"\""))),
            (Some('I'), None) => return exec_err!("format: NULL is no name"),
            (Some('L'), Some(text)) => out.push_str(&format!("'{}'", text.replace('\'', "''"))),
            (Some('L'), None) => out.push_str("NULL"),
            _ => return exec_err!("format: of patterns %s, %I, %L and %% are known"),
        }
    }
    Ok(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_filled() {
        let values = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        for (pattern, given, wanted) in [
            ("%I.%I", values(&["public", "a\"B"]), "public.\"a\"\"B\""),
            ("%s: %L %%", values(&["x", "it's"]), "x: 'it''s' %"),
            ("%s%L", vec![None, None], "NULL"),
        ] {
            assert_eq!(filled(pattern, given.into_iter()).unwrap(), wanted);
        }
        assert!(filled("%s", std::iter::empty()).is_err() && filled("%d", [None].into_iter()).is_err());
        assert!(filled("%I", [None].into_iter()).is_err() && filled("%", [None].into_iter()).is_err());
    }
}
