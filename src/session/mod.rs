//! The fold: facts of one user → billing sessions, messages and verdicts (spec §3). Pure.
//!
//! [`User`] takes facts in ([`User::apply`]), gives its unsettled rows at a watermark ([`User::rows`]) and forgets what is
//! settled ([`User::settle`]). The rows depend on the facts and the watermark alone, not on the order of arrival, nor on
//! when `settle` was called. [`change`] tells which rows differ.

pub mod change;
pub mod fold;
pub mod money;
pub mod outline;
pub mod policies;
pub mod policy;
pub mod price;
pub mod quote;
pub mod row;
pub mod user;

pub use fold::{Rows, Terms};
pub use outline::Outlines;
pub use policies::Policies;
pub use policy::{Policy, PolicyChain};
pub use price::{PriceList, Prices};
pub use quote::{Quote, Standing};
pub use user::User;

#[cfg(test)]
mod tests;
