//! Tables that are in no file: what the rows of the others were made under, and how far that has come.

use super::calendar::utc_timestamp;
use crate::session::Policies;
use crate::session::policy::{Anchor, ChargedOn, Policy, PolicyError};
use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use datafusion::arrow::compute::{CastOptions, cast, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::MemTable;
use datafusion::common::Result;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The terms of every policy this process knows.
///
/// | column | type | |
/// |---|---|---|
/// | `name` | TEXT | as in `messages.policy` and `sessions.policy` |
/// | `service_length_s` | BIGINT | length of a service session |
/// | `service_anchor` | TEXT | `first` or `last`: the message of the user from which it counts |
/// | `service_max_length_s` | BIGINT | the longest it can become; NULL where nothing bounds it |
/// | `max_outbound` | INT | the n-th message to the user that closes it; NULL where none does |
/// | `paid_length_s` | BIGINT | length of a paid session; NULL where there are none |
/// | `free_out_of_session_per_month` | BIGINT | free out-of-session messages per account and UTC month |
/// | `charged_on` | TEXT | `sent` or `delivered` |
/// | `monthly_fee_eur` | DECIMAL(18,6) | per account |
pub const POLICIES: &str = "policies";

/// How far each partition of the log has come, as committed.
///
/// | column | type | |
/// |---|---|---|
/// | `partition` | INT | the partition |
/// | `watermark` | TIMESTAMP | the latest time seen in it; NULL where there was none |
/// | `allowed_lateness_s` | BIGINT | what lies so far behind it comes too late |
/// | `delivery_window_s` | BIGINT | so long after a message receipts count for it |
pub const PARTITIONS: &str = "partitions";

/// What such tables are made from.
pub struct Reference {
    /// By name.
    built_in: BTreeMap<String, Arc<Policy>>,
    /// Of accounts; it grows as they come in.
    pub policies: Policies,
    /// Of accounts without one of their own.
    pub fallback: Arc<Policy>,
    pub allowed_lateness_ms: i64,
    pub delivery_window_ms: i64,
}

impl Reference {
    /// Durations in ms.
    pub fn new(
        policies: Policies,
        fallback: Arc<Policy>,
        allowed_lateness_ms: i64,
        delivery_window_ms: i64,
    ) -> Result<Reference, PolicyError> {
        let built_in = Policy::built_in()?.into_iter().map(|policy| (policy.name.to_string(), policy)).collect();
        Ok(Reference { built_in, policies, fallback, allowed_lateness_ms, delivery_window_ms })
    }

    /// The tables by name. `watermarks_ms` are those of the partitions, from the first to the last; `another` policy goes
    /// before those that are known.
    pub(super) fn tables(
        &self,
        watermarks_ms: &[Option<i64>],
        another: Option<&Policy>,
    ) -> Result<[(&'static str, MemTable); 2]> {
        Ok([(POLICIES, table(self.policies(another)?)?), (PARTITIONS, table(self.partitions(watermarks_ms)?)?)])
    }

    fn policies(&self, another: Option<&Policy>) -> Result<RecordBatch, ArrowError> {
        // What is configured goes before what is built in.
        let mut known = self.built_in.clone();
        let another = another.map(|policy| Arc::new(policy.clone()));
        for policy in self.policies.all().into_iter().chain([self.fallback.clone()]).chain(another) {
            known.insert(policy.name.to_string(), policy);
        }
        let known: Vec<&Policy> = known.values().map(Arc::as_ref).collect();
        let texts = |of: fn(&Policy) -> &str| -> ArrayRef {
            Arc::new(known.iter().map(|policy| Some(of(policy))).collect::<StringArray>())
        };
        let longs = |of: fn(&Policy) -> Option<i64>| -> ArrayRef {
            Arc::new(known.iter().map(|policy| of(policy)).collect::<Int64Array>())
        };
        let max_outbound: UInt32Array = known.iter().map(|policy| policy.service.max_outbound).collect();
        let fees = texts(|policy| &policy.monthly_fee_eur);
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        batch(vec![
            ("name", texts(|policy| &policy.name)),
            ("service_length_s", longs(|policy| Some(policy.service.length_ms / 1000))),
            (
                "service_anchor",
                texts(|policy| match policy.service.anchor {
                    Anchor::First => "first",
                    Anchor::Last => "last",
                }),
            ),
            ("service_max_length_s", longs(|policy| policy.service.max_length_ms.map(|ms| ms / 1000))),
            ("max_outbound", cast(&max_outbound, &DataType::Int32)?),
            ("paid_length_s", longs(|policy| policy.paid.as_ref().map(|paid| paid.length_ms / 1000))),
            (
                "free_out_of_session_per_month",
                longs(|policy| Some(i64::try_from(policy.free_out_of_session_per_month).unwrap_or(i64::MAX))),
            ),
            (
                "charged_on",
                texts(|policy| match policy.charged_on {
                    ChargedOn::Sent => "sent",
                    ChargedOn::Delivered => "delivered",
                }),
            ),
            ("monthly_fee_eur", cast_with_options(&fees, &DataType::Decimal128(18, 6), &strict)?),
        ])
    }

    fn partitions(&self, watermarks_ms: &[Option<i64>]) -> Result<RecordBatch, ArrowError> {
        let partitions = Int32Array::from_iter_values((0..).take(watermarks_ms.len()));
        let watermarks = watermarks_ms.iter().map(|ms| ms.map(|ms| ms.saturating_mul(1000)));
        let watermarks: TimestampMicrosecondArray = watermarks.collect();
        let all = |ms: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![ms / 1000; watermarks_ms.len()])) };
        batch(vec![
            ("partition", Arc::new(partitions)),
            ("watermark", Arc::new(watermarks.with_data_type(utc_timestamp()))),
            ("allowed_lateness_s", all(self.allowed_lateness_ms)),
            ("delivery_window_s", all(self.delivery_window_ms)),
        ])
    }
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch, ArrowError> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect())
}

fn table(rows: RecordBatch) -> Result<MemTable> {
    MemTable::try_new(rows.schema(), vec![vec![rows]])
}
