//! Rows of `events` to Arrow, and back into records.

use super::rows::strings;
use super::schema;
use super::{LakeError, TableName};
use crate::event::reading::counted_time;
use crate::event::{Disposition, Event, Origin, Reading, Record, SOURCE_PREFIX};
use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Date32Builder, Int32Array, Int32Builder, Int64Array, Int64Builder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;

const DAY_US: i64 = 86_400_000_000;
/// Days since the epoch of the years 1 and 9999: what engines agree to call a date.
const DATES: (i64, i64) = (-719_162, 2_932_896);

/// One record, as it is archived.
pub struct EventRow<'a> {
    pub partition: u32,
    pub record: &'a Record,
    pub reading: &'a Reading<'a>,
    pub disposition: Disposition,
}

/// Collects rows of `events`.
pub struct EventRows {
    partition: Int32Builder,
    offset: Int64Builder,
    appended_at: Vec<i64>,
    event_id: StringBuilder,
    origin: StringBuilder,
    kind: StringBuilder,
    account: StringBuilder,
    user_id: StringBuilder,
    message_token: Int64Builder,
    event_time: Vec<i64>,
    received_at: Vec<i64>,
    skewed: BooleanBuilder,
    status: Int32Builder,
    billing_status: Int32Builder,
    message_type: StringBuilder,
    country: StringBuilder,
    disposition: StringBuilder,
    data: StringBuilder,
    data_base64: BooleanBuilder,
    signature: StringBuilder,
    date: Date32Builder,
}

impl Default for EventRows {
    fn default() -> Self {
        Self::sized_for(&[])
    }
}

impl EventRows {
    /// With the room these records take: batches of a few records are many, and large ones should not be copied about.
    pub fn sized_for(records: &[Record]) -> Self {
        let rows = records.len();
        let bytes = |of: fn(&Event) -> usize| records.iter().map(|record| of(&record.event)).sum();
        let text = |bytes: usize| StringBuilder::with_capacity(rows, bytes);
        let words = || text(rows * 12);
        Self {
            partition: Int32Builder::with_capacity(rows),
            offset: Int64Builder::with_capacity(rows),
            appended_at: Vec::with_capacity(rows),
            event_id: text(bytes(|event| event.id.len())),
            origin: words(),
            kind: words(),
            account: words(),
            user_id: text(bytes(|event| event.subject.as_ref().map_or(0, String::len))),
            message_token: Int64Builder::with_capacity(rows),
            event_time: Vec::with_capacity(rows),
            received_at: Vec::with_capacity(rows),
            skewed: BooleanBuilder::with_capacity(rows),
            status: Int32Builder::with_capacity(rows),
            billing_status: Int32Builder::with_capacity(rows),
            message_type: text(0),
            country: text(0),
            disposition: words(),
            data: text(bytes(|event| event.data.len())),
            data_base64: BooleanBuilder::with_capacity(rows),
            signature: text(bytes(|event| event.signature.as_ref().map_or(0, String::len))),
            date: Date32Builder::with_capacity(rows),
        }
    }

    /// Adds a record.
    pub fn push(&mut self, row: &EventRow<'_>) {
        let (record, reading) = (row.record, row.reading);
        let event = &record.event;
        self.partition.append_value(i32::try_from(row.partition).unwrap_or(i32::MAX));
        self.offset.append_value(i64::try_from(record.offset).unwrap_or(i64::MAX));
        self.appended_at.push(record.appended_at_us);
        self.event_id.append_value(&event.id);
        self.origin.append_value(reading.origin.as_str());
        self.kind.append_value(reading.kind);
        self.account.append_option(reading.account);
        self.user_id.append_option(event.subject.as_deref());
        self.message_token.append_option(reading.token.map(|token| token as i64));
        self.event_time.push(reading.t_ms.saturating_mul(1000));
        self.received_at.push(reading.received_at_us);
        self.skewed.append_value(reading.skewed);
        self.status.append_option(reading.status);
        self.billing_status.append_option(reading.billing_status);
        self.message_type.append_option(reading.message_type.as_deref());
        self.country.append_option(reading.country.as_deref());
        self.disposition.append_value(row.disposition.as_str());
        let text = std::str::from_utf8(&event.data);
        match text {
            Ok(text) => self.data.append_value(text),
            Err(_) => self.data.append_value(STANDARD.encode(&event.data)),
        }
        self.data_base64.append_value(text.is_err());
        self.signature.append_option(event.signature.as_deref());
        self.date.append_value(date_of(reading.received_at_us));
    }

    /// The rows as a batch; `None` when there are none.
    pub fn finish(mut self) -> Option<RecordBatch> {
        if self.appended_at.is_empty() {
            return None;
        }
        let time =
            |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            time(self.appended_at),
            Arc::new(self.event_id.finish()),
            Arc::new(self.origin.finish()),
            Arc::new(self.kind.finish()),
            Arc::new(self.account.finish()),
            Arc::new(self.user_id.finish()),
            Arc::new(self.message_token.finish()),
            time(self.event_time),
            time(self.received_at),
            Arc::new(self.skewed.finish()),
            Arc::new(self.status.finish()),
            Arc::new(self.billing_status.finish()),
            Arc::new(self.message_type.finish()),
            Arc::new(self.country.finish()),
            Arc::new(self.disposition.finish()),
            Arc::new(self.data.finish()),
            Arc::new(self.data_base64.finish()),
            Arc::new(self.signature.finish()),
            Arc::new(self.date.finish()),
        ];
        // The columns are built from one list of rows with the schema's types, so this cannot fail.
        RecordBatch::try_new(schema::of(TableName::Events), columns).ok()
    }
}

/// Days since the epoch, kept within the years that engines agree on.
pub(super) fn date_of(us: i64) -> i32 {
    i32::try_from(us.div_euclid(DAY_US).clamp(DATES.0, DATES.1)).unwrap_or(0)
}

/// The columns of a batch of the archive that a record is made of.
pub struct ArchivedEvents<'a> {
    partition: &'a Int32Array,
    offset: &'a Int64Array,
    appended_at: &'a TimestampMicrosecondArray,
    event_id: &'a StringArray,
    origin: &'a StringArray,
    kind: &'a StringArray,
    account: &'a StringArray,
    user_id: &'a StringArray,
    received_at: &'a TimestampMicrosecondArray,
    disposition: &'a StringArray,
    data: &'a StringArray,
    data_base64: &'a BooleanArray,
    signature: &'a StringArray,
}

impl<'a> ArchivedEvents<'a> {
    /// Their names.
    pub const COLUMNS: [&'static str; 13] = [
        "partition",
        "offset",
        "appended_at",
        "event_id",
        "origin",
        "type",
        "account",
        "user_id",
        "received_at",
        "disposition",
        "data",
        "data_base64",
        "signature",
    ];

    /// Of a batch that has these columns.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, LakeError> {
        Ok(Self {
            partition: column(batch, "partition")?,
            offset: column(batch, "offset")?,
            appended_at: column(batch, "appended_at")?,
            event_id: strings(batch, "event_id")?,
            origin: strings(batch, "origin")?,
            kind: strings(batch, "type")?,
            account: strings(batch, "account")?,
            user_id: strings(batch, "user_id")?,
            received_at: column(batch, "received_at")?,
            disposition: strings(batch, "disposition")?,
            data: strings(batch, "data")?,
            data_base64: column(batch, "data_base64")?,
            signature: strings(batch, "signature")?,
        })
    }

    /// The record and disposition of a row. What the archive does not keep of an event (foreign `source`, content type,
    /// other attributes) the fold does not ask for.
    pub fn record(&self, row: usize) -> Result<(Record, Disposition), LakeError> {
        let text = |array: &'a StringArray| array.is_valid(row).then(|| array.value(row));
        let needed = |array: &'a StringArray, column: &str| {
            text(array).ok_or_else(|| LakeError::Damaged(format!("{column} is NULL in events")))
        };
        let damaged = |column: &str, value: &str| LakeError::Damaged(format!("{column} is {value:?} in events"));
        let origin = needed(self.origin, "origin")?;
        let origin = Origin::from_name(origin).ok_or_else(|| damaged("origin", origin))?;
        let disposition = needed(self.disposition, "disposition")?;
        let disposition = Disposition::from_name(disposition).ok_or_else(|| damaged("disposition", disposition))?;
        let data = needed(self.data, "data")?;
        let data = if self.data_base64.value(row) {
            STANDARD.decode(data).map_err(|_| damaged("data", data))?
        } else {
            data.as_bytes().to_vec()
        };
        let event = Event {
            id: needed(self.event_id, "event_id")?.to_owned(),
            source: text(self.account).map(|account| format!("{SOURCE_PREFIX}{account}")).unwrap_or_default(),
            kind: format!("{}{}", origin.prefix(), needed(self.kind, "type")?),
            subject: text(self.user_id).map(str::to_owned),
            time_us: Some(self.received_at.value(row)),
            content_type: Some("application/json".to_owned()),
            signature: text(self.signature).map(str::to_owned),
            extensions: Vec::new(),
            data,
        };
        let offset = u64::try_from(self.offset.value(row)).unwrap_or(0);
        Ok((Record { offset, appended_at_us: self.appended_at.value(row), event }, disposition))
    }

    /// The partition of a row's record.
    pub fn partition(&self, row: usize) -> u32 {
        u32::try_from(self.partition.value(row)).unwrap_or(0)
    }
}

pub(super) fn longs<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a Int64Array, LakeError> {
    column(batch, name)
}

fn column<'a, A: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Result<&'a A, LakeError> {
    batch
        .column_by_name(name)
        .and_then(|array| array.as_any().downcast_ref())
        .ok_or_else(|| LakeError::Damaged(format!("column {name} is missing or of another type")))
}

/// Of a row of the archive: offset, the time the record counts with, and its event time, both in ms.
pub fn times(batch: &RecordBatch, row: usize) -> Result<(u64, i64, i64), LakeError> {
    let time_us = |name: &str| Ok::<_, LakeError>(column::<TimestampMicrosecondArray>(batch, name)?.value(row));
    let (time_ms, _) = counted_time(time_us("received_at")?, time_us("appended_at")?);
    let offset = u64::try_from(longs(batch, "offset")?.value(row)).unwrap_or(0);
    Ok((offset, time_ms, time_us("event_time")?.div_euclid(1000)))
}
