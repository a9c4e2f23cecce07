//! Notices when Viber sends a bot's callbacks elsewhere: somebody set the webhook past the gateway, and what comes is no
//! longer counted.

use super::{Gateway, TOKEN, set_webhook};
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Method};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Asks Viber about every account with a webhook each `every`, until dropped. Nothing of it is recorded: these calls are
/// the gateway's, not a bot's.
pub async fn watch(gateway: Gateway, every: Duration) {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut elsewhere = HashSet::new();
    loop {
        interval.tick().await;
        for account in gateway.registrations.accounts() {
            let Some(found) = registered_at(&gateway, &account).await else { continue };
            let is_elsewhere = found != gateway.own_url(&account);
            gateway.metrics.webhook_elsewhere(&account, is_elsewhere);
            if is_elsewhere && elsewhere.insert(account.clone()) {
                tracing::error!(
                    account,
                    host = host(&found),
                    "Viber sends this bot's callbacks elsewhere: they are not counted until the bot calls set_webhook through the gateway again"
                );
            } else if !is_elsewhere && elsewhere.remove(&account) {
                tracing::info!(account, "Viber sends this bot's callbacks here again");
            }
        }
    }
}

/// Where Viber sends an account's callbacks; `None` when it does not tell now.
async fn registered_at(gateway: &Gateway, account: &str) -> Option<String> {
    let account = gateway.accounts.named(account)?;
    let mut headers = HeaderMap::new();
    headers.insert(TOKEN, HeaderValue::from_str(account.token()).ok()?);
    let asked =
        gateway.upstream.relay(Method::POST, "get_account_info", None, &headers, Bytes::from_static(b"{}")).await;
    let answer = asked.answer.ok().filter(|answer| set_webhook::status(answer) == Some(0))?;
    Some(set_webhook::registered_at(&answer).unwrap_or_default())
}

/// Of a URL only the host is told: the rest may be a secret of the bot's.
fn host(url: &str) -> String {
    url::Url::parse(url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_else(|| "(nowhere)".to_owned())
}
