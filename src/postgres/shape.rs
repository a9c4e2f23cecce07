//! The shape of messages that have several parts. Whoever reads them relies on each part being there.

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
}

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
}

impl Shape {
    /// The body of a message of this kind; those that are not known are of any shape.
    pub fn of(kind: u8) -> Self {
        let parts: &[Part] = match kind {
            b'P' => &[Part::Text, Part::Text, Part::Items(4)],
            b'B' => &[Part::Text, Part::Text, Part::Items(2), Part::Values, Part::Items(2)],
            b'E' => &[Part::Text, Part::Bytes(4)],
            b'D' | b'C' => &[Part::Bytes(1), Part::Text],
            _ => &[],
        };
        let mut shape = Self { parts, ..Self::default() };
        shape.begin();
        shape
    }

    /// Whether it may end here.
    pub fn is_whole(&self) -> bool {
        self.parts.is_empty() && self.skipped == 0
    }

    /// Goes through bytes of it.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, others)) = bytes.split_first() {
            if self.skipped > 0 {
                let passed = self.skipped.min(bytes.len());
                self.skipped -= passed;
                bytes = &bytes[passed..];
                self.settle();
                continue;
            }
            let Some(part) = self.parts.first() else { return };
            match part {
                Part::Text => {
                    if *first == 0 {
                        self.next();
                    }
                }
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

    /// Whether a body of this kind is whole, however it comes.
    fn is_whole(kind: u8, body: &[u8]) -> bool {
        let whole = |piece: usize| {
            let mut shape = Shape::of(kind);
            body.chunks(piece).for_each(|piece| shape.pass(piece));
            shape.is_whole()
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
        ] {
            assert!(is_whole(kind, body), "{body:?}");
            for end in 0..body.len() {
                assert!(!is_whole(kind, &body[..end]), "{:?}", &body[..end]);
            }
            assert!(is_whole(kind, &[body, b"more"].concat()));
        }
        assert!(is_whole(b'Q', b"select 1") && is_whole(b'S', b""));
        assert!(!is_whole(b'B', b"\0\0\0\0\xff\xff"));
    }
}
