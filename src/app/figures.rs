//! What metrics tell that only a query finds: sends without a result, cost and free messages of the month; and how full the
//! disk is.

use super::{AppError, Base};
use crate::config::Account;
use crate::event::time::format_us;
use crate::metrics::Metrics;
use crate::query::Engine;
use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use chrono::{DateTime, Datelike};
use futures::TryStreamExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often they are looked for: an hour of events is read for it, and the month's messages.
const EVERY: Duration = Duration::from_secs(300);
/// Starts that are older are for the view `unknown_calls`.
const WINDOW_US: i64 = 3600 * 1_000_000;
/// Beside the time that Viber may take, a call may be so long under way.
const SLACK: Duration = Duration::from_secs(15);
/// How often the disk is looked at.
const DISK_EVERY: Duration = Duration::from_secs(15);

/// Looks for them now and then. Unknown calls only where starts are recorded.
pub(super) fn watch_figures(base: &Base, engine: Arc<Engine>) -> JoinHandle<()> {
    let (metrics, clock) = (base.metrics.clone(), base.clock.clone());
    let under_way = base.config.log.intent.then_some(base.config.upstream.timeout.0 + SLACK);
    tell_budgets(&metrics, &base.config.accounts);
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(EVERY);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            if let Err(error) = look(&engine, &metrics, clock(), under_way).await {
                tracing::debug!(%error, "what only queries find is not told by the metrics now");
            }
        }
    })
}

/// Tells now and then how full the disk of a directory is.
pub(super) fn watch_disk(metrics: Arc<Metrics>, dir: PathBuf) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(DISK_EVERY);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            match rustix::fs::statvfs(&dir) {
                Ok(disk) => metrics.disk(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize),
                Err(error) => tracing::debug!(%error, "how full the disk is is not known"),
            }
        }
    })
}

fn tell_budgets(metrics: &Metrics, accounts: &[Account]) {
    for account in accounts {
        for (currency, budget) in &account.budget {
            // It was read as an amount when the config was.
            metrics.money.budget(metrics.shown(&account.name), currency, budget.parse().unwrap_or(f64::NAN));
        }
    }
}

async fn look(engine: &Engine, metrics: &Metrics, now_us: i64, under_way: Option<Duration>) -> Result<(), AppError> {
    if let Some(under_way) = under_way {
        let counts = of_accounts(&rows(engine, &unknown_calls(now_us, under_way)).await?);
        metrics.set_unknown_calls(counts.iter().map(|(account, n)| (account.as_str(), *n)));
    }
    let month = month_of(now_us);
    let spent = format!(
        "select account, currency, cast(sum(cost) as double) from messages where sent_at >= timestamp '{month}' \
         and billing_status = 5 and cost is not null and currency is not null group by account, currency"
    );
    let mut spend = Vec::new();
    for batch in rows(engine, &spent).await? {
        let (accounts, currencies) = (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
        let sums = batch.column(2).as_primitive::<Float64Type>();
        spend.extend(
            (0..batch.num_rows())
                .map(|row| (accounts.value(row).to_owned(), currencies.value(row).to_owned(), sums.value(row))),
        );
    }
    let left = format!(
        "select account, cast(free_left as double) / free_quota from quota_monthly \
         where month = date '{month}' and free_quota > 0"
    );
    let mut quotas = Vec::new();
    for batch in rows(engine, &left).await? {
        let (accounts, ratios) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Float64Type>());
        quotas.extend((0..batch.num_rows()).map(|row| (accounts.value(row).to_owned(), ratios.value(row))));
    }
    metrics.money.set_month(
        spend.iter().filter_map(|(account, currency, sum)| Some((metrics.shown(account)?, currency.as_str(), *sum))),
        quotas.iter().filter_map(|(account, ratio)| Some((metrics.shown(account)?, *ratio))),
    );
    Ok(())
}

async fn rows(engine: &Engine, query: &str) -> Result<Vec<RecordBatch>, AppError> {
    Ok(engine.query(query).await?.try_collect().await?)
}

/// The first day of the UTC month.
fn month_of(now_us: i64) -> String {
    let now = DateTime::from_timestamp_micros(now_us).unwrap_or_default();
    format!("{:04}-{:02}-01", now.year(), now.month())
}

fn of_accounts(batches: &[RecordBatch]) -> Vec<(String, i64)> {
    let counts = batches.iter().flat_map(|batch| {
        let accounts = batch.column(0).as_string::<i32>().iter();
        accounts.zip(batch.column(1).as_primitive::<Int64Type>().iter())
    });
    counts.map(|(account, n)| (account.unwrap_or_default().to_owned(), n.unwrap_or(0))).collect()
}

fn unknown_calls(now_us: i64, under_way: Duration) -> String {
    let from = format_us(now_us.saturating_sub(WINDOW_US));
    let over = format_us(now_us.saturating_sub(i64::try_from(under_way.as_micros()).unwrap_or(i64::MAX)));
    format!(
        "select account, count(*) from unknown_calls('{from}') \
         where started_at < timestamp '{over}' and account is not null group by account"
    )
}
