//! SQL over the tables as they are now: one consistent picture a query, read-only, within limits (spec §6).

pub mod error;
pub mod guard;
pub mod keys;
pub mod table;
