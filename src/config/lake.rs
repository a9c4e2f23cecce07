//! `[lake]`: where the tables lie, how often they are written, and how an object store is reached.

use super::load::ConfigError;
use super::secret::{Given, HasSecret, some_secret};
use super::{Secret, Span, http_url, positive, some_text};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;
use url::Url;

/// `[lake]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lake {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub url: Option<String>,
    #[serde(deserialize_with = "positive")]
    pub commit_every: Span,
    #[serde(deserialize_with = "positive")]
    pub snapshot_every: Span,
    pub s3: S3,
}

/// `[lake.s3]`: what is not set comes from the environment, as AWS programs expect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "endpoint")]
    pub endpoint: Option<Url>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_text")]
    pub access_key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_secret")]
    pub secret_access_key: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key_file: Option<PathBuf>,
    pub virtual_hosted_style: bool,
}

impl Default for Lake {
    fn default() -> Self {
        Self { url: None, commit_every: Span::seconds(10), snapshot_every: Span::seconds(60), s3: S3::default() }
    }
}

impl S3 {
    /// Reads the secret access key from where it is; `None` where none is set.
    pub fn read_secret(&self) -> Result<Option<Secret>, ConfigError> {
        self.given().read().map_err(ConfigError::S3)
    }
}

impl HasSecret for S3 {
    fn given(&self) -> Given<'_> {
        Given {
            name: "secret_access_key",
            whence: " in [lake.s3]",
            text: &self.secret_access_key,
            env: &self.secret_access_key_env,
            file: &self.secret_access_key_file,
        }
    }
}

impl HasSecret for Lake {
    fn given(&self) -> Given<'_> {
        self.s3.given()
    }
}

fn endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let url = http_url(deserializer)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(D::Error::custom("keys do not go into endpoint: give access_key_id and secret_access_key"));
    }
    Ok(Some(url))
}
