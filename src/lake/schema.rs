//! Columns of the tables (spec §5): names and types are a contract.

use super::TableName;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use std::sync::{Arc, LazyLock};

/// Digits of an amount of money, and those after the point.
pub const MONEY: (u8, i8) = (18, 6);

static EVENTS: LazyLock<SchemaRef> = LazyLock::new(|| {
    build(&[
        ("partition", int(), false),
        ("offset", bigint(), false),
        ("appended_at", timestamp(), false),
        ("event_id", text(), false),
        ("origin", text(), false),
        ("type", text(), false),
        ("account", text(), true),
        ("user_id", text(), true),
        ("message_token", bigint(), true),
        ("event_time", timestamp(), false),
        ("received_at", timestamp(), false),
        ("skewed", DataType::Boolean, false),
        ("status", int(), true),
        ("billing_status", int(), true),
        ("message_type", text(), true),
        ("country", text(), true),
        ("disposition", text(), false),
        ("data", text(), false),
        ("data_base64", DataType::Boolean, false),
        ("signature", text(), true),
        ("date", DataType::Date32, false),
    ])
});

static SESSIONS: LazyLock<SchemaRef> = LazyLock::new(|| {
    build(&[
        ("session_id", text(), false),
        ("account", text(), false),
        ("user_id", text(), false),
        ("country", text(), true),
        ("kind", text(), false),
        ("state", text(), false),
        ("opened_at", timestamp(), false),
        ("expires_at", timestamp(), false),
        ("closed_at", timestamp(), true),
        ("close_reason", text(), true),
        ("opened_by_token", bigint(), false),
        ("inbound", int(), false),
        ("outbound", int(), false),
        ("delivered", int(), false),
        ("seen", int(), false),
        ("failed", int(), false),
        ("charged", int(), false),
        ("overcharged", int(), false),
        ("first_response_ms", bigint(), true),
        ("last_event_at", timestamp(), false),
        ("cost", money(), true),
        ("currency", text(), true),
        ("policy", text(), false),
    ])
});

static MESSAGES: LazyLock<SchemaRef> = LazyLock::new(|| {
    build(&[
        ("account", text(), false),
        ("user_id", text(), false),
        ("message_token", bigint(), false),
        ("session_id", text(), true),
        ("sent_at", timestamp(), false),
        ("method", text(), false),
        ("message_type", text(), true),
        ("tracking_data", text(), true),
        ("expected", text(), false),
        ("billing_status", int(), true),
        ("billing_inferred", DataType::Boolean, false),
        ("verdict", text(), false),
        ("delivered_at", timestamp(), true),
        ("seen_at", timestamp(), true),
        ("failed_at", timestamp(), true),
        ("failure", text(), true),
        ("country", text(), true),
        ("price", money(), true),
        ("cost", money(), true),
        ("currency", text(), true),
        ("state", text(), false),
        ("policy", text(), false),
    ])
});

/// The columns of a table, in order.
pub fn of(table: TableName) -> SchemaRef {
    match table {
        TableName::Events => EVENTS.clone(),
        TableName::Sessions => SESSIONS.clone(),
        TableName::Messages => MESSAGES.clone(),
    }
}

/// The names of a table's columns, in order.
pub fn names(table: TableName) -> Vec<&'static str> {
    let schema: &'static SchemaRef = match table {
        TableName::Events => &EVENTS,
        TableName::Sessions => &SESSIONS,
        TableName::Messages => &MESSAGES,
    };
    schema.fields().iter().map(|field| field.name().as_str()).collect()
}

/// The columns as they lie in files: without the partition column of `events`.
pub fn in_files(table: TableName) -> SchemaRef {
    let schema = of(table);
    let fields = schema.fields().iter().filter(|field| !partition_columns(table).contains(&field.name().as_str()));
    Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>()))
}

/// The columns a table is partitioned by.
pub fn partition_columns(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Events => &["date"],
        TableName::Sessions | TableName::Messages => &[],
    }
}

/// The columns whose least and greatest values a file's statistics tell: of types every engine reads alike.
pub fn statistics(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Events => &["partition", "offset", "event_time", "received_at"],
        TableName::Sessions => &["opened_at", "expires_at"],
        TableName::Messages => &["sent_at"],
    }
}

/// The columns that rows of a file are in order of.
pub fn order(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Events => &["partition", "offset"],
        TableName::Sessions => &["account", "user_id", "opened_at", "session_id"],
        TableName::Messages => &["account", "user_id", "sent_at", "message_token"],
    }
}

/// The column whose values a file's Bloom filters tell.
pub const LOOKED_UP: &str = "user_id";

/// The columns whose values hardly repeat, or only side by side: a dictionary of them costs much to write, and must be read
/// whole for one row.
pub fn distinct(table: TableName) -> &'static [&'static str] {
    match table {
        TableName::Events => &["offset", "event_id", "message_token", "event_time", "received_at", "data", "signature"],
        TableName::Sessions => {
            &["session_id", "user_id", "opened_at", "expires_at", "opened_by_token", "last_event_at"]
        }
        TableName::Messages => &["user_id", "message_token", "session_id", "sent_at", "delivered_at", "seen_at"],
    }
}

fn build(columns: &[(&str, DataType, bool)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, data_type, nullable)| Field::new(*name, data_type.clone(), *nullable));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn int() -> DataType {
    DataType::Int32
}

fn bigint() -> DataType {
    DataType::Int64
}

fn text() -> DataType {
    DataType::Utf8
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn money() -> DataType {
    DataType::Decimal128(MONEY.0, MONEY.1)
}
