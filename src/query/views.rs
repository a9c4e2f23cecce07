//! The views: SELECTs over the tables, with their columns explained at their head, in `schemas/views`.

/// One view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub name: &'static str,
    /// Comment lines that tell what it is and explain its columns, then a SELECT.
    pub sql: &'static str,
}

/// All views. One may read those before it.
pub const VIEWS: [View; 5] = [
    View { name: "users", sql: include_str!("../../schemas/views/users.sql") },
    View { name: "open_sessions", sql: include_str!("../../schemas/views/open_sessions.sql") },
    View { name: "user_timeline", sql: include_str!("../../schemas/views/user_timeline.sql") },
    View { name: "processed_monthly", sql: include_str!("../../schemas/views/processed_monthly.sql") },
    View { name: "unknown_calls", sql: include_str!("../../schemas/views/unknown_calls.sql") },
];

impl View {
    /// The view of this name.
    pub fn named(name: &str) -> Option<&'static View> {
        VIEWS.iter().find(|view| view.name == name)
    }
}
