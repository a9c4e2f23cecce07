//! What clients set and ask of a session. It is told back to them; times are in UTC and nothing is written whatever they set.

use super::error::{error, state};
use crate::query::SETTINGS;
use pgwire::error::PgWireResult;
use std::collections::BTreeMap;
use std::time::Duration;

/// What drivers set and nothing here goes by.
const OTHERS: [&str; 16] = [
    "backslash_quote",
    "check_function_bodies",
    "default_table_access_method",
    "escape_string_warning",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lock_timeout",
    "row_security",
    "session_authorization",
    "statement_timeout",
    "synchronize_seqscans",
    "synchronous_commit",
    "transaction_timeout",
    "xmloption",
];
/// These are as they are.
const FIXED: [&str; 9] = [
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "TimeZone",
    "transaction_read_only",
    "bytea_output",
];
/// Those that a client is told at the start, and when it changes one (PostgreSQL, protocol, asynchronous operations).
pub const REPORTED: [&str; 13] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "search_path",
    "server_encoding",
    "server_version",
    "standard_conforming_strings",
    "TimeZone",
];

/// The settings of one session.
#[derive(Debug, Default)]
pub struct Settings(BTreeMap<&'static str, String>);

/// The name as PostgreSQL writes it.
fn known(name: &str) -> Option<&'static str> {
    let mut names = SETTINGS.iter().map(|(name, _)| *name).chain(OTHERS);
    names.find(|known| known.eq_ignore_ascii_case(name))
}

fn unknown(name: &str) -> pgwire::error::PgWireError {
    error(state::NO_SETTING, format!("unrecognized configuration parameter \"{name}\""))
}

impl Settings {
    /// The value of a setting, with its name as PostgreSQL writes it.
    pub fn get(&self, name: &str) -> PgWireResult<(&'static str, String)> {
        let name = known(name).ok_or_else(|| unknown(name))?;
        let default = || SETTINGS.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value).to_owned();
        Ok((name, self.0.get(name).cloned().unwrap_or_else(default)))
    }

    /// Sets what a client sends at its start. What is not known is of no matter to it, or it would ask.
    pub fn start(&mut self, name: &str, value: &str) -> PgWireResult<()> {
        if name == "options" {
            return options(value).try_for_each(|(name, value)| self.start(&name, value));
        }
        known(name).map_or(Ok(()), |name| self.set(name, Some(value.to_owned())))
    }

    /// Sets it, to its default without a value.
    pub fn set(&mut self, name: &str, value: Option<String>) -> PgWireResult<()> {
        let name = known(name).ok_or_else(|| unknown(name))?;
        match value {
            _ if FIXED.contains(&name) => {}
            Some(value) => {
                if name == "search_path"
                    && let Some(schema) = first_schema(&value)
                {
                    let why = format!("tables are looked for in public: write {schema}.sessions for those of {schema}");
                    return Err(error(state::NOT_SUPPORTED, why));
                }
                if name == "statement_timeout" {
                    milliseconds(&value).ok_or_else(|| {
                        error(state::BAD_VALUE, format!("invalid value for parameter \"{name}\": \"{value}\""))
                    })?;
                }
                self.0.insert(name, value);
            }
            None => drop(self.0.remove(name)),
        }
        Ok(())
    }

    /// Sets all to their defaults.
    pub fn reset(&mut self) {
        self.0.clear();
    }

    /// How long a statement may take, where the client set it.
    pub fn statement_timeout(&self) -> Option<Duration> {
        let set = self.0.get("statement_timeout").and_then(|value| milliseconds(value))?;
        (set > 0).then(|| Duration::from_millis(set))
    }
}

/// Settings on a command line: `-c name=value`, `--name=value`.
fn options(text: &str) -> impl Iterator<Item = (String, &str)> {
    let mut words = text.split_whitespace();
    let settings = std::iter::from_fn(move || {
        let word = words.next()?;
        Some(match word.strip_prefix("-c") {
            Some("") => words.next()?,
            Some(setting) => setting,
            None => word.trim_start_matches("--"),
        })
    });
    settings.filter_map(|setting| setting.split_once('=')).map(|(name, value)| (name.replace('-', "_"), value))
}

/// The schema of a path that tables would be looked for in before those that they are looked for in anyway.
fn first_schema(path: &str) -> Option<&str> {
    let mut schemas = path.split(',').map(|schema| schema.trim().trim_matches(['"', '\'']));
    let first = schemas.find(|schema| !["", "$user", "pg_catalog"].contains(schema))?;
    (first != "public").then_some(first)
}

fn milliseconds(value: &str) -> Option<u64> {
    let value = value.trim();
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = value[..value.len() - unit.len()].parse().ok()?;
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_told_back() {
        let mut settings = Settings::default();
        settings.set("EXTRA_FLOAT_DIGITS", Some("3".into())).unwrap();
        assert_eq!(settings.get("extra_float_digits").unwrap().1, "3");
        settings.set("extra_float_digits", None).unwrap();
        assert_eq!(settings.get("extra_float_digits").unwrap().1, "1");
        settings.set("timezone", Some("Europe/Kyiv".into())).unwrap();
        assert_eq!(settings.get("timezone").unwrap(), ("TimeZone", "UTC".into()));
        settings.set("statement_timeout", Some("2s".into())).unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(2)));
        assert!(settings.set("statement_timeout", Some("soon".into())).is_err());
        settings.start("options", "-c statement_timeout=3s --search-path=public -cunknown=1").unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(3)));
        settings.set("search_path", Some("\"$user\", public, march".into())).unwrap();
        for path in ["march", "\"$user\", march, public"] {
            assert!(settings.set("search_path", Some(path.into())).is_err(), "{path}");
        }
        assert!(settings.set("datafusion.execution.batch_size", Some("1".into())).is_err());
        assert!(settings.get("nothing").is_err());
    }
}
