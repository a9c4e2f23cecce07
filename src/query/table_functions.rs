//! Views as functions: `usage_daily('Europe/Kyiv')` is the text of the view with this literal for its parameter, so that
//! what goes for tables goes for them.

use super::calendar::zone;
use super::error::QueryError;
use super::guard;
use super::views::{Kind, VIEWS, View};
use crate::event::time::parse_time_us;
use crate::lake::is_generation_name;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, ObjectNamePart, Query, Spanned, TableAlias,
    TableFactor, UnaryOperator, Value, VisitMut as _, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use std::ops::ControlFlow;

const PUBLIC: &str = "public";
/// More minutes than a year has are not asked for.
const MOST_MINUTES: u32 = 366 * 24 * 60;

/// The view that is called by this name.
pub fn named(name: &ObjectName) -> Option<&'static View> {
    let name = name.to_string().to_lowercase();
    let (schema, name) = name.rsplit_once('.').unwrap_or((PUBLIC, &name));
    let view = VIEWS.iter().find(|view| view.name == name && view.parameter.is_some());
    view.filter(|_| schema == PUBLIC || is_generation_name(schema))
}

/// The generation whose view is called, if it is one's.
fn generation(name: &ObjectName) -> Option<Ident> {
    let name = name.to_string().to_lowercase();
    name.rsplit_once('.').filter(|(schema, _)| *schema != PUBLIC).map(|(schema, _)| Ident::new(schema))
}

/// The names of all such views.
pub fn names() -> impl Iterator<Item = &'static str> {
    VIEWS.iter().filter(|view| view.parameter.is_some()).map(|view| view.name)
}

/// Puts the text of the view for each of its calls.
pub fn expand(statement: &mut Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => match inner.visit(&mut Calls) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(error) => Err(error),
        },
        Statement::Explain(explain) => expand(&mut explain.statement),
        _ => Ok(()),
    }
}

impl View {
    /// Its statement, with the default of its parameter.
    pub fn statement(&self) -> Result<Statement, QueryError> {
        let mut statement = match &self.parameter {
            None => guard::parse(self.sql)?,
            Some(parameter) => {
                let query = self.query(&Value::SingleQuotedString(parameter.default.to_owned()))?;
                Statement::Statement(Box::new(ast::Statement::Query(query)))
            }
        };
        expand(&mut statement)?;
        Ok(statement)
    }

    /// Its query with `value` for its parameter.
    fn query(&self, value: &Value) -> Result<Box<Query>, QueryError> {
        let not_a_query = || QueryError::Internal(format!("view {} is no query", self.name));
        let Statement::Statement(statement) = guard::parse(self.sql)? else { return Err(not_a_query()) };
        let ast::Statement::Query(mut query) = *statement else { return Err(not_a_query()) };
        if let Some(parameter) = &self.parameter {
            let value = parameter.kind.check(value).map_err(|wanted| {
                let message = format!("{}({value}): its argument is {wanted}", self.name);
                QueryError::Plan { message, line: None, column: None }
            })?;
            let mut filling =
                Filling { placeholder: parameter.placeholder, expression: parameter.kind.expression(&value)?, value };
            // It never breaks off.
            let _ = query.visit(&mut filling);
        }
        Ok(query)
    }
}

impl Kind {
    /// The value in the one form that texts of views take; an error says what is wanted.
    fn check(self, value: &Value) -> Result<Value, &'static str> {
        let (Value::SingleQuotedString(text) | Value::Number(text, _)) = value else { return Err(self.wanted()) };
        let is_fit = match self {
            Kind::TimeZone => zone(text).is_some(),
            Kind::Minutes => text.parse::<u32>().is_ok_and(|minutes| (1..=MOST_MINUTES).contains(&minutes)),
            Kind::Since => parse_time_us(text).is_ok(),
        };
        if is_fit { Ok(Value::SingleQuotedString(text.clone())) } else { Err(self.wanted()) }
    }

    fn wanted(self) -> &'static str {
        match self {
            Kind::TimeZone => "the name of a time zone, such as 'Europe/Kyiv'",
            Kind::Minutes => "a number of minutes from 1 to those of a year",
            Kind::Since => "a day or time such as '2026-03-01' or '2026-03-01T10:00:00Z'",
        }
    }

    /// What stands for a checked value in the text of a view.
    fn expression(self, value: &Value) -> Result<Expr, QueryError> {
        let text = match (self, value) {
            (Kind::Minutes, Value::SingleQuotedString(minutes)) => format!("INTERVAL '{minutes} minutes'"),
            (Kind::Since, Value::SingleQuotedString(text)) => {
                let us = parse_time_us(text).unwrap_or(0);
                format!("arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
            }
            (_, value) => value.to_string(),
        };
        let parsed = Parser::new(&GenericDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_expr());
        parsed.map_err(|error| QueryError::Internal(format!("{text}: {error}")))
    }
}

/// Replaces calls by queries.
struct Calls;

impl VisitorMut for Calls {
    type Break = QueryError;

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<QueryError> {
        let TableFactor::Table { name, alias, args: Some(arguments), .. } = factor else {
            return ControlFlow::Continue(());
        };
        let Some(view) = named(name) else { return ControlFlow::Continue(()) };
        let name = name.clone();
        let place = name.span().start;
        let mut subquery = match literal(view, &arguments.args).and_then(|value| view.query(&value)) {
            Ok(subquery) => subquery,
            Err(QueryError::Plan { message, .. }) => {
                let (line, column) = (Some(place.line), Some(place.column));
                return ControlFlow::Break(QueryError::Plan { message, line, column });
            }
            Err(error) => return ControlFlow::Break(error),
        };
        let alias = alias.take().unwrap_or_else(|| TableAlias {
            explicit: true,
            name: Ident::new(view.name),
            columns: Vec::new(),
            at: None,
        });
        if let Some(schema) = generation(&name) {
            // It reads that one's tables and views.
            let _ = ast::visit_relations_mut(&mut subquery, |relation| {
                relation.0.insert(0, ObjectNamePart::Identifier(schema.clone()));
                ControlFlow::<()>::Continue(())
            });
        }
        // What is visited next is what stands there now, so calls within are replaced too.
        *factor = TableFactor::Derived { lateral: false, subquery, alias: Some(alias), sample: None };
        ControlFlow::Continue(())
    }
}

/// The only argument of a call, or the default.
fn literal(view: &View, arguments: &[FunctionArg]) -> Result<Value, QueryError> {
    let default = || view.parameter.as_ref().map(|parameter| parameter.default.to_owned()).unwrap_or_default();
    match arguments {
        [] => Ok(Value::SingleQuotedString(default())),
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] => Ok(value.value.clone()),
        // What is negative is one too, though no view takes it.
        [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::UnaryOp { op: UnaryOperator::Minus, expr }))] if matches!(&**expr, Expr::Value(value) if matches!(value.value, Value::Number(..))) => {
            Ok(Value::Number(format!("-{expr}"), false))
        }
        _ => {
            let message = format!("{} takes one argument, a literal", view.name);
            Err(QueryError::Plan { message, line: None, column: None })
        }
    }
}

/// Puts a value where the text of a view names its parameter.
struct Filling {
    placeholder: &'static str,
    expression: Expr,
    /// As the argument of another view.
    value: Value,
}

impl Filling {
    fn is_meant(&self, expression: &Expr) -> bool {
        matches!(expression, Expr::Value(found) if matches!(&found.value, Value::Placeholder(name) if name == self.placeholder))
    }
}

impl VisitorMut for Filling {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { args: Some(arguments), .. } = factor {
            for argument in &mut arguments.args {
                if let FunctionArg::Unnamed(FunctionArgExpr::Expr(expression)) = argument
                    && self.is_meant(expression)
                {
                    *expression = Expr::Value(self.value.clone().into());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if self.is_meant(expression) {
            *expression = self.expression.clone();
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(sql: &str) -> Result<String, QueryError> {
        let mut statement = guard::parse(sql)?;
        expand(&mut statement)?;
        Ok(statement.to_string())
    }

    #[test]
    fn a_call_is_the_text_of_the_view_with_the_literal_in_it() {
        let text = expanded("SELECT * FROM usage_monthly('Europe/Kyiv') WHERE account = 'shop'").unwrap();
        assert!(text.contains("month_of(local_date(hour, 'Europe/Kyiv'))"), "{text}");
        assert!(text.contains("local_hour(at, 'Europe/Kyiv')"), "calls within are expanded too: {text}");
        assert!(text.contains(") AS usage_monthly WHERE account = 'shop'"), "{text}");
        assert!(!text.contains('$'), "{text}");
        assert!(expanded("EXPLAIN SELECT * FROM avoidable_cost(15) a").unwrap().contains("INTERVAL '15 minutes'"));
        assert!(
            expanded("SELECT * FROM public.completeness('2026-03-01')")
                .unwrap()
                .contains("arrow_cast(1772323200000000")
        );
        assert!(expanded("SELECT * FROM avoidable_cost()").unwrap().contains("INTERVAL '60 minutes'"));
    }

    #[test]
    fn what_is_no_fitting_literal_is_refused_with_its_place() {
        for (sql, reason) in [
            ("usage_daily('Europe/Nowhere')", "time zone"),
            ("usage_daily(3)", "time zone"),
            ("usage_daily(concat('U', 'TC'))", "a literal"),
            ("usage_daily('UTC', 'UTC')", "one argument"),
            ("avoidable_cost(0)", "minutes"),
            ("avoidable_cost('1 minutes'' OR true')", "minutes"),
            ("avoidable_cost(-5)", "avoidable_cost(-5): its argument is a number of minutes from 1 to those of a year"),
            ("avoidable_cost(1.5)", "minutes"),
            ("avoidable_cost(-(-5))", "a literal"),
            ("billing_audit('yesterday')", "2026-03-01"),
            ("billing_audit(NULL)", "2026-03-01"),
        ] {
            let error = expanded(&format!("SELECT *\nFROM {sql}")).unwrap_err();
            assert!(error.message().contains(reason), "{sql}: {error}");
            assert_eq!(error.position(), Some((2, 6)), "{sql}");
        }
        for sql in [
            "users('x')",
            "generate_series(1, 2), users(1)",
            "pg_catalog.usage_daily('UTC')",
            "LATERAL usage_daily('UTC')",
        ] {
            assert!(matches!(expanded(&format!("SELECT * FROM {sql}")), Err(QueryError::Refused(_))), "{sql}");
        }
    }
}
