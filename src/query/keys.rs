//! Which rows of a file still hold: the filter over files with replaced rows.

use crate::lake::TableName;
use crate::lake::rows::write_message_key;
use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// True for rows whose key is not among the replaced ones.
#[derive(Debug)]
pub struct Kept {
    table: TableName,
    replaced: Arc<HashSet<Box<[u8]>>>,
    signature: Signature,
}

impl Kept {
    /// The filter for a table that has a key, see [`Kept::columns`].
    pub fn new(table: TableName, replaced: Arc<HashSet<Box<[u8]>>>) -> Kept {
        let arguments = match table {
            TableName::Messages => vec![DataType::Utf8, DataType::Utf8, DataType::Int64],
            TableName::Sessions | TableName::Events => vec![DataType::Utf8],
        };
        Kept { table, replaced, signature: Signature::exact(arguments, Volatility::Immutable) }
    }

    /// The columns the key is made of; `events` is append-only and has none.
    pub fn columns(table: TableName) -> Option<&'static [&'static str]> {
        match table {
            TableName::Events => None,
            TableName::Sessions => Some(&["session_id"]),
            TableName::Messages => Some(&["account", "user_id", "message_token"]),
        }
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Kept) -> bool {
        self.table == other.table && Arc::ptr_eq(&self.replaced, &other.replaced)
    }
}

impl Eq for Kept {}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.table.hash(state);
        Arc::as_ptr(&self.replaced).hash(state);
    }
}

impl ScalarUDFImpl for Kept {
    fn name(&self) -> &str {
        "row_holds"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let kept: BooleanArray = match (self.table, columns.as_slice()) {
            (TableName::Sessions, [ids]) => {
                let ids = text(ids)?;
                let ids = ids.as_string::<i32>();
                ids.iter()
                    .map(|id| Some(!id.and_then(session_key).is_some_and(|key| self.replaced.contains(&key[..]))))
                    .collect()
            }
            (TableName::Messages, [accounts, users, tokens]) => {
                let (accounts, users) = (text(accounts)?, text(users)?);
                let (accounts, users) = (accounts.as_string::<i32>(), users.as_string::<i32>());
                let tokens = tokens.as_primitive::<Int64Type>();
                let mut key = Vec::new();
                (0..tokens.len())
                    .map(|row| {
                        key.clear();
                        write_message_key(accounts.value(row), users.value(row), tokens.value(row) as u64, &mut key);
                        Some(!self.replaced.contains(key.as_slice()))
                    })
                    .collect()
            }
            _ => return Err(DataFusionError::Internal("row_holds was given other columns".to_owned())),
        };
        Ok(ColumnarValue::Array(Arc::new(kept)))
    }
}

/// Dictionary or view columns as plain text.
fn text(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(cast(column, &DataType::Utf8)?)
}

fn session_key(id: &str) -> Option<[u8; 16]> {
    let mut key = [0; 16];
    hex::decode_to_slice(id, &mut key).ok()?;
    Some(key)
}
