//! A rebuild as it was asked for, and how it stands: a small file of its own in `data_dir/rebuilds`, from which it is gone on
//! with after a restart.

use super::{ProjectorError, Settings};
use crate::durable_file::{self, DurableFileError};
use crate::event::check_account_name;
use crate::event::shown::brief;
use crate::event::time::parse_rfc3339_us;
use crate::lake::{LakeError, is_generation_name};
use crate::session::policy::PolicyError;
use crate::session::{Policies, Policy, PolicyChain};
use crate::state::overlay::{LaidRow, OverlayKey};
use crate::state::split_user_key;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FOLDER: &str = "rebuilds";
/// So many rebuilds that have ended are remembered.
const REMEMBERED: usize = 10;
const HOUR_MS: i64 = 3_600_000;

/// Why a rebuild is not made, or was given up.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// What was asked for cannot be had; the text says what can.
    #[error("{0}")]
    Wish(String),
    /// One at a time.
    #[error("rebuild {0} is not finished: wait for it, or drop it (counterbat rebuild --drop {0})")]
    Busy(String),
    #[error("there is no generation or rebuild `{}`; counterbat rebuild --list shows them", brief(.0))]
    Unknown(String),
    #[error("rebuild {0} is what the tables hold now: it cannot be dropped")]
    IsLive(String),
    /// Another process makes the generation, or removes it.
    #[error(
        "another process is at work on generation {name} ({maker}; it said so last at {told}): wait for it, take another name, or drop it there; once it has been silent for five minutes the name is free, and `counterbat rebuild --drop {name}` removes what it has left"
    )]
    Taken { name: String, maker: String, told: String },
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error(transparent)]
    Projector(#[from] ProjectorError),
    #[error(transparent)]
    File(#[from] DurableFileError),
}

impl From<LakeError> for RebuildError {
    fn from(error: LakeError) -> Self {
        match error {
            LakeError::Generation(reason) => RebuildError::Wish(reason),
            error => RebuildError::Projector(error.into()),
        }
    }
}

impl From<crate::state::StateError> for RebuildError {
    fn from(error: crate::state::StateError) -> Self {
        RebuildError::Projector(error.into())
    }
}

/// What a rebuild is to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Rebuild)]
pub struct Wish {
    /// The name it is kept under beside the live tables; without, it takes their place.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub keep_as: Option<String>,
    /// A policy by name, built in or of the config; without one, and without `policy_toml`, the configured ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// A policy of their own, as TOML.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_toml: Option<String>,
    /// The accounts that are refolded; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// RFC 3339. Rows with an earlier reference time stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Wish {
    /// The policy that what is refolded follows; `None` where it is the configured ones.
    pub(super) fn own_policy(&self, live: &Settings) -> Result<Option<Arc<Policy>>, PolicyError> {
        Ok(match (&self.policy, &self.policy_toml) {
            (_, Some(text)) => Some(Arc::new(Policy::parse(text)?)),
            (Some(name), None) => Some(live.policies.named(name)?),
            (None, None) => None,
        })
    }

    fn chain(&self, live: &Settings) -> Result<Option<PolicyChain>, PolicyError> {
        Ok(self.own_policy(live)?.map(PolicyChain::always))
    }

    /// What it is folded by, where `live` is what the live tables are folded by.
    pub fn settings(&self, live: &Settings) -> Result<Settings, RebuildError> {
        let Some(chain) = self.chain(live)? else { return Ok(live.clone()) };
        Ok(match self.accounts.as_slice() {
            [] => Settings { policies: Policies::default(), default_policy: chain, ..live.clone() },
            accounts => Settings { policies: live.policies.with(accounts, &chain), ..live.clone() },
        })
    }

    /// Which rows it makes.
    pub fn scope(&self) -> Result<Scope, RebuildError> {
        if let Some(error) = self.accounts.iter().find_map(|name| check_account_name(name).err()) {
            return Err(RebuildError::Wish(format!("accounts: {error}")));
        }
        let from_us = match &self.from {
            Some(text) => Some(parse_rfc3339_us(text).ok_or_else(|| {
                RebuildError::Wish(format!("from: `{text}` is no RFC 3339 time like 2026-03-01T00:00:00Z"))
            })?),
            None => None,
        };
        Ok(Scope { accounts: self.accounts.clone(), from_us })
    }

    /// Whether it can be: a rebuild that takes the place of the live tables must be made as they are gone on with.
    pub fn check(&self, live: &Settings) -> Result<(), RebuildError> {
        let refuse = |reason: &str| Err(RebuildError::Wish(reason.to_owned()));
        let (scope, chain) = (self.scope()?, self.chain(live)?);
        if self.policy.is_some() && self.policy_toml.is_some() {
            return refuse("policy and policy_toml are two answers to one question: give one of them");
        }
        match &self.keep_as {
            Some(name) if !is_generation_name(name) => Err(RebuildError::Wish(format!(
                "as: `{}` is no name for a generation: it must be of the form [a-z][a-z0-9_]{{0,62}}, and not public, live or information_schema",
                brief(name)
            ))),
            Some(_) => Ok(()),
            None if scope != Scope::default() => refuse(
                "a rebuild of some accounts, or from some time on, cannot take the place of the live tables: give it a name (--as NAME)",
            ),
            None if chain.is_some_and(|chain| live.default_policy != chain || !live.policies.are_all(&chain)) => {
                refuse(
                    "what comes in later is folded under the policies of the config, and these are others: change the config first, or keep the rebuild beside the live tables (--as NAME)",
                )
            }
            None => Ok(()),
        }
    }
}

/// Which rows a rebuild makes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Empty: all accounts.
    pub accounts: Vec<String>,
    pub from_us: Option<i64>,
}

impl Scope {
    /// Whether a row is one of them.
    pub(super) fn has(&self, key: &OverlayKey, row: &LaidRow) -> bool {
        let is_account = || {
            split_user_key(&key.user).is_some_and(|(account, _)| self.accounts.iter().any(|wanted| wanted == account))
        };
        let at_ms = match row {
            LaidRow::Session(row) => row.opened_at_ms,
            LaidRow::Message(row) => row.sent_at_ms,
            // That a row which was never laid is gone changes nothing, so the end of its hour will do.
            LaidRow::Gone => (key.hour + 1) * HOUR_MS,
        };
        (self.accounts.is_empty() || is_account())
            && self.from_us.is_none_or(|from_us| at_ms.saturating_mul(1000) >= from_us)
    }
}

/// How a rebuild stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// What there is of it is removed, all of it, before it is begun anew or given up.
    Clearing,
    /// Events are folded.
    Folding,
    /// All are, and the tables of a generation that is kept are written.
    Writing,
    /// The projector rests, and the new tables take the place of the old.
    Switching,
    Done,
    Failed,
}

/// How far the events go that a rebuild has folded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reach {
    pub events: u64,
    /// When the newest was appended, in µs.
    pub up_to_us: Option<i64>,
    /// By log partition.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub positions: BTreeMap<u32, u64>,
    /// By log partition, in ms.
    #[schema(value_type = BTreeMap<String, i64>)]
    pub watermarks: BTreeMap<u32, i64>,
}

/// A rebuild.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Job {
    pub name: String,
    pub wish: Wish,
    /// The policies it goes by, in words.
    pub policies: String,
    /// µs since the epoch, UTC.
    pub asked_us: i64,
    pub ended_us: Option<i64>,
    pub phase: Phase,
    /// Whether others work on the same log.
    pub is_shared: bool,
    /// How late an event may be to be folded in: later than any is. `None` until that is known.
    pub lateness_ms: Option<i64>,
    /// Known once it is complete.
    pub reach: Option<Reach>,
    /// Why it was given up.
    pub error: Option<String>,
    /// What the name of a generation that is kept is claimed by.
    #[serde(default)]
    pub claim: String,
    /// Whether some of what it was made with may be left though it has ended.
    #[serde(default)]
    pub leaves: bool,
}

impl Job {
    /// Whether there is nothing more to be done for it.
    pub fn has_ended(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Failed)
    }
}

/// The files of all rebuilds of a data directory. No two write at a time.
#[derive(Debug, Clone)]
pub(super) struct Jobs {
    folder: PathBuf,
}

impl Jobs {
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join(FOLDER) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Where a rebuild makes its state.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.state"))
    }

    /// Where a rebuild puts what memory does not hold.
    pub fn room(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.room"))
    }

    /// Where the state goes that a rebuild's takes the place of.
    pub fn old_state_dir(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.old"))
    }

    /// The folders that are of no use any more.
    pub fn useless(&self) -> Result<Vec<PathBuf>, DurableFileError> {
        let failed = |error| DurableFileError::Io { path: self.folder.clone(), error };
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
        let paths = paths.map_err(failed)?;
        // Looked for last: a rebuild is noted down before it has a folder.
        let of_use = self.unfinished()?.map(|job| [self.state_dir(&job.name), self.room(&job.name)]);
        let is_of_use = |path: &PathBuf| of_use.as_ref().is_some_and(|of_use| of_use.contains(path));
        Ok(paths.into_iter().filter(|path| path.is_dir() && !is_of_use(path)).collect())
    }

    pub fn put(&self, job: &Job) -> Result<(), DurableFileError> {
        durable_file::write(&self.path(&job.name), job)
    }

    /// `None` where there is none of this name, whatever it is.
    pub fn get(&self, name: &str) -> Result<Option<Job>, DurableFileError> {
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.bytes().all(is_name) { durable_file::read(&self.path(name)) } else { Ok(None) }
    }

    pub fn remove(&self, name: &str) -> Result<(), DurableFileError> {
        durable_file::remove(&self.path(name))
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> Result<Vec<Job>, DurableFileError> {
        let mut jobs: Vec<Job> = Vec::new();
        for path in durable_file::list(&self.folder)? {
            match durable_file::read(&path) {
                Ok(job) => jobs.extend(job),
                Err(error @ DurableFileError::Damaged { .. }) => tracing::warn!(%error, "a rebuild is forgotten"),
                Err(error) => return Err(error),
            }
        }
        jobs.sort_by_key(|job| job.asked_us);
        Ok(jobs)
    }

    /// The one that is to be gone on with.
    pub fn unfinished(&self) -> Result<Option<Job>, DurableFileError> {
        Ok(self.all()?.into_iter().find(|job| !job.has_ended()))
    }

    /// Forgets the oldest of those that have ended, where they are many. Generations have their own record.
    pub fn forget_old(&self) -> Result<(), DurableFileError> {
        let ended: Vec<Job> = self.all()?.into_iter().filter(Job::has_ended).collect();
        let many = ended.len().saturating_sub(REMEMBERED);
        ended.iter().take(many).try_for_each(|job| self.remove(&job.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::overlay::{Laid, RowId};
    use crate::state::user_key;

    fn job(name: &str, asked_us: i64, phase: Phase) -> Job {
        Job {
            name: name.into(),
            wish: Wish::default(),
            policies: String::new(),
            asked_us,
            ended_us: None,
            phase,
            is_shared: false,
            lateness_ms: Some(7),
            reach: None,
            error: None,
            claim: String::new(),
            leaves: false,
        }
    }

    #[test]
    fn what_is_unfinished_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::new(dir.path());
        assert_eq!(jobs.unfinished().unwrap(), None);
        jobs.put(&job("b", 1, Phase::Done)).unwrap();
        jobs.put(&job("a", 2, Phase::Folding)).unwrap();
        assert_eq!(jobs.unfinished().unwrap(), Some(job("a", 2, Phase::Folding)));
        for n in 10..30 {
            jobs.put(&job(&format!("c{n}"), n, Phase::Failed)).unwrap();
        }
        jobs.forget_old().unwrap();
        let names: Vec<String> = jobs.all().unwrap().into_iter().map(|job| job.name).collect();
        assert_eq!((names.len(), names[0].as_str(), names[1].as_str()), (11, "a", "c20"));
    }

    #[test]
    fn a_scope_is_accounts_and_a_beginning() {
        let key = |account: &str, hour| OverlayKey {
            table: Laid::Messages,
            partition: 0,
            hour,
            user: user_key(account, "ann"),
            id: RowId::Message(1),
        };
        let scope = Scope { accounts: vec!["bot".into()], from_us: Some(10 * HOUR_MS * 1000 + 1) };
        assert!(Scope::default().has(&key("other", -5), &LaidRow::Gone));
        assert!(scope.has(&key("bot", 10), &LaidRow::Gone));
        assert!(!scope.has(&key("bot", 9), &LaidRow::Gone) && !scope.has(&key("bo", 10), &LaidRow::Gone));
        let from_then = Scope { from_us: Some(10 * HOUR_MS * 1000), ..Scope::default() };
        assert!(from_then.has(&key("any", 9), &LaidRow::Gone), "its end is the very beginning");
        let moment = Scope { from_us: Some(7_000), ..Scope::default() };
        let row = |opened_at_ms| LaidRow::Session(crate::lake::tests::session_at(opened_at_ms));
        assert!(moment.has(&key("any", 0), &row(7)) && !moment.has(&key("any", 0), &row(6)));
    }

    #[test]
    fn a_wish_is_read_from_json() {
        let wish: Wish = serde_json::from_str(r#"{"as":"march","policy":"vbm","accounts":["bot"]}"#).unwrap();
        assert_eq!((wish.keep_as.as_deref(), wish.policy.as_deref()), (Some("march"), Some("vbm")));
        assert!(serde_json::from_str::<Wish>(r#"{"name":"march"}"#).is_err());
        assert!(Wish { from: Some("March".into()), ..Wish::default() }.scope().is_err());
        assert!(Wish { accounts: vec!["A b".into()], ..Wish::default() }.scope().is_err());
    }
}
