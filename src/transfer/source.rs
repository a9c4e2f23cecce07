//! Files and streams of NDJSON: opened and unpacked, or packed and put in place.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};

/// How a file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn of_name(name: &str) -> Self {
        match name.rsplit_once('.') {
            Some((_, "gz")) => Packing::Gzip,
            Some((_, "zst" | "zstd")) => Packing::Zstd,
            _ => Packing::Plain,
        }
    }

    fn of_magic(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Packing::Gzip
        } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Packing::Zstd
        } else {
            Packing::Plain
        }
    }
}

/// Unpacks a stream. It is taken as packed when its name ends in `.gz` or `.zst`, or when it starts like such a file.
pub fn unpack(mut raw: impl Read + Send + 'static, name: &str) -> io::Result<Box<dyn Read + Send>> {
    let mut start = Vec::with_capacity(4);
    raw.by_ref().take(4).read_to_end(&mut start)?;
    let packing = match Packing::of_magic(&start) {
        Packing::Plain => Packing::of_name(name),
        packing => packing,
    };
    let whole = Cursor::new(start).chain(raw);
    Ok(match packing {
        Packing::Plain => Box::new(whole),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(1 << 17, whole))),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(whole)?),
    })
}

/// A file being written under a passing name, packed as its own name says; it appears under that name by
/// [`Sink::finish`] and not before. `-` is standard output, written as it comes.
pub struct Sink {
    out: Packer,
    place: Option<(PathBuf, PathBuf)>,
}

enum Packer {
    Plain(Box<dyn Write + Send>),
    Gzip(flate2::write::GzEncoder<Box<dyn Write + Send>>),
    Zstd(zstd::stream::write::Encoder<'static, Box<dyn Write + Send>>),
}

impl Sink {
    /// Starts a file. Nothing stands under `path` itself yet.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Sink { out: Packer::Plain(Box::new(BufWriter::new(io::stdout()))), place: None });
        }
        let name = path.to_string_lossy();
        let passing = PathBuf::from(format!("{name}.partial"));
        let file: Box<dyn Write + Send> = Box::new(BufWriter::with_capacity(1 << 18, File::create(&passing)?));
        let out = match Packing::of_name(&name) {
            Packing::Plain => Packer::Plain(file),
            Packing::Gzip => Packer::Gzip(flate2::write::GzEncoder::new(file, flate2::Compression::new(5))),
            Packing::Zstd => Packer::Zstd(zstd::stream::write::Encoder::new(file, 3)?),
        };
        Ok(Sink { out, place: Some((passing, path.to_path_buf())) })
    }

    /// Ends the packing, makes the file durable and gives it its name.
    pub fn finish(self) -> io::Result<()> {
        let mut inner = match self.out {
            Packer::Plain(out) => out,
            Packer::Gzip(out) => out.finish()?,
            Packer::Zstd(out) => out.finish()?,
        };
        inner.flush()?;
        drop(inner);
        if let Some((passing, path)) = self.place {
            File::open(&passing)?.sync_all()?;
            std::fs::rename(&passing, &path)?;
        }
        Ok(())
    }

    /// Drops what was written.
    pub fn abandon(self) -> io::Result<()> {
        match self.place {
            Some((passing, _)) => std::fs::remove_file(passing),
            None => Ok(()),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Packer::Plain(out) => out.write(bytes),
            Packer::Gzip(out) => out.write(bytes),
            Packer::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Packer::Plain(out) => out.flush(),
            Packer::Gzip(out) => out.flush(),
            Packer::Zstd(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(name: &str) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        let mut sink = Sink::create(&path).unwrap();
        sink.write_all(b"one\ntwo\n").unwrap();
        assert!(!path.exists(), "the name must not exist before the end");
        sink.finish().unwrap();
        for name in [name, "unnamed"] {
            let mut text = String::new();
            unpack(File::open(&path).unwrap(), name).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "one\ntwo\n");
        }
    }

    #[test]
    fn every_packing_comes_back_by_name_and_by_magic() {
        round_trip("a.ndjson");
        round_trip("a.ndjson.gz");
        round_trip("a.ndjson.zst");
    }

    #[test]
    fn joined_gzip_members_are_read_to_the_end() {
        let mut packed = Vec::new();
        for text in ["one\n", "two\n"] {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            packed.extend(encoder.finish().unwrap());
        }
        let mut text = String::new();
        unpack(Cursor::new(packed), "-").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
    }

    #[test]
    fn what_is_named_gz_but_is_not_is_refused() {
        let mut text = String::new();
        let result = unpack(Cursor::new(b"{}\n".to_vec()), "a.gz").unwrap().read_to_string(&mut text);
        assert!(result.is_err());
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = Sink::create(&dir.path().join("a.gz")).unwrap();
        sink.write_all(b"x").unwrap();
        sink.abandon().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
