//! A client's stream. Messages tell their length before they come, and none is waited for that is longer than it may be.

use super::shape::Shape;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of the type and the length, which counts itself.
const HEAD: usize = 5;
const LENGTH: u32 = 4;

/// A stream of messages that are read by somebody else.
pub struct Measured<S> {
    inner: S,
    longest: u32,
    head: [u8; HEAD],
    /// Bytes of the head that have come.
    known: usize,
    /// Bytes of the message that are still to come.
    rest: usize,
    shape: Shape,
}

impl<S> Measured<S> {
    /// A stream whose next message is the first, which has no type, and whose messages may have `longest` bytes.
    pub fn new(inner: S, longest: u32) -> Self {
        Self { inner, longest, head: [0; HEAD], known: 1, rest: 0, shape: Shape::default() }
    }

    /// Lets messages have so many bytes from now on.
    pub fn allow(&mut self, longest: u32) {
        self.longest = longest;
    }

    /// Goes through bytes that have come. An error ends the stream: where its next message begins is not known.
    pub fn measure(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some((first, others)) = bytes.split_first() {
            if self.rest > 0 {
                let passed = self.rest.min(bytes.len());
                self.rest -= passed;
                let is_within = self.shape.pass(&bytes[..passed]);
                bytes = &bytes[passed..];
                if !is_within {
                    return Err(self.unfit("has more than its parts"));
                }
                self.check()?;
                continue;
            }
            self.head[self.known] = *first;
            self.known += 1;
            bytes = others;
            if self.known == HEAD {
                let [_, length @ ..] = self.head;
                let length = u32::from_be_bytes(length);
                if !(LENGTH..=self.longest).contains(&length) {
                    let longest = self.longest;
                    let what = format!("a message of {length} bytes, where {LENGTH} to {longest} are taken");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                self.rest = (length - LENGTH) as usize;
                self.known = 0;
                self.shape = Shape::of(self.head[0]);
                self.check()?;
            }
        }
        Ok(())
    }
}

impl<S> Measured<S> {
    /// Refuses a message that ends before it has all of its parts.
    fn check(&self) -> io::Result<()> {
        if self.rest > 0 || self.shape.is_whole() {
            return Ok(());
        }
        Err(self.unfit("ends too early"))
    }

    fn unfit(&self, how: &str) -> io::Error {
        let what = format!("a message of kind {} that {how}", self.head[0].escape_ascii());
        io::Error::new(io::ErrorKind::InvalidData, what)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Measured<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(context, buffer))?;
        Poll::Ready(this.measure(&buffer.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Measured<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_may_have_their_length_however_they_come() {
        // Nine bytes of a start, a query of six, a synchronisation.
        let bytes = [&[0, 0, 0, 9, 0, 3, 0, 0, 0][..], b"Q\0\0\0\x06a\0", b"S\0\0\0\x04"].concat();
        for piece in 1..bytes.len() {
            let mut stream = Measured::new((), 9);
            bytes.chunks(piece).for_each(|piece| stream.measure(piece).unwrap());
            assert_eq!((stream.rest, stream.known), (0, 0));
        }
        let mut stream = Measured::new((), 8);
        assert!(stream.measure(&bytes).is_err());
        let mut stream = Measured::new((), 9);
        stream.measure(&bytes).unwrap();
        assert!(stream.measure(b"Q\0\0\0\x0a").is_err());
        let mut stream = Measured::new((), 9);
        stream.measure(&bytes).unwrap();
        stream.allow(10);
        stream.measure(b"Q\0\0\0\x0a").unwrap();
        // What another message would hide in.
        let mut stream = Measured::new((), 9);
        assert!(stream.measure(&[&bytes[..16], b"S\0\0\0\x09Q\x3f\xff\xff\xfe"].concat()).is_err());
        for bad in [&b"\0\0\0\x03"[..], b"\xff\xff\xff\xff"] {
            assert!(Measured::new((), 8).measure(bad).is_err());
        }
    }
}
