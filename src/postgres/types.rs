//! Which type of PostgreSQL a column has.

use crate::query::is_token;
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{FieldFormat, FieldInfo};

/// Columns that an answer may have, as in PostgreSQL.
pub const MOST_COLUMNS: usize = 1664;

/// A number of columns as the protocol counts them.
pub fn count(columns: usize) -> i16 {
    // No answer has more than [`MOST_COLUMNS`].
    i16::try_from(columns).unwrap_or(i16::MAX)
}

/// Digits of a token: those of the largest u64.
const TOKEN: i32 = modifier(20, 0);

/// The columns of an answer, each in the format it is asked for in. A wish that names another number of columns than there
/// are is no wish.
pub fn fields(schema: &Schema, format: &Format) -> Vec<FieldInfo> {
    let count = schema.fields().len();
    let wish = |column: usize| match format {
        Format::Individual(formats) if formats.len() != count => FieldFormat::Text,
        format => format.format_for(column),
    };
    schema.fields().iter().enumerate().map(|(column, field)| field_info(field, wish(column))).collect()
}

fn field_info(field: &Field, format: FieldFormat) -> FieldInfo {
    let data_type = pg_type(field);
    let size = match data_type {
        Type::BOOL => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
        Type::INTERVAL => 16,
        _ => -1,
    };
    let modifier = match field.data_type() {
        _ if is_token(field) => TOKEN,
        DataType::UInt64 => TOKEN,
        DataType::Decimal32(digits, scale)
        | DataType::Decimal64(digits, scale)
        | DataType::Decimal128(digits, scale)
        | DataType::Decimal256(digits, scale) => modifier(*digits as i32, (*scale).max(0) as i32),
        _ => -1,
    };
    FieldInfo::new(field.name().clone(), None, None, data_type, format)
        .with_type_size(size)
        .with_type_modifier(modifier)
}

/// That of `numeric(digits, scale)`.
const fn modifier(digits: i32, scale: i32) -> i32 {
    ((digits << 16) | scale) + 4
}

/// The type of a column. What PostgreSQL has nothing for is text.
pub fn pg_type(field: &Field) -> Type {
    if field.metadata().get("pg.oid_alias").is_some_and(|alias| alias == "oid" || alias == "regclass")
        && field.data_type() == &DataType::Int32
    {
        return Type::OID;
    }
    if is_token(field) {
        return Type::NUMERIC;
    }
    any_type(field.data_type())
}

/// The type of values.
pub fn any_type(data_type: &DataType) -> Type {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            array_of(&plain_type(item.data_type()))
        }
        other => plain_type(other),
    }
}

/// The type of values that are no lists.
pub fn plain_type(data_type: &DataType) -> Type {
    match data_type {
        DataType::Boolean => Type::BOOL,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => Type::INT2,
        DataType::Int32 | DataType::UInt16 => Type::INT4,
        DataType::Int64 | DataType::UInt32 => Type::INT8,
        DataType::UInt64 => Type::NUMERIC,
        DataType::Float16 | DataType::Float32 => Type::FLOAT4,
        DataType::Float64 => Type::FLOAT8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            Type::NUMERIC
        }
        DataType::Date32 | DataType::Date64 => Type::DATE,
        DataType::Timestamp(_, Some(_)) => Type::TIMESTAMPTZ,
        DataType::Timestamp(_, None) => Type::TIMESTAMP,
        DataType::Time32(_) | DataType::Time64(_) => Type::TIME,
        DataType::Interval(IntervalUnit::MonthDayNano | IntervalUnit::YearMonth | IntervalUnit::DayTime)
        | DataType::Duration(_) => Type::INTERVAL,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Type::BYTEA,
        DataType::Dictionary(_, value) => plain_type(value),
        _ => Type::TEXT,
    }
}

/// Types, each with that of its arrays.
const ARRAYS: [(Type, Type); 15] = [
    (Type::TEXT, Type::TEXT_ARRAY),
    (Type::VARCHAR, Type::VARCHAR_ARRAY),
    (Type::BPCHAR, Type::BPCHAR_ARRAY),
    (Type::BOOL, Type::BOOL_ARRAY),
    (Type::INT2, Type::INT2_ARRAY),
    (Type::INT4, Type::INT4_ARRAY),
    (Type::INT8, Type::INT8_ARRAY),
    (Type::FLOAT4, Type::FLOAT4_ARRAY),
    (Type::FLOAT8, Type::FLOAT8_ARRAY),
    (Type::NUMERIC, Type::NUMERIC_ARRAY),
    (Type::DATE, Type::DATE_ARRAY),
    (Type::TIMESTAMPTZ, Type::TIMESTAMPTZ_ARRAY),
    (Type::TIMESTAMP, Type::TIMESTAMP_ARRAY),
    (Type::TIME, Type::TIME_ARRAY),
    (Type::BYTEA, Type::BYTEA_ARRAY),
];

fn array_of(item: &Type) -> Type {
    ARRAYS.into_iter().find(|(known, _)| known == item).map_or(Type::TEXT_ARRAY, |(_, array)| array)
}

/// The type of the items of an array.
pub fn item_of(array: &Type) -> Option<Type> {
    ARRAYS.into_iter().find(|(_, known)| known == array).map(|(item, _)| item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::TimeUnit;

    #[test]
    fn columns_have_the_types_that_clients_expect() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        for (name, data_type, wanted, modifier) in [
            ("message_token", DataType::Int64, Type::NUMERIC, (20 << 16) + 4),
            ("offset", DataType::Int64, Type::INT8, -1),
            ("cost", DataType::Decimal128(18, 6), Type::NUMERIC, ((18 << 16) | 6) + 4),
            ("opened_at", utc, Type::TIMESTAMPTZ, -1),
            ("skewed", DataType::Boolean, Type::BOOL, -1),
            ("status", DataType::Int32, Type::INT4, -1),
            ("account", DataType::Utf8, Type::TEXT, -1),
        ] {
            let schema = Schema::new(vec![Field::new(name, data_type, true)]);
            let fields = fields(&schema, &Format::UnifiedBinary);
            assert_eq!((fields[0].datatype(), fields[0].type_modifier()), (&wanted, modifier), "{name}");
        }
    }
}
