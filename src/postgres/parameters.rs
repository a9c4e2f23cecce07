//! Values that clients give for parameters.

use super::numeric;
use super::types::plain_type;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use pgwire::api::Type;

/// Days and µs from the epoch to 2000-01-01, from which PostgreSQL counts.
const DAYS_2000: i32 = 10_957;
const US_2000: i64 = DAYS_2000 as i64 * 86_400_000_000;

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
    wanted.map_or(Type::TEXT, plain_type)
}

impl Parameter<'_> {
    /// The value that the client sent.
    pub fn value(&self, bytes: Option<&[u8]>, is_binary: bool) -> Result<ScalarValue, Unfit> {
        let Some(bytes) = bytes else {
            let null = ScalarValue::try_from(self.wanted.unwrap_or(&DataType::Utf8));
            return null.map_err(|error| self.unfit(error.strip_backtrace()));
        };
        let declared = self.declared.filter(|declared| **declared != Type::UNKNOWN).cloned();
        let given = declared.unwrap_or_else(|| told(self.wanted));
        let value = if is_binary { self.binary(bytes, &given)? } else { self.text(bytes, &given)? };
        let Some(wanted) = self.wanted.cloned().or_else(|| natural(&given)) else { return Ok(value) };
        if let (DataType::Int64, Some(token)) = (&wanted, large(&value)) {
            // A token as it is shown: the column has its bit pattern.
            return Ok(ScalarValue::Int64(Some(token.cast_signed())));
        }
        value.cast_to(&wanted).map_err(|error| self.unfit(error.strip_backtrace()))
    }

    fn unfit(&self, reason: impl Into<String>) -> Unfit {
        Unfit { number: self.number, reason: reason.into() }
    }

    fn text(&self, bytes: &[u8], given: &Type) -> Result<ScalarValue, Unfit> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.unfit("it is not UTF-8"))?;
        if *given == Type::NUMERIC {
            return self.decimal(text);
        }
        Ok(ScalarValue::Utf8(Some(text.to_owned())))
    }

    fn decimal(&self, text: &str) -> Result<ScalarValue, Unfit> {
        let text = text.trim();
        let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let digits = text.chars().filter(char::is_ascii_digit).count();
        let (Ok(scale), true) = (i8::try_from(scale), digits <= 38) else {
            return Err(self.unfit("a number of more than 38 digits"));
        };
        let number: String = text.chars().filter(|c| *c != '.').collect();
        let number: i128 = number.parse().map_err(|_| self.unfit(format!("`{text}` is no number")))?;
        Ok(ScalarValue::Decimal128(Some(number), 38, scale))
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
            Type::INT2 => ScalarValue::Int16(Some(fixed!(i16))),
            Type::INT4 => ScalarValue::Int32(Some(fixed!(i32))),
            Type::INT8 => ScalarValue::Int64(Some(fixed!(i64))),
            Type::OID => ScalarValue::Int64(Some(fixed!(u32).into())),
            Type::FLOAT4 => ScalarValue::Float32(Some(fixed!(f32))),
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

/// The type of values that nothing is wanted of.
fn natural(given: &Type) -> Option<DataType> {
    Some(match *given {
        Type::BOOL => DataType::Boolean,
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => DataType::Int64,
        Type::FLOAT4 | Type::FLOAT8 => DataType::Float64,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
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
        for (declared, wanted, bytes, binary) in [
            (None, Some(DataType::Int64), &b"seven"[..], false),
            (Some(Type::INT8), None, &b"1234"[..], true),
            (Some(Type::NUMERIC), Some(money), &b"1e5"[..], false),
            (None, None, &b"\xff"[..], false),
        ] {
            assert!(value(declared, wanted, bytes, binary).is_err());
        }
    }
}
