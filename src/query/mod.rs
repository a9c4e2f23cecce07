//! SQL over the tables as they are now: one consistent picture a query, read-only, within limits (spec §6).

pub mod engine;
pub mod error;
pub mod functions;
pub mod guard;
pub mod keys;
pub mod output;
mod pruning;
pub mod table;
mod value;
pub mod views;
mod workers;

pub use engine::{Engine, Limits, Pictures, QueryStream};
pub use error::QueryError;

#[cfg(test)]
pub(crate) mod tests;
