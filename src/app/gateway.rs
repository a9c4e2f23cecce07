//! The role `gateway`: accounts, webhooks, and what stands behind the public listener.

use super::recording::recording;
use super::{AppError, Base};
use crate::gateway::accounts::Accounts;
use crate::gateway::bots::Bots;
use crate::gateway::registrations::Registrations;
use crate::gateway::upstream::Upstream;
use crate::gateway::{self, Gateway, Recording};
use tokio::task::JoinHandle;

/// Puts the gateway together to be served; what files of the data directory know is taken over into the registry, where
/// there is one. `own_url` is where it listens.
pub(super) async fn serve_gateway(base: &Base, own_url: &str) -> Result<(Accounts, Gateway), AppError> {
    adopt_files(base).await?;
    let accounts = base.accounts_to_serve()?;
    if accounts.is_empty() {
        tracing::warn!(
            "there are no accounts, so every callback and call is refused: `counterbat account add` adds one, or [[accounts]] \
             in the config and a restart"
        );
    }
    let gateway = open_gateway(base, accounts.clone(), own_url, recording(base).await?)?;
    Ok((accounts, gateway))
}

/// Puts the gateway together. `own_url` is where it listens.
pub(super) fn open_gateway(
    base: &Base,
    accounts: Accounts,
    own_url: &str,
    recording: Recording,
) -> Result<Gateway, AppError> {
    let config = &base.config;
    let no_url = |_| AppError::Failed { what: "a listener", reason: "its address is no URL".to_owned() };
    Ok(Gateway::new(gateway::Parts {
        log: base.log.clone(),
        recording,
        accounts,
        upstream: Upstream::new(&config.upstream.url, config.upstream.timeout.0)?,
        bots: Bots::new(config.relay.timeout.0, config.relay.allow_private)?,
        registrations: Registrations::open(base.shelf.clone())?,
        public_url: match &config.public_url {
            Some(url) => url.clone(),
            None => own_url.parse().map_err(no_url)?,
        },
        metrics: base.metrics.clone(),
        now: base.clock.clone(),
    }))
}

async fn adopt_files(base: &Base) -> Result<(), AppError> {
    if base.registry.is_none() {
        return Ok(());
    }
    let (dir, shelf, vault) = (base.dir.path.clone(), base.shelf.clone(), base.vault()?);
    let adopting = tokio::task::spawn_blocking(move || gateway::adopt_files(&dir, &shelf, vault.as_ref())).await;
    let failed = |error: tokio::task::JoinError| AppError::Failed { what: "the accounts", reason: error.to_string() };
    Ok(adopting.map_err(failed)??)
}

/// Looks now and then where Viber sends the callbacks.
pub(super) fn watch_webhooks(base: &Base, gateway: Gateway) -> JoinHandle<()> {
    let every = base.config.gateway.watch_every.0;
    tokio::spawn(async move {
        if !every.is_zero() {
            gateway::watch(gateway, every).await;
        }
    })
}
