//! Import and export of event files: NDJSON, one structured-mode CloudEvent a line (spec §2, §6).
//!
//! [`source`] opens and unpacks files, [`chunk`] cuts them into blocks of whole lines and parses these on several
//! threads, [`import`] checks and appends the events in order, [`export`] writes the log back out.

pub mod chunk;
pub mod export;
pub mod import;
pub mod source;

pub use export::{ExportError, Exporter, Filter};
pub use import::{ImportError, Importer, Outcome, Skipped, Stop, Summary, watermarks};

#[cfg(test)]
mod tests;
