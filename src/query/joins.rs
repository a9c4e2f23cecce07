//! Which way the tables of a query are joined.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinType, Result};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};

/// Has a query that keeps all rows of both sides sort and merge them, which goes to disk where memory ends: a hash join
/// would hold one of the sides, and both are as large as the tables. Where only rows are looked up that others have, as by
/// IN and EXISTS, joins stay as they are: merging them is not made for times.
pub(super) fn fit_to_memory(state: &mut SessionState, plan: &LogicalPlan) -> Result<()> {
    let (mut keeps_both, mut looks_up) = (false, false);
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node {
            use JoinType::{Full, Inner, Left, Right};
            keeps_both |= join.join_type == Full;
            looks_up |= !matches!(join.join_type, Full | Inner | Left | Right);
        }
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                looks_up |= matches!(expression, Expr::InSubquery(_) | Expr::Exists(_));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    if keeps_both && !looks_up {
        state.config_mut().options_mut().optimizer.prefer_hash_join = false;
    }
    Ok(())
}
