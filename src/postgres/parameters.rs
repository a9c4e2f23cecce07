//! Values that clients give for parameters.

use super::arrays;
use super::numeric;
use super::types::{any_type, item_of};
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use pgwire::api::Type;

/// Days and µs from the epoch to 2000-01-01, from which PostgreSQL counts.
const DAYS_2000: i32 = 10_957;
const US_2000: i64 = DAYS_2000 as i64 * 86_400_000_000;
/// Digits that a decimal number may have.
const MOST_DIGITS: u32 = 38;

/// A value that cannot be what it is given for.
#[derive(Debug, thiserror::Error)]
#[error("parameter ${number}: {reason}")]
pub struct Unfit {
    pub number: usize,
    pub reason: String,
}

/// What is known of a parameter.
pub struct Parameter<'a> {
    /// Counted from 1.
    pub number: usize,
    /// What the client says it is.
    pub declared: Option<&'a Type>,
    /// What the query takes it for.
    pub wanted: Option<&'a DataType>,
}

/// The type a client is told that a parameter has.
pub fn told(wanted: Option<&DataType>) -> Type {
    wanted.map_or(Type::TEXT, any_type)
}

impl Parameter<'_> {
    /// The value that the client sent.
    pub fn value(&self, bytes: Option<&[u8]>, is_binary: bool) -> Result<ScalarValue, Unfit> {
        let given = self.declared.filter(|declared| **declared != Type::UNKNOWN);
        let Some(bytes) = bytes else {
            let data_type = self.wanted.cloned().or_else(|| natural(given?)).unwrap_or(DataType::Utf8);
            return ScalarValue::try_from(&data_type).map_err(|error| self.unfit(error.strip_backtrace()));
        };
        let sent = given.cloned().unwrap_or_else(|| told(self.wanted));
        let value = match (item_of(&sent), is_binary) {
            (Some(item), _) => return self.array(bytes, is_binary, &item),
            (None, true) => self.binary(bytes, &sent)?,
            (None, false) => self.text(bytes, &sent)?,
        };
        let Some(wanted) = self.wanted else { return Ok(value) };
        if let (DataType::Int64, Some(token)) = (wanted, large(&value)) {
            // A token as it is shown: the column has its bit pattern.
            return Ok(ScalarValue::Int64(Some(token.cast_signed())));
        }
        let fitting = value.cast_to(wanted);
        if matches!(value, ScalarValue::Utf8(_)) {
            return fitting.map_err(|error| self.unfit(error.strip_backtrace()));
        }
        // What would become another value stays what the client says it is: 1.5 is no integer.
        let back = |fitting: &ScalarValue| fitting.cast_to(&value.data_type()).is_ok_and(|back| back == value);
        Ok(fitting.ok().filter(back).unwrap_or(value))
    }

    /// An array of one dimension.
    fn array(&self, bytes: &[u8], is_binary: bool, item: &Type) -> Result<ScalarValue, Unfit> {
        let items = if is_binary { arrays::of_binary(bytes, item) } else { arrays::of_text(bytes) };
        let items = items.ok_or_else(|| self.unfit(format!("it is no array of {} of one dimension", item.name())))?;
        // An item is what it would be alone.
        let is_declared = self.declared.is_some_and(|declared| *declared != Type::UNKNOWN);
        let wanted = match self.wanted {
            Some(DataType::List(wanted)) => Some(wanted.data_type()),
            _ => None,
        };
        let parameter = Parameter { number: self.number, declared: is_declared.then_some(item), wanted };
        let values: Vec<ScalarValue> =
            items.iter().map(|item| parameter.value(item.as_deref(), is_binary)).collect::<Result<_, _>>()?;
        let known = values.iter().find(|value| !value.is_null()).map(ScalarValue::data_type);
        let scale = |value: &ScalarValue| if let ScalarValue::Decimal128(_, _, scale) = value { *scale } else { 0 };
        let data_type = match known.or_else(|| natural(item)).unwrap_or(DataType::Utf8) {
            DataType::Decimal128(..) => DataType::Decimal128(38, values.iter().map(scale).max().unwrap_or(0)),
            other => other,
        };
        let values: Result<Vec<_>, _> = values.iter().map(|value| value.cast_to(&data_type)).collect();
        let values = values.map_err(|error| self.unfit(error.strip_backtrace()))?;
        Ok(ScalarValue::List(ScalarValue::new_list_nullable(&values, &data_type)))
    }

    fn unfit(&self, reason: impl Into<String>) -> Unfit {
        Unfit { number: self.number, reason: reason.into() }
    }

    fn text(&self, bytes: &[u8], given: &Type) -> Result<ScalarValue, Unfit> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.unfit("it is not UTF-8"))?;
        let value = ScalarValue::Utf8(Some(text.to_owned()));
        match natural(given) {
            // Read as what the query wants, where the client leaves that open.
            None => Ok(value),
            Some(_) if self.declared.is_none_or(|declared| declared == &Type::UNKNOWN) => Ok(value),
            Some(DataType::Decimal128(..)) => self.decimal(text),
            Some(natural) => value.cast_to(&natural).map_err(|error| self.unfit(error.strip_backtrace())),
        }
    }

    /// Digits with or without a point and an exponent.
    fn decimal(&self, text: &str) -> Result<ScalarValue, Unfit> {
        let no_number = || self.unfit(format!("`{text}` is no number of 38 digits at most"));
        let (number, exponent) = text.trim().split_once(['e', 'E']).unwrap_or((text.trim(), "0"));
        let exponent: i32 = exponent.parse().map_err(|_| no_number())?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let is_digits = fraction.bytes().all(|digit| digit.is_ascii_digit());
        let digits: i128 = format!("{whole}{fraction}").parse().ok().filter(|_| is_digits).ok_or_else(no_number)?;
        let scale = i32::try_from(fraction.len()).ok().and_then(|scale| scale.checked_sub(exponent));
        let scale = scale.filter(|scale| scale.unsigned_abs() <= MOST_DIGITS).ok_or_else(no_number)?;
        let zeros = 10_i128.pow(scale.min(0).unsigned_abs());
        let digits = digits.checked_mul(zeros).filter(|digits| digits.unsigned_abs() < 10_u128.pow(MOST_DIGITS));
        // No more than the digits that there may be.
        Ok(ScalarValue::Decimal128(Some(digits.ok_or_else(no_number)?), MOST_DIGITS as u8, scale.max(0) as i8))
    }

    fn binary(&self, bytes: &[u8], given: &Type) -> Result<ScalarValue, Unfit> {
        let misfit = || self.unfit(format!("{} bytes are no {}", bytes.len(), given.name()));
        macro_rules! fixed {
            ($number:ty) => {
                <$number>::from_be_bytes(bytes.try_into().map_err(|_| misfit())?)
            };
        }
        Ok(match *given {
            Type::BOOL => ScalarValue::Boolean(Some(fixed!(u8) != 0)),
            Type::INT2 => ScalarValue::Int64(Some(fixed!(i16).into())),
            Type::INT4 => ScalarValue::Int64(Some(fixed!(i32).into())),
            Type::INT8 => ScalarValue::Int64(Some(fixed!(i64))),
            Type::OID => ScalarValue::Int64(Some(fixed!(u32).into())),
            Type::FLOAT4 => ScalarValue::Float64(Some(fixed!(f32).into())),
            Type::FLOAT8 => ScalarValue::Float64(Some(fixed!(f64))),
            Type::NUMERIC => self.decimal(&numeric::read_binary(bytes).ok_or_else(misfit)?)?,
            Type::DATE => ScalarValue::Date32(Some(fixed!(i32).saturating_add(DAYS_2000))),
            Type::TIMESTAMP => ScalarValue::TimestampMicrosecond(Some(fixed!(i64).saturating_add(US_2000)), None),
            Type::TIMESTAMPTZ => {
                ScalarValue::TimestampMicrosecond(Some(fixed!(i64).saturating_add(US_2000)), Some("UTC".into()))
            }
            Type::BYTEA => ScalarValue::Binary(Some(bytes.to_vec())),
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::CHAR | Type::JSON => {
                return self.text(bytes, &Type::TEXT);
            }
            ref other => return Err(self.unfit(format!("values of {} are not taken in binary", other.name()))),
        })
    }
}

/// What values of a type are read as; texts and what is read as what the query wants have none.
pub fn natural(given: &Type) -> Option<DataType> {
    if let Some(item) = item_of(given) {
        return Some(DataType::new_list(natural(&item).unwrap_or(DataType::Utf8), true));
    }
    Some(match *given {
        Type::NUMERIC => DataType::Decimal128(MOST_DIGITS as u8, 10),
        Type::BOOL => DataType::Boolean,
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 | Type::FLOAT8 => DataType::Float64,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::BYTEA => DataType::Binary,
        _ => return None,
    })
}

/// A number that is a u64 and no i64.
fn large(value: &ScalarValue) -> Option<u64> {
    let number = match value {
        ScalarValue::Decimal128(Some(number), _, 0) => u64::try_from(*number).ok()?,
        ScalarValue::Utf8(Some(text)) => text.trim().parse().ok()?,
        _ => return None,
    };
    (number > i64::MAX.cast_unsigned()).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(
        declared: Option<Type>,
        wanted: Option<DataType>,
        bytes: &[u8],
        binary: bool,
    ) -> Result<ScalarValue, Unfit> {
        Parameter { number: 1, declared: declared.as_ref(), wanted: wanted.as_ref() }.value(Some(bytes), binary)
    }

    #[test]
    fn a_token_is_found_by_the_number_that_is_shown() {
        let wanted = ScalarValue::Int64(Some(-2));
        let shown = (u64::MAX - 1).to_string();
        assert_eq!(value(None, Some(DataType::Int64), shown.as_bytes(), false).unwrap(), wanted);
        assert_eq!(value(Some(Type::NUMERIC), Some(DataType::Int64), shown.as_bytes(), false).unwrap(), wanted);
        let mut binary = bytes::BytesMut::new();
        numeric::put_binary(&shown, &mut binary);
        assert_eq!(value(Some(Type::NUMERIC), Some(DataType::Int64), &binary, true).unwrap(), wanted);
    }

    #[test]
    fn values_become_what_is_wanted() {
        let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let time = ScalarValue::TimestampMicrosecond(Some(1_772_323_200_000_000), Some("UTC".into()));
        for text in ["2026-03-01 00:00:00+00", "2026-03-01T00:00:00Z", "2026-03-01 02:00:00+02:00"] {
            assert_eq!(
                value(Some(Type::TIMESTAMPTZ), Some(utc.clone()), text.as_bytes(), false).unwrap(),
                time,
                "{text}"
            );
        }
        let bytes = (1_772_323_200_000_000 - US_2000).to_be_bytes();
        assert_eq!(value(Some(Type::TIMESTAMPTZ), Some(utc), &bytes, true).unwrap(), time);
        let money = DataType::Decimal128(18, 6);
        let cost = ScalarValue::Decimal128(Some(14_000), 18, 6);
        assert_eq!(value(Some(Type::NUMERIC), Some(money.clone()), b"0.014", false).unwrap(), cost);
        assert_eq!(
            value(Some(Type::INT2), Some(DataType::Int64), &7_i16.to_be_bytes(), true).unwrap(),
            ScalarValue::Int64(Some(7))
        );
        assert_eq!(value(Some(Type::INT4), None, b"7", false).unwrap(), ScalarValue::Int64(Some(7)));
        assert_eq!(value(None, None, b"x", false).unwrap(), ScalarValue::Utf8(Some("x".into())));
        let decimal = |digits, scale| ScalarValue::Decimal128(Some(digits), 38, scale);
        assert_eq!(value(Some(Type::NUMERIC), None, b"-1.50E+3", false).unwrap(), decimal(-1500, 0));
        assert_eq!(value(Some(Type::NUMERIC), None, b"25e-4", false).unwrap(), decimal(25, 4));
    }

    #[test]
    fn a_value_is_not_changed_to_fit() {
        let decimal = |digits, scale| ScalarValue::Decimal128(Some(digits), 38, scale);
        assert_eq!(value(Some(Type::NUMERIC), Some(DataType::Int32), b"1.5", false).unwrap(), decimal(15, 1));
        let money = DataType::Decimal128(18, 6);
        assert_eq!(value(Some(Type::NUMERIC), Some(money.clone()), b"0.0000001", false).unwrap(), decimal(1, 7));
        let half = ScalarValue::Float64(Some(0.5));
        assert_eq!(value(Some(Type::FLOAT8), Some(DataType::Int32), &0.5_f64.to_be_bytes(), true).unwrap(), half);
        let large = ScalarValue::Int64(Some(5_000_000_000));
        assert_eq!(value(Some(Type::INT8), Some(DataType::Int32), b"5000000000", false).unwrap(), large);
    }

    #[test]
    fn arrays_have_their_items() {
        let list =
            |values: &[ScalarValue], item: &DataType| ScalarValue::List(ScalarValue::new_list_nullable(values, item));
        let texts = [ScalarValue::from("a,b"), ScalarValue::Utf8(None), ScalarValue::from("null")];
        for declared in [Some(Type::TEXT_ARRAY), Some(Type::UNKNOWN), None] {
            let wanted = Some(DataType::new_list(DataType::Utf8, true)).filter(|_| declared != Some(Type::TEXT_ARRAY));
            let given = value(declared, wanted, b"{\"a,b\",NULL,\"null\"}", false).unwrap();
            assert_eq!(given, list(&texts, &DataType::Utf8));
        }
        let decimal = |digits| ScalarValue::Decimal128(Some(digits), 38, 2);
        let given = value(Some(Type::NUMERIC_ARRAY), None, b"{1.5,2.25}", false).unwrap();
        assert_eq!(given, list(&[decimal(150), decimal(225)], &DataType::Decimal128(38, 2)));
        let numbers = [ScalarValue::Int64(Some(7)), ScalarValue::Int64(None)];
        let binary = [1_i32, 1, 23, 2, 1, 4, 7, -1].map(i32::to_be_bytes).concat();
        assert_eq!(value(Some(Type::INT4_ARRAY), None, &binary, true).unwrap(), list(&numbers, &DataType::Int64));
        // Tokens, by the numbers that are shown.
        let shown = format!("{{7,{}}}", u64::MAX - 1);
        let tokens = list(&[ScalarValue::Int64(Some(7)), ScalarValue::Int64(Some(-2))], &DataType::Int64);
        for declared in [None, Some(Type::NUMERIC_ARRAY)] {
            let wanted = Some(DataType::new_list(DataType::Int64, true));
            assert_eq!(value(declared, wanted, shown.as_bytes(), false).unwrap(), tokens);
        }
        let none = [0_i32, 0, 23].map(i32::to_be_bytes).concat();
        assert_eq!(value(Some(Type::INT4_ARRAY), None, &none, true).unwrap(), list(&[], &DataType::Int64));
    }

    #[test]
    fn what_is_no_value_is_an_error() {
        let money = DataType::Decimal128(18, 6);
        for (declared, wanted, bytes, binary) in [
            (None, Some(DataType::Int64), &b"seven"[..], false),
            (Some(Type::INT8), None, &b"1234"[..], true),
            (Some(Type::NUMERIC), Some(money), &b"1.2.3"[..], false),
            (Some(Type::NUMERIC), None, &b"1e39"[..], false),
            (Some(Type::NUMERIC), None, &b"0.-1"[..], false),
            (Some(Type::NUMERIC), None, &b"0e2147483647"[..], false),
            (Some(Type::NUMERIC), None, &b"1e-39"[..], false),
            (Some(Type::INT8), None, &b"1.5"[..], false),
            (Some(Type::INT4_ARRAY), None, &b"{{1},{2}}"[..], false),
            (None, None, &b"\xff"[..], false),
        ] {
            assert!(value(declared, wanted, bytes, binary).is_err());
        }
    }
}
