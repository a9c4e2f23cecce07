//! The compact form of an event in the embedded log. Pure.
//!
//! A version byte, a byte that tells which optional fields follow, then the fields in a fixed order, each with its length
//! as a varint. `data` comes last and takes the rest.

use super::Event;

const VERSION: u8 = 1;
const SUBJECT: u8 = 1;
const TIME: u8 = 2;
const CONTENT_TYPE: u8 = 4;
const JSON: u8 = 8;
const SIGNATURE: u8 = 16;
const JSON_TYPE: &str = "application/json";

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("frame version {0} is not known to this program")]
    Version(u8),
    #[error("the frame ends within {0}")]
    Truncated(&'static str),
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
}

/// Appends the event's frame to `out`.
pub fn encode(event: &Event, out: &mut Vec<u8>) {
    let is_json = event.content_type.as_deref() == Some(JSON_TYPE);
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    out.push(VERSION);
    out.push(
        flag(event.subject.is_some(), SUBJECT)
            | flag(event.time_us.is_some(), TIME)
            | flag(event.content_type.is_some() && !is_json, CONTENT_TYPE)
            | flag(is_json, JSON)
            | flag(event.signature.is_some(), SIGNATURE),
    );
    text(&event.id, out);
    text(&event.source, out);
    text(&event.kind, out);
    if let Some(subject) = &event.subject {
        text(subject, out);
    }
    if let Some(time_us) = event.time_us {
        out.extend_from_slice(&time_us.to_le_bytes());
    }
    if let (Some(content_type), false) = (&event.content_type, is_json) {
        text(content_type, out);
    }
    if let Some(signature) = &event.signature {
        text(signature, out);
    }
    varint(event.extensions.len(), out);
    for (name, value) in &event.extensions {
        text(name, out);
        text(value, out);
    }
    out.extend_from_slice(&event.data);
}

/// Reads a frame.
pub fn decode(bytes: &[u8]) -> Result<Event, FrameError> {
    let mut reader = Reader { rest: bytes };
    let version = reader.byte("version")?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let flags = reader.byte("flags")?;
    let has = |bit: u8| flags & bit != 0;
    let mut event = Event {
        id: reader.text("id")?,
        source: reader.text("source")?,
        kind: reader.text("type")?,
        ..Event::default()
    };
    if has(SUBJECT) {
        event.subject = Some(reader.text("subject")?);
    }
    if has(TIME) {
        event.time_us = Some(reader.time()?);
    }
    event.content_type = match () {
        () if has(JSON) => Some(JSON_TYPE.to_owned()),
        () if has(CONTENT_TYPE) => Some(reader.text("datacontenttype")?),
        () => None,
    };
    if has(SIGNATURE) {
        event.signature = Some(reader.text("vibersignature")?);
    }
    for _ in 0..reader.varint("extensions")? {
        let name = reader.text("an extension's name")?;
        event.extensions.push((name, reader.text("an extension")?));
    }
    event.data = reader.rest.to_vec();
    Ok(event)
}

fn text(value: &str, out: &mut Vec<u8>) {
    varint(value.len(), out);
    out.extend_from_slice(value.as_bytes());
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn byte(&mut self, what: &'static str) -> Result<u8, FrameError> {
        let (first, rest) = self.rest.split_first().ok_or(FrameError::Truncated(what))?;
        self.rest = rest;
        Ok(*first)
    }

    fn varint(&mut self, what: &'static str) -> Result<usize, FrameError> {
        let mut value = 0usize;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte(what)?;
            value |= usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FrameError::Truncated(what))
    }

    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(FrameError::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn text(&mut self, what: &'static str) -> Result<String, FrameError> {
        let len = self.varint(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FrameError::NotUtf8(what))
    }

    fn time(&mut self) -> Result<i64, FrameError> {
        let bytes = self.take(8, "time")?;
        bytes.try_into().map(i64::from_le_bytes).map_err(|_| FrameError::Truncated("time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::tests::any_event;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn events_survive(event in any_event()) {
            let mut bytes = Vec::new();
            encode(&event, &mut bytes);
            prop_assert_eq!(decode(&bytes), Ok(event));
        }

        #[test]
        fn no_bytes_cause_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode(&bytes);
        }
    }
}
