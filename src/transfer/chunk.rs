//! Cuts a stream into blocks of whole lines and parses each into events, away from the thread that appends.

use super::import::Skipped;
use crate::event::{self, Event, structured};
use crate::log::partitioner::{self, Route};
use std::io::{self, BufRead, Read};

/// A block to parse is about this long: large enough to be worth a thread's turn, small enough that its events are
/// written while they are still in the processor's cache.
pub const CHUNK_BYTES: usize = 256 << 10;
/// No event is longer; a stream without line ends must not fill the memory.
const MAX_LINE_BYTES: usize = 32 << 20;

/// Whole lines of a stream, with their place in it.
#[derive(Debug)]
pub struct Chunk {
    /// Number of its first line, from 1.
    pub first_line: u64,
    pub bytes: Vec<u8>,
}

/// A line that is not blank, parsed.
#[derive(Debug)]
pub(super) struct Line {
    pub number: u64,
    pub content: Content,
}

/// What a line holds.
#[derive(Debug)]
pub(super) enum Content {
    Item(Box<Item>),
    Bad { reason: String, text: Vec<u8> },
}

/// An event with what the import must know of it.
#[derive(Debug)]
pub(super) struct Item {
    pub event: Event,
    /// `None`: every partition.
    pub partition: Option<u32>,
    /// Effective `time`, which moves the watermark.
    pub time_ms: i64,
    /// `t`, when the event is a fact.
    pub fact_ms: Option<i64>,
}

/// Reads to the end, handing over blocks of whole lines, each about `chunk_bytes` long, in order until `send` says stop.
pub fn read_chunks(mut source: impl Read, chunk_bytes: usize, mut send: impl FnMut(Vec<u8>) -> bool) -> io::Result<()> {
    let mut rest = Vec::new();
    loop {
        let mut bytes = std::mem::take(&mut rest);
        let want = chunk_bytes.max(bytes.len() + chunk_bytes / 2);
        let ended = fill(&mut source, &mut bytes, want)?;
        if !ended {
            match bytes.iter().rposition(|b| *b == b'\n') {
                Some(end) => rest = bytes.split_off(end + 1),
                None if bytes.len() > MAX_LINE_BYTES => {
                    let reason = format!("the next one is longer than {} MiB", MAX_LINE_BYTES >> 20);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
                None => {
                    rest = bytes;
                    continue;
                }
            }
        }
        if !bytes.is_empty() && !send(bytes) {
            return Ok(());
        }
        if ended {
            return Ok(());
        }
    }
}

/// Reads until `bytes` is `want` long; true at the end of the stream.
fn fill(source: &mut impl Read, bytes: &mut Vec<u8>, want: usize) -> io::Result<bool> {
    bytes.reserve(want.saturating_sub(bytes.len()));
    while bytes.len() < want {
        let missing = (want - bytes.len()) as u64;
        if source.by_ref().take(missing).read_to_end(bytes)? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Chunk {
    /// Number of the line after the last one.
    pub fn next_line(&self) -> u64 {
        let ended = self.bytes.iter().filter(|b| **b == b'\n').count() as u64;
        let unended = self.bytes.last().is_some_and(|b| *b != b'\n');
        self.first_line + ended + u64::from(unended)
    }

    /// Empties every line that is no event, so that the others keep their numbers; `bad` is told of each.
    pub fn blank_bad_lines(&mut self, mut bad: impl FnMut(Skipped<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut kept = Vec::with_capacity(self.bytes.len());
        for (line, number) in self.bytes.split_inclusive(|b| *b == b'\n').zip(self.first_line..) {
            let text = line.trim_ascii();
            match structured::parse_line(text) {
                Err(error) if !text.is_empty() => {
                    bad(Skipped { line: number, reason: &error.to_string(), text })?;
                    kept.push(b'\n');
                }
                _ => kept.extend_from_slice(line),
            }
        }
        self.bytes = kept;
        Ok(())
    }
}

/// Parses every line that is not blank, numbered from 0; also how many lines there are. `now_us` stands for the append
/// time.
pub(super) fn parse(bytes: &[u8], partitions: u32, now_us: i64) -> (Vec<Line>, u64) {
    let mut lines = Vec::with_capacity(bytes.len() / 256);
    let mut rest = bytes;
    let mut number = 0;
    while !rest.is_empty() {
        let start = rest;
        // A slice never fails to be read.
        let length = rest.skip_until(b'\n').unwrap_or(start.len());
        let text = start[..length].trim_ascii();
        if !text.is_empty() {
            lines.push(Line { number, content: parse_line(text, partitions, now_us) });
        }
        number += 1;
    }
    (lines, number)
}

fn parse_line(text: &[u8], partitions: u32, now_us: i64) -> Content {
    let event = match structured::parse_line(text) {
        Ok(event) => event,
        Err(error) => return Content::Bad { reason: error.to_string(), text: text.to_vec() },
    };
    let partition = match partitioner::route(&event, partitions) {
        Route::One(partition) => Some(partition),
        Route::Every => None,
    };
    let reading = event::read(&event, now_us);
    let time_ms = reading.time_ms;
    let fact_ms = reading.fact.as_ref().map(|_| reading.t_ms);
    Content::Item(Box::new(Item { time_ms, fact_ms, partition, event }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &[u8]) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        read_chunks(text, CHUNK_BYTES, |bytes| {
            seen.push(bytes);
            true
        })
        .unwrap();
        seen
    }

    #[test]
    fn blocks_hold_whole_lines_and_lose_none() {
        let text: Vec<u8> = (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let seen = chunks(&text);
        assert!(seen.len() > 1 && seen.iter().all(|bytes| bytes.ends_with(b"\n")));
        assert_eq!(seen.concat(), text);
    }

    #[test]
    fn a_line_longer_than_a_block_stays_whole() {
        let mut text = vec![b'x'; CHUNK_BYTES * 3];
        text.extend(b"\nshort");
        assert_eq!(chunks(&text).concat(), text);
    }

    #[test]
    fn a_stream_without_line_ends_is_refused() {
        let error = read_chunks(io::repeat(b'x'), CHUNK_BYTES, |_| true).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn blanked_lines_leave_the_numbers_alone() {
        let mut chunk = Chunk { first_line: 5, bytes: b"no\n\nnor this".to_vec() };
        let mut bad = Vec::new();
        chunk
            .blank_bad_lines(|skipped| {
                bad.push((skipped.line, skipped.text.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!(bad, [(5, b"no".to_vec()), (7, b"nor this".to_vec())]);
        assert_eq!(chunk.bytes, b"\n\n\n");
    }

    #[test]
    fn bad_lines_are_named_and_blank_ones_passed() {
        let (lines, count) = parse(b"\n  \r\nnot json\n", 4, 0);
        assert_eq!((lines.len(), count), (1, 3));
        assert_eq!(lines[0].number, 2);
        assert!(matches!(&lines[0].content, Content::Bad { text, .. } if text == b"not json"));
    }
}
