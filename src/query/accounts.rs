//! Which accounts there are: a name that none has is a mistake, and no reason for an empty answer. Pure.

use crate::event::shown::brief;
use std::collections::BTreeSet;

/// All accounts that any event names, as SQL.
pub const NAMED_BY_EVENTS: &str = "select distinct account from events where account is not null";
/// So many are listed.
const LISTED: usize = 20;

/// A name that no account has. The text lists those there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no account `{}`; {known}", brief(.name))]
pub struct UnknownAccount {
    pub name: String,
    pub known: String,
}

/// Refuses the first of `wanted` that is not known.
pub fn check(wanted: &[String], known: &BTreeSet<String>) -> Result<(), UnknownAccount> {
    match wanted.iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(UnknownAccount { name: name.clone(), known: listed(known) }),
        None => Ok(()),
    }
}

fn listed(known: &BTreeSet<String>) -> String {
    let names: Vec<&str> = known.iter().take(LISTED).map(String::as_str).collect();
    match known.len().checked_sub(LISTED) {
        _ if known.is_empty() => "the config names none, and no event does".to_owned(),
        Some(more @ 1..) => format!("there are: {} and {more} more", names.join(", ")),
        _ => format!("there are: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_account_has_is_refused_with_those_there_are() {
        let known = |n: usize| (10..10 + n).map(|n| format!("bot{n}")).collect::<BTreeSet<_>>();
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(check(&wanted(&["bot11", "bot10"]), &known(2)), Ok(()));
        assert_eq!(check(&[], &known(0)), Ok(()));
        let told = |names: &[&str], n| check(&wanted(names), &known(n)).unwrap_err().to_string();
        assert_eq!(told(&["bot10", "bto11"], 2), "there is no account `bto11`; there are: bot10, bot11");
        assert!(told(&["x"], 20).ends_with("bot28, bot29"), "{}", told(&["x"], 20));
        assert!(told(&["x"], 22).ends_with("bot29 and 2 more"), "{}", told(&["x"], 22));
        assert_eq!(told(&["x"], 0), "there is no account `x`; the config names none, and no event does");
    }
}
