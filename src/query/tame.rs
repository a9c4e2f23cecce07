//! Functions of SQL that one call would keep a thread or the memory of all with: taken out, or held to a length.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::{cast, max};
use datafusion::arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use std::sync::Arc;

/// Their work or their result is of any size, whatever the rows are, and is not counted.
const TAKEN_OUT: [&str; 6] = ["levenshtein", "repeat", "array_repeat", "array_resize", "range", "generate_series"];
const PADS: [&str; 2] = ["lpad", "rpad"];
const LONGEST: i64 = 10_000;

/// Leaves the others. The table functions of these names stay: their rows come batch by batch.
pub(super) fn tame(state: &mut SessionState) -> Result<()> {
    for name in TAKEN_OUT {
        state.deregister_udf(name)?;
    }
    for name in PADS {
        let inner = state.udf(name)?;
        state.register_udf(Arc::new(ScalarUDF::new_from_impl(Pad { inner })))?;
    }
    Ok(())
}

/// `lpad` and `rpad` up to a length.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Pad {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Pad {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if let Some(length) = args.args.get(1) {
            let lengths = cast(&length.to_array(args.number_rows)?, &DataType::Int64)?;
            if max(lengths.as_primitive::<Int64Type>()).is_some_and(|longest| longest > LONGEST) {
                return exec_err!("{}: a text is filled up to {LONGEST} characters at most", self.name());
            }
        }
        self.inner.invoke_with_args(args)
    }
}
