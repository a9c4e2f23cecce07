//! The views: SELECTs over the tables, with their columns explained at their head, in `schemas/views`.

/// One view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub name: &'static str,
    /// Comment lines that tell what it is and explain its columns, then a SELECT.
    pub sql: &'static str,
    /// What is left open in its text, so that the view is a table function too.
    pub parameter: Option<Parameter>,
}

/// What a literal can be given for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// How the text names it.
    pub placeholder: &'static str,
    pub kind: Kind,
    pub default: &'static str,
}

/// What a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TimeZone,
    /// An interval, in the text of the view.
    Minutes,
    /// A timestamp, in the text of the view.
    Since,
}

const TIME_ZONE: Option<Parameter> =
    Some(Parameter { placeholder: "$time_zone", kind: Kind::TimeZone, default: "UTC" });
const MINUTES: Option<Parameter> = Some(Parameter { placeholder: "$minutes", kind: Kind::Minutes, default: "60" });
const SINCE: Option<Parameter> = Some(Parameter { placeholder: "$since", kind: Kind::Since, default: "1970-01-01" });

macro_rules! views {
    ($($name:literal $parameter:expr),+ $(,)?) => {
        [$(View {
            name: $name,
            sql: include_str!(concat!("../../schemas/views/", $name, ".sql")),
            parameter: $parameter,
        }),+]
    };
}

/// All views. One may read those before it.
pub const VIEWS: [View; 20] = views![
    "users" None,
    "open_sessions" None,
    "expiring_sessions" MINUTES,
    "user_timeline" None,
    "usage_hourly" TIME_ZONE,
    "usage_daily" TIME_ZONE,
    "usage_monthly" TIME_ZONE,
    "spend_daily" TIME_ZONE,
    "predictions" None,
    "quota_monthly" None,
    "settled_months" None,
    "statement_monthly" None,
    "avoidable_cost" MINUTES,
    "billing_audit" SINCE,
    "billing_accuracy" None,
    "unknown_calls" SINCE,
    "completeness" SINCE,
    "first_response" None,
    "delivery_funnel" None,
    "processed_monthly" None,
];

impl View {
    /// The view of this name.
    pub fn named(name: &str) -> Option<&'static View> {
        VIEWS.iter().find(|view| view.name == name)
    }
}
