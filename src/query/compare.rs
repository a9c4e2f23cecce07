//! What two generations make of the same events, as SQL: totals under both, and the rows that differ. Pure.

use crate::event::shown::brief;
use crate::event::{BadAccountName, check_account_name};
use crate::lake::{TableName, is_generation_name, schema};

/// Columns whose texts may be long: of longer ones the begin is compared and shown, and a digest of the whole.
const LONG: [&str; 2] = ["tracking_data", "failure"];
/// Characters.
const SHOWN: usize = 100;
/// The word for the live tables.
pub const LIVE: &str = "live";

/// A comparison cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    #[error("`{}` is neither `live` nor the name of a generation (counterbat rebuild --list shows them)", brief(.0))]
    Name(String),
    #[error("{0} differs in nothing from itself: name two of them")]
    Same(String),
    #[error("accounts: {0}")]
    Account(#[from] BadAccountName),
}

/// Some of the users, to be compared by themselves: joining all rows of two large sides takes more memory than a query has.
/// A row has the same user on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Of the log; none: all of them.
    partitions: Vec<u32>,
    /// The first of them, and the first after them.
    from: Option<String>,
    below: Option<String>,
}

/// Some users of a partition, in order, and how many rows they have.
pub type Sample = [(String, u64)];

impl Slice {
    /// All users.
    pub const WHOLE: Slice = Slice { partitions: Vec::new(), from: None, below: None };

    /// All users of some partitions.
    pub fn of(partitions: Vec<u32>) -> Slice {
        Slice { partitions, ..Slice::WHOLE }
    }

    /// All users of a partition, in about so many slices, each of which has as many of the sample's rows.
    pub fn cut(partition: u32, sample: &Sample, slices: u64) -> Vec<Slice> {
        let rows: u64 = sample.iter().map(|(_, rows)| rows).sum();
        let (mut cuts, mut before, mut filled): (Vec<&str>, u64, u128) = Default::default();
        for (user, rows_of_user) in sample {
            let full = u128::from(before) * u128::from(slices) / u128::from(rows.max(1));
            if full > filled {
                cuts.push(user);
                filled = full;
            }
            before += rows_of_user;
        }
        let slice = |n: usize| {
            let bound = |at: Option<usize>| at.and_then(|at| cuts.get(at)).map(|user| (*user).to_owned());
            Slice { partitions: vec![partition], from: bound(n.checked_sub(1)), below: bound(Some(n)) }
        };
        (0..=cuts.len()).map(slice).collect()
    }

    /// The conditions of its rows. Rows of a partition are in files of their own, those of some users in pages of theirs.
    fn conditions(&self) -> impl Iterator<Item = String> + use<> {
        let partitions = (!self.partitions.is_empty()).then(|| in_partitions(&self.partitions));
        let bound =
            |is: &str, user: &Option<String>| user.as_ref().map(|user| format!("user_id {is} {}", literal(user)));
        partitions.into_iter().chain(bound(">=", &self.from)).chain(bound("<", &self.below))
    }
}

fn in_partitions(partitions: &[u32]) -> String {
    let numbers: Vec<String> = partitions.iter().map(u32::to_string).collect();
    format!("partition_of(account, user_id) in ({})", numbers.join(", "))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Two sides of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    a: String,
    b: String,
    accounts: Vec<String>,
}

impl Comparison {
    /// Compares `a` to `b`, each [`LIVE`] or a generation; of these accounts, or of all where there is none.
    pub fn new(a: &str, b: &str, accounts: &[String]) -> Result<Self, CompareError> {
        if let Some(other) = [a, b].into_iter().find(|name| *name != LIVE && !is_generation_name(name)) {
            return Err(CompareError::Name(other.to_owned()));
        }
        if a == b {
            return Err(CompareError::Same(a.to_owned()));
        }
        // They become part of SQL.
        accounts.iter().try_for_each(|name| check_account_name(name))?;
        Ok(Self { a: a.to_owned(), b: b.to_owned(), accounts: accounts.to_vec() })
    }

    /// Sessions, charged messages, what Viber reports them to cost and what the policy says they cost (spec §4, view
    /// `predictions`), by account, country and month under both, with the difference. Costs are sums of those that are known;
    /// `unpriced` counts the messages that lack one or the other, having no price. Where currencies are mixed there is no sum.
    pub fn totals(&self) -> String {
        let (a, b) = (self.contributions("a", &self.a), self.contributions("b", &self.b));
        let count = |what: &str, side: &str| format!("coalesce(sum({what}) filter (where side = '{side}'), 0)");
        let cost = |what: &str, side: &str| {
            format!(
                "case when min(currency) is not distinct from max(currency) \
                 then coalesce(sum({what}) filter (where side = '{side}'), 0) end"
            )
        };
        let costs = |what: &str| {
            let (a, b) = (cost(what, "a"), cost(what, "b"));
            format!("{a} as {what}_a, {b} as {what}_b, {b} - {a} as {what}_diff")
        };
        let counts = |what: &str| {
            let (a, b) = (count(what, "a"), count(what, "b"));
            format!("{a} as {what}_a, {b} as {what}_b, {b} - {a} as {what}_diff")
        };
        format!(
            "select account, country, to_char(in_month, '%Y-%m') as month, {sessions}, {charged}, \
             {cost}, {predicted}, {unpriced}, case when min(currency) = max(currency) then max(currency) end as currency \
             from ({a} union all {b}) as parts group by account, country, in_month order by 1, 2, 3",
            sessions = counts("sessions"),
            charged = counts("charged"),
            cost = costs("cost"),
            predicted = costs("predicted"),
            unpriced = counts("unpriced"),
        )
    }

    /// What each row of one side adds to the totals.
    fn contributions(&self, side: &str, name: &str) -> String {
        let (sessions, messages) = (self.table(name, "sessions", None), self.table(name, "predictions", None));
        format!(
            "select '{side}' as side, account, country, month_of(local_date(opened_at, 'UTC')) as in_month, 1 as sessions, \
             0 as charged, cast(null as decimal(18,6)) as cost, cast(null as decimal(18,6)) as predicted, \
             0 as unpriced, cast(null as varchar) as currency from {sessions} union all \
             select '{side}', account, country, month, 0, \
             case when reported_charged then 1 else 0 end, reported_cost, cost, \
             case when reported_cost is null or cost is null then 1 else 0 end, currency from {messages}"
        )
    }

    /// By partition of the log, how many rows of `sessions` or `messages` both sides have together, and about how many users.
    pub fn spread(&self, table: TableName) -> String {
        let side = |name: &str| format!("select account, user_id from {}", self.table(name, table.as_str(), None));
        format!(
            "select partition_of(account, user_id), count(*), cast(approx_distinct(user_id) as bigint) \
             from ({} union all {}) as both_sides group by 1 order by 1",
            side(&self.a),
            side(&self.b)
        )
    }

    /// A [`Sample`]: one user in so many of a partition.
    pub fn sample(&self, table: TableName, partition: u32, one_in: u64) -> String {
        let side = |name: &str| {
            let (rows, partition) = (self.table(name, table.as_str(), None), in_partitions(&[partition]));
            format!("select user_id from {rows} where {partition} and slice_of(user_id, {one_in}) = 0")
        };
        format!(
            "select user_id, count(*) from ({} union all {}) as both_sides group by 1 order by 1",
            side(&self.a),
            side(&self.b)
        )
    }

    /// How many rows of `sessions` or `messages` differ, of the users of a slice.
    pub fn count_differing(&self, table: TableName, slice: &Slice) -> String {
        format!("select count(*) as differing from {} where {}", self.joined(table, slice), differs(table))
    }

    /// The rows that differ of the users of a slice, at most so many, in the order of [`order`]: what they are, and what
    /// differs.
    pub fn differing(&self, table: TableName, rows: u64, slice: &Slice) -> String {
        let (keys, at) = keys(table);
        let shown = keys.iter().copied().chain(extra(table).iter().copied()).chain([at]);
        let shown: Vec<String> = shown.map(|column| format!("coalesce(a.{column}, b.{column}) as {column}")).collect();
        let key = keys[0];
        let changed: Vec<String> = compared(table)
            .map(|column| {
                let text = |side: &str| match column.ends_with("_token") {
                    true => format!("coalesce(unsigned_token({side}.{column}), 'null')"),
                    false => format!("coalesce(cast({side}.{column} as varchar), 'null')"),
                };
                let (a, b) = (text("a"), text("b"));
                format!("case when {} then '{column}: ' || {a} || ' -> ' || {b} end", distinct(column))
            })
            .collect();
        format!(
            "select {shown}, case when b.{key} is null then 'only in {a}' when a.{key} is null then 'only in {b}' \
             else concat_ws('; ', {changed}) end as difference from {joined} where {differs} \
             order by {order} limit {rows}",
            shown = shown.join(", "),
            changed = changed.join(", "),
            a = self.a,
            b = self.b,
            joined = self.joined(table, slice),
            differs = differs(table),
            // By their places: the names are those of both sides too.
            order = order(table).iter().map(|column| (column + 1).to_string()).collect::<Vec<_>>().join(", "),
        )
    }

    fn joined(&self, table: TableName, slice: &Slice) -> String {
        let (keys, _) = keys(table);
        let same: Vec<String> = keys.iter().map(|key| format!("a.{key} = b.{key}")).collect();
        let columns = keys.iter().copied().chain(compared(table)).map(|column| match LONG.contains(&column) {
            true => format!(
                "case when character_length({column}) > {SHOWN} \
                 then concat(left({column}, {SHOWN}), '… ', md5({column})) else {column} end as {column}"
            ),
            false => column.to_owned(),
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let side = |name: &str| format!("(select {columns} from {})", self.table(name, table.as_str(), Some(slice)));
        format!("{} as a full outer join {} as b on {}", side(&self.a), side(&self.b), same.join(" and "))
    }

    /// A table or view of one side, of the accounts wanted and the users of a slice.
    fn table(&self, name: &str, table: &str, slice: Option<&Slice>) -> String {
        let schema = if name == LIVE { "public" } else { name };
        let names: Vec<String> = self.accounts.iter().map(|account| format!("'{account}'")).collect();
        let accounts = (!names.is_empty()).then(|| format!("account in ({})", names.join(", ")));
        let conditions: Vec<String> =
            accounts.into_iter().chain(slice.into_iter().flat_map(Slice::conditions)).collect();
        if conditions.is_empty() {
            return format!("{schema}.{table}");
        }
        format!("(select * from {schema}.{table} where {})", conditions.join(" and "))
    }
}

/// The columns of [`Comparison::differing`], by their places from 0, that its rows are in the order of.
pub fn order(table: TableName) -> Vec<usize> {
    let (keys, _) = keys(table);
    let at = keys.len() + extra(table).len();
    std::iter::once(at).chain(0..keys.len()).collect()
}

/// What names a row, and its reference time.
fn keys(table: TableName) -> (&'static [&'static str], &'static str) {
    match table {
        TableName::Messages => (&["account", "user_id", "message_token"], "sent_at"),
        _ => (&["session_id"], "opened_at"),
    }
}

/// What is shown of a row beside that.
fn extra(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Messages => &[],
        _ => &["account", "user_id"],
    }
}

/// The columns that two rows of one name are compared by. That they were made under other policies is no difference.
fn compared(table: TableName) -> impl Iterator<Item = &'static str> {
    let (keys, _) = keys(table);
    schema::names(table).into_iter().filter(move |column| !keys.contains(column) && *column != "policy")
}

fn distinct(column: &str) -> String {
    format!("(a.{column} is distinct from b.{column})")
}

fn differs(table: TableName) -> String {
    let (keys, _) = keys(table);
    let changed: Vec<String> = compared(table).map(distinct).collect();
    let key = keys[0];
    format!("(a.{key} is null or b.{key} is null or {})", changed.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_become_sql() {
        let all = |a, b| Comparison::new(a, b, &[]);
        assert!(all("live", "march").is_ok() && all("march", "april").is_ok());
        assert_eq!(all("live", "x; drop"), Err(CompareError::Name("x; drop".into())));
        assert_eq!(all("public", "march"), Err(CompareError::Name("public".into())));
        assert_eq!(all("march", "march"), Err(CompareError::Same("march".into())));
        let account = Comparison::new("live", "march", &["bot'".into()]);
        assert_eq!(account, Err(CompareError::Account(BadAccountName("bot'".into()))));
    }

    #[test]
    fn the_live_tables_are_public() {
        let comparison = Comparison::new("live", "march", &["bot".into()]).unwrap();
        let count = comparison.count_differing(TableName::Sessions, &Slice::WHOLE);
        assert!(count.contains("from public.sessions where account in ('bot')"), "{count}");
        assert!(count.contains("march.sessions") && !count.contains("a.policy"), "{count}");
        assert!(comparison.differing(TableName::Messages, 5, &Slice::WHOLE).ends_with("limit 5"));
    }
    #[test]
    fn slices_have_all_users_between_them() {
        let sample = |rows: &[(&str, u64)]| -> Vec<(String, u64)> {
            rows.iter().map(|(user, rows)| ((*user).to_owned(), *rows)).collect()
        };
        let cut = |rows: &[(&str, u64)], slices| -> Vec<String> {
            let slices = Slice::cut(3, &sample(rows), slices);
            slices.iter().map(|slice| slice.conditions().skip(1).collect::<Vec<_>>().join(" and ")).collect()
        };
        assert_eq!(cut(&[], 7), [""]);
        assert_eq!(cut(&[("a", 9)], 7), [""]);
        let even = [("a", 1), ("b", 1), ("c", 1), ("d'", 1)];
        assert_eq!(cut(&even, 1), [""]);
        assert_eq!(cut(&even, 2), ["user_id < 'c'", "user_id >= 'c'"]);
        assert_eq!(
            cut(&even, u64::MAX),
            [
                "user_id < 'b'",
                "user_id >= 'b' and user_id < 'c'",
                "user_id >= 'c' and user_id < 'd'''",
                "user_id >= 'd'''"
            ]
        );
        let heavy = [("a", 1), ("b", 97), ("c", 1), ("d", 1)];
        assert_eq!(cut(&heavy, 4), ["user_id < 'c'", "user_id >= 'c'"]);
        let comparison = Comparison::new("live", "march", &["shop".into()]).unwrap();
        let slices = Slice::cut(3, &sample(&even), 2);
        let count = comparison.count_differing(TableName::Messages, &slices[1]);
        let condition = "account in ('shop') and partition_of(account, user_id) in (3) and user_id >= 'c')";
        assert_eq!(count.matches(condition).count(), 2, "{count}");
    }
}
