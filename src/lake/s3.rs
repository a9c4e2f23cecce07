//! Reaching an S3 store: settings over the environment, bounded patience, errors that say what matters.

use super::{LakeError, S3Settings};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// A request is sent again for so long, so that whoever waits can tell and go on.
const RETRY_FOR: Duration = Duration::from_secs(15);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// One request with its answer; no more than 16 MiB are sent in one.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A bucket, and the tables' folder in it.
pub(super) struct Bucket {
    pub whole: Arc<dyn ObjectStore>,
    pub below: Arc<dyn ObjectStore>,
    /// `s3://bucket/prefix/`
    pub url: Url,
}

/// A store for `s3://bucket/prefix`; nothing is sent yet.
pub(super) fn open(url: &Url, settings: &S3Settings) -> Result<Bucket, LakeError> {
    // What stands before an @ may be a key, so it is not quoted.
    let bucket = url.host_str().unwrap_or_default();
    let place = format!("s3://{bucket}{}", url.path());
    let refuse = |reason: &str| LakeError::Settings { place: place.clone(), reason: reason.to_owned() };
    if bucket.is_empty() {
        return Err(refuse("[lake] url names no bucket, as s3://bucket/prefix does"));
    }
    if !url.username().is_empty() || url.password().is_some() || url.port().is_some() || url.query().is_some() {
        return Err(refuse("[lake] url has more than a bucket and a prefix"));
    }
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let whole = builder(bucket, settings, environment)
        .map_err(refuse)?
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(RetryConfig {
            backoff: BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() },
            max_retries: 100,
            retry_timeout: RETRY_FOR,
        })
        .build()
        .map_err(|error| refuse(&error.to_string()))?;
    let whole: Arc<dyn ObjectStore> = Arc::new(whole);
    let prefix = ObjectPath::from_url_path(url.path()).map_err(|error| refuse(&error.to_string()))?;
    let mut url = url.clone();
    url.set_path(&format!("/{prefix}{}", if prefix.as_ref().is_empty() { "" } else { "/" }));
    Ok(Bucket { below: Arc::new(PrefixStore::new(whole.clone(), prefix)), whole, url })
}

/// The settings laid over `AWS_` variables.
fn builder(
    bucket: &str,
    settings: &S3Settings,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<AmazonS3Builder, &'static str> {
    let S3Settings { endpoint, region, access_key_id, secret_access_key, virtual_hosted_style } = settings;
    let patience = ClientOptions::new().with_connect_timeout(CONNECT_WITHIN).with_timeout(ANSWER_WITHIN);
    let mut builder = AmazonS3Builder::new().with_client_options(patience);
    for (name, value) in environment.filter(|(name, _)| name.starts_with("AWS_")) {
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
        // A session's token goes with the session's keys.
        let is_key = matches!(
            key,
            AmazonS3ConfigKey::AccessKeyId | AmazonS3ConfigKey::SecretAccessKey | AmazonS3ConfigKey::Token
        );
        if !(is_key && access_key_id.is_some()) {
            builder = builder.with_config(key, value);
        }
    }
    builder = match (access_key_id, secret_access_key) {
        (Some(id), Some(secret)) => builder.with_access_key_id(id).with_secret_access_key(secret),
        (None, None) => builder,
        _ => return Err("access_key_id and secret_access_key go together"),
    };
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    let given = |key| builder.get_config_value(&key);
    let is_virtual = *virtual_hosted_style
        || given(AmazonS3ConfigKey::VirtualHostedStyleRequest).is_some_and(|value| value == "true");
    let of_environment = || given(AmazonS3ConfigKey::S3Endpoint).or_else(|| given(AmazonS3ConfigKey::Endpoint));
    if let Some(endpoint) = endpoint.clone().or_else(of_environment) {
        let endpoint = endpoint.trim_end_matches('/');
        let host = if is_virtual { with_bucket(endpoint, bucket) } else { endpoint.to_owned() };
        builder =
            builder.with_allow_http(endpoint.starts_with("http://")).with_config(AmazonS3ConfigKey::S3Endpoint, host);
    }
    Ok(builder.with_bucket_name(bucket).with_virtual_hosted_style_request(is_virtual))
}

/// `https://host` to `https://bucket.host`, unless it is that already.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !host.starts_with(&format!("{bucket}.")) => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_owned(),
    }
}

/// An error's text with S3's XML cut down to its code and message: the rest names keys and what was signed.
pub(super) fn brief(text: &str) -> String {
    let Some((before, xml)) = text.find("<?xml").or_else(|| text.find("<Error>")).map(|start| text.split_at(start))
    else {
        return text.to_owned();
    };
    let element = |name: &str| Some(xml.split_once(&format!("<{name}>"))?.1.split_once("</")?.0);
    let said: Vec<&str> = [element("Code"), element("Message")].into_iter().flatten().collect();
    format!("{before}{}", said.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(settings: &S3Settings, env: &[(&str, &str)], key: AmazonS3ConfigKey) -> Option<String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        builder("shop", settings, env).unwrap().get_config_value(&key)
    }

    #[test]
    fn settings_count_over_the_environment() {
        let env = [
            ("AWS_ACCESS_KEY_ID", "env-id"),
            ("AWS_SECRET_ACCESS_KEY", "env-secret"),
            ("AWS_SESSION_TOKEN", "env-token"),
            ("AWS_ENDPOINT_URL", "http://env:9000/"),
            ("AWS_REGION", "eu-north-1"),
        ];
        let none = S3Settings::default();
        assert_eq!(built(&none, &env, AmazonS3ConfigKey::AccessKeyId).as_deref(), Some("env-id"));
        assert_eq!(built(&none, &env, AmazonS3ConfigKey::Token).as_deref(), Some("env-token"));
        assert_eq!(built(&none, &env, AmazonS3ConfigKey::S3Endpoint).as_deref(), Some("http://env:9000"));
        assert_eq!(built(&none, &env, AmazonS3ConfigKey::Region).as_deref(), Some("eu-north-1"));
        let own = S3Settings {
            endpoint: Some("https://store.example/".into()),
            access_key_id: Some("id".into()),
            secret_access_key: Some("hush".into()),
            virtual_hosted_style: true,
            ..S3Settings::default()
        };
        assert_eq!(built(&own, &env, AmazonS3ConfigKey::AccessKeyId).as_deref(), Some("id"));
        assert_eq!(built(&own, &env, AmazonS3ConfigKey::Token), None, "a session's token is not for other keys");
        assert_eq!(built(&own, &env, AmazonS3ConfigKey::S3Endpoint).as_deref(), Some("https://shop.store.example"));
        assert!(!format!("{own:?}").contains("hush"));
        let half = S3Settings { secret_access_key: None, ..own };
        assert!(builder("shop", &half, std::iter::empty()).is_err());
    }

    #[test]
    fn urls_are_read_strictly() {
        let open = |url: &str| super::open(&Url::parse(url).unwrap(), &S3Settings::default());
        for (url, root) in
            [("s3://shop", "s3://shop/"), ("s3://shop/a/b", "s3://shop/a/b/"), ("s3://shop/a/", "s3://shop/a/")]
        {
            assert_eq!(open(url).unwrap().url.as_str(), root);
        }
        for bad in ["s3:///x", "s3://id:hush@shop/x", "s3://shop/x?key=hush"] {
            let error = open(bad).err().unwrap().to_string();
            assert!(!error.contains("hush") && error.contains("[lake"), "{error}");
        }
    }

    #[test]
    fn errors_are_brief() {
        let xml = "403 Forbidden: <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>It does not \
                   match.</Message><AWSAccessKeyId>AKIA</AWSAccessKeyId></Error>";
        assert_eq!(brief(xml), "403 Forbidden: SignatureDoesNotMatch: It does not match.");
        assert_eq!(brief("no room"), "no room");
    }
}
