//! Errors as clients of PostgreSQL know them: each with its SQLSTATE, and its place where that is known.

use crate::query::QueryError;
use pgwire::error::{ErrorInfo, PgWireError};

/// SQLSTATEs.
pub mod state {
    pub const READ_ONLY: &str = "25006";
    pub const FAILED_TRANSACTION: &str = "25P02";
    pub const NO_TRANSACTION: &str = "25P01";
    pub const NOT_SUPPORTED: &str = "0A000";
    pub const PROTOCOL: &str = "08P01";
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    pub const NOT_ADMITTED: &str = "28P01";
    pub const SYNTAX: &str = "42601";
    pub const NO_TABLE: &str = "42P01";
    pub const NO_COLUMN: &str = "42703";
    pub const NO_FUNCTION: &str = "42883";
    pub const NO_SCHEMA: &str = "3F000";
    pub const NO_SETTING: &str = "42704";
    pub const NO_CURSOR: &str = "34000";
    pub const CURSOR_EXISTS: &str = "42P03";
    pub const PLAN: &str = "42000";
    pub const BAD_TEXT: &str = "22P02";
    pub const BY_ZERO: &str = "22012";
    pub const OUT_OF_RANGE: &str = "22003";
    pub const DATA: &str = "22000";
    pub const BAD_VALUE: &str = "22023";
    pub const BAD_STATE: &str = "55000";
    pub const TOO_MANY_COLUMNS: &str = "54011";
    pub const LIMIT: &str = "54000";
    pub const CANCELLED: &str = "57014";
    pub const STOPPING: &str = "57P01";
    pub const INTERNAL: &str = "XX000";
}

/// An error that ends the statement.
pub fn error(state: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(info("ERROR", state, message)))
}

/// An error that ends the connection.
pub fn fatal(state: &str, message: impl Into<String>) -> PgWireError {
    PgWireError::UserError(Box::new(info("FATAL", state, message)))
}

fn info(severity: &str, state: &str, message: impl Into<String>) -> ErrorInfo {
    let mut info = ErrorInfo::new(severity.to_owned(), state.to_owned(), message.into());
    info.severity_nonlocalized = Some(severity.to_owned());
    info
}

/// The error of a query whose text begins `before` characters into what the client sent, where it is known to.
pub fn of_query(failed: &QueryError, sql: &str, before: Option<usize>) -> PgWireError {
    let mut info = info("ERROR", sqlstate(failed), failed.message());
    let place = failed.position().and_then(|(line, column)| place(sql, line, column));
    info.position = place.zip(before).map(|(place, before)| (before + place).to_string());
    PgWireError::UserError(Box::new(info))
}

/// Which character of a text it is that stands there, counted from 1.
fn place(sql: &str, line: u64, column: u64) -> Option<usize> {
    let line = usize::try_from(line).ok()?.checked_sub(1)?;
    let earlier: usize = sql.split('\n').take(line).map(|line| line.chars().count() + 1).sum();
    Some(earlier + usize::try_from(column).ok()?)
}

fn sqlstate(error: &QueryError) -> &'static str {
    match error {
        QueryError::Syntax { .. } => state::SYNTAX,
        QueryError::Refused(_) => state::READ_ONLY,
        QueryError::Past(_) => state::PLAN,
        QueryError::Plan { message, .. } => planning(message),
        QueryError::Execution(message) => execution(message),
        QueryError::Limit(_) => state::LIMIT,
        QueryError::Timeout(_) => state::CANCELLED,
        QueryError::Internal(_) => state::INTERNAL,
    }
}

/// The engine tells these apart by their words alone.
fn planning(message: &str) -> &'static str {
    let begins = |words: &str| message.starts_with(words);
    match () {
        () if begins("no table named") => state::NO_TABLE,
        () if begins("no generation named") => state::NO_SCHEMA,
        () if begins("no column named") => state::NO_COLUMN,
        () if begins("Invalid function") => state::NO_FUNCTION,
        () if message.contains("not supported") || begins("Unsupported") => state::NOT_SUPPORTED,
        () => state::PLAN,
    }
}

fn execution(message: &str) -> &'static str {
    let lower = message.to_ascii_lowercase();
    match () {
        () if lower.contains("divide by zero") => state::BY_ZERO,
        () if lower.contains("overflow") => state::OUT_OF_RANGE,
        () if ["cast", "parse", "parsing"].iter().any(|word| lower.contains(word)) => state::BAD_TEXT,
        () => state::DATA,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_state_and_its_place() {
        let unknown = QueryError::Plan { message: "no column named a".to_owned(), line: Some(2), column: Some(3) };
        let PgWireError::UserError(info) = of_query(&unknown, "select\n  a", Some(4)) else {
            panic!("no error of a user")
        };
        // The `a` is character 10 of the text, before which there are 4.
        assert_eq!((info.code.as_str(), info.position.as_deref()), ("42703", Some("14")));
        assert_eq!(place("select 'ü' x", 1, 12), Some(12));
        assert_eq!(execution("Arrow error: Divide by zero error"), "22012");
        assert_eq!(execution("Cannot cast string 'x' to value of Int64 type"), "22P02");
    }
}
