//! Reading the settings: file, then environment, then flags.

use super::{Account, Config, Tariffs, TokenSource, account};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The file that is read where none is named; it may be missing.
pub const DEFAULT_FILE: &str = "counterbat.toml";
const PREFIX: &str = "COUNTERBAT_";

/// Why the settings were refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named cannot be read.
    #[error("{path}: {error}")]
    Unreadable { path: PathBuf, error: std::io::Error },
    /// The text says where and what is wrong. It never quotes the file: the line may hold a token.
    #[error("{path}{place}: {reason}", place = line.map_or(String::new(), |line| format!(", line {line}")))]
    File { path: PathBuf, line: Option<usize>, reason: String },
    /// A file of policies or prices that a setting names. The text says which line and field of it.
    #[error("{setting}: {path}: {reason}")]
    Tariff { setting: String, path: PathBuf, reason: String },
    /// A variable of ours that sets nothing, or sets a bad value.
    #[error("environment variable {name}: {reason}")]
    Variable { name: String, reason: String },
    /// A token cannot be read.
    #[error("the token of account `{account}`: {reason}")]
    Token { account: String, reason: String },
    /// A setting of `[kafka.properties]` cannot be read.
    #[error("[kafka.properties] {name}: {reason}")]
    Property { name: String, reason: String },
    /// The console would show everything to whoever reaches it.
    #[error(
        "[console] listen: other machines can reach {0}, and no token is asked for: make one by `counterbat token new NAME` \
         and put the line it prints into [console], or listen on 127.0.0.1:{port}",
        port = .0.port()
    )]
    OpenConsole(SocketAddr),
    /// So would the listener for clients of PostgreSQL.
    #[error(
        "[postgres] listen: other machines can reach {0}, and no token is asked for: make one by `counterbat token new NAME` \
         and put the line it prints into [console], or listen on 127.0.0.1:{port}",
        port = .0.port()
    )]
    OpenPostgres(SocketAddr),
    /// A certificate is nothing without its key.
    #[error("[postgres]: tls_cert and tls_key go together, and only one of them is set")]
    HalfTls,
    /// The key that tokens are stored under cannot be read.
    #[error("the key of [gateway]: {0}")]
    Key(String),
    /// How the processes reach each other is not settled.
    #[error("[cluster]: {0}")]
    Cluster(String),
    /// A server cannot have these roles as it is set.
    #[error("roles {roles}: {reason}")]
    Roles { roles: String, reason: String },
    /// The key of the object store cannot be read.
    #[error("the secret access key of [lake.s3]: {0}")]
    S3(String),
}

impl Config {
    /// Reads the named file, or [`DEFAULT_FILE`] where it exists, lays the `COUNTERBAT_` variables of `env` over it, and
    /// `data_dir` over both.
    pub fn load(
        file: Option<&Path>,
        data_dir: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(ConfigError::Unreadable { path: path.to_owned(), error }),
        };
        let place = |error| match error {
            ConfigError::File { line, reason, .. } => ConfigError::File { path: path.to_owned(), line, reason },
            other => other,
        };
        let mut config = Self::parse(&text, env).map_err(place)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.tariffs = Tariffs::read(&config, folder, &text).map_err(place)?;
        if let Some(dir) = data_dir {
            config.data_dir = dir.to_owned();
        }
        Ok(config)
    }

    /// Reads settings from TOML, with the `COUNTERBAT_` variables of `env` laid over it.
    fn parse(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let refuse = |error: toml::de::Error| refusal(text, &error);
        // Once from the text, so that errors name the line.
        let config: Config = toml::from_str(text).map_err(refuse)?;
        let mut table: Table = text.parse().map_err(refuse)?;
        let mut changed = false;
        let mut variables: Vec<(String, String)> =
            env.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        variables.sort();
        for (name, value) in variables {
            let holds_token = |account: &Account| matches!(&account.token, TokenSource::Env(own) if *own == name);
            let holds_secret =
                [&config.gateway.key_env, &config.lake.s3.secret_access_key_env, &config.cluster.secret_env]
                    .contains(&&Some(name.clone()))
                    || config.kafka.properties.is_read_from(&name);
            if holds_secret || config.accounts.iter().any(holds_token) {
                continue;
            }
            lay(&mut table, &name, &value)?;
            changed = true;
        }
        // Each variable was tried by itself and the file too, so this fails only where they do not fit together.
        let config = if changed { Config::deserialize(table).map_err(refuse)? } else { config };
        config.console.check()?;
        config.postgres.check(&config.console)?;
        Ok(config)
    }
}

/// Where and why a text was refused, without what it says where tokens stand.
fn refusal(text: &str, error: &toml::de::Error) -> ConfigError {
    let is_of_list = |at: usize| {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        text[line..].starts_with("[[accounts]]") || text[line..].starts_with("accounts")
    };
    let at = error.span().map(|span| span.start).filter(|at| text.is_char_boundary(*at));
    let at = at.map(|at| if is_of_list(at) { account::refused_at(text).unwrap_or(at) } else { at });
    let before = at.and_then(|at| text.get(..at));
    let line = before.map(|before| before.matches('\n').count() + 1);
    let holds_secret = |line: &str| ["accounts", "key", "secret"].iter().any(|word| line.contains(word));
    let after_secrets =
        |before: &str| ["accounts", "kafka.properties", "tokens"].iter().any(|one| before.contains(one));
    let may_quote = before.is_some_and(|before| !after_secrets(&text[..before.len()]))
        && !line.and_then(|line| text.lines().nth(line - 1)).is_some_and(holds_secret);
    let reason = if !may_quote { without_quotes(error.message()) } else { error.message().to_owned() };
    ConfigError::File { path: PathBuf::new(), line, reason: reason.replace('\n', "; ") }
}

/// A message with what it quotes left out.
pub(super) fn without_quotes(message: &str) -> String {
    // What is quoted has quotes of its own behind a backslash.
    let message = message.replace(r"\\", "").replace(r#"\""#, "");
    let parts = message.split('"').enumerate();
    parts.map(|(n, part)| if n % 2 == 0 { part } else { "\"…\"" }).collect()
}

/// Lays one variable over the table.
fn lay(table: &mut Table, name: &str, value: &str) -> Result<(), ConfigError> {
    let keys: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let mut refused = None;
    let literal = || format!("value = {value}").parse::<Table>().ok().and_then(|mut read| read.remove("value"));
    for candidate in [Some(Value::String(value.to_owned())), literal()].into_iter().flatten() {
        match Config::deserialize(alone(&keys, candidate.clone())) {
            Ok(_) => {
                set(table, &keys, candidate);
                return Ok(());
            }
            Err(error) => refused.get_or_insert(error),
        };
    }
    let reason = refused.map_or_else(String::new, |error| match keys.first() {
        Some(section) if ["accounts", "cluster", "console", "gateway", "kafka", "lake"].contains(&section.as_str()) => {
            without_quotes(error.message())
        }
        _ => error.message().to_owned(),
    });
    Err(ConfigError::Variable { name: name.to_owned(), reason })
}

fn alone(keys: &[String], value: Value) -> Table {
    let mut table = Table::new();
    set(&mut table, keys, value);
    table
}

fn set(table: &mut Table, keys: &[String], value: Value) {
    match keys {
        [] => {}
        [key] => {
            table.insert(key.clone(), value);
        }
        [section, rest @ ..] => {
            let inner = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use std::time::Duration;

    const NO_TOKENS: (&str, &str) = ("COUNTERBAT_CONSOLE__TOKENS", "[]");

    fn parse(text: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, env).map_err(|error| error.to_string())
    }

    /// A token of this name, as the config has it.
    fn token(name: &str) -> String {
        format!("{{name = \"{name}\", sha256 = \"{}\"}}", "5A".repeat(32))
    }

    #[test]
    fn the_manual_states_the_defaults() {
        assert_eq!(parse(DEFAULT_TOML, &[]), Ok(Config::default()));
        assert_eq!(parse("", &[]), Ok(Config::default()));
    }

    #[test]
    fn the_manual_names_every_setting() {
        let all = toml::to_string(&Config {
            lake: Lake {
                url: Some("x".into()),
                s3: S3 {
                    endpoint: Some(Url::parse("http://x").unwrap()),
                    region: Some("x".into()),
                    access_key_id: Some("x".into()),
                    secret_access_key: Some(Secret::new("x")),
                    secret_access_key_env: Some("x".into()),
                    secret_access_key_file: Some("x".into()),
                    ..S3::default()
                },
                ..Lake::default()
            },
            gateway: Gateway {
                key: Some(Secret::new("x")),
                key_env: Some("x".into()),
                key_file: Some("x".into()),
                ..Gateway::default()
            },
            console: Console {
                tokens: vec![ConsoleToken {
                    name: "x".into(),
                    sha256: [7; 32],
                    scram: None,
                    role: TokenRole::Operator,
                    accounts: vec!["x".into()],
                    data: true,
                    max_rows: Some(1),
                    timeout: Some(Span(Duration::from_secs(1))),
                }],
                ..Console::default()
            },
            cluster: Cluster {
                advertise: Some(Url::parse("http://x").unwrap()),
                secret: Some(Secret::new("x")),
                secret_env: Some("x".into()),
                secret_file: Some("x".into()),
            },
            fold: Fold { prices: Some("x".into()), ..Fold::default() },
            log: Log { retention_age: Some(Span::days(1)), retention_size: Some(Size::mib(1)), ..Log::default() },
            ..Config::default()
        });
        for line in all.unwrap().lines().filter(|line| *line != "accounts = []" && !line.starts_with("[[")) {
            let key = line.split(" = ").next().unwrap();
            assert!(DEFAULT_TOML.contains(key), "{key} is not in the manual");
        }
        // What is commented out is right too.
        let uncommented: String = DEFAULT_TOML
            .lines()
            .map(|line| {
                line.strip_prefix("# ").filter(|rest| rest.contains(" = ") || rest.starts_with("[[")).unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let config = parse(&uncommented, &[]).unwrap();
        assert_eq!((config.accounts.len(), config.accounts[0].limit), (2, Some(50)));
        assert!(config.gateway.tls.is_some() && config.gateway.key_file.is_some());
        assert_eq!((config.console.tokens.len(), config.console.tokens[0].sha256[0]), (1, 0x01));
    }

    #[test]
    fn mistakes_are_refused_with_their_place() {
        let ops = token("ops");
        for (text, parts) in [
            ("[log]\npartition = 3", ["line 2", "partition"]),
            ("\n\n[logs]", ["line 3", "logs"]),
            ("[log]\npartitions = 0", ["line 2", "1 to 1024"]),
            ("[lake]\n\ncommit_every = \"10 sec\"", ["line 3", "10 sec"]),
            ("[fold]\npolicy = 3", ["line 2", "string"]),
            ("[fold]\nallowed_lateness = \"367d\"", ["line 2", "367d is longer than 366d"]),
            ("[fold]\n\ndelivery_window = \"36500d\"", ["line 3", "36500d is longer than 366d"]),
            ("[console]\nlisten = \"0.0.0.0:8081\"", ["[console] listen", "counterbat token new NAME"]),
            ("[console]\ntokens = [{name = \"Ops\", sha256 = \"\"}]", ["line 2", "name: `Ops`"]),
            ("[console]\ntokens = [\n{name = \"ops\", sha256 = \"ab\"}]", ["line 3", "sha256: expected the 64"]),
            ("[console]\ntokens = [{name = \"ops\"}]", ["line 2", "sha256"]),
            (&format!("[console]\ntokens = [{ops}, {ops}]"), ["line 2", "two named `ops`"]),
            ("[upstream]\nurl = \"ftp://x\"", ["line 2", "ftp://x"]),
            ("[[accounts]]\nname = \"A b\"\ntoken = \"x\"", ["line 1", "A b"]),
            ("[[accounts]]\nname = \"a\"", ["line 1", "token_env"]),
            ("[[accounts]]\nname = \"a\"\ntoken = \"x\"\n\n[[accounts]]\nname = \"b\"", ["line 5", "token_env"]),
            ("accounts = [\n{name = \"a\", token = \"x\"},\n{name = \"b\"}]", ["line 3", "token_env"]),
            (
                "[[accounts]]\nname = \"a\"\ntoken = \"x\"\n[[accounts]]\nname = \"a\"\ntoken = \"y\"",
                ["line 4", "two accounts"],
            ),
            ("[[accounts]]\nname = \"a\"\ntoken = \"x\"\npolicies = []", ["line 1", "account `a`: policies is empty"]),
            ("[metrics]\naccounts = \"some\"", ["line 2", "some"]),
            ("[gateway]\nrequests_per_second = -1", ["line 2", "-1"]),
            ("[gateway]\ntls = {cert = \"a\"}", ["line 2", "key"]),
            ("\n[gateway]\nkey = \"a\"\nkey_env = \"b\"", ["line 2", "one of key"]),
            (
                "\n[lake.s3]\nsecret_access_key = \"a\"\nsecret_access_key_env = \"b\"",
                ["line 2", "one of secret_access_key"],
            ),
            ("[lake.s3]\nendpoint = \"s3://x\"", ["line 2", "s3://x"]),
            ("data_dir = \"x\"\nroles = [\"gateway\", \"bot\"]", ["line 2", "no role `bot`"]),
            ("\n[cluster]\nsecret = \"a\"\nsecret_file = \"b\"", ["line 2", "one of secret"]),
            ("[cluster]\nadvertise = \"node:8081\"", ["line 2", "node:8081"]),
        ] {
            let error = parse(text, &[]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }

    #[test]
    fn the_environment_is_laid_over_the_file() {
        let text = "data_dir = \"a\"\n[log]\npartitions = 2\n";
        let env = [
            ("COUNTERBAT_DATA_DIR", "b"),
            ("COUNTERBAT_LOG__TICK_EVERY", "0s"),
            ("COUNTERBAT_FOLD__POLICY", "vbm"),
            ("COUNTERBAT_SQL__MAX_ROWS", "5"),
            ("COUNTERBAT_METRICS__ACCOUNTS", "3"),
            ("COUNTERBAT_ROLES", "gateway,query"),
            ("HOME", "/root"),
        ];
        let config = parse(text, &env).unwrap();
        assert_eq!(config.data_dir, PathBuf::from("b"));
        assert_eq!((config.log.partitions, config.log.tick_every.0), (2, Duration::ZERO));
        assert_eq!((config.fold.policy.as_str(), config.sql.max_rows), ("vbm", 5));
        assert_eq!(config.metrics.accounts, AccountSeries::First(3));
        assert_eq!(config.roles.iter().collect::<Vec<_>>(), [Role::Gateway, Role::Query]);
    }

    /// The least that a token is.
    fn only_asking(name: &str) -> ConsoleToken {
        ConsoleToken {
            name: name.into(),
            sha256: [0x5a; 32],
            scram: None,
            role: TokenRole::Viewer,
            accounts: Vec::new(),
            data: false,
            max_rows: None,
            timeout: None,
        }
    }

    #[test]
    fn only_a_console_with_tokens_is_reached_from_elsewhere() {
        let tokens = format!("[console]\ntokens = [{}]", token("grafana"));
        let everywhere = [("COUNTERBAT_CONSOLE__LISTEN", "[::]:8081")];
        let config = parse(&tokens, &everywhere).unwrap();
        assert_eq!(config.console.tokens, [only_asking("grafana")]);
        assert_eq!(parse(&toml::to_string(&config).unwrap(), &[]), Ok(config));
        let by_variable = format!("[{}]", token("grafana"));
        assert!(parse("", &[everywhere[0], ("COUNTERBAT_CONSOLE__TOKENS", &by_variable)]).is_ok());
        for open in [&everywhere[..], &[("COUNTERBAT_CONSOLE__LISTEN", "10.0.0.7:1")], &[everywhere[0], NO_TOKENS]] {
            let error = parse("", open).unwrap_err();
            assert!(error.contains("[console] listen") && error.contains(open[0].1), "{error}");
        }
        assert!(parse(&tokens, &[everywhere[0], NO_TOKENS]).is_err());
        assert!(parse("", &[("COUNTERBAT_CONSOLE__LISTEN", "[::1]:8081")]).is_ok());
    }

    #[test]
    fn unknown_variables_are_refused() {
        for (name, value) in [
            ("COUNTERBAT_LOG__PARTITION", "3"),
            ("COUNTERBAT_LOGS__PARTITIONS", "3"),
            ("COUNTERBAT_LOG__PARTITIONS", "many"),
            ("COUNTERBAT_", "x"),
        ] {
            let error = parse("", &[(name, value)]).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        let own = "[[accounts]]\nname = \"a\"\ntoken_env = \"COUNTERBAT_SHOP_TOKEN\"";
        assert!(parse(own, &[("COUNTERBAT_SHOP_TOKEN", "secret")]).is_ok());
    }

    #[test]
    fn a_policy_may_change_at_a_date() {
        let account = |policies: &str| format!("[[accounts]]\nname = \"a\"\ntoken = \"x\"\npolicies = {policies}");
        let good = account("[{policy=\"vbm\"},{policy=\"counterbat\", valid_from=\"2026-03-01\"}]");
        let config = parse(&good, &[]).unwrap();
        assert_eq!(config.accounts[0].policies[1].valid_from_ms, Some(1_772_323_200_000));
        let unquoted = good.replace("\"2026-03-01\"", "2026-03-01");
        assert_eq!(parse(&unquoted, &[]), Ok(config));
        for other in ["2026-03-01T00:00:00Z", "20260301", "\"2026-3-1\""] {
            let error = parse(&good.replace("\"2026-03-01\"", other), &[]).unwrap_err();
            assert!(error.contains("valid_from") && error.contains("date such as"), "{other}: {error}");
        }
        for bad in ["[{policy=\"vbm\", valid_from=\"2026-03-01\"}]", "[{policy=\"vbm\"},{policy=\"vbm\"}]"] {
            assert!(parse(&account(bad), &[]).unwrap_err().contains("valid_from"));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = parse("[[accounts]]\nname = \"a\"\ntoken = \"hush-hush\"", &[]).unwrap();
        assert_eq!(config.accounts[0].read_token().unwrap().reveal(), "hush-hush");
        let with_key = parse("[gateway]\nkey = \" hush-key \"", &[]).unwrap();
        assert_eq!(with_key.gateway.read_key().unwrap().unwrap().reveal(), "hush-key");
        assert!(!format!("{with_key:?}").contains("hush") && !toml::to_string(&with_key).unwrap().contains("hush"));
        let s3 = "[lake.s3]\naccess_key_id = \"id\"\nsecret_access_key_env = \"COUNTERBAT_S3\"";
        let s3 = parse(s3, &[("COUNTERBAT_S3", "hush")]).unwrap();
        assert!(s3.lake.s3.read_secret().unwrap_err().to_string().contains("COUNTERBAT_S3 is not set"));
        let s3 = parse("[lake.s3]\nsecret_access_key = \"hush\"", &[]).unwrap();
        assert_eq!(s3.lake.s3.read_secret().unwrap().unwrap().reveal(), "hush");
        assert!(!format!("{s3:?}").contains("hush") && !toml::to_string(&s3).unwrap().contains("hush"));
        let key_env = parse("[gateway]\nkey_env = \"COUNTERBAT_OWN\"", &[("COUNTERBAT_OWN", "hush")]).unwrap();
        assert!(key_env.gateway.read_key().unwrap_err().to_string().contains("COUNTERBAT_OWN is not set"));
        let cluster = parse("[cluster]\nsecret_env = \"COUNTERBAT_OWN\"", &[("COUNTERBAT_OWN", "hush")]).unwrap();
        assert!(cluster.cluster.read_secret().unwrap_err().to_string().contains("COUNTERBAT_OWN is not set"));
        let cluster = parse("[cluster]\nsecret = \"hush\"", &[]).unwrap();
        assert!(!format!("{cluster:?}").contains("hush") && !toml::to_string(&cluster).unwrap().contains("hush"));
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!toml::to_string(&config).unwrap().contains("hush"));
        for bad in [
            "[[accounts]]\nname = \"a\"\ntoken = \"hush-hush",
            "[[accounts]]\nname = \"a\"\ntokn = \"hush-hush\"",
            "[[accounts]]\nname = \"a\"\ntoken = hush-hush",
            "accounts = [{name=\"a b\", token=\"hush-hush\"}]",
            "[[accounts]]\nname = \"a\"\ntoken = \"x\"\npolicies = \"hush-hush\"",
            "[gateway]\nkey = hush",
            "[lake.s3]\nsecret_access_key = hush",
            "[lake.s3]\nsecret_access_key = [\"hush\"]",
            "[lake.s3]\nendpoint = \"http://hush:hush@x\"",
            "[gateway]\nkey = \"hush",
            "[gateway]\nkey = [\"hush\"]",
            "[gateway]\ntls = {key = [\"hush\"], cert = \"a\"}",
            "[console]\ntokens = \"hush\"",
            "[console]\ntokens = [\n  \"hush\"\n]",
            "[console]\ntokens = [{name = \"a\", sha256 = \"hush\"}]",
            "[console]\ntokens = [{name = \"a\", sha256 = [\"hush\"]}]",
            "[[console.tokens]]\nname = \"a\"\nsha256 = hush",
            &format!("[console]\ntokens = [{{name = \"cbt_{}\", sha256 = \"\"}}]", "hush".repeat(16)),
            "[cluster]\nsecret = hush",
            "[cluster]\nsecret = [\"hush\"]",
        ] {
            let error = parse(bad, &[]).unwrap_err();
            assert!(!error.contains("hush") && error.contains("line "), "{error}");
        }
        let variable = parse("", &[("COUNTERBAT_CONSOLE__TOKENS", "[{name = \"a\", sha256 = \"hush\"}]")]).unwrap_err();
        assert!(!variable.contains("hush") && variable.contains("COUNTERBAT_CONSOLE__TOKENS"), "{variable}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none.toml");
        assert!(Config::load(Some(&missing), None, []).unwrap_err().to_string().contains("none.toml"));
        let file = dir.path().join("some.toml");
        std::fs::write(&file, "[log]\nx = 1").unwrap();
        let error = Config::load(Some(&file), None, []).unwrap_err().to_string();
        assert!(error.contains("some.toml") && error.contains("line 2"), "{error}");
        std::fs::write(&file, "data_dir = \"a\"").unwrap();
        assert_eq!(Config::load(Some(&file), Some(dir.path()), []).unwrap().data_dir, dir.path());
    }
}
