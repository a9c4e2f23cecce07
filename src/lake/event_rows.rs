//! Rows of `events` to Arrow, and back into records.

use super::rows::strings;
use super::schema;
use super::{LakeError, TableName};
use crate::event::reading::counted_time;
use crate::event::{Disposition, Envelope, Event, Origin, Reading, Record, SOURCE_PREFIX, is_account_name, read_parts};
use arrow::array::{
    Array, ArrayRef, BooleanArray, BooleanBuilder, Date32Builder, Int32Array, Int32Builder, Int64Array, Int64Builder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
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

/// The columns of a batch of the archive that a reading is made of.
pub struct ArchivedReadings<'a> {
    offset: &'a Int64Array,
    appended_at: &'a TimestampMicrosecondArray,
    origin: &'a StringArray,
    kind: &'a StringArray,
    account: &'a StringArray,
    user_id: &'a StringArray,
    received_at: &'a TimestampMicrosecondArray,
    data: &'a StringArray,
    data_base64: &'a BooleanArray,
}

impl<'a> ArchivedReadings<'a> {
    /// Their names, and that of the partition.
    pub const COLUMNS: [&'static str; 10] = [
        "partition",
        "offset",
        "appended_at",
        "origin",
        "type",
        "account",
        "user_id",
        "received_at",
        "data",
        "data_base64",
    ];

    /// Of a batch that has these columns.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, LakeError> {
        Ok(Self {
            offset: column(batch, "offset")?,
            appended_at: column(batch, "appended_at")?,
            origin: strings(batch, "origin")?,
            kind: strings(batch, "type")?,
            account: strings(batch, "account")?,
            user_id: strings(batch, "user_id")?,
            received_at: column(batch, "received_at")?,
            data: strings(batch, "data")?,
            data_base64: column(batch, "data_base64")?,
        })
    }

    /// The offset of a row's record.
    pub fn offset(&self, row: usize) -> u64 {
        u64::try_from(self.offset.value(row)).unwrap_or(0)
    }

    /// When the log took a row's record, in µs since the epoch.
    pub fn appended_at_us(&self, row: usize) -> i64 {
        self.appended_at.value(row)
    }

    /// What a row's record was, besides its data.
    fn envelope(&self, row: usize) -> Result<Envelope<'a>, LakeError> {
        let origin = needed(self.origin, row, "origin")?;
        Ok(Envelope {
            origin: Origin::from_name(origin).ok_or_else(|| damaged("origin", origin))?,
            kind: needed(self.kind, row, "type")?,
            account: text(self.account, row).filter(|name| is_account_name(name)),
            subject: text(self.user_id, row),
            received_at_us: self.received_at.value(row),
            appended_at_us: self.appended_at.value(row),
        })
    }

    /// The data of a row's record, byte for byte.
    fn data(&self, row: usize) -> Result<Cow<'a, [u8]>, LakeError> {
        let data = needed(self.data, row, "data")?;
        if !self.data_base64.value(row) {
            return Ok(Cow::Borrowed(data.as_bytes()));
        }
        STANDARD.decode(data).map(Cow::Owned).map_err(|_| damaged("data", data))
    }

    /// What a row's record says.
    pub fn read(&self, row: usize) -> Result<Reading<'a>, LakeError> {
        Ok(read_parts(self.envelope(row)?, &self.data(row)?))
    }
}

/// The columns of a batch of the archive that a record is made of.
pub struct ArchivedEvents<'a> {
    readings: ArchivedReadings<'a>,
    partition: &'a Int32Array,
    event_id: &'a StringArray,
    disposition: &'a StringArray,
    signature: &'a StringArray,
}

impl<'a> ArchivedEvents<'a> {
    /// Of a batch that has these columns.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, LakeError> {
        Ok(Self {
            readings: ArchivedReadings::new(batch)?,
            partition: column(batch, "partition")?,
            event_id: strings(batch, "event_id")?,
            disposition: strings(batch, "disposition")?,
            signature: strings(batch, "signature")?,
        })
    }

    /// The record and disposition of a row. What the archive does not keep of an event (foreign `source`, content type,
    /// other attributes) the fold does not ask for.
    pub fn record(&self, row: usize) -> Result<(Record, Disposition), LakeError> {
        let Envelope { origin, kind, account, subject, received_at_us, appended_at_us } =
            self.readings.envelope(row)?;
        let disposition = needed(self.disposition, row, "disposition")?;
        let disposition = Disposition::from_name(disposition).ok_or_else(|| damaged("disposition", disposition))?;
        let event = Event {
            id: needed(self.event_id, row, "event_id")?.to_owned(),
            source: account.map(|account| format!("{SOURCE_PREFIX}{account}")).unwrap_or_default(),
            kind: format!("{}{kind}", origin.prefix()),
            subject: subject.map(str::to_owned),
            time_us: Some(received_at_us),
            content_type: Some("application/json".to_owned()),
            signature: text(self.signature, row).map(str::to_owned),
            extensions: Vec::new(),
            data: self.readings.data(row)?.into_owned(),
        };
        Ok((Record { offset: self.readings.offset(row), appended_at_us, event }, disposition))
    }

    /// The partition of a row's record.
    pub fn partition(&self, row: usize) -> u32 {
        u32::try_from(self.partition.value(row)).unwrap_or(0)
    }
}

fn text(array: &StringArray, row: usize) -> Option<&str> {
    array.is_valid(row).then(|| array.value(row))
}

fn needed<'a>(array: &'a StringArray, row: usize, column: &str) -> Result<&'a str, LakeError> {
    text(array, row).ok_or_else(|| LakeError::Damaged(format!("{column} is NULL in events")))
}

fn damaged(column: &str, value: &str) -> LakeError {
    LakeError::Damaged(format!("{column} is {value:?} in events"))
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

/// The columns of a batch of the archive that tell when.
pub struct ArchivedTimes<'a> {
    partition: &'a Int32Array,
    offset: &'a Int64Array,
    appended_at: &'a TimestampMicrosecondArray,
    received_at: &'a TimestampMicrosecondArray,
    event_time: &'a TimestampMicrosecondArray,
}

impl<'a> ArchivedTimes<'a> {
    /// Their names.
    pub const COLUMNS: [&'static str; 5] = ["partition", "offset", "appended_at", "received_at", "event_time"];

    /// Of a batch that has these columns.
    pub fn new(batch: &'a RecordBatch) -> Result<Self, LakeError> {
        Ok(Self {
            partition: column(batch, "partition")?,
            offset: column(batch, "offset")?,
            appended_at: column(batch, "appended_at")?,
            received_at: column(batch, "received_at")?,
            event_time: column(batch, "event_time")?,
        })
    }

    /// The partition of a row's record.
    pub fn partition(&self, row: usize) -> u32 {
        u32::try_from(self.partition.value(row)).unwrap_or(0)
    }

    /// The offset of a row's record.
    pub fn offset(&self, row: usize) -> u64 {
        u64::try_from(self.offset.value(row)).unwrap_or(0)
    }

    /// The time that a row's record counts with, in ms, and its event time.
    pub fn times_ms(&self, row: usize) -> (i64, i64) {
        let (time_ms, _) = counted_time(self.received_at.value(row), self.appended_at.value(row));
        (time_ms, self.event_time.value(row).div_euclid(1000))
    }
}
