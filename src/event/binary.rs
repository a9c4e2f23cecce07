//! CloudEvents in binary mode: attributes as headers, `data` as the value (Kafka protocol binding). Pure.

use super::{Event, time};

/// Why headers and a value are no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("header {0} is missing")]
    Missing(&'static str),
    #[error("header {name} is {value:?}, which is not {wanted}")]
    Invalid { name: String, value: String, wanted: &'static str },
}

/// The headers of an event; its value is `data`.
pub fn to_headers(event: &Event) -> Vec<(String, Vec<u8>)> {
    let mut headers: Vec<(String, Vec<u8>)> = Vec::with_capacity(8 + event.extensions.len());
    let mut set = |name: &str, value: &str| headers.push((name.to_owned(), value.as_bytes().to_vec()));
    set("ce_specversion", "1.0");
    set("ce_id", &event.id);
    set("ce_source", &event.source);
    set("ce_type", &event.kind);
    if let Some(subject) = &event.subject {
        set("ce_subject", subject);
    }
    if let Some(time_us) = event.time_us {
        set("ce_time", &time::format_us(time_us));
    }
    if let Some(content_type) = &event.content_type {
        set("content-type", content_type);
    }
    if let Some(signature) = &event.signature {
        set("ce_vibersignature", signature);
    }
    for (name, value) in &event.extensions {
        set(&format!("ce_{name}"), value);
    }
    headers
}

/// Reads headers and value. Headers that are not of CloudEvents are passed over.
pub fn from_headers<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
    value: Vec<u8>,
) -> Result<Event, DecodeError> {
    let mut event = Event { data: value, ..Event::default() };
    let (mut version, mut id, mut source, mut kind) = (None, None, None, None);
    for (name, bytes) in headers {
        let text = || {
            std::str::from_utf8(bytes)
                .map(str::to_owned)
                .map_err(|_| invalid(name, &String::from_utf8_lossy(bytes), "UTF-8"))
        };
        match name {
            "content-type" => event.content_type = Some(text()?),
            "ce_specversion" => version = Some(text()?),
            "ce_id" => id = Some(text()?),
            "ce_source" => source = Some(text()?),
            "ce_type" => kind = Some(text()?),
            "ce_subject" => event.subject = Some(text()?),
            "ce_vibersignature" => event.signature = Some(text()?),
            "ce_time" => {
                let text = text()?;
                let time_us = time::parse_rfc3339_us(&text);
                event.time_us = Some(time_us.ok_or_else(|| invalid(name, &text, "an RFC 3339 time"))?);
            }
            _ => {
                if let Some(extension) = name.strip_prefix("ce_") {
                    event.extensions.push((extension.to_owned(), text()?));
                }
            }
        }
    }
    match version.as_deref() {
        Some("1.0") => {}
        Some(version) => return Err(invalid("ce_specversion", version, "\"1.0\"")),
        None => return Err(DecodeError::Missing("ce_specversion")),
    }
    event.id = id.ok_or(DecodeError::Missing("ce_id"))?;
    event.source = source.ok_or(DecodeError::Missing("ce_source"))?;
    event.kind = kind.ok_or(DecodeError::Missing("ce_type"))?;
    event.extensions.sort();
    Ok(event)
}

fn invalid(name: &str, value: &str, wanted: &'static str) -> DecodeError {
    DecodeError::Invalid { name: name.to_owned(), value: value.chars().take(80).collect(), wanted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::any_event;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_survive(event in any_event()) {
            let headers = to_headers(&event);
            let borrowed = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            prop_assert_eq!(from_headers(borrowed, event.data.clone()), Ok(event));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(from_headers(std::iter::empty(), Vec::new()), Err(DecodeError::Missing("ce_specversion")));
    }
}
