//! The `id` of an event (spec §2). Pure.

/// The id of a callback or call whose name, token and user are known: `<name>/<message_token>/<user_id>`. Where one is
/// missing, or the call was refused, the caller gives the event a UUIDv7 instead.
pub fn event_id(name: &str, token: u64, user: &str) -> String {
    format!("{name}/{token}/{user}")
}
