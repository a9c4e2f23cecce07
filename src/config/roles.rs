//! `roles`: what a process does of what there is to do.

use super::load::ConfigError;
use super::{Config, LogKind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A part of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes callbacks and relays calls.
    Gateway,
    /// Folds events into the tables.
    Projector,
    /// Answers SQL.
    Query,
}

impl Role {
    pub const ALL: [Role; 3] = [Role::Gateway, Role::Projector, Role::Query];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Gateway => "gateway",
            Role::Projector => "projector",
            Role::Query => "query",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let role = Role::ALL.into_iter().find(|role| role.as_str() == name);
        role.ok_or_else(|| format!("there is no role `{name}`: the roles are gateway, projector and query"))
    }
}

/// The roles of a process: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(Vec<Role>);

impl Roles {
    /// These, each once; `None` where there is none.
    pub fn of(mut roles: Vec<Role>) -> Option<Self> {
        roles.sort_unstable();
        roles.dedup();
        (!roles.is_empty()).then_some(Self(roles))
    }

    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Whether it is all of them.
    pub fn are_all(&self) -> bool {
        self.0.len() == Role::ALL.len()
    }

    /// In the order of the flow.
    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        self.0.iter().copied()
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self(Role::ALL.to_vec())
    }
}

impl Config {
    /// Whether a server with these roles can be: [`ConfigError::Roles`] says what it lacks.
    pub fn check_roles(&self) -> Result<(), ConfigError> {
        if self.roles.are_all() {
            return Ok(());
        }
        let named: Vec<&str> = self.roles.iter().map(Role::as_str).collect();
        let refuse = |reason: &str| Err(ConfigError::Roles { roles: named.join(","), reason: reason.to_owned() });
        if self.log.kind == LogKind::Embedded {
            return refuse(
                "the embedded log is one process's alone, which has to have all roles: leave `roles` out, or share a \
                 log with [log] kind = \"kafka\"",
            );
        }
        let asks = self.roles.has(Role::Query) != self.roles.has(Role::Projector);
        if asks && !self.cluster.has_secret() {
            return refuse(
                "query nodes ask projectors for what is not in the tables yet, and both need the same secret for that: \
                 set secret_file under [cluster] to a file made by `openssl rand -hex 32`, or secret_env or secret",
            );
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Roles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            List(Vec<String>),
            Text(String),
        }
        let names = match Written::deserialize(deserializer) {
            Ok(Written::List(names)) => names,
            Ok(Written::Text(text)) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            Err(_) => return Err(D::Error::custom("expected a list of roles, such as [\"gateway\", \"query\"]")),
        };
        let roles: Result<Vec<Role>, String> = names.iter().map(|name| name.parse()).collect();
        Roles::of(roles.map_err(D::Error::custom)?).ok_or_else(|| D::Error::custom("name at least one role"))
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Role::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cluster, Log, Secret};
    use super::*;

    fn roles(names: &[Role]) -> Roles {
        Roles::of(names.to_vec()).unwrap()
    }

    #[test]
    fn roles_are_read_from_a_list_or_a_text() {
        #[derive(Deserialize)]
        struct Document {
            roles: Roles,
        }
        let read = |text: &str| toml::from_str::<Document>(text).map(|document| document.roles);
        let two = roles(&[Role::Gateway, Role::Query]);
        for text in [r#"roles = ["query", "gateway", "query"]"#, r#"roles = "gateway, query""#] {
            assert_eq!(read(text).unwrap(), two, "{text}");
        }
        for (text, part) in [
            (r#"roles = ["gatway"]"#, "no role `gatway`: the roles are gateway, projector and query"),
            (r#"roles = """#, "no role ``"),
            ("roles = []", "at least one"),
            ("roles = 3", "a list of roles"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_split_shares_a_log_and_a_secret() {
        let config = |kind, names: &[Role], secret: Option<&str>| Config {
            roles: roles(names),
            log: Log { kind, ..Log::default() },
            cluster: Cluster { secret: secret.map(Secret::new), ..Cluster::default() },
            ..Config::default()
        };
        let check = |kind, names: &[Role], secret| config(kind, names, secret).check_roles().map_err(|e| e.to_string());
        let (embedded, kafka) = (LogKind::Embedded, LogKind::Kafka);
        assert_eq!(check(embedded, &Role::ALL, None), Ok(()));
        let refused = check(embedded, &[Role::Gateway, Role::Query], Some("x")).unwrap_err();
        assert!(refused.contains("gateway,query") && refused.contains("kind = \"kafka\""), "{refused}");
        assert_eq!(check(kafka, &[Role::Gateway], None), Ok(()));
        assert_eq!(check(kafka, &[Role::Projector, Role::Query], None), Ok(()));
        for alone in [&[Role::Projector][..], &[Role::Query], &[Role::Gateway, Role::Query]] {
            let refused = check(kafka, alone, None).unwrap_err();
            assert!(refused.contains("[cluster]") && refused.contains("openssl"), "{refused}");
            assert_eq!(check(kafka, alone, Some("x")), Ok(()));
        }
    }
}
