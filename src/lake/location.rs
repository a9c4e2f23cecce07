//! Where the tables are to lie, and how an object store is reached.

use std::fmt;

/// Where the tables lie.
#[derive(Debug, Clone, Default)]
pub struct Location {
    /// A path, `file:///path`, `s3://bucket/prefix` or `memory:///`.
    pub url: String,
    /// For `s3://` only.
    pub s3: S3Settings,
}

/// How an S3 store is reached. What is not set comes from the environment, as AWS programs expect: `AWS_ENDPOINT_URL`,
/// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, web identity, container and instance credentials.
#[derive(Clone, Default)]
pub struct S3Settings {
    /// `http://…` or `https://…`; AWS itself by default.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    /// Goes with `access_key_id`.
    pub secret_access_key: Option<String>,
    /// Whether the bucket's name is part of the host's.
    pub virtual_hosted_style: bool,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_keys = self.access_key_id.is_some();
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("has_keys", &has_keys)
            .field("virtual_hosted_style", &self.virtual_hosted_style)
            .finish()
    }
}

impl From<&str> for Location {
    fn from(url: &str) -> Self {
        Self { url: url.to_owned(), s3: S3Settings::default() }
    }
}

impl From<&String> for Location {
    fn from(url: &String) -> Self {
        Self::from(url.as_str())
    }
}
