//! Leaves out files that cannot hold a wanted row, by what is known without opening them.

use super::calendar::Part;
use super::functions::PartitionOf;
use crate::event::time::parse_rfc3339_us;
use crate::event::user_key;
use crate::lake::{FileEntry, Span, TableName};
use crate::log::partitioner::partition;
use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{Expr, Operator, col};
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;
/// The days of the years 1 and 9999: dates beyond are told as these.
const DATES: (i32, i32) = (-719_162, 2_932_896);
/// Users of whom it is worth asking in which partitions and files they are.
pub(super) const FEW: usize = 100;
/// Stands for what a filter computes from a column.
const COMPUTED: &str = "computed";

/// What is known of the rows in each file.
#[derive(Debug)]
pub(super) struct Bounds {
    table: TableName,
    files: Vec<Known>,
    /// How many the log has.
    partitions: u32,
}

#[derive(Debug)]
struct Known {
    date: Option<i32>,
    span: Option<Span>,
    stats: Option<String>,
}

/// Least and greatest value in a file; nulls where not known.
type Ends = (ScalarValue, ScalarValue);

impl Bounds {
    pub(super) fn of(table: TableName, files: &[FileEntry], partitions: u32) -> Bounds {
        let known = |file: &FileEntry| Known { date: file.date, span: file.span, stats: file.stats.clone() };
        Bounds { table, files: files.iter().map(known).collect(), partitions }
    }

    /// For each file whether it may hold a row that all of `filters` let through.
    pub(super) fn wanted(&self, state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Vec<bool>> {
        let mut wanted = self.wanted_of_users(filters);
        for filter in filters {
            // A filter over several columns says nothing here, and may not even be one the pruning can read.
            let columns: Vec<&Column> = filter.column_refs().into_iter().collect();
            let [column] = columns.as_slice() else { continue };
            let Some((field, ends)) = self.ends(&column.name, schema) else { continue };
            let Some((filter, field, ends)) = computed(state, filter, field, ends)? else { continue };
            let schema = Arc::new(Schema::new(vec![field.clone()]));
            let filter = state.create_physical_expr(filter, &DFSchema::try_from(schema.as_ref().clone())?)?;
            if let Some(predicate) = PruningPredicateBuilder::new().with_file_schema(schema).build(filter) {
                let fits = predicate.prune(&Statistics { column: field.name(), ends: &ends })?;
                wanted.iter_mut().zip(fits).for_each(|(wanted, fits)| *wanted &= fits);
            }
        }
        Ok(wanted)
    }

    /// For each file whether its partition is one of the users that `filters` name, or named itself. All of a user of one
    /// account lies in one partition; what lay elsewhere was never folded.
    fn wanted_of_users(&self, filters: &[Expr]) -> Vec<bool> {
        let partitions = named(filters, "account").zip(named(filters, "user_id")).and_then(|(accounts, users)| {
            let few = accounts.len().saturating_mul(users.len()) <= FEW;
            let all = || accounts.iter().flat_map(|account| users.iter().map(move |user| user_key(account, user)));
            few.then(|| all().map(|key| partition(key.as_bytes(), self.partitions)).collect::<BTreeSet<_>>())
        });
        let partitions = partitions.or_else(|| filters.iter().find_map(partitions_named));
        let is_wanted = |file: &Known| match (&partitions, file.span) {
            (Some(partitions), Some(span)) => partitions.contains(&span.partition),
            _ => true,
        };
        self.files.iter().map(is_wanted).collect()
    }

    /// The ends of a column in each file, where they are known of columns of this name.
    fn ends(&self, column: &str, schema: &SchemaRef) -> Option<(Field, Vec<Ends>)> {
        let field = schema.field_with_name(column).ok()?.clone();
        let of: fn(&Known, &str) -> Option<(i64, i64)> = match (self.table, column) {
            (TableName::Events, "date") => |file, _| file.date.map(|day| (i64::from(day), i64::from(day))),
            (TableName::Events, "received_at") => |file, _| day_us(file.date?),
            (TableName::Sessions, "opened_at") | (TableName::Messages, "sent_at") => |file, _| span_us(file.span?),
            (TableName::Events, "event_time") | (TableName::Sessions, "expires_at") => {
                |file, column| told_us(file.stats.as_deref()?, column)
            }
            _ => return None,
        };
        let value: Box<dyn Fn(Option<i64>) -> ScalarValue> = match field.data_type() {
            DataType::Date32 => Box::new(|day| ScalarValue::Date32(day.and_then(|day| i32::try_from(day).ok()))),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let zone = zone.clone();
                Box::new(move |us| ScalarValue::TimestampMicrosecond(us, zone.clone()))
            }
            _ => return None,
        };
        let ends = self.files.iter().map(|file| {
            let ends = of(file, column);
            (value(ends.map(|(first, _)| first)), value(ends.map(|(_, last)| last)))
        });
        let ends = ends.collect();
        Some((field, ends))
    }
}

/// The texts that one of the filters holds a column to; `None` where none does.
pub(super) fn named<'a>(filters: &'a [Expr], column: &str) -> Option<Vec<&'a str>> {
    filters.iter().find_map(|filter| texts(filter, column))
}

fn texts<'a>(filter: &'a Expr, column: &str) -> Option<Vec<&'a str>> {
    let is_column = |expr: &Expr| matches!(expr, Expr::Column(found) if found.name == column);
    let text = |expr: &'a Expr| match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    };
    match filter {
        Expr::BinaryExpr(binary) if binary.op == Operator::Eq => {
            let (left, right) = (&*binary.left, &*binary.right);
            let value = if is_column(left) { right } else { left };
            (is_column(left) || is_column(right)).then(|| text(value).map(|text| vec![text])).flatten()
        }
        // What a list of two or three is made into.
        Expr::BinaryExpr(binary) if binary.op == Operator::Or => {
            Some([texts(&binary.left, column)?, texts(&binary.right, column)?].concat())
        }
        Expr::InList(list) if !list.negated && is_column(&list.expr) => list.list.iter().map(text).collect(),
        _ => None,
    }
}

/// The partitions that a filter holds [`PartitionOf`] a row's user to; `None` where it does not.
fn partitions_named(filter: &Expr) -> Option<BTreeSet<u32>> {
    let is_column = |expr: &Expr, name: &str| matches!(expr, Expr::Column(found) if found.name == name);
    let is_partition = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) if call.name() == PartitionOf::NAME => {
            matches!(&*call.args, [account, user] if is_column(account, "account") && is_column(user, "user_id"))
        }
        _ => false,
    };
    let number = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::Int64(Some(number)), _) => u32::try_from(*number).ok(),
        _ => None,
    };
    match filter {
        Expr::BinaryExpr(binary) if binary.op == Operator::Eq && is_partition(&binary.left) => {
            Some([number(&binary.right)?].into())
        }
        // What a list of two or three is made into.
        Expr::BinaryExpr(binary) if binary.op == Operator::Or => {
            Some(&partitions_named(&binary.left)? | &partitions_named(&binary.right)?)
        }
        Expr::InList(list) if !list.negated && is_partition(&list.expr) => list.list.iter().map(number).collect(),
        _ => None,
    }
}

/// A filter that computes something from its column, such as a day from a time, as one over what it computes, with the
/// ends of that. `None` where it is no such thing.
fn computed(
    state: &dyn Session,
    filter: &Expr,
    field: Field,
    ends: Vec<Ends>,
) -> Result<Option<(Expr, Field, Vec<Ends>)>> {
    let mut found: Option<Expr> = None;
    let mut is_one = true;
    let replaced = filter.clone().transform_down(|expr| {
        if matches!(expr, Expr::Literal(..)) || !rises(&expr) {
            return Ok(Transformed::no(expr));
        }
        is_one &= found.as_ref().is_none_or(|found| *found == expr);
        found = Some(expr);
        Ok(Transformed::new(col(COMPUTED), true, TreeNodeRecursion::Jump))
    })?;
    let Some(expr) = found.filter(|_| is_one) else { return Ok(None) };
    if matches!(expr, Expr::Column(_)) {
        return Ok(Some((filter.clone(), field, ends)));
    }
    let schema = Arc::new(Schema::new(vec![field.clone()]));
    let expr = state.create_physical_expr(unqualified(expr)?, &DFSchema::try_from(schema.as_ref().clone())?)?;
    // Where clocks are set back, a later time may be an earlier hour or day: less than a day.
    let padded = |(first, last): &Ends| (padded(first, -DAY_US), padded(last, DAY_US));
    let (firsts, lasts): (Vec<_>, Vec<_>) = ends.iter().map(padded).unzip();
    let evaluated = |values: Vec<ScalarValue>| -> Result<ArrayRef> {
        let rows = values.len();
        let batch = RecordBatch::try_new(schema.clone(), vec![ScalarValue::iter_to_array(values)?])?;
        expr.evaluate(&batch)?.into_array(rows)
    };
    if ends.is_empty() {
        return Ok(None);
    }
    // What has no value at an end only leaves nothing out.
    let (Ok(firsts), Ok(lasts)) = (evaluated(firsts), evaluated(lasts)) else { return Ok(None) };
    let ends = (0..ends.len())
        .map(|row| Ok((ScalarValue::try_from_array(&firsts, row)?, ScalarValue::try_from_array(&lasts, row)?)));
    let field = Field::new(COMPUTED, firsts.data_type().clone(), true);
    Ok(Some((replaced.data, field, ends.collect::<Result<_>>()?)))
}

/// Whether an expression over one column never falls by more than a day while the column rises.
fn rises(expr: &Expr) -> bool {
    let is_time = |kind: &DataType| matches!(kind, DataType::Date32 | DataType::Timestamp(..));
    match expr {
        Expr::Column(_) => true,
        Expr::Alias(alias) => rises(&alias.expr),
        Expr::Cast(cast) => is_time(cast.field.data_type()) && rises(&cast.expr),
        Expr::BinaryExpr(binary) => {
            matches!(binary.op, Operator::Plus | Operator::Minus)
                && rises(&binary.left)
                && matches!(&*binary.right, Expr::Literal(ScalarValue::IntervalMonthDayNano(_), _))
        }
        Expr::ScalarFunction(call) => {
            let is_literal = |expr: &Expr| matches!(expr, Expr::Literal(..));
            match (call.name(), call.args.as_slice()) {
                ("date_trunc", [part, time]) => is_literal(part) && rises(time),
                (name, [time, rest @ ..]) if Part::ALL.iter().any(|part| part.name() == name) => {
                    rest.iter().all(is_literal) && rises(time)
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// With columns by their names alone.
fn unqualified(expr: Expr) -> Result<Expr> {
    let unqualified = expr.transform_up(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        expr => Ok(Transformed::no(expr)),
    });
    Ok(unqualified?.data)
}

fn padded(value: &ScalarValue, by_us: i64) -> ScalarValue {
    match value {
        ScalarValue::TimestampMicrosecond(Some(us), zone) => {
            ScalarValue::TimestampMicrosecond(us.checked_add(by_us), zone.clone())
        }
        other => other.clone(),
    }
}

/// First and last µs of a day; of one that stands for all beyond it nothing is known.
fn day_us(date: i32) -> Option<(i64, i64)> {
    let start_us = i64::from(date) * DAY_US;
    (DATES.0 < date && date < DATES.1).then_some((start_us, start_us + DAY_US - 1))
}

fn span_us(span: Span) -> Option<(i64, i64)> {
    Some((span.start_hour.checked_mul(HOUR_US)?, span.end_hour.checked_mul(HOUR_US)?.checked_sub(1)?))
}

/// The ends of a column of times, as Delta's statistics tell them.
fn told_us(stats: &str, column: &str) -> Option<(i64, i64)> {
    let stats: serde_json::Value = serde_json::from_str(stats).ok()?;
    let end = |which: &str| parse_rfc3339_us(stats.get(which)?.get(column)?.as_str()?);
    // They are told in whole ms, by some writers without rounding up.
    Some((end("minValues")?, end("maxValues")?.checked_add(999)?))
}

struct Statistics<'a> {
    column: &'a str,
    ends: &'a [Ends],
}

impl Statistics<'_> {
    fn column(&self, column: &Column, end: impl Fn(&Ends) -> &ScalarValue) -> Option<ArrayRef> {
        if column.name != self.column {
            return None;
        }
        ScalarValue::iter_to_array(self.ends.iter().map(|ends| end(ends).clone())).ok()
    }
}

impl PruningStatistics for Statistics<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |(first, _)| first)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column, |(_, last)| last)
    }

    fn num_containers(&self) -> usize {
        self.ends.len()
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
