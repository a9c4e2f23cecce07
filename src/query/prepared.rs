//! Statements with parameters: looked through once, answered as often as is wanted.

use super::catalog::Postgres;
use super::catalog_words;
use super::engine::{At, Engine, Planner, QueryStream, execute, is_name_of_ours};
use super::error::QueryError;
use super::guard;
use super::sight::Asker;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue, TableReference};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::collections::BTreeMap;

/// What only clients ask, of the catalog: it has PostgreSQL's words in it that the engine must be told in its own.
const CATALOG_WORDS: [&str; 11] = [
    "pg_",
    "information_schema",
    "::reg",
    "version()",
    "to_regtype",
    "current_catalog",
    "current_schema",
    "current_database",
    "current_user",
    "session_user",
    "current_setting",
];

/// The protocol counts them in 16 bits.
const MOST_PARAMETERS: usize = 65_535;

/// A statement of PostgreSQL's clients.
#[derive(Debug, Clone)]
pub struct Prepared {
    sql: String,
    statement: Statement,
    /// The type of each, where the text tells it.
    pub parameters: Vec<Option<DataType>>,
    /// The columns of its answer.
    pub schema: SchemaRef,
}

/// Whether a text asks the catalog of PostgreSQL.
pub fn asks_catalog(sql: &str) -> bool {
    let lower = sql.to_ascii_lowercase();
    CATALOG_WORDS.iter().any(|word| lower.contains(word))
}

impl Engine {
    /// Looks through one statement, whose parameters are `$1`, `$2` and so on, of the types `declared` where they are known.
    pub async fn prepare(
        &self,
        sql: &str,
        declared: Vec<Option<DataType>>,
        asker: &Asker,
    ) -> Result<Prepared, QueryError> {
        let (planner, sql, sight) = (self.planner.clone(), sql.to_owned(), asker.sight.clone());
        self.find_out(asker, async move {
            let postgres = planner.postgres_for(&sql).await?;
            let statement = postgres.read(&sql)?;
            let (_, plan, _) = planner.plan(&postgres.surroundings, statement.clone(), At::Never, &sight).await?;
            let parameters = parameters(&plan)?;
            let schema = schema(plan, &declared, &parameters);
            Ok(Prepared { sql, statement, parameters, schema })
        })
        .await
    }

    /// Answers one statement without parameters.
    pub async fn ask(&self, sql: &str, asker: &Asker) -> Result<QueryStream, QueryError> {
        let (planner, sql, sight) = (self.planner.clone(), sql.to_owned(), asker.sight.clone());
        self.run(asker, async move {
            let postgres = planner.postgres_for(&sql).await?;
            let statement = postgres.read(&sql)?;
            let (state, plan, freshness) = planner.plan(&postgres.surroundings, statement, At::Now, &sight).await?;
            execute(&state, &plan, freshness).await
        })
        .await
    }

    /// Answers it with these values.
    pub async fn answer(
        &self,
        prepared: &Prepared,
        values: Vec<ScalarValue>,
        asker: &Asker,
    ) -> Result<QueryStream, QueryError> {
        let (planner, sql, statement) = (self.planner.clone(), prepared.sql.clone(), prepared.statement.clone());
        let sight = asker.sight.clone();
        self.run(asker, async move {
            let surroundings = &planner.postgres_for(&sql).await?.surroundings;
            let (state, mut plan, freshness) = planner.plan(surroundings, statement, At::Now, &sight).await?;
            if !values.is_empty() {
                plan = plan.replace_params_with_values(&ParamValues::from(values))?;
            }
            execute(&state, &plan, freshness).await
        })
        .await
    }
}

impl Planner {
    /// The catalog, with the generations that there are where this statement asks it.
    async fn postgres_for(&self, sql: &str) -> Result<&Postgres, QueryError> {
        let postgres = self.postgres().await?;
        if asks_catalog(sql) {
            let names = self.source.generations().await.map_err(QueryError::Internal)?;
            postgres.list_generations(&names).await?;
        }
        Ok(postgres)
    }
}

impl Postgres {
    /// Reads one statement and looks through it. What reads tables of ours is taken at its word: putting it in others may change
    /// what it means (the rules leave subqueries out where the catalog can do without).
    fn read(&self, sql: &str) -> Result<Statement, QueryError> {
        if !asks_catalog(sql) {
            return guard::parse(sql);
        }
        // As it was sent: what is left out below may be what names a table of ours.
        if let Ok([statement]) = Parser::parse_sql(&PostgreSqlDialect {}, sql).as_deref() {
            let statement = Statement::Statement(Box::new(statement.clone()));
            if self.surroundings.base.resolve_table_references(&statement)?.iter().any(is_of_ours) {
                return guard::parse(sql);
            }
        }
        let known = catalog_words::known(sql);
        let parsed = self.parser.parse(known.as_deref().unwrap_or(sql));
        let mut parsed = parsed.map_err(|error| syntax(sql, &error.to_string()))?;
        let (Some(statement), true) = (parsed.pop(), parsed.is_empty()) else {
            return Err(syntax(sql, "one statement is answered at a time"));
        };
        let statement = Statement::Statement(Box::new(statement));
        let names = self.surroundings.base.resolve_table_references(&statement)?;
        if names.iter().any(is_of_ours) {
            return guard::parse(sql);
        }
        guard::check(&statement)?;
        Ok(statement)
    }
}

/// Whether a table, or a view, is not one of the catalog.
fn is_of_ours(name: &TableReference) -> bool {
    !matches!(name.schema(), Some("pg_catalog" | "information_schema")) && is_name_of_ours(name.table())
}

/// The error with its place, which only the parser of our own tells.
fn syntax(sql: &str, message: &str) -> QueryError {
    match guard::parse(sql) {
        Err(error) => error,
        Ok(_) => QueryError::Syntax { message: message.to_owned(), line: None, column: None },
    }
}

/// The columns that a plan has with parameters of these types: those declared, else those that it takes them for, else texts.
fn schema(plan: LogicalPlan, declared: &[Option<DataType>], wanted: &[Option<DataType>]) -> SchemaRef {
    let as_it_is = plan.schema().inner().clone();
    let of = |types: &[Option<DataType>], number: usize| types.get(number).cloned().flatten();
    let known = |number| of(declared, number).or_else(|| of(wanted, number)).unwrap_or(DataType::Utf8);
    let nulls = (0..wanted.len()).map(|number| ScalarValue::try_from(&known(number)));
    let Ok(nulls) = nulls.collect::<Result<Vec<_>, _>>() else { return as_it_is };
    if nulls.is_empty() {
        return as_it_is;
    }
    // What does not go together is told when it is answered.
    plan.replace_params_with_values(&ParamValues::from(nulls)).map_or(as_it_is, |plan| plan.schema().inner().clone())
}

fn parameters(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, QueryError> {
    let mut types: BTreeMap<usize, Option<DataType>> = BTreeMap::new();
    let mut note = |id: &str, data_type: Option<DataType>| {
        if let Some(number) = id
            .strip_prefix('$')
            .and_then(|number| number.parse::<usize>().ok())
            .filter(|n| (1..=MOST_PARAMETERS).contains(n))
        {
            let known = types.entry(number - 1).or_default();
            *known = known.take().or(data_type);
        }
    };
    for (id, data_type) in plan.get_parameter_types()? {
        note(&id, data_type);
    }
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                // `x = any($1)`
                if let Expr::ScalarFunction(call) = expression
                    && let ("array_has", [Expr::Placeholder(placeholder), item]) = (call.name(), call.args.as_slice())
                    && let Some(item) = node.inputs().iter().find_map(|input| item.get_type(input.schema()).ok())
                {
                    note(&placeholder.id, Some(DataType::new_list(item, true)));
                }
                if let Expr::Cast(cast) = expression
                    && let Expr::Placeholder(placeholder) = cast.expr.as_ref()
                {
                    note(&placeholder.id, Some(cast.field.data_type().clone()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let count = types.last_key_value().map_or(0, |(last, _)| last + 1);
    Ok((0..count).map(|number| types.remove(&number).flatten()).collect())
}
