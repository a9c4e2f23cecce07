//! Flags, exit codes, progress bars, table output.

pub mod sql;
