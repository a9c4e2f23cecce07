//! How many sends of the last hour have a start and no result.

use super::{AppError, Base};
use crate::config::Log;
use crate::event::time::format_us;
use crate::metrics::Metrics;
use crate::query::Engine;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often they are counted: an hour of events is read for it.
const EVERY: Duration = Duration::from_secs(300);
/// Starts that are older are for the view `unknown_calls`.
const WINDOW_US: i64 = 3600 * 1_000_000;
/// Beside the time that Viber may take, a call may be so long under way.
const SLACK: Duration = Duration::from_secs(15);

/// Counts them now and then, where starts are recorded.
pub(super) fn count_unknown_calls(base: &Base, engine: Arc<Engine>) -> JoinHandle<()> {
    let (metrics, clock) = (base.metrics.clone(), base.clock.clone());
    let Log { intent, .. } = base.config.log;
    let under_way = base.config.upstream.timeout.0 + SLACK;
    tokio::spawn(async move {
        if !intent {
            return;
        }
        let mut interval = tokio::time::interval(EVERY);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = count(&engine, &metrics, clock(), under_way).await {
                tracing::debug!(%error, "sends without a result are not counted now");
            }
        }
    })
}

async fn count(engine: &Engine, metrics: &Metrics, now_us: i64, under_way: Duration) -> Result<(), AppError> {
    let mut found = engine.query(&query(now_us, under_way)).await?;
    let mut counts = Vec::new();
    while let Some(batch) = found.next().await.transpose()? {
        let accounts = batch.column(0).as_string::<i32>().iter();
        let numbers = batch.column(1).as_primitive::<Int64Type>().iter();
        counts
            .extend(accounts.zip(numbers).map(|(account, n)| (account.unwrap_or_default().to_owned(), n.unwrap_or(0))));
    }
    metrics.set_unknown_calls(counts.iter().map(|(account, n)| (account.as_str(), *n)));
    Ok(())
}

fn query(now_us: i64, under_way: Duration) -> String {
    let from = format_us(now_us.saturating_sub(WINDOW_US));
    let over = format_us(now_us.saturating_sub(i64::try_from(under_way.as_micros()).unwrap_or(i64::MAX)));
    format!(
        "select account, count(*) from unknown_calls('{from}') \
         where started_at < timestamp '{over}' and account is not null group by account"
    )
}
