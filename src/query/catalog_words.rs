//! What clients ask PostgreSQL's catalog in words that neither the engine nor the rules of the catalog's crate have, put in
//! words that they have. Most of it is about things that there are none of here, such as keys, indexes and sequences: what
//! would be computed from them is NULL.

use super::patterns::call;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, Array, ArrayElemTypeDef, BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg,
    FunctionArgExpr, FunctionArguments, Ident, ObjectName, ObjectNamePart, Query, Select, SelectItem, SetExpr,
    Statement, TableAlias, TableFactor, Value, VisitMut as _, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::ops::ControlFlow;

/// Columns with the name of a function, which is 0 where there is none: here they are texts, of which `-` is none.
const FUNCTIONS: [&str; 7] = ["typinput", "typoutput", "typreceive", "typsend", "typmodin", "typmodout", "typanalyze"];
/// Columns that PostgreSQL has arrays in, of tables that are empty here.
const ARRAYS: [&str; 7] = ["conkey", "confkey", "indkey", "indoption", "i_indoption", "indclass", "indcollation"];
/// Columns that are held to `'t'` and `'f'`.
const BOOLEANS: [&str; 4] = ["indisprimary", "indisunique", "indisvalid", "indisexclusion"];
/// Columns that the catalog lacks.
const MISSING: [&str; 2] = ["reloptions", "relacl"];
/// Said only by statements that the catalog's crate knows word by word.
const KNOWN_BY_HEART: [&str; 4] =
    ["as parentschema", "pg_policy pol", "pg_catalog.pg_statistic_ext", "pg_catalog.pg_publication p"];
/// Functions that tell of what there is none of.
const NOTHINGS: [&str; 5] =
    ["_pg_expandarray", "generate_subscripts", "col_description", "obj_description", "shobj_description"];
/// What a scalar subquery has in it that has one row in any case.
const AGGREGATES: [&str; 9] = ["over (", "agg(", "count(", "max(", "min(", "sum(", "bool_or(", "bool_and(", "every("];
/// Empty tables of `information_schema`, which are told of in `pg_catalog` under the same name.
pub(super) const EMPTY: [&str; 4] =
    ["table_constraints", "key_column_usage", "referential_constraints", "constraint_column_usage"];

/// The columns of all tables and views, with their types as PostgreSQL names them.
const COLUMNS: &str = "SELECT 'counterbat' AS table_catalog, n.nspname AS table_schema, c.relname AS table_name, \
    a.attname AS column_name, CAST(a.attnum AS INT) AS ordinal_position, CAST(NULL AS TEXT) AS column_default, \
    CASE WHEN a.attnotnull THEN 'NO' ELSE 'YES' END AS is_nullable, \
    pg_catalog.format_type(a.atttypid, NULL) AS data_type, CAST(NULL AS INT) AS character_maximum_length, \
    CAST(NULL AS INT) AS character_octet_length, \
    CASE t.typname WHEN 'int2' THEN 16 WHEN 'int4' THEN 32 WHEN 'int8' THEN 64 WHEN 'float8' THEN 53 END \
    AS numeric_precision, CASE WHEN t.typname IN ('int2', 'int4', 'int8', 'float8') THEN 2 END \
    AS numeric_precision_radix, CASE WHEN t.typname IN ('int2', 'int4', 'int8') THEN 0 END AS numeric_scale, \
    CAST(NULL AS INT) AS datetime_precision, CAST(NULL AS TEXT) AS interval_type, \
    CAST(NULL AS TEXT) AS collation_name, CAST(NULL AS TEXT) AS domain_name, 'counterbat' AS udt_catalog, \
    'pg_catalog' AS udt_schema, t.typname AS udt_name, 'NO' AS is_identity, CAST(NULL AS TEXT) AS identity_generation, \
    'NEVER' AS is_generated, CAST(NULL AS TEXT) AS generation_expression, 'NO' AS is_updatable \
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid WHERE a.attnum > 0";

/// The text of a statement in words that are known; `None` where it has no others.
pub(super) fn known(sql: &str) -> Option<String> {
    let lower = sql.to_ascii_lowercase();
    let words = FUNCTIONS.iter().chain(&ARRAYS).chain(&BOOLEANS).chain(&MISSING).chain(&NOTHINGS).chain(&EMPTY);
    let has_subquery = lower.matches("select").count() > 1;
    if !has_subquery && !words.chain(&["regtype", "information_schema"]).any(|word| lower.contains(word)) {
        return None;
    }
    if KNOWN_BY_HEART.iter().any(|words| lower.contains(words)) {
        return None;
    }
    // What is wrong with it others tell.
    let mut parsed = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    let [statement] = parsed.as_mut_slice() else { return None };
    let before = statement.to_string();
    put(statement);
    let after = statement.to_string();
    (before != after).then_some(after)
}

fn put(statement: &mut Statement) {
    // It never breaks off.
    let _ = statement.visit(&mut Words);
}

struct Words;

impl VisitorMut for Words {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &mut ObjectName) -> ControlFlow<()> {
        if let [.., schema, table] = relation.0.as_slice()
            && let (Some(schema), Some(table)) = (schema.as_ident(), table.as_ident())
            && schema.value.eq_ignore_ascii_case("information_schema")
            && is_of(&EMPTY, &table.value)
        {
            let table = Ident::new(table.value.to_lowercase());
            *relation = ObjectName(["pg_catalog".into(), table].map(ObjectNamePart::Identifier).into());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, alias, args: None, .. } = factor
            && name.to_string().replace('"', "").eq_ignore_ascii_case("information_schema.columns")
            && let Some(query) = query(COLUMNS)
        {
            let columns = TableAlias { name: "columns".into(), columns: Vec::new(), explicit: true, at: None };
            let alias = Some(alias.take().unwrap_or(columns));
            *factor = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias, sample: None };
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(expression) = item
                && let Some(name) = name(expression).filter(|name| is_of(&MISSING, name)).cloned()
            {
                *item = SelectItem::ExprWithAlias { expr: null(), alias: name.as_str().into() };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        // Of sequences and defaults, of which there are none.
        if let Expr::Subquery(query) = expression
            && says(query, &["json_build_object(", "pg_attrdef"])
        {
            *expression = null();
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if let Some(put) = self.put(expression) {
            *expression = put;
        }
        ControlFlow::Continue(())
    }
}

impl Words {
    /// What stands for an expression, if anything else.
    fn put(&self, expression: &mut Expr) -> Option<Expr> {
        match expression {
            Expr::Subquery(query) => {
                limit(query);
                None
            }
            Expr::InSubquery { expr, subquery, negated } if says(subquery, &["'search_path'"]) => {
                Some(Expr::InList { expr: expr.clone(), list: vec![text("public")], negated: *negated })
            }
            Expr::Function(function) => of_call(function),
            Expr::Case { conditions, else_result, .. }
                if conditions.iter().all(|when| is_null(&when.result))
                    && else_result.as_deref().is_none_or(is_null) =>
            {
                Some(null())
            }
            Expr::Cast { data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(item, _)), .. }
                if is_regtype(item) =>
            {
                cast(null(), "TEXT[]")
            }
            // `column::regtype::text`
            Expr::Cast { expr, data_type: DataType::Text | DataType::Varchar(_), .. } => match expr.as_mut() {
                Expr::Cast { expr, data_type, .. } if is_regtype(data_type) && !matches!(**expr, Expr::Value(_)) => {
                    Some(call("format_type", vec![take(expr), null()]))
                }
                _ => None,
            },
            Expr::AnyOp { right, .. } if name(right).is_some_and(|name| is_of(&ARRAYS, name)) => {
                Some(Expr::Value(Value::Boolean(false).into()))
            }
            Expr::CompoundFieldAccess { root, access_chain } => of_access(root, access_chain),
            Expr::BinaryOp { left, op: BinaryOperator::Eq | BinaryOperator::NotEq, right } => {
                if name(left).is_some_and(|name| is_of(&FUNCTIONS, name))
                    && let Some(function) = function_name(right)
                {
                    **right = text(&function);
                }
                if name(left).is_some_and(|name| is_of(&BOOLEANS, name))
                    && let Expr::Value(value) = right.as_mut()
                    && let Value::SingleQuotedString(letter) = &value.value
                {
                    value.value = Value::Boolean(letter == "t");
                }
                None
            }
            other => name(other).is_some_and(|name| is_of(&MISSING, name)).then(null),
        }
    }
}

fn of_call(function: &mut Function) -> Option<Expr> {
    let name = function.name.0.last()?.as_ident()?.value.to_lowercase();
    match (name.as_str(), &mut function.args) {
        // Of those who have a role, say: nobody.
        ("array", FunctionArguments::Subquery(_)) => cast(null(), "TEXT[]"),
        ("unnest", FunctionArguments::List(list)) => {
            if let [FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))] = list.args.as_mut_slice()
                && self::name(argument).is_some_and(|name| is_of(&ARRAYS, name))
            {
                // Not the same for all rows, which the engine would take for an order.
                let number = cast(take(argument), "INT")?;
                *argument = Expr::Array(Array { elem: vec![number], named: true });
            }
            None
        }
        ("generate_subscripts", FunctionArguments::List(list)) => match list.args.first()? {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(argument)) => cast(argument.clone(), "INT"),
            _ => None,
        },
        (name, _) if NOTHINGS.contains(&name) => Some(null()),
        _ => None,
    }
}

/// `(function(x)).n`, `(result.keys).x`, `column[1]`
fn of_access(root: &Expr, chain: &[AccessExpr]) -> Option<Expr> {
    let is_part = |access: &AccessExpr| matches!(access, AccessExpr::Dot(Expr::Identifier(name)) if is_of(&["n", "x"], &name.value));
    let is_array = |expression: &Expr| name(expression).is_some_and(|name| is_of(&ARRAYS, name));
    let is_expanded = |root: &Expr| match root {
        Expr::Nested(inner) => is_null(inner) || name(inner).is_some_and(|name| name.eq_ignore_ascii_case("keys")),
        root => is_null(root),
    };
    let is_nothing = match chain {
        [access] if is_part(access) => is_expanded(root),
        [AccessExpr::Subscript(_)] => is_array(root),
        [.., AccessExpr::Dot(column), AccessExpr::Subscript(_)] => is_array(column),
        _ => false,
    };
    is_nothing.then(null)
}

/// What a column is held to that has the name of a function.
fn function_name(value: &Expr) -> Option<String> {
    match value {
        Expr::Value(value) if matches!(&value.value, Value::Number(number, _) if number == "0") => Some("-".into()),
        Expr::Cast { expr, data_type, .. } if data_type.to_string().to_lowercase().ends_with("regproc") => {
            let Expr::Value(value) = expr.as_ref() else { return None };
            let Value::SingleQuotedString(name) = &value.value else { return None };
            Some(name.rsplit('.').next().unwrap_or(name).to_owned())
        }
        _ => None,
    }
}

fn is_regtype(data_type: &DataType) -> bool {
    let name = data_type.to_string().to_lowercase();
    name.strip_prefix("pg_catalog.").unwrap_or(&name) == "regtype"
}

fn is_of(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn says(query: &Query, words: &[&str]) -> bool {
    let text = query.to_string().to_lowercase();
    words.iter().any(|word| text.contains(word))
}

/// Lets a scalar subquery have one row at most: of one that depends on the rows around it the engine must know that.
fn limit(query: &mut Query) {
    if query.order_by.is_some() || query.limit_clause.is_some() || says(query, &AGGREGATES) {
        return;
    }
    if let SetExpr::Select(select) = query.body.as_mut()
        && !select.from.is_empty()
        && let [item @ (SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. })] =
            select.projection.as_mut_slice()
    {
        match item {
            SelectItem::ExprWithAlias { expr, .. } => *expr = call("max", vec![take(expr)]),
            SelectItem::UnnamedExpr(column) => match name(column).cloned() {
                Some(name) => {
                    let largest = call("max", vec![take(column)]);
                    *item = SelectItem::ExprWithAlias { expr: largest, alias: name.as_str().into() };
                }
                None => *column = call("max", vec![take(column)]),
            },
            _ => {}
        }
    }
}

fn take(expression: &mut Expr) -> Expr {
    std::mem::replace(expression, null())
}

fn query(sql: &str) -> Option<Query> {
    match Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?.pop()? {
        Statement::Query(query) => Some(*query),
        _ => None,
    }
}

/// The name of the column that an expression is.
fn name(expression: &Expr) -> Option<&String> {
    match expression {
        Expr::Identifier(name) => Some(&name.value),
        Expr::CompoundIdentifier(names) => names.last().map(|name| &name.value),
        Expr::Nested(inner) => name(inner),
        _ => None,
    }
}

fn is_null(expression: &Expr) -> bool {
    matches!(expression, Expr::Value(value) if value.value == Value::Null)
}

fn null() -> Expr {
    Expr::Value(Value::Null.into())
}

fn text(text: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(text.to_owned()).into())
}

fn cast(expr: Expr, data_type: &str) -> Option<Expr> {
    let data_type = Parser::new(&PostgreSqlDialect {}).try_with_sql(data_type).ok()?.parse_data_type().ok()?;
    Some(Expr::Cast { kind: CastKind::Cast, expr: Box::new(expr), data_type, array: false, format: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_words_are_put_in_known_ones() {
        for (sql, wanted) in [
            ("SELECT typreceive != 0 FROM pg_type", "SELECT typreceive <> '-' FROM pg_type"),
            ("SELECT t.typinput = 'pg_catalog.array_in'::regproc", "SELECT t.typinput = 'array_in'"),
            ("SELECT a.atttypid::regtype::text", "SELECT format_type(a.atttypid, NULL)"),
            ("SELECT ARRAY(SELECT 1) AS memberof", "SELECT CAST(NULL AS TEXT[]) AS memberof"),
            ("SELECT proargtypes::regtype[]::text[]", "SELECT CAST(NULL AS TEXT[])::TEXT[]"),
            ("SELECT 1 WHERE i.indisprimary = 'f'", "SELECT 1 WHERE i.indisprimary = false"),
            ("SELECT col_description(c.oid, 1), (SELECT 1)", "SELECT NULL, (SELECT 1)"),
            (
                "SELECT (SELECT c.relkind = 'c' FROM c WHERE c.oid = t.oid), (SELECT count(*) FROM c)",
                "SELECT (SELECT max(c.relkind = 'c') FROM c WHERE c.oid = t.oid), (SELECT count(*) FROM c)",
            ),
            ("SELECT CASE WHEN a THEN (SELECT json_build_object('x', 1) FROM s) END", "SELECT NULL"),
            ("SELECT 1 WHERE a.attnum = ANY(con.conkey)", "SELECT 1 WHERE false"),
            ("SELECT con.conkey[1], conkey[n]", "SELECT NULL, NULL"),
            ("SELECT (information_schema._pg_expandarray(i.indkey)).n AS seq", "SELECT NULL AS seq"),
            ("SELECT (r.KEYS).x = _pg_expandarray(1)", "SELECT NULL = NULL"),
            ("SELECT (r.v).x, _pg_expandarray(1)", "SELECT (r.v).x, NULL"),
            ("SELECT a.b::regtype::text::regtype::text", "SELECT format_type(format_type(a.b, NULL), NULL)"),
            ("SELECT (SELECT t.typname FROM t), conkey[1]", "SELECT (SELECT max(t.typname) AS typname FROM t), NULL"),
            ("SELECT unnest(ix.indkey) AS a", "SELECT unnest(ARRAY[CAST(ix.indkey AS INT)]) AS a"),
            ("SELECT generate_subscripts(ix.indkey, 1)", "SELECT CAST(ix.indkey AS INT)"),
            ("SELECT c.reloptions, c.reloptions IS NULL", "SELECT NULL AS reloptions, NULL IS NULL"),
            (
                "SELECT 1 FROM information_schema.table_constraints AS t",
                "SELECT 1 FROM pg_catalog.table_constraints AS t",
            ),
            ("SELECT a IN (SELECT b FROM f(current_setting('search_path')))", "SELECT a IN ('public')"),
        ] {
            assert_eq!(known(sql).as_deref(), Some(wanted), "{sql}");
        }
        let columns =
            known("SELECT data_type FROM \"information_schema\".\"columns\" AS c WHERE c.udt_name = 'text'").unwrap();
        assert!(columns.contains("pg_catalog.pg_attribute") && columns.ends_with(") AS c WHERE c.udt_name = 'text'"));
        for same in ["SELECT 1 FROM pg_class", "SELECT 1 WHERE a IN (SELECT b FROM c)", "SELECT regtype FROM"] {
            assert_eq!(known(same), None, "{same}");
        }
    }
}
