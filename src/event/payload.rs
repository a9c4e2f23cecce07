//! What the JSON of a callback or call says, as far as the fold asks. Pure.
//!
//! Only the members the fold needs are kept; everything else is skipped without building it. A member that occurs
//! twice counts with its last value, as most JSON readers have it. Values of unexpected types are kept as
//! [`Scalar::Other`], so that a strange member never hides the others.

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A JSON value, reduced to what the fold tells apart.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Scalar<'a> {
    /// The member is not there.
    #[default]
    Missing,
    /// `null`.
    Null,
    /// An integer (of 64 bits, signed or unsigned).
    Int(i128),
    /// A string.
    Text(Cow<'a, str>),
    /// Anything else: fractions, booleans, arrays, objects, integers beyond 64 bits.
    Other,
}

impl Scalar<'_> {
    /// An integer, or a string of decimal digits (spec §3).
    pub fn number(&self) -> Option<i128> {
        match self {
            Scalar::Int(n) => Some(*n),
            Scalar::Text(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok()
            }
            _ => None,
        }
    }

    /// A message token: [`Scalar::number`] that fits a u64.
    pub fn token(&self) -> Option<u64> {
        self.number().and_then(|n| u64::try_from(n).ok())
    }

    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Scalar::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de: 'a, 'a> de::Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_i64<E>(self, n: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(n.into()))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Int(n.into()))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Null)
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

/// A value that is read only when it is an object; anything else counts as none.
#[derive(Debug, Default)]
struct Nested<T>(Presence<T>);

/// Whether a member was there, and as what.
#[derive(Debug, Default, PartialEq)]
pub enum Presence<T> {
    #[default]
    Missing,
    Null,
    Object(T),
    /// There, but neither `null` nor an object.
    Other,
}

impl<T> Presence<T> {
    /// The object, if it is one.
    pub fn object(&self) -> Option<&T> {
        match self {
            Presence::Object(object) => Some(object),
            _ => None,
        }
    }
}

macro_rules! payload {
    ($(#[$doc:meta])* $name:ident { $($key:literal => $field:ident : $type:ty $(as $wrap:tt)?),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Default, PartialEq)]
        pub struct $name<'a> { $(pub $field: payload!(@type $type $(, $wrap)?)),+ }

        impl<'de: 'a, 'a> de::Deserialize<'de> for Nested<$name<'a>> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read<'a>(std::marker::PhantomData<&'a ()>);
                impl<'de: 'a, 'a> Visitor<'de> for Read<'a> {
                    type Value = Nested<$name<'a>>;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("any JSON value")
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut object = $name::default();
                        while let Some(key) = map.next_key::<Key<'de>>()? {
                            match key.0.as_ref() {
                                $($key => object.$field = payload!(@read map $(, $wrap)?),)+
                                _ => { map.next_value::<IgnoredAny>()?; }
                            }
                        }
                        Ok(Nested(Presence::Object(object)))
                    }
                    fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok(Nested(Presence::Null)) }
                    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok(Nested(Presence::Other)) }
                    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> { Ok(Nested(Presence::Other)) }
                    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok(Nested(Presence::Other)) }
                    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok(Nested(Presence::Other)) }
                    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> { Ok(Nested(Presence::Other)) }
                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                        while seq.next_element::<IgnoredAny>()?.is_some() {}
                        Ok(Nested(Presence::Other))
                    }
                }
                deserializer.deserialize_any(Read(std::marker::PhantomData))
            }
        }
    };
    (@type $type:ty) => { $type };
    (@type $type:ty, nested) => { Presence<$type> };
    (@read $map:ident) => { $map.next_value()? };
    (@read $map:ident, nested) => { $map.next_value::<Nested<_>>()?.0 };
}

/// A member's name, borrowed where it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> de::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(key)))
            }
            fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

payload!(
    /// `user` or `sender`.
    Person { "id" => id: Scalar<'a>, "country" => country: Scalar<'a> }
);
payload!(
    /// `message` of a `message` callback.
    Content { "type" => kind: Scalar<'a> }
);
payload!(
    /// The body of a callback (viber.md §3).
    Callback {
        "event" => event: Scalar<'a>,
        "user_id" => user_id: Scalar<'a>,
        "timestamp" => timestamp: Scalar<'a>,
        "message_token" => message_token: Scalar<'a>,
        "desc" => desc: Scalar<'a>,
        "sender" => sender: Person<'a> as nested,
        "user" => user: Person<'a> as nested,
        "message" => message: Content<'a> as nested,
    }
);
payload!(
    /// `request` of a call.
    Request {
        "type" => kind: Scalar<'a>,
        "tracking_data" => tracking_data: Scalar<'a>,
        "receiver" => receiver: Scalar<'a>,
        "id" => id: Scalar<'a>,
        "auth_token" => auth_token: Scalar<'a>,
    }
);
payload!(
    /// `response` of a call.
    Response {
        "status" => status: Scalar<'a>,
        "message_token" => message_token: Scalar<'a>,
        "billing_status" => billing_status: Scalar<'a>,
        "user" => user: Person<'a> as nested,
    }
);
payload!(
    /// `data` of a call (spec §2).
    Call {
        "request" => request: Request<'a> as nested,
        "response" => response: Response<'a> as nested,
        "receiver_status" => receiver_status: Scalar<'a>,
    }
);

impl<'a> Callback<'a> {
    /// Reads a callback's body; `None` where it is no JSON object.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        parse(data)
    }
}

impl<'a> Request<'a> {
    /// Reads the body of a request; `None` where it is no JSON object.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        parse(data)
    }
}

impl<'a> Response<'a> {
    /// Reads the body of a response; `None` where it is no JSON object.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        parse(data)
    }
}

impl<'a> Call<'a> {
    /// Reads a call's data; `None` where it is no JSON object.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        parse(data)
    }
}

fn parse<'a, T>(data: &'a [u8]) -> Option<T>
where
    Nested<T>: de::Deserialize<'a>,
{
    // JSON is UTF-8; checking the whole once lets the strings be borrowed without further checks.
    let text = std::str::from_utf8(data).ok()?;
    match serde_json::from_str::<Nested<T>>(text) {
        Ok(Nested(Presence::Object(object))) => Some(object),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_needs_and_skips_the_rest() {
        let body = br#"{"event":"message","x":[1,{"y":null}],"message_token":"6156996935724497630","timestamp":12,
            "sender":{"id":"a","country":"UA"},"user":"none","message":{"type":"te\u0078t"}}"#;
        let callback = Callback::parse(body).unwrap();
        assert_eq!(callback.message_token.token(), Some(6156996935724497630));
        assert_eq!(callback.timestamp, Scalar::Int(12));
        assert_eq!(callback.sender.object().unwrap().country.text(), Some("UA"));
        assert_eq!(callback.user, Presence::Other);
        assert_eq!(callback.message.object().unwrap().kind.text(), Some("text"));
        assert_eq!(callback.desc, Scalar::Missing);
    }

    #[test]
    fn the_last_of_repeated_members_counts() {
        let call = Call::parse(br#"{"response":null,"response":{"status":1,"status":"0"}}"#).unwrap();
        assert_eq!(call.response.object().unwrap().status.number(), Some(0));
    }

    #[test]
    fn tokens_are_u64_from_numbers_and_digits_only() {
        let token = |json: &str| serde_json::from_str::<Scalar>(json).unwrap().token();
        assert_eq!(token("18446744073709551615"), Some(u64::MAX));
        assert_eq!(token("\"18446744073709551615\""), Some(u64::MAX));
        for bad in ["18446744073709551616", "\"18446744073709551616\"", "-1", "1.0", "\"\"", "\"1x\"", "true", "[1]"] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_no_object_is_none() {
        for bad in [&b"[1]"[..], b"\"x\"", b"", b"{", b"{}x", b"null", b"{\"a\":\"\xff\"}"] {
            assert!(Callback::parse(bad).is_none());
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Callback::parse(deep.as_bytes()).is_some(), "depth is no reason to refuse, and no way to crash");
    }
}
