//! Callbacks: their names and their bodies, member by member as Viber sends them. Pure.

use super::user::Profile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Where the validation of a webhook and where everything else comes from, and what answers calls.
const VALIDATION_HOST: &str = "SN-CHAT-09_";
const CALLBACK_HOST: &str = "SN-CALLBACK-02_";
const RECEIPT_HOST: &str = "SN-CALLBACK-04_";
/// Host named in answers to calls.
pub const CHAT_HOST: &str = "SN-CHAT-05_";

/// What a callback tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    Webhook,
    Subscribed,
    Unsubscribed,
    ConversationStarted,
    Delivered,
    Failed,
    Message,
    Seen,
}

impl Event {
    /// All that a webhook can ask for, in the order answers list them.
    pub const ASKABLE: [Event; 7] = [
        Event::Subscribed,
        Event::Unsubscribed,
        Event::ConversationStarted,
        Event::Delivered,
        Event::Failed,
        Event::Message,
        Event::Seen,
    ];

    /// As payloads name it.
    pub fn name(self) -> &'static str {
        match self {
            Event::Webhook => "webhook",
            Event::Subscribed => "subscribed",
            Event::Unsubscribed => "unsubscribed",
            Event::ConversationStarted => "conversation_started",
            Event::Delivered => "delivered",
            Event::Failed => "failed",
            Event::Message => "message",
            Event::Seen => "seen",
        }
    }

    /// Sent whether or not it was asked for.
    pub fn is_mandatory(self) -> bool {
        matches!(self, Event::Webhook | Event::Subscribed | Event::Unsubscribed | Event::Message)
    }
}

/// A contact, as a user sends one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contact {
    pub name: String,
    pub phone_number: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar: Option<String>,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Location {
    pub lat: f64,
    pub lon: f64,
}

/// `message` of a message callback. Members that do not belong to the type are left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thumbnail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticker_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contact: Option<Contact>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// Set by the sandbox, from the last message the user got.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking_data: Option<String>,
    /// Members the sandbox does not know, as they were given.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Content {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { kind: "text".into(), text: Some(text.into()), ..Self::default() }
    }
}

/// `user` of a callback.
#[derive(Serialize)]
struct Person<'a> {
    id: &'a str,
    name: &'a str,
    avatar: String,
    country: &'a str,
    language: &'a str,
    api_version: u64,
}

/// `sender` of a message callback: the same in another order.
#[derive(Serialize)]
struct Sender<'a> {
    id: &'a str,
    name: &'a str,
    avatar: String,
    language: &'a str,
    country: &'a str,
    api_version: u64,
}

/// Where a user's picture would be.
pub fn avatar(user: &Profile) -> String {
    format!("https://media.example/{}.jpg", user.id.trim_end_matches('=').replace(['/', '+'], "_"))
}

fn person(user: &Profile) -> Person<'_> {
    Person {
        id: &user.id,
        name: &user.name,
        avatar: avatar(user),
        country: &user.country,
        language: &user.language,
        api_version: user.api_version,
    }
}

/// Body of the callback that validates a webhook.
pub fn webhook(timestamp: i64, message_token: u64) -> String {
    #[derive(Serialize)]
    struct Body {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        message_token: u64,
    }
    json(&Body { event: Event::Webhook, timestamp, chat_hostname: VALIDATION_HOST, message_token })
}

/// Body of `subscribed`.
pub fn subscribed(timestamp: i64, message_token: u64, user: &Profile) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        user: Person<'a>,
        message_token: u64,
    }
    let user = person(user);
    json(&Body { event: Event::Subscribed, timestamp, chat_hostname: CALLBACK_HOST, user, message_token })
}

/// Body of `unsubscribed`.
pub fn unsubscribed(timestamp: i64, message_token: u64, user: &Profile) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        user_id: &'a str,
        message_token: u64,
    }
    json(&Body {
        event: Event::Unsubscribed,
        timestamp,
        chat_hostname: CALLBACK_HOST,
        user_id: &user.id,
        message_token,
    })
}

/// Body of `conversation_started`; `context` with a deep link only.
pub fn conversation_started(
    timestamp: i64,
    message_token: u64,
    user: &Profile,
    context: Option<&str>,
    subscribed: bool,
) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        message_token: u64,
        #[serde(rename = "type")]
        kind: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        context: Option<&'a str>,
        user: Person<'a>,
        subscribed: bool,
    }
    json(&Body {
        event: Event::ConversationStarted,
        timestamp,
        chat_hostname: CALLBACK_HOST,
        message_token,
        kind: "open",
        context,
        user: person(user),
        subscribed,
    })
}

/// Body of `message`.
pub fn message(timestamp: i64, message_token: u64, user: &Profile, message: &Content) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        message_token: u64,
        sender: Sender<'a>,
        message: &'a Content,
        silent: bool,
    }
    let sender = Sender {
        id: &user.id,
        name: &user.name,
        avatar: avatar(user),
        language: &user.language,
        country: &user.country,
        api_version: user.api_version,
    };
    json(&Body {
        event: Event::Message,
        timestamp,
        chat_hostname: CALLBACK_HOST,
        message_token,
        sender,
        message,
        silent: false,
    })
}

/// Body of `delivered`, `seen` or `failed`: the token is that of the message it is about.
pub fn receipt(event: Event, timestamp: i64, message_token: u64, user: &Arc<str>) -> String {
    #[derive(Serialize)]
    struct Body<'a> {
        event: Event,
        timestamp: i64,
        chat_hostname: &'static str,
        message_token: u64,
        user_id: &'a str,
        /// Real ones of `failed` have it beside, or instead of, `desc`.
        #[serde(skip_serializing_if = "Option::is_none")]
        udid: Option<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        desc: Option<&'static str>,
    }
    let failed = event == Event::Failed;
    json(&Body {
        event,
        timestamp,
        chat_hostname: RECEIPT_HOST,
        message_token,
        user_id: user,
        udid: failed.then_some(Value::Null),
        desc: failed.then_some("failure: the message cannot be shown"),
    })
}

fn json(body: &impl Serialize) -> String {
    // Bodies are structs of texts and numbers: nothing in them can fail to be written.
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Profile {
        Profile {
            id: "dGVzdC11c2VyLTAx/w==".into(),
            name: "Olena".into(),
            country: "UA".into(),
            language: "uk".into(),
            api_version: 10,
            mcc: 255,
            devices: 1,
        }
    }

    #[test]
    fn bodies_are_as_documented() {
        let person = r#"{"id":"dGVzdC11c2VyLTAx/w==","name":"Olena","avatar":"https://media.example/dGVzdC11c2VyLTAx_w.jpg","country":"UA","language":"uk","api_version":10}"#;
        assert_eq!(
            webhook(1_760_000_000_000, 6_156_995_941_556_922_051),
            r#"{"event":"webhook","timestamp":1760000000000,"chat_hostname":"SN-CHAT-09_","message_token":6156995941556922051}"#
        );
        assert_eq!(
            subscribed(1, 2, &user()),
            format!(
                r#"{{"event":"subscribed","timestamp":1,"chat_hostname":"SN-CALLBACK-02_","user":{person},"message_token":2}}"#
            )
        );
        assert_eq!(
            unsubscribed(1, 2, &user()),
            r#"{"event":"unsubscribed","timestamp":1,"chat_hostname":"SN-CALLBACK-02_","user_id":"dGVzdC11c2VyLTAx/w==","message_token":2}"#
        );
        assert_eq!(
            conversation_started(1, 2, &user(), Some("campaign=7"), false),
            format!(
                r#"{{"event":"conversation_started","timestamp":1,"chat_hostname":"SN-CALLBACK-02_","message_token":2,"type":"open","context":"campaign=7","user":{person},"subscribed":false}}"#
            )
        );
        assert_eq!(
            receipt(Event::Delivered, 1, 2, &user().id),
            r#"{"event":"delivered","timestamp":1,"chat_hostname":"SN-CALLBACK-04_","message_token":2,"user_id":"dGVzdC11c2VyLTAx/w=="}"#
        );
        let failed = receipt(Event::Failed, 1, 2, &user().id);
        assert!(failed.contains(r#""udid":null,"desc":"#), "{failed}");
    }

    #[test]
    fn a_message_has_its_sender_and_its_tracking_data() {
        let mut content = Content::text("Hello");
        content.tracking_data = Some("order-17".into());
        assert_eq!(
            message(1, 2, &user(), &content),
            r#"{"event":"message","timestamp":1,"chat_hostname":"SN-CALLBACK-02_","message_token":2,"sender":{"id":"dGVzdC11c2VyLTAx/w==","name":"Olena","avatar":"https://media.example/dGVzdC11c2VyLTAx_w.jpg","language":"uk","country":"UA","api_version":10},"message":{"type":"text","text":"Hello","tracking_data":"order-17"},"silent":false}"#
        );
    }

    #[test]
    fn content_of_any_type_can_be_given() {
        let given = r#"{"type":"contact","contact":{"name":"A","phone_number":"380"},"odd":1}"#;
        let content: Content = serde_json::from_str(given).unwrap();
        assert_eq!(serde_json::to_string(&content).unwrap(), given);
    }
}
