//! Functions that clients of PostgreSQL ask the catalog by.

use super::catalog_tables::SETTINGS;
use super::engine::CATALOG;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int32Type};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};

/// Object ids of tables that are found by the name of their schema only.
pub(super) type Hidden = Arc<RwLock<HashSet<i32>>>;

/// All of them; most are about things that there are none of here.
pub(super) fn functions(hidden: Hidden) -> impl Iterator<Item = ScalarUDF> {
    let version = format!("PostgreSQL 16.6 (Counterbat {})", env!("CARGO_PKG_VERSION"));
    let (yes, no, nothing) = (ScalarValue::from(true), ScalarValue::from(false), ScalarValue::Utf8(None));
    let constants = [
        ("version", ScalarValue::from(version)),
        ("pg_is_in_recovery", no.clone()),
        ("pg_is_other_temp_schema", no),
        ("pg_my_temp_schema", ScalarValue::from(0_i32)),
        ("current_catalog", ScalarValue::from(CATALOG)),
        ("pg_function_is_visible", yes.clone()),
        ("pg_type_is_visible", yes),
        // How many bytes a table has is not told by its files alone; and there are no types but those of the protocol.
        ("pg_relation_size", ScalarValue::Int64(None)),
        ("pg_table_size", ScalarValue::Int64(None)),
        ("pg_total_relation_size", ScalarValue::Int64(None)),
        ("to_regtype", ScalarValue::Int32(None)),
    ];
    let nothings = [
        "col_description",
        "inet_server_addr",
        "obj_description",
        "pg_get_function_arguments",
        "pg_get_function_result",
        "pg_get_indexdef",
        "pg_get_ruledef",
        "pg_get_serial_sequence",
        "pg_get_triggerdef",
        "pg_get_viewdef",
        "pg_size_pretty",
        "pg_tablespace_location",
        "shobj_description",
    ];
    let nothings = nothings.map(|name| (name, nothing.clone()));
    let constant = |(name, value)| ScalarUDF::new_from_impl(Constant { name, value, signature: any_arguments() });
    let setting = ScalarUDF::new_from_impl(CurrentSetting { signature: any_arguments() });
    let format = ScalarUDF::new_from_impl(Format { signature: Signature::variadic_any(Volatility::Immutable) });
    let visible = ScalarUDF::new_from_impl(Visible { hidden, signature: any_arguments() });
    constants.into_iter().chain(nothings).map(constant).chain([setting, format, visible])
}

fn any_arguments() -> Signature {
    Signature::one_of(vec![TypeSignature::Nullary, TypeSignature::VariadicAny], Volatility::Stable)
}

/// The same whatever it is asked about.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Constant {
    name: &'static str,
    value: ScalarValue,
    signature: Signature,
}

impl ScalarUDFImpl for Constant {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.value.data_type())
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value.clone()))
    }
}

/// `pg_table_is_visible(oid) -> bool`: whether the table is found without its schema.
#[derive(Debug)]
struct Visible {
    hidden: Hidden,
    signature: Signature,
}

impl PartialEq for Visible {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hidden, &other.hidden)
    }
}

impl Eq for Visible {}

impl Hash for Visible {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl ScalarUDFImpl for Visible {
    fn name(&self) -> &str {
        "pg_table_is_visible"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let Some(ids) = columns.first() else { return Ok(ColumnarValue::Scalar(ScalarValue::Boolean(None))) };
        let ids = cast(ids, &DataType::Int32)?;
        let hidden = self.hidden.read().unwrap_or_else(PoisonError::into_inner);
        let visible: BooleanArray =
            ids.as_primitive::<Int32Type>().iter().map(|id| id.map(|id| !hidden.contains(&id))).collect();
        Ok(ColumnarValue::Array(Arc::new(visible) as ArrayRef))
    }
}

/// `format(pattern, …) -> text` with `%s`, `%I` for names, `%L` for texts, and `%%`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Format {
    signature: Signature,
}

impl ScalarUDFImpl for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let texts = columns.iter().map(|column| cast(column, &DataType::Utf8));
        let texts = texts.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        let value = |column: &ArrayRef, row: usize| {
            let column = column.as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let Some((patterns, values)) = texts.split_first() else {
            return exec_err!("format: there is no pattern");
        };
        let filled = (0..patterns.len()).map(|row| match value(patterns, row) {
            Some(pattern) => filled(&pattern, values.iter().map(|column| value(column, row))).map(Some),
            None => Ok(None),
        });
        Ok(ColumnarValue::Array(Arc::new(filled.collect::<Result<StringArray>>()?) as ArrayRef))
    }
}

/// A pattern with these values in it.
fn filled(pattern: &str, mut values: impl Iterator<Item = Option<String>>) -> Result<String> {
    let mut out = String::new();
    let mut parts = pattern.chars();
    while let Some(next) = parts.next() {
        if next != '%' {
            out.push(next);
            continue;
        }
        let kind = parts.next();
        if kind == Some('%') {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else { return exec_err!("format: there are too few values for `{pattern}`") };
        let is_plain = |name: &str| {
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit())
        };
        match (kind, value) {
            (Some('s'), value) => out.push_str(&value.unwrap_or_default()),
            (Some('I'), Some(name)) if is_plain(&name) => out.push_str(&name),
            (Some('I'), Some(name)) => out.push_str(&format!("\"{}\"", name.replace('"', "\"\""))),
            (Some('I'), None) => return exec_err!("format: NULL is no name"),
            (Some('L'), Some(text)) => out.push_str(&format!("'{}'", text.replace('\'', "''"))),
            (Some('L'), None) => out.push_str("NULL"),
            _ => return exec_err!("format: of patterns %s, %I, %L and %% are known"),
        }
    }
    Ok(out)
}

/// `current_setting(name) -> text`: NULL where there is none of the name.
#[derive(Debug, PartialEq, Eq, Hash)]
struct CurrentSetting {
    signature: Signature,
}

impl ScalarUDFImpl for CurrentSetting {
    fn name(&self) -> &str {
        "current_setting"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = ColumnarValue::values_to_arrays(&arguments.args)?;
        let Some(names) = columns.first() else { return Ok(ColumnarValue::Scalar(ScalarValue::Utf8(None))) };
        let names = cast(names, &DataType::Utf8)?;
        let value =
            |name: &str| SETTINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
        let values: StringArray = names.as_string::<i32>().iter().map(|name| name.and_then(value)).collect();
        Ok(ColumnarValue::Array(Arc::new(values) as ArrayRef))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_filled() {
        let values = |values: &[&str]| values.iter().map(|value| Some((*value).to_owned())).collect::<Vec<_>>();
        for (pattern, given, wanted) in [
            ("%I.%I", values(&["public", "a\"B"]), "public.\"a\"\"B\""),
            ("%s: %L %%", values(&["x", "it's"]), "x: 'it''s' %"),
            ("%s%L", vec![None, None], "NULL"),
        ] {
            assert_eq!(filled(pattern, given.into_iter()).unwrap(), wanted);
        }
        assert!(filled("%s", std::iter::empty()).is_err() && filled("%d", [None].into_iter()).is_err());
        assert!(filled("%I", [None].into_iter()).is_err() && filled("%", [None].into_iter()).is_err());
    }
}
