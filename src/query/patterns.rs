//! Patterns of times as PostgreSQL has them (`YYYY-MM-DD HH24:MI:SS`), which its clients write, put as the engine has them
//! (`%Y-%m-%d %H:%M:%S`); and intervals times numbers, which the engine has as a function.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, ObjectName,
    Value, VisitMut as _, VisitorMut,
};
use std::ops::ControlFlow;

/// The words of a pattern; of those that begin alike the longest is first. What a fraction is told by differs between reading
/// and writing.
const WORDS: [(&str, &str, &str); 24] = [
    ("SS.US", "%S%.f", "%S%.6f"),
    ("SS.MS", "%S%.f", "%S%.3f"),
    ("MONTH", "%B", "%B"),
    ("IYYY", "%G", "%G"),
    ("YYYY", "%Y", "%Y"),
    ("HH24", "%H", "%H"),
    ("HH12", "%I", "%I"),
    ("DDD", "%j", "%j"),
    ("DAY", "%A", "%A"),
    ("MON", "%b", "%b"),
    ("YY", "%y", "%y"),
    ("MM", "%m", "%m"),
    ("DD", "%d", "%d"),
    ("DY", "%a", "%a"),
    ("HH", "%I", "%I"),
    ("MI", "%M", "%M"),
    ("SS", "%S", "%S"),
    ("US", "%6f", "%6f"),
    ("MS", "%3f", "%3f"),
    ("IW", "%V", "%V"),
    ("ID", "%u", "%u"),
    ("AM", "%p", "%p"),
    ("PM", "%p", "%p"),
    ("TZ", "%Z", "%Z"),
];

/// Puts the patterns that are written in the text, in `to_timestamp`, `to_date` and `to_char`, and `INTERVAL '…' * number`.
pub fn translate(statement: &mut Statement) {
    match statement {
        // It never breaks off.
        Statement::Statement(inner) => {
            let _ = inner.visit(&mut Calls);
        }
        Statement::Explain(explain) => translate(&mut explain.statement),
        _ => {}
    }
}

struct Calls;

impl VisitorMut for Calls {
    type Break = ();

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expression
            && let name = function.name.to_string().to_lowercase()
            && ["to_timestamp", "to_date", "to_char"].contains(&name.as_str())
            && let FunctionArguments::List(list) = &mut function.args
            && let [_, FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] = list.args.as_mut_slice()
            && let Value::SingleQuotedString(pattern) = &mut value.value
        {
            *pattern = translated(pattern, name == "to_char");
        }
        if let Expr::BinaryOp { left, op: BinaryOperator::Multiply, right } = expression {
            let (interval, number) = match (left.as_ref(), right.as_ref()) {
                (interval @ Expr::Interval(_), number) | (number, interval @ Expr::Interval(_)) => (interval, number),
                _ => return ControlFlow::Continue(()),
            };
            *expression = times(interval.clone(), number.clone());
        }
        ControlFlow::Continue(())
    }
}

fn times(interval: Expr, number: Expr) -> Expr {
    let args = [interval, number].map(|value| FunctionArg::Unnamed(FunctionArgExpr::Expr(value))).into();
    Expr::Function(Function {
        name: ObjectName::from(vec!["interval_times".into()]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses: Vec::new() }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// One with `%` in it is the engine's already.
fn translated(pattern: &str, writes: bool) -> String {
    if pattern.contains('%') {
        return pattern.to_owned();
    }
    let (mut rest, mut out) = (pattern, String::new());
    while let Some(first) = rest.chars().next() {
        // A text in quotation marks is itself.
        if let Some((text, behind)) = rest.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
            out.push_str(text);
            rest = behind;
            continue;
        }
        let starts = |word: &str| rest.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
        if let Some((word, read, written)) = WORDS.iter().find(|(word, ..)| starts(word)) {
            out.push_str(if writes { written } else { read });
            rest = &rest[word.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
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
            ("%Y-%m", "%Y-%m", "%Y-%m"),
            ("é\"", "é\"", "é\""),
        ] {
            assert_eq!((translated(pattern, false), translated(pattern, true)), (read.to_owned(), written.to_owned()));
        }
    }
}
