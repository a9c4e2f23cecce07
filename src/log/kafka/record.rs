//! An event as a record of Kafka and back: CloudEvents in binary mode (spec §2).

use crate::event::{Event, Record, binary};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};

/// The headers of an event's record.
pub(super) fn headers(event: &Event) -> OwnedHeaders {
    let headers = binary::to_headers(event);
    headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |all, (key, value)| {
        all.insert(Header { key, value: Some(value) })
    })
}

/// The record of a message. One that is no CloudEvent becomes an event without a type, which the fold finds malformed:
/// it is kept, and stops nothing.
pub(super) fn read(message: &BorrowedMessage<'_>) -> Record {
    let data = message.payload().unwrap_or_default();
    let headers = message.headers();
    let headers = headers.iter().flat_map(|headers| headers.iter());
    let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
    let offset = u64::try_from(message.offset()).unwrap_or(0);
    let event = binary::from_headers(headers, data.to_vec()).unwrap_or_else(|error| {
        let (partition, topic) = (message.partition(), message.topic());
        tracing::warn!(topic, partition, offset, %error, "a record is no CloudEvent in binary mode: it is malformed");
        Event {
            id: format!("{topic}/{partition}/{offset}"),
            source: topic.to_owned(),
            data: data.to_vec(),
            ..Event::default()
        }
    });
    Record { offset, appended_at_us: message.timestamp().to_millis().unwrap_or(0).saturating_mul(1000), event }
}
