//! Rows of `sessions` and `messages` to Arrow and back; the keys that name a row.

use super::schema;
use super::{LakeError, TableName};
use crate::session::money::{Currency, Money};
use crate::session::row::{MessageRow, SessionId, SessionRow};
use arrow::array::{
    ArrayRef, BooleanBuilder, Decimal128Builder, Int32Builder, Int64Builder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::DataType;
use std::sync::Arc;

pub use super::event_rows::{ArchivedEvents, ArchivedReadings, ArchivedTimes, EventRow, EventRows};

/// A row of `sessions` is named by its id.
pub fn session_key(id: &SessionId) -> Box<[u8]> {
    Box::from(&id[..])
}

/// A row of `messages` is named by account, user and token.
pub fn message_key(account: &str, user: &str, token: u64) -> Box<[u8]> {
    let mut key = Vec::with_capacity(account.len() + user.len() + 10);
    write_message_key(account, user, token, &mut key);
    key.into_boxed_slice()
}

/// Appends [`message_key`] to `key`.
pub fn write_message_key(account: &str, user: &str, token: u64, key: &mut Vec<u8>) {
    key.extend_from_slice(account.as_bytes());
    key.push(0);
    key.extend_from_slice(user.as_bytes());
    key.push(0);
    key.extend_from_slice(&token.to_be_bytes());
}

/// The keys of a batch of `sessions` or `messages` that has all their columns.
pub fn keys(table: TableName, batch: &RecordBatch) -> Result<Vec<Box<[u8]>>, LakeError> {
    match table {
        TableName::Messages => {
            let (account, user) = (strings(batch, "account")?, strings(batch, "user_id")?);
            let token = super::event_rows::longs(batch, "message_token")?;
            Ok((0..batch.num_rows())
                .map(|row| message_key(account.value(row), user.value(row), token.value(row) as u64))
                .collect())
        }
        _ => {
            let ids = strings(batch, "session_id")?;
            (0..batch.num_rows())
                .map(|row| {
                    let mut id = SessionId::default();
                    let text = ids.value(row);
                    hex::decode_to_slice(text, &mut id)
                        .map_err(|_| LakeError::Damaged(format!("session_id {text:?} is not 32 hex digits")))?;
                    Ok(session_key(&id))
                })
                .collect()
        }
    }
}

pub(super) fn strings<'a>(batch: &'a RecordBatch, column: &str) -> Result<&'a StringArray, LakeError> {
    batch
        .column_by_name(column)
        .and_then(|array| array.as_any().downcast_ref())
        .ok_or_else(|| LakeError::Damaged(format!("column {column} is missing or not of type STRING")))
}

fn timestamps() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_timezone("UTC")
}

fn us(ms: i64) -> i64 {
    ms.saturating_mul(1000)
}

/// Collects amounts: a column of money has as many decimals as [`Money`].
struct Amounts(Decimal128Builder);

impl Default for Amounts {
    fn default() -> Self {
        Self(Decimal128Builder::new().with_data_type(DataType::Decimal128(schema::MONEY.0, schema::MONEY.1)))
    }
}

impl Amounts {
    fn push(&mut self, amount: Option<Money>) {
        self.0.append_option(amount.map(|amount| i128::from(amount.micros())));
    }

    fn finish(&mut self) -> ArrayRef {
        Arc::new(self.0.finish())
    }
}

/// Builds the one batch that all columns of a table give. They are built here from one list of rows, so they have one
/// length and the schema's types.
fn batch(table: TableName, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema::of(table), columns).unwrap_or_else(|_| RecordBatch::new_empty(schema::of(table)))
}

/// Collects rows of `sessions`.
#[derive(Default)]
pub struct SessionRows {
    session_id: StringBuilder,
    account: StringBuilder,
    user_id: StringBuilder,
    country: StringBuilder,
    kind: StringBuilder,
    state: StringBuilder,
    times: Vec<[Option<i64>; 4]>,
    close_reason: StringBuilder,
    opened_by_token: Int64Builder,
    counts: [Int32Builder; 7],
    first_response_ms: Int64Builder,
    cost: Amounts,
    currency: StringBuilder,
    policy: StringBuilder,
}

impl SessionRows {
    /// Adds a row of a user.
    pub fn push(&mut self, account: &str, user: &str, row: &SessionRow) {
        self.session_id.append_value(hex::encode(row.session_id));
        self.account.append_value(account);
        self.user_id.append_value(user);
        self.country.append_option(row.country.as_deref());
        self.kind.append_value(row.kind.as_str());
        self.state.append_value(row.state.as_str());
        self.times.push([
            Some(us(row.opened_at_ms)),
            Some(us(row.expires_at_ms)),
            row.closed.map(|(at_ms, _)| us(at_ms)),
            Some(us(row.last_event_at_ms)),
        ]);
        self.close_reason.append_option(row.closed.map(|(_, reason)| reason.as_str()));
        self.opened_by_token.append_value(row.opened_by_token as i64);
        let counts = [row.inbound, row.outbound, row.delivered, row.seen, row.failed, row.charged, row.overcharged];
        for (builder, count) in self.counts.iter_mut().zip(counts) {
            builder.append_value(i32::try_from(count).unwrap_or(i32::MAX));
        }
        self.first_response_ms.append_option(row.first_response_ms);
        self.cost.push(row.cost);
        self.currency.append_option(row.currency.as_ref().map(Currency::as_str));
        self.policy.append_value(&row.policy);
    }

    /// The rows as a batch.
    pub fn finish(mut self) -> RecordBatch {
        let time = |at: usize| -> ArrayRef {
            let mut builder = timestamps();
            self.times.iter().for_each(|times| builder.append_option(times[at]));
            Arc::new(builder.finish())
        };
        let (opened_at, expires_at, closed_at, last_event_at) = (time(0), time(1), time(2), time(3));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.session_id.finish()),
            Arc::new(self.account.finish()),
            Arc::new(self.user_id.finish()),
            Arc::new(self.country.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.state.finish()),
            opened_at,
            expires_at,
            closed_at,
            Arc::new(self.close_reason.finish()),
            Arc::new(self.opened_by_token.finish()),
        ];
        columns.extend(self.counts.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef));
        columns.extend([
            Arc::new(self.first_response_ms.finish()) as ArrayRef,
            last_event_at,
            self.cost.finish(),
            Arc::new(self.currency.finish()),
            Arc::new(self.policy.finish()),
        ]);
        batch(TableName::Sessions, columns)
    }
}

/// Collects rows of `messages`.
#[derive(Default)]
pub struct MessageRows {
    account: StringBuilder,
    user_id: StringBuilder,
    message_token: Int64Builder,
    session_id: StringBuilder,
    times: Vec<[Option<i64>; 4]>,
    method: StringBuilder,
    message_type: StringBuilder,
    tracking_data: StringBuilder,
    expected: StringBuilder,
    billing_status: Int32Builder,
    billing_inferred: BooleanBuilder,
    verdict: StringBuilder,
    failure: StringBuilder,
    country: StringBuilder,
    price: Amounts,
    cost: Amounts,
    currency: StringBuilder,
    state: StringBuilder,
    policy: StringBuilder,
}

impl MessageRows {
    /// Adds a row of a user.
    pub fn push(&mut self, account: &str, user: &str, row: &MessageRow) {
        self.account.append_value(account);
        self.user_id.append_value(user);
        self.message_token.append_value(row.message_token as i64);
        self.session_id.append_option(row.session_id.map(hex::encode));
        self.times.push([
            Some(us(row.sent_at_ms)),
            row.delivered_at_ms.map(us),
            row.seen_at_ms.map(us),
            row.failed_at_ms.map(us),
        ]);
        self.method.append_value(row.method.as_str());
        self.message_type.append_option(row.message_type.as_deref());
        self.tracking_data.append_option(row.tracking_data.as_deref());
        self.expected.append_value(row.expected.as_str());
        self.billing_status.append_option(row.billing_status);
        self.billing_inferred.append_value(row.method == crate::session::row::Method::Broadcast);
        self.verdict.append_value(row.verdict.as_str());
        self.failure.append_option(row.failure.as_deref());
        self.country.append_option(row.country.as_deref());
        self.price.push(row.price);
        self.cost.push(row.cost);
        self.currency.append_option(row.currency.as_ref().map(Currency::as_str));
        self.state.append_value(if row.settled { "settled" } else { "provisional" });
        self.policy.append_value(&row.policy);
    }

    /// The rows as a batch.
    pub fn finish(mut self) -> RecordBatch {
        let time = |at: usize| -> ArrayRef {
            let mut builder = timestamps();
            self.times.iter().for_each(|times| builder.append_option(times[at]));
            Arc::new(builder.finish())
        };
        let (sent_at, delivered_at, seen_at, failed_at) = (time(0), time(1), time(2), time(3));
        batch(
            TableName::Messages,
            vec![
                Arc::new(self.account.finish()),
                Arc::new(self.user_id.finish()),
                Arc::new(self.message_token.finish()),
                Arc::new(self.session_id.finish()),
                sent_at,
                Arc::new(self.method.finish()),
                Arc::new(self.message_type.finish()),
                Arc::new(self.tracking_data.finish()),
                Arc::new(self.expected.finish()),
                Arc::new(self.billing_status.finish()),
                Arc::new(self.billing_inferred.finish()),
                Arc::new(self.verdict.finish()),
                delivered_at,
                seen_at,
                failed_at,
                Arc::new(self.failure.finish()),
                Arc::new(self.country.finish()),
                self.price.finish(),
                self.cost.finish(),
                Arc::new(self.currency.finish()),
                Arc::new(self.state.finish()),
                Arc::new(self.policy.finish()),
            ],
        )
    }
}
