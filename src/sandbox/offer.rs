//! What the demo bot sends.

use serde_json::{Value, json};

/// Kinds of messages.
pub(super) const KINDS: u32 = 12;

/// A message of one of the kinds, without a receiver.
pub(super) fn message(name: &str, kind: u32) -> Value {
    let sender = json!({ "name": name.chars().take(28).collect::<String>() });
    let keyboard = json!({ "Type": "keyboard", "Buttons": [
        { "Columns": 3, "Rows": 1, "ActionType": "reply", "ActionBody": "catalogue", "Text": "Catalogue" },
        { "Columns": 3, "Rows": 1, "ActionType": "reply", "ActionBody": "orders", "Text": "My orders" },
    ] });
    let media = "https://media.example/shoes.jpg";
    match kind {
        0 | 1 => json!({ "sender": sender, "type": "text", "text": "New shoes are in", "keyboard": keyboard }),
        2 => json!({ "sender": sender, "type": "picture", "text": "Shoes", "media": media }),
        3 => json!({ "sender": sender, "type": "url", "media": "https://shop.example/shoes" }),
        4 => json!({ "sender": sender, "type": "location", "location": { "lat": 50.45, "lon": 30.52 } }),
        5 => json!({ "sender": sender, "type": "sticker", "sticker_id": 46105 }),
        6 => json!({ "sender": sender, "type": "rich_media", "min_api_version": 7, "alt_text": "Shoes",
            "rich_media": { "Type": "rich_media", "ButtonsGroupColumns": 6, "ButtonsGroupRows": 7, "Buttons": [
                { "Columns": 6, "Rows": 7, "ActionType": "reply", "ActionBody": "buy-1", "Image": media },
            ] } }),
        7 => json!({ "sender": sender, "keyboard": keyboard }),
        _ => json!({ "sender": sender, "type": "text", "text": "Here you are" }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::read;
    use super::*;

    #[test]
    fn every_kind_is_a_message() {
        for kind in 0..KINDS {
            let offer = message("A shop with a name that is far too long", kind);
            assert!(read(offer.as_object().unwrap()).is_ok(), "{offer}");
        }
    }
}
