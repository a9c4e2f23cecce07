//! What of the tables somebody may see: the rows of some accounts, with `events.data` or without.
//!
//! A table is narrowed below everything a query does with it: conditions of the query are applied to rows that are seen,
//! so that neither an error nor a count tells of others.

use super::engine::Limits;
use async_trait::async_trait;
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, Result, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, TableType, col, lit,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    pub sight: Sight,
    /// Less than [`Limits`] allows; `None`: as much.
    pub max_rows: Option<u64>,
    pub timeout: Option<Duration>,
}

impl Asker {
    /// Somebody who sees everything, within the limits of all.
    pub const ANYBODY: Asker = Asker { sight: Sight::WHOLE, max_rows: None, timeout: None };

    pub(super) fn within(&self, limits: Limits) -> Limits {
        Limits {
            max_rows: self.max_rows.map_or(limits.max_rows, |rows| rows.min(limits.max_rows)),
            timeout: self.timeout.map_or(limits.timeout, |timeout| timeout.min(limits.timeout)),
            ..limits
        }
    }
}

const ACCOUNT: &str = "account";
const DATA: &str = "data";
/// What users and bots have written, or a digest of it.
const WRITTEN: [&str; 3] = [DATA, "signature", "tracking_data"];
/// Tells how much comes in of all accounts.
const OFFSET: &str = "offset";
/// What is left of `events.data` where it is not shown: what Counterbat itself has written, and of calls what views count by, which
/// nobody has written.
const LEFT: &str = r#"nullif(concat(
    CASE WHEN origin = 'counterbat' THEN data WHEN origin = 'call' AND starts_with(data, '{"call_id":"') THEN substr(data, 1, 49) END,
    CASE WHEN origin = 'call' THEN regexp_match(data, '"receiver_status": ?(?:23|24)[,}]')[1] END), '')"#;

/// What somebody may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Only rows of these; `None`: all rows, those of no account too.
    pub accounts: Option<BTreeSet<String>>,
    /// Whether it is shown what users and bots have written: `data`, `signature`, `tracking_data`. Else these are NULL, but for
    /// what of `data` nobody has written.
    pub data: bool,
}

impl Sight {
    /// Everything.
    pub const WHOLE: Sight = Sight { accounts: None, data: true };

    /// Whether rows of this account are seen.
    pub fn sees(&self, account: &str) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.contains(account))
    }

    /// What of a table is seen.
    pub(super) fn of(&self, table: Arc<dyn TableProvider>) -> Arc<dyn TableProvider> {
        if self.accounts.is_none() && !table.schema().fields().iter().any(|field| self.hides(field.name())) {
            return table;
        }
        let shown = |field: &Arc<Field>| match self.hides(field.name()) {
            true => Arc::new(Field::clone(field).with_nullable(true)),
            false => field.clone(),
        };
        let schema = Arc::new(Schema::new(table.schema().fields().iter().map(shown).collect::<Vec<_>>()));
        Arc::new(Narrowed { table, schema, sight: self.clone() })
    }

    /// Whether the values of a column are not shown.
    fn hides(&self, column: &str) -> bool {
        !self.data && WRITTEN.contains(&column) || self.accounts.is_some() && column == OFFSET
    }
}

/// A table without what is not seen.
#[derive(Debug)]
struct Narrowed {
    table: Arc<dyn TableProvider>,
    schema: SchemaRef,
    sight: Sight,
}

#[async_trait]
impl TableProvider for Narrowed {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        self.table.table_type()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let below = |filter: &&Expr| match self.is_harmless(filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(below).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plan = LogicalPlanBuilder::scan("narrowed", provider_as_source(self.table.clone()), None)?;
        if let Some(accounts) = &self.sight.accounts {
            plan = plan
                .filter(col(ACCOUNT).in_list(accounts.iter().map(|account| lit(account.as_str())).collect(), false))?;
        }
        for filter in filters.iter().filter(|filter| self.is_harmless(filter)) {
            plan = plan.filter(unqualified(filter)?)?;
        }
        let wanted: Vec<usize> = match projection {
            Some(projection) => projection.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let columns = wanted.iter().map(|index| {
            let field = self.schema.field(*index);
            match field.name().as_str() {
                DATA if self.sight.hides(DATA) => Ok(self.left(state)?.alias(DATA)),
                name if self.sight.hides(name) => Ok(lit(ScalarValue::try_from(field.data_type())?).alias(name)),
                name => Ok(Expr::Column(Column::new_unqualified(name))),
            }
        });
        let plan = plan.project(columns.collect::<Result<Vec<_>>>()?)?.build()?;
        Ok(Arc::new(Seen::new(state.create_physical_plan(&plan).await?)))
    }
}

impl Narrowed {
    /// What is shown for `events.data`.
    fn left(&self, state: &dyn Session) -> Result<Expr> {
        let Some(state) = state.as_any().downcast_ref::<SessionState>() else {
            return Err(DataFusionError::Internal("a session of another kind".to_owned()));
        };
        state.create_logical_expr(LEFT, &DFSchema::try_from(self.table.schema())?)
    }

    /// Whether a condition may be applied before rows are narrowed: it compares a column with values, which never fails, and
    /// not one whose values are hidden.
    fn is_harmless(&self, filter: &Expr) -> bool {
        let is_column = |expr: &Expr| matches!(expr, Expr::Column(column) if !self.sight.hides(&column.name));
        let is_value = |expr: &Expr| matches!(expr, Expr::Literal(..));
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let compares = matches!(
                    op,
                    Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq
                );
                compares && (is_column(left) && is_value(right) || is_value(left) && is_column(right))
            }
            Expr::Between(between) => is_column(&between.expr) && is_value(&between.low) && is_value(&between.high),
            Expr::InList(list) => is_column(&list.expr) && list.list.iter().all(is_value),
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => is_column(inner),
            _ => false,
        }
    }
}

/// The condition with its columns named as those of the table alone.
fn unqualified(filter: &Expr) -> Result<Expr> {
    let rename = |expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        other => Ok(Transformed::no(other)),
    };
    Ok(filter.clone().transform(rename)?.data)
}

/// Rows that are seen. Nothing above it gets below: no condition is pushed through it, and it tells no statistics.
#[derive(Debug)]
struct Seen {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl Seen {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        Self { properties: input.properties().clone(), input }
    }
}

impl DisplayAs for Seen {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

impl ExecutionPlan for Seen {
    fn name(&self) -> &str {
        "Seen"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|children| DataFusionError::Internal(format!("rows of {} plans at once", children.len())))?;
        Ok(Arc::new(Seen::new(input)))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.input.execute(partition, context)
    }
}
