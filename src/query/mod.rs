//! SQL over the tables as they are now: one consistent picture a query, read-only, within limits (spec §6).

pub mod accounts;
pub mod calendar;
mod catalog;
mod catalog_functions;
mod catalog_tables;
mod catalog_words;
pub mod compare;
pub mod engine;
pub mod error;
pub mod freshness;
pub mod functions;
mod generations;
pub mod guard;
pub mod keys;
mod numbers;
pub mod output;
mod patterns;
pub mod prepared;
mod pruning;
pub mod reference;
pub mod sight;
pub mod table;
pub mod table_functions;
mod tame;
pub mod users;
mod value;
pub mod views;
mod workers;

pub use catalog_tables::SETTINGS;
pub use engine::{Engine, Limits, Picture, Pictures, QueryStream, is_name_of_ours};
pub use error::QueryError;
pub use freshness::Freshness;
pub use reference::Reference;
pub use sight::{Asker, Sight};
pub use value::is_token;

#[cfg(test)]
pub(crate) mod tests;
