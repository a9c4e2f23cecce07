//! Whether a message of a bot is one: a table of types with their members. Pure.

use super::code::{Code, Refusal};
use serde_json::{Map, Value};

/// What a member must be. Lengths count characters.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Text(usize),
    /// An http(s) URL; Viber takes 2,000 characters.
    Url,
    /// A name with an ending that is none of a program.
    FileName,
    Whole,
    /// A number, or a text of one.
    Number,
    /// A whole number, or a text of one.
    Id,
    List,
    /// Exactly this text.
    Is(&'static str),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// A whole number between two bounds.
    Within(u64, u64),
}

/// A member, by its path; `true` where it must be there.
type Member = (&'static str, Shape, bool);

/// A type of message.
struct Kind {
    name: &'static str,
    /// The least `min_api_version` it may be sent with.
    min_api_version: u64,
    members: &'static [Member],
}

use Shape::{FileName, Id, Is, List, Number, OneOf, Text, Url, Whole, Within};

const KINDS: [Kind; 10] = [
    Kind { name: "text", min_api_version: 1, members: &[("text", Text(7_000), true)] },
    Kind {
        name: "picture",
        min_api_version: 1,
        members: &[("text", Text(768), true), ("media", Url, true), ("thumbnail", Url, false)],
    },
    Kind {
        name: "video",
        min_api_version: 1,
        members: &[
            ("media", Url, true),
            ("size", Within(0, 27_262_976), true),
            ("duration", Within(0, 180), false),
            ("thumbnail", Url, false),
            ("text", Text(768), false),
        ],
    },
    Kind {
        name: "file",
        min_api_version: 1,
        members: &[("media", Url, true), ("size", Within(0, 52_428_800), true), ("file_name", FileName, true)],
    },
    Kind {
        name: "contact",
        min_api_version: 1,
        members: &[("contact.name", Text(28), true), ("contact.phone_number", Text(18), true)],
    },
    Kind {
        name: "location",
        min_api_version: 1,
        members: &[("location.lat", Number, true), ("location.lon", Number, true)],
    },
    Kind { name: "url", min_api_version: 1, members: &[("media", Url, true)] },
    Kind { name: "sticker", min_api_version: 1, members: &[("sticker_id", Id, true)] },
    Kind {
        name: "rich_media",
        min_api_version: 2,
        members: &[
            ("rich_media.Type", Is("rich_media"), true),
            ("rich_media.ButtonsGroupColumns", Within(1, 6), false),
            ("rich_media.ButtonsGroupRows", Within(1, 7), false),
            ("rich_media.Buttons", List, true),
            ("alt_text", Text(7_000), false),
        ],
    },
    Kind {
        name: "payment",
        min_api_version: 10,
        members: &[
            ("payment.type", OneOf(&["GooglePay", "ApplePay"]), true),
            ("payment.total_price", Number, true),
            ("payment.currency_code", Text(3), true),
            ("payment.payment_parameters", List, true),
            ("payment.description", Text(7_000), false),
        ],
    },
];

/// Of every message but channel posts and welcome messages, which need no sender.
const SENDER: [Member; 1] = [("sender.name", Text(28), true)];
/// Of every message. 4,096 characters of tracking data is the more generous of two documented limits.
const COMMON: [Member; 3] =
    [("tracking_data", Text(4_096), false), ("min_api_version", Whole, false), ("chat_id", Text(7_000), false)];
const KEYBOARD: [Member; 7] = [
    ("Type", Is("keyboard"), true),
    ("Buttons", List, true),
    ("InputFieldState", OneOf(&["regular", "minimized", "hidden"]), false),
    ("CustomDefaultHeight", Within(40, 70), false),
    ("HeightScale", Within(20, 100), false),
    ("ButtonsGroupColumns", Within(1, 6), false),
    ("ButtonsGroupRows", Within(1, 7), false),
];
const BUTTON: [Member; 3] =
    [("ActionBody", Text(7_000), true), ("Columns", Within(1, 6), false), ("Text", Text(250), false)];
/// What a button may do for a client of any version, and of version 3 and later.
const ACTIONS: [&str; 2] = ["reply", "open-url"];
const LATER_ACTIONS: [&str; 7] = ["reply", "open-url", "location-picker", "share-phone", "open-map", "buy", "none"];
const LATER_ACTIONS_FROM: u64 = 3;
/// Endings Viber refuses.
const PROGRAMS: [&str; 10] = ["exe", "bat", "cmd", "msi", "ps1", "vbs", "app", "run", "apk", "ipa"];

/// What of a message matters to the sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// `None` for a keyboard alone.
    pub kind: Option<&'static str>,
    /// 1 where the message names none.
    pub min_api_version: u64,
    /// Empty counts as none.
    pub tracking_data: Option<String>,
    /// It belongs to an inline conversation.
    pub inline: bool,
    /// The `ActionBody` of each reply button of its keyboard; `None` without a keyboard.
    pub buttons: Option<Vec<String>>,
}

/// Reads a message to a user: of `send_message` or `broadcast_message`.
pub fn read(body: &Map<String, Value>) -> Result<Message, Refusal> {
    check(body, &SENDER, "")?;
    read_post(body)
}

/// Reads a message to a channel, or a welcome message: they need no sender.
pub fn read_post(body: &Map<String, Value>) -> Result<Message, Refusal> {
    check(body, &COMMON, "")?;
    let min_api_version = at(body, "min_api_version").and_then(Value::as_u64).unwrap_or(1);
    let text = |path| at(body, path).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let keyboard = at(body, "keyboard");
    let kind = match at(body, "type") {
        None if keyboard.is_some() => None,
        None => return Err(Code::MISSING_DATA.because("type")),
        Some(name) => Some(kind(body, name, min_api_version)?),
    };
    let buttons = keyboard.map(|keyboard| read_keyboard(keyboard, min_api_version)).transpose()?;
    let inline = text("chat_id").is_some();
    Ok(Message { kind, min_api_version, tracking_data: text("tracking_data"), inline, buttons })
}

fn kind(body: &Map<String, Value>, name: &Value, min_api_version: u64) -> Result<&'static str, Refusal> {
    let kind = name.as_str().and_then(|name| KINDS.iter().find(|kind| kind.name == name));
    let kind = kind.ok_or_else(|| Code::BAD_DATA.because(format!("there is no message type {name}")))?;
    if min_api_version < kind.min_api_version {
        let why = format!("{} needs min_api_version {}", kind.name, kind.min_api_version);
        return Err(Code::INCOMPATIBLE_WITH_VERSION.because(why));
    }
    check(body, kind.members, "")?;
    if let Some(buttons) = at(body, "rich_media.Buttons").filter(|_| kind.name == "rich_media") {
        check_buttons(buttons, "rich_media.Buttons", 7, min_api_version)?;
    }
    Ok(kind.name)
}

fn read_keyboard(keyboard: &Value, min_api_version: u64) -> Result<Vec<String>, Refusal> {
    let Some(members) = keyboard.as_object() else { return Err(Code::BAD_DATA.because("keyboard is no object")) };
    // The server's schema has it that a keyboard without `Type` is malformed, not incomplete.
    if at(members, "Type").is_none() {
        return Err(Code::BAD_DATA.because("object has missing required properties ([\"Type\"]) in keyboard"));
    }
    check(members, &KEYBOARD, "keyboard.")?;
    let Some(buttons) = at(members, "Buttons") else { return Ok(Vec::new()) };
    check_buttons(buttons, "keyboard.Buttons", 2, min_api_version)?;
    let replies = buttons.as_array().into_iter().flatten().filter(|button| {
        let action = button.get("ActionType").and_then(Value::as_str).unwrap_or("reply");
        action == "reply"
    });
    Ok(replies.filter_map(|button| button.get("ActionBody")?.as_str()).map(str::to_owned).collect())
}

fn check_buttons(buttons: &Value, path: &str, rows: u64, min_api_version: u64) -> Result<(), Refusal> {
    let actions = if min_api_version < LATER_ACTIONS_FROM { &ACTIONS[..] } else { &LATER_ACTIONS[..] };
    for (n, button) in buttons.as_array().into_iter().flatten().enumerate() {
        let prefix = format!("{path}[{n}].");
        let Some(members) = button.as_object() else {
            return Err(Code::BAD_DATA.because(format!("{path}[{n}] is no object")));
        };
        check(members, &BUTTON, &prefix)?;
        check(members, &[("Rows", Within(1, rows), false)], &prefix)?;
        if let Some(action) = at(members, "ActionType")
            && !action.as_str().is_some_and(|action| actions.contains(&action))
        {
            let why =
                format!("{prefix}ActionType: {action} is none of {actions:?} at min_api_version {min_api_version}");
            return Err(Code::BAD_DATA.because(why));
        }
    }
    Ok(())
}

fn check(body: &Map<String, Value>, members: &[Member], prefix: &str) -> Result<(), Refusal> {
    for (path, shape, required) in members {
        match at(body, path) {
            Some(value) if !fits(*shape, value) => {
                return Err(Code::BAD_DATA.because(format!("{prefix}{path} is not as documented")));
            }
            None if *required => return Err(Code::MISSING_DATA.because(format!("{prefix}{path}"))),
            _ => {}
        }
    }
    Ok(())
}

/// A member by its path; null is none.
fn at<'a>(body: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let first = body.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
}

fn fits(shape: Shape, value: &Value) -> bool {
    let text = value.as_str();
    let whole = || value.as_u64().or_else(|| text?.parse().ok());
    let is_within = |most: usize| text.is_some_and(|text| text.len() <= most || text.chars().count() <= most);
    match shape {
        Text(most) => is_within(most),
        Url => is_within(2_000) && text.is_some_and(|text| text.starts_with("http://") || text.starts_with("https://")),
        FileName => {
            let ending = text.and_then(|name| name.rsplit_once('.')).map(|(_, ending)| ending.to_ascii_lowercase());
            is_within(256) && ending.is_some_and(|ending| !ending.is_empty() && !PROGRAMS.contains(&ending.as_str()))
        }
        Whole => value.is_u64(),
        Number => value.is_number() || text.is_some_and(|text| text.parse::<f64>().is_ok()),
        Id => whole().is_some(),
        List => value.as_array().is_some_and(|list| !list.is_empty()),
        Is(word) => text == Some(word),
        OneOf(words) => text.is_some_and(|text| words.contains(&text)),
        Within(least, most) => value.as_u64().is_some_and(|n| (least..=most).contains(&n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status(body: Value) -> u16 {
        let mut body = body;
        if body.get("sender").is_none() {
            body["sender"] = json!({"name": "Shop"});
        }
        read(body.as_object().unwrap()).map_or_else(|refusal| refusal.status, |_| 0)
    }

    /// One good message of each type.
    fn good() -> Vec<Value> {
        let media = "https://cdn.example/a.jpg";
        let buttons = json!([{"ActionBody": "yes", "Rows": 7}]);
        vec![
            json!({"type": "text", "text": "hi"}),
            json!({"type": "picture", "text": "", "media": media}),
            json!({"type": "video", "media": media, "size": 10, "duration": 180, "thumbnail": null}),
            json!({"type": "file", "media": media, "size": 10, "file_name": "a.pdf"}),
            json!({"type": "contact", "contact": {"name": "A", "phone_number": "+380"}}),
            json!({"type": "location", "location": {"lat": 50.4, "lon": "30.5"}}),
            json!({"type": "url", "media": media}),
            json!({"type": "sticker", "sticker_id": 46105}),
            json!({"type": "rich_media", "min_api_version": 7, "rich_media": {"Type": "rich_media", "Buttons": buttons}}),
            json!({"type": "payment", "min_api_version": 10, "payment": {"type": "GooglePay", "total_price": 9.5,
                "currency_code": "EUR", "payment_parameters": [{"key": "k", "value": "v"}]}}),
        ]
    }

    #[test]
    fn every_type_needs_its_members() {
        for (body, kind) in good().into_iter().zip(&KINDS) {
            assert_eq!(body["type"], kind.name);
            assert_eq!(status(body.clone()), 0, "{body}");
            for (path, _, required) in kind.members {
                let (parent, name) = path.split_once('.').unwrap_or(("", path));
                let holder = |body: &mut Value| if parent.is_empty() { body.take() } else { body[parent].take() };
                let mut without = body.clone();
                let mut inner = holder(&mut without);
                inner.as_object_mut().unwrap().remove(name);
                let without = if parent.is_empty() {
                    inner
                } else {
                    without[parent] = inner;
                    without
                };
                assert_eq!(status(without), if *required { 4 } else { 0 }, "{} without {path}", kind.name);
            }
        }
    }

    #[test]
    fn what_is_malformed_is_bad_data() {
        let long = "x".repeat(7_001);
        for body in [
            json!({"type": "text", "text": 5}),
            json!({"type": "text", "text": long}),
            json!({"type": "song", "text": "a"}),
            json!({"type": 1, "text": "a"}),
            json!({"type": "text", "text": "a", "sender": {"name": "x".repeat(29)}}),
            json!({"type": "text", "text": "a", "tracking_data": "x".repeat(4_097)}),
            json!({"type": "text", "text": "a", "tracking_data": {}}),
            json!({"type": "text", "text": "a", "min_api_version": "7"}),
            json!({"type": "url", "media": "ftp://a"}),
            json!({"type": "file", "media": "https://a/b", "size": 1, "file_name": "a.EXE"}),
            json!({"type": "file", "media": "https://a/b", "size": 1, "file_name": "noending"}),
            json!({"type": "video", "media": "https://a/b", "size": 27_262_977}),
            json!({"type": "location", "location": {"lat": "north", "lon": 1}}),
            json!({"type": "sticker", "sticker_id": "big"}),
            json!({"type": "text", "text": "a", "keyboard": {"Buttons": [{"ActionBody": "a"}]}}),
            json!({"type": "text", "text": "a", "keyboard": []}),
            json!({"type": "text", "text": "a", "keyboard": {"Type": "keyboard", "Buttons": [7]}}),
            json!({"keyboard": {"Type": "keyboard", "Buttons": [{"ActionBody": "a", "ActionType": "share-phone"}]}}),
            json!({"keyboard": {"Type": "keyboard", "Buttons": [{"ActionBody": "a", "Rows": 3}]}}),
        ] {
            assert_eq!(status(body.clone()), 3, "{body}");
        }
    }

    #[test]
    fn what_is_missing_is_missing_data() {
        for body in [
            json!({"text": "a"}),
            json!({"type": null, "text": "a"}),
            json!({"type": "text", "text": "a", "sender": null}),
            json!({"type": "text", "text": "a", "sender": {"avatar": "https://a"}}),
            json!({"keyboard": {"Type": "keyboard"}}),
            json!({"keyboard": {"Type": "keyboard", "Buttons": [{"Text": "a"}]}}),
        ] {
            assert_eq!(status(body.clone()), 4, "{body}");
        }
    }

    #[test]
    fn types_and_buttons_need_their_versions() {
        let [.., mut rich, mut payment] = good().try_into().unwrap_or([const { Value::Null }; 10]);
        rich["min_api_version"] = json!(1);
        assert_eq!(status(rich), 14);
        payment["min_api_version"] = json!(9);
        assert_eq!(status(payment), 14);
        let share = json!({"Type": "keyboard", "Buttons": [{"ActionBody": "a", "ActionType": "share-phone"}]});
        assert_eq!(status(json!({"min_api_version": 3, "keyboard": share})), 0);
    }

    #[test]
    fn what_matters_of_a_message() {
        let body = json!({
            "sender": {"name": "Shop"}, "type": "text", "text": "a", "tracking_data": "t", "chat_id": "c",
            "min_api_version": 4,
            "keyboard": {"Type": "keyboard", "InputFieldState": "hidden", "Buttons": [
                {"ActionBody": "yes"}, {"ActionBody": "https://a", "ActionType": "open-url"},
                {"ActionBody": "no", "ActionType": "reply"}]}
        });
        let message = read(body.as_object().unwrap()).unwrap();
        let buttons = Some(vec!["yes".to_owned(), "no".to_owned()]);
        let tracking_data = Some("t".to_owned());
        assert_eq!(message, Message { kind: Some("text"), min_api_version: 4, tracking_data, inline: true, buttons });
    }
}
