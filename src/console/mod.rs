//! The second listener: SQL over HTTP, `/metrics`, health.

pub mod problem;
pub mod sql;
