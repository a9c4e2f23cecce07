//! Tables that are in no file: what the rows of the others were made under, and how far that has come.

use super::calendar::utc_timestamp;
use super::error::QueryError;
use super::sight::Sight;
use crate::lake::GenerationInfo;
use crate::session::policy::{Anchor, ChargedOn, Policy, PolicyError};
use crate::session::{Policies, PolicyChain};
use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use datafusion::arrow::compute::{CastOptions, cast, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::MemTable;
use datafusion::common::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const HOUR_MS: i64 = 3_600_000;

/// The terms of every policy this process knows.
///
/// | column | type | |
/// |---|---|---|
/// | `name` | TEXT | as in `messages.policy` and `sessions.policy` |
/// | `service_length_s` | BIGINT | length of a service session |
/// | `service_anchor` | TEXT | `first` or `last`: the message of the user from which it counts |
/// | `service_max_length_s` | BIGINT | the longest it can become; NULL where the anchor is `first` |
/// | `max_outbound` | INT | the n-th message to the user that closes it; NULL where none does |
/// | `paid_length_s` | BIGINT | length of a paid session; NULL where there are none |
/// | `free_out_of_session_per_month` | BIGINT | free out-of-session messages per account and UTC month |
/// | `charged_on` | TEXT | `sent` or `delivered` |
/// | `monthly_fee_eur` | DECIMAL(18,6) | per account |
pub const POLICIES: &str = "policies";

/// Which policy holds for which account, and from when on: up to the next one's start.
///
/// | column | type | |
/// |---|---|---|
/// | `account` | TEXT | the account; NULL: all that have no row of their own |
/// | `valid_from` | TIMESTAMP | its start; NULL of the first |
/// | `policy` | TEXT | its `name` in `policies` |
pub const ACCOUNT_POLICIES: &str = "account_policies";

/// How far each partition of the log has come, as committed.
///
/// | column | type | |
/// |---|---|---|
/// | `partition` | INT | the partition |
/// | `watermark` | TIMESTAMP | the latest time seen in it; NULL where there was none |
/// | `allowed_lateness_s` | BIGINT | what lies so far behind it comes too late |
/// | `delivery_window_s` | BIGINT | so long after a message receipts count for it |
pub const PARTITIONS: &str = "partitions";

type Tables = [(&'static str, MemTable); 3];

/// By account, `None` of all others: starts in µs, `None` of the first, and names of policies.
type Chains = BTreeMap<Option<String>, Vec<(Option<i64>, String)>>;

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

    /// The tables by name, of the live rows. `watermarks_ms` are those of the partitions, from the first to the last.
    /// They tell of accounts that are seen.
    pub(super) fn tables(&self, watermarks_ms: &[Option<i64>], sight: &Sight) -> Result<Tables> {
        self.tables_of(watermarks_ms, None, self.chains(), sight)
    }

    /// The tables by name, of a generation's rows.
    pub(super) fn generation_tables(&self, info: &GenerationInfo, sight: &Sight) -> Result<Tables, QueryError> {
        let own = info.policy_toml.as_deref().map(Policy::parse_kept).transpose();
        // It was read before it was folded by.
        let own = own.map_err(|error| QueryError::Internal(error.to_string()))?;
        let mut chains = self.chains();
        if let Some(policy) = own.as_ref().map(|policy| policy.name.as_str()).or(info.policy.as_deref()) {
            follow(&mut chains, policy, info);
        }
        Ok(self.tables_of(&info.watermarks_ms, own.as_ref(), chains, sight)?)
    }

    /// `another` policy goes before those that are known.
    fn tables_of(
        &self,
        watermarks_ms: &[Option<i64>],
        another: Option<&Policy>,
        mut chains: Chains,
        sight: &Sight,
    ) -> Result<Tables> {
        chains.retain(|account, _| account.as_ref().is_none_or(|account| sight.sees(account)));
        let named: BTreeSet<&str> = chains.values().flatten().map(|(_, policy)| policy.as_str()).collect();
        let named = sight.accounts.is_some().then_some(&named);
        Ok([
            (POLICIES, table(self.policies(another, named)?)?),
            (ACCOUNT_POLICIES, table(account_policies(&chains)?)?),
            (PARTITIONS, table(self.partitions(watermarks_ms, sight.accounts.is_some())?)?),
        ])
    }

    fn chains(&self) -> Chains {
        let steps = |chain: &PolicyChain| -> Vec<(Option<i64>, String)> {
            let starts = chain.starts();
            starts.map(|(ms, policy)| (ms.map(|ms| ms.saturating_mul(1000)), policy.name.to_string())).collect()
        };
        let known = self.policies.known();
        let own = known.into_iter().map(|(account, chain)| (Some(account), steps(&chain)));
        own.chain([(None, vec![(None, self.fallback.name.to_string())])]).collect()
    }

    /// Of policies that are not built in only those that are `named`, where only some may be told.
    fn policies(&self, another: Option<&Policy>, named: Option<&BTreeSet<&str>>) -> Result<RecordBatch, ArrowError> {
        // What is configured goes before what is built in.
        let mut known = self.built_in.clone();
        let another = another.map(|policy| Arc::new(policy.clone()));
        for policy in self.policies.all().into_iter().chain([self.fallback.clone()]).chain(another) {
            if named.is_none_or(|named| named.contains(policy.name.as_str())) {
                known.insert(policy.name.to_string(), policy);
            }
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

    /// `whole_hours` tells those who see some rows only not when the newest of all came in.
    fn partitions(&self, watermarks_ms: &[Option<i64>], whole_hours: bool) -> Result<RecordBatch, ArrowError> {
        let partitions = Int32Array::from_iter_values((0..).take(watermarks_ms.len()));
        let shown = |ms: i64| if whole_hours { ms - ms.rem_euclid(HOUR_MS) } else { ms };
        let watermarks = watermarks_ms.iter().map(|ms| ms.map(|ms| shown(ms).saturating_mul(1000)));
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

/// The accounts that a generation was made anew of follow `policy`, from where its rows are its own.
fn follow(chains: &mut Chains, policy: &str, info: &GenerationInfo) {
    let fallback = chains.get(&None).cloned().unwrap_or_default();
    for account in &info.accounts {
        chains.entry(Some(account.clone())).or_insert_with(|| fallback.clone());
    }
    let is_anew = |account: &Option<String>| {
        info.accounts.is_empty() || account.as_ref().is_some_and(|account| info.accounts.contains(account))
    };
    for (_, steps) in chains.iter_mut().filter(|(account, _)| is_anew(account)) {
        // Nothing is before a beginning that there is not.
        steps.retain(|(start_us, _)| info.from_us.is_some_and(|from_us| start_us.is_none_or(|us| us < from_us)));
        steps.push((info.from_us, policy.to_owned()));
    }
}

fn account_policies(chains: &Chains) -> Result<RecordBatch, ArrowError> {
    let rows = || chains.iter().flat_map(|(account, steps)| steps.iter().map(move |step| (account.as_deref(), step)));
    let starts: TimestampMicrosecondArray = rows().map(|(_, (start_us, _))| *start_us).collect();
    batch(vec![
        ("account", Arc::new(rows().map(|(account, _)| account).collect::<StringArray>())),
        ("valid_from", Arc::new(starts.with_data_type(utc_timestamp()))),
        ("policy", Arc::new(rows().map(|(_, (_, policy))| Some(policy)).collect::<StringArray>())),
    ])
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch, ArrowError> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect())
}

fn table(rows: RecordBatch) -> Result<MemTable> {
    MemTable::try_new(rows.schema(), vec![vec![rows]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(accounts: &[&str], from_us: Option<i64>) -> GenerationInfo {
        GenerationInfo {
            name: "g".into(),
            made_us: 0,
            policies: String::new(),
            accounts: accounts.iter().map(|account| (*account).to_owned()).collect(),
            from_us,
            events: 0,
            up_to_us: None,
            positions: BTreeMap::new(),
            watermarks_ms: Vec::new(),
            policy: None,
            policy_toml: None,
            bytes: 0,
            made_by: String::new(),
        }
    }

    #[test]
    fn a_generation_follows_its_policy_where_its_rows_are_its_own() {
        let policies = Policies::default();
        let of = |name| Policy::named(name).unwrap();
        policies.learn("shop", PolicyChain::new(of("vbm"), vec![(10, of("gupshup"))]));
        let reference = Reference::new(policies, of("counterbat"), 0, 0).unwrap();
        let told = |info: Option<GenerationInfo>| {
            let mut chains = reference.chains();
            info.iter().for_each(|info| follow(&mut chains, "own", info));
            let steps = |steps: &Vec<(Option<i64>, String)>| -> String {
                steps
                    .iter()
                    .map(|(us, policy)| format!(" {}{policy}", us.map_or(String::new(), |us| format!("{us}:"))))
                    .collect()
            };
            let told =
                chains.iter().map(|(account, chain)| format!("{}{}", account.as_deref().unwrap_or("*"), steps(chain)));
            told.collect::<Vec<_>>().join(", ")
        };
        assert_eq!(told(None), "* counterbat, shop vbm 10000:gupshup");
        assert_eq!(told(Some(info(&[], None))), "* own, shop own");
        assert_eq!(told(Some(info(&[], Some(10_000)))), "* counterbat 10000:own, shop vbm 10000:own");
        let some = info(&["bar", "shop"], Some(20_000));
        assert_eq!(told(Some(some)), "* counterbat, bar counterbat 20000:own, shop vbm 10000:gupshup 20000:own");
        assert_eq!(told(Some(info(&["bar"], None))), "* counterbat, bar own, shop vbm 10000:gupshup");
    }
}
