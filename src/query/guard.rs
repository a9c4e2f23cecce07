//! Lets through one statement that only reads the tables, and says why anything else is refused.

use super::error::QueryError;
use super::table_functions;
use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{
    self, Ident, ObjectName, ObjectNamePart, Select, SetExpr, TableFactor, Visit as _, Visitor,
};
use std::ops::ControlFlow;

/// Table functions that read nothing.
const FUNCTIONS: [&str; 3] = ["generate_series", "range", "unnest"];
/// Asked by clients of PostgreSQL, which alone have it.
const PG_FUNCTION: &str = "pg_get_keywords";
const FILE_ENDINGS: [&str; 10] = ["parquet", "csv", "tsv", "json", "ndjson", "jsonl", "arrow", "avro", "gz", "zst"];
const NESTING: usize = 100;

/// Parses `sql` and returns its only statement.
pub fn parse(sql: &str) -> Result<Statement, QueryError> {
    let parsed = DFParserBuilder::new(sql)
        .with_recursion_limit(NESTING)
        .build()
        .and_then(|mut parser| parser.parse_statements());
    let mut statements = parsed.map_err(|error| match error {
        // Before planning every error is one of syntax, however the parser wraps it.
        DataFusionError::Plan(message) | DataFusionError::NotImplemented(message) => {
            QueryError::Syntax { message, line: None, column: None }
        }
        other => other.into(),
    })?;
    let Some(statement) = statements.pop_front() else {
        return Err(QueryError::Syntax { message: "there is no statement".to_owned(), line: Some(1), column: Some(1) });
    };
    if !statements.is_empty() {
        let count = statements.len() + 1;
        return Err(QueryError::Refused(format!("one statement is answered at a time, these are {count}")));
    }
    check(&statement)?;
    Ok(statement)
}

/// Looks through a statement.
pub fn check(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => match inner.visit(&mut Guard) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(reason) => Err(QueryError::Refused(reason)),
        },
        Statement::Explain(explain) => check(&explain.statement),
        Statement::CreateExternalTable(_) | Statement::CopyTo(_) => {
            Err(QueryError::Refused("files are not read or written here, only the tables are read".to_owned()))
        }
        Statement::Reset(_) => Err(QueryError::Refused("settings cannot be changed".to_owned())),
    }
}

/// Refuses to tell how a query is run: that would tell of rows and files that are not seen.
pub fn refuse_explain(statement: &Statement) -> Result<(), QueryError> {
    let is_explain = match statement {
        Statement::Explain(_) => true,
        Statement::Statement(inner) => matches!(**inner, ast::Statement::Explain { .. }),
        _ => false,
    };
    let why = "EXPLAIN is refused to a token of some accounts: it would tell of the rows of others";
    if is_explain { Err(QueryError::Refused(why.to_owned())) } else { Ok(()) }
}

struct Guard;

impl Visitor for Guard {
    type Break = String;

    fn pre_visit_statement(&mut self, statement: &ast::Statement) -> ControlFlow<String> {
        use ast::Statement as S;
        match statement {
            S::Query(_) | S::Explain { .. } | S::ExplainTable { .. } | S::ShowTables { .. } | S::ShowColumns { .. } => {
                ControlFlow::Continue(())
            }
            S::Set(_) => ControlFlow::Break("settings cannot be changed".to_owned()),
            S::Copy { .. } => {
                ControlFlow::Break("files are not read or written here, only the tables are read".to_owned())
            }
            other => {
                let text = other.to_string();
                let verb = text.split_whitespace().next().unwrap_or("this").to_uppercase();
                ControlFlow::Break(format!(
                    "{verb} is refused: the tables are only read, by SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, \
                     SHOW COLUMNS and DESCRIBE"
                ))
            }
        }
    }

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<String> {
        let verb = match query.body.as_ref() {
            SetExpr::Insert(_) => "INSERT",
            SetExpr::Update(_) => "UPDATE",
            SetExpr::Delete(_) => "DELETE",
            SetExpr::Merge(_) => "MERGE",
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break(format!("{verb} is refused: the tables are only read"))
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<String> {
        match select.into {
            Some(_) => ControlFlow::Break("SELECT INTO is refused: no table can be made".to_owned()),
            None => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<String> {
        let name = match factor {
            // Views, which are looked through like any other.
            TableFactor::Table { name, args: Some(_), .. } if table_functions::named(name).is_some() => {
                return ControlFlow::Continue(());
            }
            TableFactor::Table { name, args: Some(_), .. } | TableFactor::Function { name, .. } => name.to_string(),
            TableFactor::TableFunction { expr: ast::Expr::Function(function), .. } => function.name.to_string(),
            _ => return ControlFlow::Continue(()),
        };
        let lower = name.to_lowercase();
        if FUNCTIONS.contains(&lower.as_str()) || lower == PG_FUNCTION {
            return ControlFlow::Continue(());
        }
        let known: Vec<&str> = FUNCTIONS.into_iter().chain(table_functions::names()).collect();
        let known = known.join(", ");
        ControlFlow::Break(format!(
            "the table function {name} is refused: only the tables are read (there are {known})"
        ))
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<String> {
        if names_a_file(relation) {
            return ControlFlow::Break(format!("{relation} names a file: only the tables are read"));
        }
        ControlFlow::Continue(())
    }
}

fn names_a_file(relation: &ObjectName) -> bool {
    let ident = |part: &ObjectNamePart| part.as_ident().cloned();
    let parts: Vec<Ident> = relation.0.iter().filter_map(ident).collect();
    parts.iter().any(|part| part.quote_style == Some('\'') || part.value.contains(['/', '\\']))
        || parts.last().is_some_and(|last| {
            let name = last.value.to_lowercase();
            let ending = name.rsplit_once('.').map_or(name.as_str(), |(_, ending)| ending);
            FILE_ENDINGS.contains(&ending) && (parts.len() > 1 || name.contains('.'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reading_statements_pass() {
        for sql in [
            "SELECT 1",
            "select * from events;",
            "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
            "VALUES (1), (2)",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
            "SHOW TABLES",
            "SHOW COLUMNS FROM events",
            "DESCRIBE events",
            "SELECT * FROM generate_series(1, 3)",
            "(SELECT 1) UNION ALL SELECT 2 ORDER BY 1 LIMIT 1",
        ] {
            parse(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
    }

    #[test]
    fn everything_else_is_refused_with_a_reason() {
        for (sql, reason) in [
            ("SELECT 1; SELECT 2", "one statement"),
            ("DROP TABLE events", "DROP"),
            ("CREATE TABLE x AS SELECT 1", "CREATE"),
            ("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'", "files"),
            ("CREATE VIEW v AS SELECT 1", "CREATE"),
            ("INSERT INTO events VALUES (1)", "INSERT"),
            ("WITH a AS (SELECT 1) INSERT INTO events SELECT * FROM a", "INSERT"),
            ("UPDATE events SET status = 1", "UPDATE"),
            ("DELETE FROM events", "DELETE"),
            ("EXPLAIN DELETE FROM events", "DELETE"),
            ("TRUNCATE TABLE events", "TRUNCATE"),
            ("COPY events TO '/tmp/x.csv'", "files"),
            ("COPY (SELECT 1) TO '/tmp/x.parquet'", "files"),
            ("SET datafusion.execution.batch_size = 1", "settings"),
            ("RESET datafusion.execution.batch_size", "settings"),
            ("SELECT 1 INTO x", "INTO"),
            ("SELECT * FROM (SELECT 1 AS a INTO x) t", "INTO"),
            ("SELECT * FROM '/etc/passwd'", "names a file"),
            ("SELECT * FROM 'x.parquet'", "names a file"),
            ("SELECT * FROM \"x.parquet\"", "names a file"),
            ("SELECT * FROM x.parquet", "names a file"),
            ("SELECT * FROM events WHERE user_id IN (SELECT a FROM 'x.csv')", "names a file"),
            ("SELECT * FROM read_parquet('x')", "read_parquet"),
            ("SELECT * FROM events, LATERAL read_csv('x') AS y", "read_csv"),
            ("PREPARE p AS SELECT 1", "PREPARE"),
            ("BEGIN", "BEGIN"),
        ] {
            match parse(sql) {
                Err(QueryError::Refused(message)) => assert!(message.contains(reason), "{sql}: {message}"),
                other => panic!("{sql}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        let error = parse("SELECT *\nFROM events WHERE ORDER BY").unwrap_err();
        assert!(matches!(error, QueryError::Syntax { .. }), "{error:?}");
        assert_eq!(error.position().map(|(line, _)| line), Some(2), "{error:?}");
        assert!(matches!(parse("  ;"), Err(QueryError::Syntax { .. })));
        assert!(matches!(parse("SELECT 'abc"), Err(QueryError::Syntax { line: Some(1), .. })));
        let deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
        assert!(matches!(parse(&deep), Err(QueryError::Limit(_))));
    }
}
