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
    /// Of the log; `None`: all of them.
    partition: Option<u32>,
    /// The first of them, and the first after them.
    from: Option<String>,
    below: Option<String>,
}

impl Slice {
    /// All users.
    pub const WHOLE: Slice = Slice { partition: None, from: None, below: None };

    /// All users of a partition of the log, in about so many slices that have as many of the rows as of `sample` each: the
    /// users of some rows, in order.
    pub fn of_partition(partition: u32, sample: &[String], slices: u64) -> Vec<Slice> {
        let slices = usize::try_from(slices).unwrap_or(usize::MAX).clamp(1, sample.len().max(1));
        let mut cuts: Vec<&String> = (1..slices).map(|slice| &sample[sample.len() * slice / slices]).collect();
        cuts.dedup();
        let bound = |cut: Option<&&String>| cut.map(|user| (*user).clone());
        let slice = |n: usize| {
            let from = n.checked_sub(1).and_then(|before| cuts.get(before));
            Slice { partition: Some(partition), from: bound(from), below: bound(cuts.get(n)) }
        };
        (0..=cuts.len()).map(slice).collect()
    }

    /// The conditions of its rows. Rows of a partition are in files of their own, those of some users in pages of theirs.
    fn conditions(&self) -> impl Iterator<Item = String> + use<> {
        let partition = self.partition.map(in_partition);
        let bound =
            |is: &str, user: &Option<String>| user.as_ref().map(|user| format!("user_id {is} {}", literal(user)));
        partition.into_iter().chain(bound(">=", &self.from)).chain(bound("<", &self.below))
    }
}

fn in_partition(partition: u32) -> String {
    format!("partition_of(account, user_id) = {partition}")
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

    /// How many rows of `sessions` or `messages` both sides have together.
    pub fn count(&self, table: TableName) -> String {
        let count = |name: &str| format!("(select count(*) from {})", self.table(name, table.as_str(), None));
        format!("select {} + {} as rows", count(&self.a), count(&self.b))
    }

    /// The users of the rows of a partition, in order, of one user in so many.
    pub fn sample(&self, table: TableName, partition: u32, one_in: u64) -> String {
        let side = |name: &str| {
            let (rows, partition) = (self.table(name, table.as_str(), None), in_partition(partition));
            format!("select user_id from {rows} where {partition} and slice_of(user_id, {one_in}) = 0")
        };
        format!("{} union all {} order by 1", side(&self.a), side(&self.b))
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
        let sample: Vec<String> = ["a", "a", "b", "c", "d", "d", "d", "e'"].map(str::to_owned).into();
        let cut = |sample: &[String], slices| -> Vec<String> {
            let slices = Slice::of_partition(3, sample, slices);
            slices.iter().map(|slice| slice.conditions().skip(1).collect::<Vec<_>>().join(" and ")).collect()
        };
        assert_eq!(cut(&sample, 1), [""]);
        assert_eq!(cut(&[], 7), [""]);
        assert_eq!(cut(&sample, 2), ["user_id < 'd'", "user_id >= 'd'"]);
        assert_eq!(
            cut(&sample, u64::MAX),
            [
                "user_id < 'a'",
                "user_id >= 'a' and user_id < 'b'",
                "user_id >= 'b' and user_id < 'c'",
                "user_id >= 'c' and user_id < 'd'",
                "user_id >= 'd' and user_id < 'e'''",
                "user_id >= 'e'''"
            ]
        );
        let comparison = Comparison::new("live", "march", &["shop".into()]).unwrap();
        let slices = Slice::of_partition(3, &sample, 2);
        let count = comparison.count_differing(TableName::Messages, &slices[1]);
        let condition = "account in ('shop') and partition_of(account, user_id) = 3 and user_id >= 'd')";
        assert_eq!(count.matches(condition).count(), 2, "{count}");
    }
}
