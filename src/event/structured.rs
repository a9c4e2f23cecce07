//! CloudEvents in structured mode, one a line: the form of import and export files (spec §2). Pure.

use super::{Event, time};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Why a line is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    #[error("no JSON object: {0}")]
    Json(String),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field} is {value}, which is not {wanted}")]
    Invalid { field: String, value: String, wanted: &'static str },
}

/// Reads one line. `data` is kept byte for byte as it stands there; `data_base64` is decoded.
pub fn parse_line(line: &[u8]) -> Result<Event, ParseError> {
    let text = std::str::from_utf8(line).map_err(|error| ParseError::Json(error.to_string()))?;
    let members: Members<'_> = serde_json::from_str(text).map_err(|error| ParseError::Json(error.to_string()))?;
    let mut event = Event::default();
    let (mut version, mut id, mut source, mut kind, mut encoded) = (None, None, None, None, None);
    for (name, value) in members.0 {
        // A null attribute counts as absent (CloudEvents JSON format, 2.2); null data is data.
        if value.get() == "null" && name != "data" {
            continue;
        }
        match name.as_ref() {
            "specversion" => version = Some(string("specversion", value)?),
            "id" => id = Some(string("id", value)?),
            "source" => source = Some(string("source", value)?),
            "type" => kind = Some(string("type", value)?),
            "subject" => event.subject = Some(string("subject", value)?),
            "time" => event.time_us = Some(instant(value)?),
            "datacontenttype" => event.content_type = Some(string("datacontenttype", value)?),
            "vibersignature" => event.signature = Some(string("vibersignature", value)?),
            "data" => event.data = value.get().as_bytes().to_vec(),
            "data_base64" => encoded = Some(string("data_base64", value)?),
            _ => event.extensions.push((name.into_owned(), attribute(value))),
        }
    }
    match version {
        Some(version) if version == "1.0" => {}
        Some(version) => return Err(invalid("specversion", &version, "\"1.0\"")),
        None => return Err(ParseError::Missing("specversion")),
    }
    if let Some(encoded) = encoded {
        if !event.data.is_empty() {
            return Err(invalid("data_base64", "there beside data", "allowed"));
        }
        event.data = STANDARD.decode(&encoded).map_err(|_| invalid("data_base64", &encoded, "base64"))?;
    }
    event.id = required("id", id)?;
    event.source = required("source", source)?;
    event.kind = required("type", kind)?;
    event.extensions.sort();
    Ok(event)
}

/// Appends the event as one line, with its end. `data` that is JSON on one line is written as it is, anything else as
/// `data_base64`.
pub fn write_line(event: &Event, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"specversion\":\"1.0\"");
    member("id", &event.id, out);
    member("source", &event.source, out);
    member("type", &event.kind, out);
    if let Some(subject) = &event.subject {
        member("subject", subject, out);
    }
    if let Some(time_us) = event.time_us {
        member("time", &time::format_us(time_us), out);
    }
    if let Some(content_type) = &event.content_type {
        member("datacontenttype", content_type, out);
    }
    if let Some(signature) = &event.signature {
        member("vibersignature", signature, out);
    }
    for (name, value) in &event.extensions {
        member(name, value, out);
    }
    if is_one_line_json(&event.data) {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(&event.data);
    } else if !event.data.is_empty() {
        member("data_base64", &STANDARD.encode(&event.data), out);
    }
    out.extend_from_slice(b"}\n");
}

fn is_one_line_json(data: &[u8]) -> bool {
    // White space around the value would be lost to a reader, so it is not kept verbatim.
    let plain = |byte: Option<&u8>| byte.is_some_and(|byte| !byte.is_ascii_whitespace());
    plain(data.first())
        && plain(data.last())
        && !data.contains(&b'\n')
        && !data.contains(&b'\r')
        && std::str::from_utf8(data).is_ok_and(|text| serde_json::from_str::<&RawValue>(text).is_ok())
}

fn member(name: &str, value: &str, out: &mut Vec<u8>) {
    out.push(b',');
    quoted(name, out);
    out.push(b':');
    quoted(value, out);
}

fn quoted(text: &str, out: &mut Vec<u8>) {
    if text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
    }
}

/// The members of an object in order, values as they stand.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, one CloudEvent in structured mode")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(10);
                while let Some(name) = map.next_key::<Name<'de>>()? {
                    members.push((name.0, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(Read)
    }
}

fn string(field: &'static str, value: &RawValue) -> Result<String, ParseError> {
    let raw = value.get();
    if let Some(inner) = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(inner.to_owned());
    }
    serde_json::from_str(raw).map_err(|_| invalid(field, raw, "a string"))
}

fn instant(value: &RawValue) -> Result<i64, ParseError> {
    let text = string("time", value)?;
    time::parse_rfc3339_us(&text).ok_or_else(|| invalid("time", &text, "an RFC 3339 time"))
}

/// An extension's value as text: strings as they are, anything else as its JSON.
fn attribute(value: &RawValue) -> String {
    serde_json::from_str::<String>(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

fn required(field: &'static str, value: Option<String>) -> Result<String, ParseError> {
    value.filter(|value| !value.is_empty()).ok_or(ParseError::Missing(field))
}

fn invalid(field: &str, value: &str, wanted: &'static str) -> ParseError {
    let mut value: String = value.chars().take(80).collect();
    value.shrink_to_fit();
    ParseError::Invalid { field: field.to_owned(), value, wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::any_event;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_survive(event in any_event()) {
            let mut line = Vec::new();
            write_line(&event, &mut line);
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert_eq!(parse_line(&line), Ok(event));
        }
    }

    #[test]
    fn data_is_kept_byte_for_byte() {
        let data = r#"{ "a":1,"a" : 2.50,"t":6156995941556922051,"u":"\u0041\/" }"#;
        let line = format!(r#"{{"specversion":"1.0","id":"1","source":"/accounts/b","type":"t","data":{data}}}"#);
        let event = parse_line(line.as_bytes()).unwrap();
        assert_eq!(event.data, data.as_bytes());
        let mut out = Vec::new();
        write_line(&event, &mut out);
        assert_eq!(parse_line(&out).unwrap(), event);
        assert!(String::from_utf8(out).unwrap().contains(data));
    }

    #[test]
    fn bad_lines_name_field_and_value() {
        for (line, text) in [
            ("[]", "no JSON object"),
            ("{\"specversion\":\"1.0\"", "no JSON object"),
            (r#"{"id":"1","source":"s","type":"t"}"#, "specversion is missing"),
            (r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#, "0.3"),
            (r#"{"specversion":"1.0","source":"s","type":"t"}"#, "id is missing"),
            (r#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#, "id is 7"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"noon"}"#, "time is noon"),
            (r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"*"}"#, "base64"),
        ] {
            let error = parse_line(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(text), "{line}: {error}");
        }
    }
}
