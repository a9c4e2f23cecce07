//! A secret that a section gives as text, as the name of an environment variable, or as a file: in one of three keys.

use super::{Secret, TokenSource};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::path::PathBuf;

/// What a section's three keys say.
pub(super) struct Given<'a> {
    /// The key of the text; those of the others end in `_env` and `_file`.
    pub name: &'static str,
    /// Names the section in errors, where that is not plain from the line.
    pub whence: &'static str,
    pub text: &'a Option<Secret>,
    pub env: &'a Option<String>,
    pub file: &'a Option<PathBuf>,
}

/// A section with such a secret.
pub(super) trait HasSecret {
    fn given(&self) -> Given<'_>;
}

impl Given<'_> {
    fn sources(&self) -> impl Iterator<Item = TokenSource> {
        let text = self.text.clone().map(TokenSource::Inline);
        let env = self.env.clone().map(TokenSource::Env);
        let file = self.file.clone().map(TokenSource::File);
        [text, env, file].into_iter().flatten()
    }

    pub fn is_set(&self) -> bool {
        self.sources().next().is_some()
    }

    /// Reads the secret from where it is; `None` where none is set. Else says why it cannot be read.
    pub fn read(&self) -> Result<Option<Secret>, String> {
        self.sources().next().map(|source| source.read()).transpose()
    }
}

/// A section whose secret is in one place.
pub(super) fn in_one_place<'de, D: Deserializer<'de>, T: Deserialize<'de> + HasSecret>(
    deserializer: D,
) -> Result<T, D::Error> {
    let section = T::deserialize(deserializer)?;
    let given = section.given();
    if given.sources().count() > 1 {
        let Given { name, whence, .. } = given;
        return Err(D::Error::custom(format!("give one of {name}, {name}_env and {name}_file{whence}")));
    }
    Ok(section)
}

pub(super) fn some_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    // What was written instead of a text may be the secret.
    let text = String::deserialize(deserializer).map_err(|_| D::Error::custom("expected a text in quotes"))?;
    Ok(Some(Secret::new(text)))
}
