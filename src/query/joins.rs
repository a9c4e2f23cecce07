//! Which way the tables of a query are joined.

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinType, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;

/// Has a query that keeps all rows of both sides sort and merge them, which goes to disk where memory ends: a hash join
/// would hold one of the sides, and both are as large as the tables. Other joins stay as they are, they are faster so.
pub(super) fn fit_to_memory(state: &mut SessionState, plan: &LogicalPlan) -> Result<()> {
    let mut keeps_both = false;
    plan.apply_with_subqueries(|node| {
        keeps_both = matches!(node, LogicalPlan::Join(join) if join.join_type == JoinType::Full);
        Ok(if keeps_both { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    if keeps_both {
        state.config_mut().options_mut().optimizer.prefer_hash_join = false;
    }
    Ok(())
}
