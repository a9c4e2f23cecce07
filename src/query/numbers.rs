//! Numbers in SQL: with a point they are decimal, exact as amounts are; with an exponent they are doubles, as the SQL standard
//! has them.

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{CastKind, DataType, Expr, Value, VisitMut as _, VisitorMut};
use std::ops::ControlFlow;

/// Makes doubles of the numbers with an exponent, which would be decimals too.
pub fn make_doubles(statement: &mut Statement) {
    match statement {
        // It never breaks off.
        Statement::Statement(inner) => {
            let _ = inner.visit(&mut Exponents);
        }
        Statement::Explain(explain) => make_doubles(&mut explain.statement),
        _ => {}
    }
}

struct Exponents;

impl VisitorMut for Exponents {
    type Break = ();

    fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
        if let Expr::Value(value) = expression
            && let Value::Number(text, _) = &value.value
            && text.contains(['e', 'E'])
        {
            let text = Expr::Value(Value::SingleQuotedString(text.clone()).into());
            *expression = Expr::Cast {
                kind: CastKind::Cast,
                expr: Box::new(text),
                data_type: DataType::DoublePrecision,
                array: false,
                format: None,
            };
        }
        ControlFlow::Continue(())
    }
}
