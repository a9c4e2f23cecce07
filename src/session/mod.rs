//! The fold: facts of one user → billing sessions, messages and verdicts (spec §3). Pure.

pub mod row;
