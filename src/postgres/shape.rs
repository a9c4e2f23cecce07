//! The shape of messages. Whoever reads them relies on each part being there, and takes what is left for the next message.

/// A part of a message's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Up to a zero byte.
    Text,
    /// So many bytes.
    Bytes(usize),
    /// A count in 16 bits, and then so many items of this size.
    Items(usize),
    /// A count in 16 bits, and then so many values, each with its length in 32 bits before it; less than 0 is NULL.
    Values,
    /// A protocol, and then settings: texts in pairs, up to an empty one. Or a request of another kind.
    Start,
    /// Texts up to an empty one.
    Texts,
    /// Whatever there is.
    Rest,
}

/// Begins requests that are no start: of TLS, of encryption, and to cancel a query (PostgreSQL, protocol, message formats).
const REQUESTS: [u32; 3] = [80_877_102, 80_877_103, 80_877_104];

/// How far the body of a message has come.
#[derive(Debug, Default)]
pub struct Shape {
    parts: &'static [Part],
    /// Bytes of the number that is being read, and their value.
    digits: usize,
    number: u32,
    /// Bytes to come of what is gone past.
    skipped: usize,
    /// Values to come of [`Part::Values`]; `None` before their number is known.
    values: Option<u16>,
    /// Whether something has come of the text at hand.
    has_text: bool,
}

impl Shape {
    /// The body of a message of this kind, 0 for the first one; those that are not known are of any shape.
    pub fn of(kind: u8) -> Self {
        let parts: &[Part] = match kind {
            b'P' => &[Part::Text, Part::Text, Part::Items(4)],
            b'B' => &[Part::Text, Part::Text, Part::Items(2), Part::Values, Part::Items(2)],
            b'E' => &[Part::Text, Part::Bytes(4)],
            b'D' | b'C' => &[Part::Bytes(1), Part::Text],
            b'Q' | b'f' => &[Part::Text],
            b'S' | b'H' | b'X' | b'c' => &[],
            0 => &[Part::Start],
            _ => &[Part::Rest],
        };
        let mut shape = Self { parts, ..Self::default() };
        shape.begin();
        shape
    }

    /// Whether it may end here.
    pub fn is_whole(&self) -> bool {
        matches!(self.parts, [] | [Part::Rest]) && self.skipped == 0
    }

    /// Goes through bytes of it; false where there are more than it has.
    pub fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, others)) = bytes.split_first() {
            if self.skipped > 0 {
                let passed = self.skipped.min(bytes.len());
                self.skipped -= passed;
                bytes = &bytes[passed..];
                self.settle();
                continue;
            }
            let Some(part) = self.parts.first() else { return false };
            match part {
                Part::Text => {
                    if *first == 0 {
                        self.next();
                    }
                }
                Part::Texts => {
                    if *first == 0 && !std::mem::take(&mut self.has_text) {
                        self.next();
                    } else {
                        self.has_text = *first != 0;
                    }
                }
                Part::Start => {
                    if let Some(code) = self.number(*first, 4) {
                        self.parts = if REQUESTS.contains(&code) { &[Part::Rest] } else { &[Part::Texts] };
                    }
                }
                Part::Rest => return true,
                // What is gone past has been.
                Part::Bytes(_) => self.next(),
                Part::Items(size) => {
                    if let Some(count) = self.number(*first, 2) {
                        self.skipped = count as usize * size;
                        self.parts = &self.parts[1..];
                        self.settle();
                    }
                }
                Part::Values => match self.values {
                    None => {
                        if let Some(count) = self.number(*first, 2) {
                            // Two bytes.
                            self.values = Some(count as u16);
                            self.settle();
                        }
                    }
                    Some(left) => {
                        if let Some(length) = self.number(*first, 4) {
                            self.skipped = usize::try_from(length.cast_signed()).unwrap_or(0);
                            self.values = Some(left - 1);
                            self.settle();
                        }
                    }
                },
            }
            bytes = others;
        }
        true
    }

    /// The number, once all of its bytes are there.
    fn number(&mut self, byte: u8, width: usize) -> Option<u32> {
        self.number = self.number << 8 | u32::from(byte);
        self.digits += 1;
        if self.digits < width {
            return None;
        }
        self.digits = 0;
        Some(std::mem::take(&mut self.number))
    }

    /// Goes on to the next part.
    fn next(&mut self) {
        self.parts = self.parts.get(1..).unwrap_or_default();
        self.begin();
    }

    fn begin(&mut self) {
        self.values = None;
        if let Some(Part::Bytes(count)) = self.parts.first() {
            self.skipped = *count;
            self.parts = &self.parts[1..];
        }
    }

    /// Begins what comes after bytes that were gone past.
    fn settle(&mut self) {
        if self.skipped > 0 {
            return;
        }
        match (self.parts.first(), self.values) {
            (Some(Part::Values), Some(0)) => self.next(),
            (Some(Part::Bytes(_)), _) => self.begin(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a body of this kind is whole, and no more, however it comes.
    fn is_whole(kind: u8, body: &[u8]) -> bool {
        let whole = |piece: usize| {
            let mut shape = Shape::of(kind);
            body.chunks(piece).all(|piece| shape.pass(piece)) && shape.is_whole()
        };
        let all = whole(body.len().max(1));
        assert!((1..=body.len()).all(|piece| whole(piece) == all), "{body:?}");
        all
    }

    #[test]
    fn each_part_must_be_there() {
        let bind = b"p\0s\0\0\x01\0\x01\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0\0\x01\0\x00";
        for (kind, body) in [
            (b'P', &b"name\0select $1\0\0\x01\0\0\0\x19"[..]),
            (b'P', b"\0\0\0\0"),
            (b'B', bind),
            (b'B', b"\0\0\0\0\0\0\0\0"),
            (b'E', b"\0\0\0\0\x07"),
            (b'D', b"S\0"),
            (b'C', b"Pportal\0"),
            (b'Q', b"select 1\0"),
            (0, b"\0\x03\0\0user\0analyst\0database\0x\0\0"),
            (0, b"\0\x03\0\0\0"),
        ] {
            assert!(is_whole(kind, body), "{body:?}");
            for end in 0..body.len() {
                assert!(!is_whole(kind, &body[..end]), "{:?}", &body[..end]);
            }
            assert!(!is_whole(kind, &[body, b"more"].concat()));
        }
        assert!(is_whole(b'S', b"") && is_whole(b'p', b"") && is_whole(b'd', b"any\0thing"));
        assert!(!is_whole(b'S', b"Q\x3f\xff\xff\xfe") && !is_whole(b'B', b"\0\0\0\0\xff\xff"));
        // To cancel a query: process and secret.
        assert!(is_whole(0, &[&80_877_102_u32.to_be_bytes()[..], &[7; 8]].concat()));
    }
}
