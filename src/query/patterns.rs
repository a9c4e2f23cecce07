//! Patterns of times as PostgreSQL has them (`YYYY-MM-DD HH24:MI:SS`), which its clients write, put as the engine has them
//! (`%Y-%m-%d %H:%M:%S`); and intervals times numbers, which the engine has as a function.

use super::error::QueryError;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments,
    ObjectName, Value, VisitMut as _, VisitorMut,
};
use std::ops::ControlFlow;

/// The words of a pattern, and what they are for reading and for writing; of those that begin alike the longest is first. One
/// without a meaning here is refused.
const WORDS: [(&str, &str, &str); 36] = [
    ("FMMonth", "%B", "%B"),
    ("FMDay", "%A", "%A"),
    ("FMHH24", "%-H", "%-H"),
    ("FMHH12", "%-I", "%-I"),
    ("FMHH", "%-I", "%-I"),
    ("FMDD", "%-d", "%-d"),
    ("FMMM", "%-m", "%-m"),
    ("FMMI", "%-M", "%-M"),
    ("SSSS", "", ""),
    ("IDDD", "", ""),
    ("TZH", "", ""),
    ("TZM", "", ""),
    ("SS.US", "%S%.f", "%S%.6f"),
    ("SS.MS", "%S%.f", "%S%.3f"),
    ("Month", "%B", "%B"),
    ("IYYY", "%G", "%G"),
    ("YYYY", "%Y", "%Y"),
    ("HH24", "%H", "%H"),
    ("HH12", "%I", "%I"),
    ("DDD", "%j", "%j"),
    ("Day", "%A", "%A"),
    ("Mon", "%b", "%b"),
    ("YY", "%y", "%y"),
    ("MM", "%m", "%m"),
    ("DD", "%d", "%d"),
    ("Dy", "%a", "%a"),
    ("HH", "%I", "%I"),
    ("MI", "%M", "%M"),
    ("SS", "%S", "%S"),
    ("US", "%6f", "%6f"),
    ("MS", "%3f", "%3f"),
    ("IW", "%V", "%V"),
    ("ID", "%u", "%u"),
    ("AM", "%p", "%p"),
    ("PM", "%p", "%p"),
    ("Q", "%q", "%q"),
];
/// What the engine knows beside patterns, for lengths of time.
const FORMATS: [&str; 2] = ["iso8601", "pretty"];

/// Puts the patterns that are written in the text, in `to_timestamp`, `to_date` and `to_char`, and `INTERVAL '…' * number`.
/// Refuses a pattern with words that are not known: it would give a wrong text.
pub fn translate(statement: &mut Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => match inner.visit(&mut Calls) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(pattern) => {
                let known: Vec<&str> =
                    WORDS.iter().filter(|(_, read, _)| !read.is_empty()).map(|(word, ..)| *word).collect();
                let known = known.join(", ");
                let message = format!(
                    "the pattern `{pattern}` has words that are not known; there are {known}, and the engine's with %"
                );
                Err(QueryError::Plan { message, line: None, column: None })
            }
        },
        Statement::Explain(explain) => translate(&mut explain.statement),
        _ => Ok(()),
    }
}

struct Calls;

impl VisitorMut for Calls {
    /// The pattern that is not known.
    type Break = String;

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<String> {
        if let Expr::Function(function) = expression
            && let name = function.name.to_string().to_lowercase()
            && ["to_timestamp", "to_date", "to_char"].contains(&name.as_str())
            && let FunctionArguments::List(list) = &mut function.args
            && let [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] = list.args.as_mut_slice()
            && let Value::SingleQuotedString(pattern) = &mut value.value
        {
            let Some(known) = translated(pattern, name == "to_char") else {
                return ControlFlow::Break(pattern.clone());
            };
            *pattern = known;
        }
        if let Expr::BinaryOp { left, op: BinaryOperator::Multiply, right } = expression
            && (is_interval(left) || is_interval(right))
        {
            let empty = || Expr::Value(Value::Null.into());
            let (left, right) = (std::mem::replace(&mut **left, empty()), std::mem::replace(&mut **right, empty()));
            let values = if is_interval(&left) { vec![left, right] } else { vec![right, left] };
            *expression = call("interval_times", values);
        }
        ControlFlow::Continue(())
    }
}

fn is_interval(expression: &Expr) -> bool {
    match expression {
        Expr::Interval(_) | Expr::Cast { data_type: DataType::Interval { .. }, .. } => true,
        Expr::Nested(inner) => is_interval(inner),
        _ => false,
    }
}

/// A call of a function.
pub(super) fn call(name: &str, values: Vec<Expr>) -> Expr {
    let args = values.into_iter().map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![name.into()]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// One with `%` in it is the engine's already. `None` where a word of it is not known.
fn translated(pattern: &str, writes: bool) -> Option<String> {
    if pattern.contains('%') || FORMATS.contains(&pattern) {
        return Some(pattern.to_owned());
    }
    let (mut rest, mut out) = (pattern, String::new());
    while let Some(first) = rest.chars().next() {
        // A text in quotation marks is itself.
        if let Some((text, behind)) = rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            out.push_str(text);
            rest = behind;
            continue;
        }
        // Names are written as the word is, and only as names are usually.
        let starts = |word: &str| {
            let is_name = word.chars().any(|letter| letter.is_ascii_lowercase());
            rest.get(..word.len()).is_some_and(|head| head == word || !is_name && head.eq_ignore_ascii_case(word))
        };
        if let Some((word, read, written)) = WORDS.iter().find(|(word, ..)| starts(word)) {
            let put = if writes { written } else { read };
            // chrono has a word of its own for small letters.
            let is_small = ["am", "pm"].iter().any(|small| rest.starts_with(small));
            out.push_str(if is_small { "%P" } else { put });
            rest = &rest[word.len()..];
            if put.is_empty() {
                return None;
            }
        } else if first.is_ascii_alphabetic() && !['T', 'Z'].contains(&first) {
            return None;
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_put_in_the_engines_words() {
        for (pattern, read, written) in [
            ("YYYY-MM-DD HH24:MI:SS.US", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.6f"),
            ("yyyy-mm-dd\"T\"hh24:mi", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M"),
            ("DD. Month YYYY, HH:MI AM", "%d. %B %Y, %I:%M %p", "%d. %B %Y, %I:%M %p"),
            ("FMDD. FMMonth, FMHH12 pm", "%-d. %B, %-I %P", "%-d. %B, %-I %P"),
            ("YYYY-MM-DDTHH24:MI:SSZ", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%SZ"),
            ("YYYY-\"Q\"Q", "%Y-Q%q", "%Y-Q%q"),
            ("%Y-%m", "%Y-%m", "%Y-%m"),
            ("iso8601", "iso8601", "iso8601"),
            ("é\"", "é\"", "é\""),
        ] {
            let translated = |writes| translated(pattern, writes).unwrap();
            assert_eq!((translated(false), translated(true)), (read.to_owned(), written.to_owned()));
        }
        for unknown in ["MONTH", "mon", "SSSS", "WW", "TZH:TZM", "IDDD", "J", "month"] {
            assert_eq!(translated(unknown, true), None, "{unknown}");
        }
    }
}
