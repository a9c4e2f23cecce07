//! What can go wrong with a query, with the place in its text where that is known.

use datafusion::common::{DataFusionError, Diagnostic, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;

/// Why a query has no answer, or no complete one. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The text is no SQL.
    #[error("{message}{}", place(*.line, *.column))]
    Syntax { message: String, line: Option<u64>, column: Option<u64> },
    /// SQL that is not answered here.
    #[error("{0}")]
    Refused(String),
    /// There are no tables of the time or version that is asked for, or no longer.
    #[error("{0}")]
    Past(String),
    /// The query names what does not exist or does not fit together.
    #[error("{message}{}", place(*.line, *.column))]
    Plan { message: String, line: Option<u64>, column: Option<u64> },
    /// An expression has no value for some row: a division by zero, a number too large.
    #[error("{0}")]
    Execution(String),
    /// The query needs more rows or memory than it may.
    #[error("{0}")]
    Limit(String),
    /// The query worked for longer than it may.
    #[error("the query ran for longer than {0:?}, the limit")]
    Timeout(std::time::Duration),
    /// The tables cannot be read.
    #[error("{0}")]
    Internal(String),
}

impl QueryError {
    /// Line and column in the query, where known.
    pub fn position(&self) -> Option<(u64, u64)> {
        match self {
            QueryError::Syntax { line, column, .. } | QueryError::Plan { line, column, .. } => {
                Some(((*line)?, (*column)?))
            }
            _ => None,
        }
    }

    /// The message without the position.
    pub fn message(&self) -> String {
        match self {
            QueryError::Syntax { message, .. } | QueryError::Plan { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

fn place(line: Option<u64>, column: Option<u64>) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(" (line {line}, column {column})"),
        _ => String::new(),
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> QueryError {
        classify(&error, None)
    }
}

fn classify(error: &DataFusionError, diagnostic: Option<&Diagnostic>) -> QueryError {
    match error {
        DataFusionError::Diagnostic(inner, error) => classify(error, Some(inner)),
        DataFusionError::Context(_, error) => classify(error, diagnostic),
        DataFusionError::Shared(error) => classify(error, diagnostic),
        DataFusionError::Collection(errors) => match errors.first() {
            Some(first) => classify(first, diagnostic),
            None => QueryError::Internal(error.strip_backtrace()),
        },
        DataFusionError::SQL(error, _) => syntax(error),
        DataFusionError::ResourcesExhausted(message) => {
            let first = message.lines().next().unwrap_or_default();
            QueryError::Limit(format!("the query needs more memory than it may use: {first}"))
        }
        DataFusionError::Plan(message) | DataFusionError::NotImplemented(message) => {
            planned(message.clone(), diagnostic)
        }
        DataFusionError::SchemaError(schema, _) => planned(schema_message(schema), diagnostic),
        DataFusionError::Execution(message) => QueryError::Execution(stripped(message)),
        DataFusionError::ArrowError(error, _) => QueryError::Execution(error.to_string()),
        // Functions report arguments that they cannot take in these ways too.
        DataFusionError::Configuration(message) => planned(message.clone(), diagnostic),
        DataFusionError::External(error) => match error.downcast_ref::<DataFusionError>() {
            Some(error) => classify(error, diagnostic),
            None => QueryError::Internal(error.to_string()),
        },
        other => QueryError::Internal(other.strip_backtrace()),
    }
}

/// The message of the planner, the place and the help of the diagnostic.
fn planned(message: String, diagnostic: Option<&Diagnostic>) -> QueryError {
    let start = diagnostic.and_then(|diagnostic| diagnostic.span).map(|span| span.start);
    let mut message = stripped(&message);
    for help in diagnostic.iter().flat_map(|diagnostic| &diagnostic.helps) {
        if !message.contains(&help.message) {
            message = format!("{message}. {}", help.message);
        }
    }
    QueryError::Plan { message, line: start.map(|at| at.line), column: start.map(|at| at.column) }
}

fn stripped(message: &str) -> String {
    let message = message.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or(message);
    message.trim_end().trim_end_matches('.').replace("counterbat.public.", "")
}

/// Unknown columns with the likeliest and the valid ones.
fn schema_message(error: &SchemaError) -> String {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let wanted = field.name.to_lowercase();
            let mut message = format!("no column named {}", field.quoted_flat_name());
            let near = valid_fields.iter().map(|valid| (distance(&wanted, &valid.name.to_lowercase()), valid));
            if let Some((_, near)) = near.filter(|(far, _)| *far <= 2.max(wanted.len() / 3)).min_by_key(|(far, _)| *far)
            {
                message.push_str(&format!("; did you mean {}?", near.name));
            }
            let mut names: Vec<&str> = valid_fields.iter().map(|valid| valid.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            if !names.is_empty() {
                message.push_str(&format!("; there are: {}", names.join(", ")));
            }
            message
        }
        other => other.to_string(),
    }
}

/// Levenshtein distance; names are short.
pub(super) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let next = (diagonal + usize::from(a != *b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// The parser states places only at the end of its messages.
fn syntax(error: &ParserError) -> QueryError {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
        ParserError::RecursionLimitExceeded => {
            return QueryError::Limit("the query is nested too deeply".to_owned());
        }
    };
    let placed = message.rsplit_once(" at Line: ").and_then(|(message, place)| {
        let (line, column) = place.split_once(", Column")?;
        let column = column.trim_start_matches(':').trim();
        Some((message.trim().to_owned(), line.trim().parse().ok()?, column.parse().ok()?))
    });
    match placed {
        Some((message, line, column)) => QueryError::Syntax { message, line: Some(line), column: Some(column) },
        None => QueryError::Syntax { message: message.clone(), line: None, column: None },
    }
}
