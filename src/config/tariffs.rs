//! The policies and price lists that the settings name, read and checked with them.

use super::Config;
use super::load::{ConfigError, without_quotes};
use crate::session::policy::PolicyError;
use crate::session::{Policy, PriceList};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Policies and price lists out of files. Files are named by their path from the folder of the config on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tariffs {
    policies: BTreeMap<PathBuf, Arc<Policy>>,
    prices: BTreeMap<PathBuf, Arc<PriceList>>,
}

impl Tariffs {
    /// Reads every file that the settings name, from `folder` on. `text` is the config, to say where.
    pub(super) fn read(config: &Config, folder: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut tariffs = Tariffs::default();
        for file in &config.fold.policy_files {
            tariffs.read_policy("[fold] policy_files", folder, file)?;
        }
        let of_fold = std::iter::once(("[fold]".to_owned(), config.fold.policy.as_str()));
        let of_accounts = config.accounts.iter().flat_map(|account| {
            account.policies.iter().map(|from| (format!("account `{}`", account.name), from.policy.as_str()))
        });
        let named: Vec<(String, &str)> = of_fold.chain(of_accounts).collect();
        for (whose, file) in named.iter().filter(|(_, named)| is_file(named)) {
            tariffs.read_policy(&format!("{whose} policy"), folder, Path::new(file))?;
        }
        for (whose, name) in &named {
            tariffs.policy(name).map_err(|error| {
                let line =
                    text.lines().position(|line| line.contains("polic") && line.contains(&format!("\"{name}\"")));
                let line = line.map(|line| line + 1);
                // What stands at an account may be a token that was put into the wrong place.
                let quoted = error.to_string();
                let reason = if whose == "[fold]" { quoted } else { without_quotes(&quoted) };
                ConfigError::File { path: PathBuf::new(), line, reason: format!("{whose} policy: {reason}") }
            })?;
        }
        let of_fold = config.fold.prices.iter().map(|file| ("[fold] prices".to_owned(), file));
        let of_accounts = config.accounts.iter().filter_map(|account| {
            account.prices.as_ref().map(|file| (format!("account `{}` prices", account.name), file))
        });
        for (setting, file) in of_fold.chain(of_accounts) {
            tariffs.read_prices(&setting, folder, file)?;
        }
        Ok(tariffs)
    }

    /// The policy that a setting names: one that is built in, one out of a file by its name, or a file.
    pub fn policy(&self, named: &str) -> Result<Arc<Policy>, PolicyError> {
        let own = match is_file(named) {
            true => self.policies.get(Path::new(named)),
            false => self.own().find(|policy| policy.name == named),
        };
        own.map_or_else(|| Policy::named(named), |own| Ok(own.clone()))
    }

    /// The policies out of files.
    pub fn own(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The price list in a file that the settings name.
    pub fn prices(&self, file: &Path) -> Arc<PriceList> {
        // Every file was read with the settings.
        self.prices.get(file).cloned().unwrap_or_default()
    }

    fn read_policy(&mut self, setting: &str, folder: &Path, file: &Path) -> Result<(), ConfigError> {
        if self.policies.contains_key(file) {
            return Ok(());
        }
        let path = folder.join(file);
        let policy = read(setting, &path, Policy::parse)?;
        let name = policy.name.as_str();
        let taken = match self.policies.iter().find(|(_, known)| known.name == name) {
            // A file by two of its paths is one.
            Some((other, known)) if **known != policy => Some(format!("in {}", folder.join(other).display())),
            Some(_) => None,
            None => Policy::named(name).is_ok().then(|| "built in".to_owned()),
        };
        if let Some(taken) = taken {
            let reason = format!("name: there is another policy {name:?} {taken}: give this one a name of its own");
            return Err(ConfigError::Tariff { setting: setting.to_owned(), path, reason });
        }
        self.policies.insert(file.to_owned(), Arc::new(policy));
        Ok(())
    }

    fn read_prices(&mut self, setting: &str, folder: &Path, file: &Path) -> Result<(), ConfigError> {
        if !self.prices.contains_key(file) {
            let list = read(setting, &folder.join(file), PriceList::parse)?;
            self.prices.insert(file.to_owned(), Arc::new(list));
        }
        Ok(())
    }
}

/// Whether a policy is named by its file.
fn is_file(named: &str) -> bool {
    named.contains('/') || named.ends_with(".toml")
}

/// Reads a file that a setting names.
fn read<T, E: ToString>(
    setting: &str,
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, ConfigError> {
    let refuse = |reason: String| ConfigError::Tariff { setting: setting.to_owned(), path: path.to_owned(), reason };
    let bytes = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        refuse(format!("line {line}: it is not in UTF-8 from there on: save it as UTF-8"))
    })?;
    parse(&text).map_err(|error| refuse(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::policy::Anchor;

    const OWN: &str = "name = \"mine\"\nfree_out_of_session_per_month = 0\ncharged_on = \"sent\"\n\
                       monthly_fee_eur = \"0\"\n[service]\nlength = \"12h\"\nanchor = \"last\"\nmax_length = \"7d\"\n";
    const PRICES: &str = "country,currency,price,valid_from\nUA,EUR,0.01,\n";

    /// Settings in a folder with these files.
    fn load(config: &str, files: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tariffs")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let file = dir.path().join("counterbat.toml");
        std::fs::write(&file, config).unwrap();
        Config::load(Some(&file), None, []).map_err(|error| error.to_string())
    }

    #[test]
    fn policies_and_prices_come_from_files_beside_the_config() {
        let config = "[fold]\npolicy = \"tariffs/own.toml\"\nprices = \"p.csv\"\n\
            [[accounts]]\nname = \"a\"\ntoken = \"x\"\nprices = \"tariffs/a.csv\"\n\
            policies = [{policy = \"vbm\"}, {policy = \"mine\", valid_from = \"2026-03-01\"}]";
        let own = PRICES.replace("0.01", "0.02");
        let files = [("tariffs/own.toml", OWN), ("p.csv", PRICES), ("tariffs/a.csv", &own)];
        let Config { tariffs, .. } = load(config, &files).unwrap();
        for named in ["tariffs/own.toml", "mine"] {
            let policy = tariffs.policy(named).unwrap();
            assert_eq!((policy.name.as_str(), policy.service.anchor), ("mine", Anchor::Last));
        }
        assert_eq!(tariffs.policy("vbm"), Policy::named("vbm"));
        assert_eq!(tariffs.policy("none"), Err(PolicyError::Unknown("none".into())));
        for (file, micros) in [("p.csv", 10_000), ("tariffs/a.csv", 20_000)] {
            assert_eq!(tariffs.prices(Path::new(file)).at(Some("UA"), 0).unwrap().amount.micros(), micros);
        }
        let listed = load("[fold]\npolicy_files = [\"o.toml\", \"./o.toml\"]\npolicy = \"mine\"", &[("o.toml", OWN)]);
        assert_eq!(listed.unwrap().tariffs.policy("mine").unwrap().name, "mine");
    }

    #[test]
    fn mistakes_in_files_are_refused_with_file_line_and_field() {
        let account = "[[accounts]]\nname = \"a\"\ntoken = \"x\"\n";
        let bad_prices = PRICES.replace("0.01", "0,01");
        for (config, file, parts) in [
            ("[fold]\npolicy = \"mine\"", ("x", ""), &["counterbat.toml, line 2", "[fold] policy", "\"mine\""][..]),
            (&format!("{account}policy = \"hush\""), ("x", ""), &["line 4", "account `a` policy", "built in are"]),
            ("[fold]\npolicy = \"x.toml\"", ("y", ""), &["[fold] policy: ", "x.toml: No such file"]),
            ("[fold]\npolicy = \"x.toml\"", ("x.toml", "name = 3"), &["[fold] policy: ", "x.toml: line 1, name: "]),
            (
                "[fold]\npolicy_files = [\"x.toml\"]",
                ("x.toml", &OWN.replace("12h", "12 h")),
                &["[fold] policy_files: ", "x.toml: line 6, length: \"12 h\""],
            ),
            (
                "[fold]\nprices = \"p.csv\"",
                ("p.csv", &bad_prices),
                &["[fold] prices: ", "p.csv: line 2: it has 5 fields"],
            ),
            (
                &format!("{account}prices = \"p.csv\""),
                ("p.csv", &PRICES.replace("EUR", "eur")),
                &["account `a` prices: ", "p.csv: line 2, currency: \"eur\""],
            ),
            (
                "[fold]\npolicy = \"x.toml\"",
                ("x.toml", &OWN.replace("mine", "vbm")),
                &["x.toml: name: there is another policy \"vbm\" built in"],
            ),
        ] {
            let error = load(config, &[file]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("hush"), "{config}: {error}");
        }
        let other = OWN.replace("12h", "13h");
        let two = load("[fold]\npolicy_files = [\"o.toml\", \"p.toml\"]", &[("o.toml", OWN), ("p.toml", &other)]);
        assert!(two.is_err_and(|error| error.contains("p.toml: name: there is another policy \"mine\" in ")));
    }
}
