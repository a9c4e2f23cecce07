//! JSON objects as text: members are found, left out and replaced, and every other byte stays as it is.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A body as JSON: itself where it is JSON, else a string of it.
pub fn embedded(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    match (&text, serde_json::from_str::<&RawValue>(&text)) {
        (Cow::Borrowed(_), Ok(raw)) => raw.get().to_owned(),
        _ => Value::from(text).to_string(),
    }
}

/// A body as JSON with these members of its object left out; `null` where it is empty.
pub fn without(body: &[u8], names: &[&str]) -> String {
    if body.iter().all(u8::is_ascii_whitespace) {
        return "null".to_owned();
    }
    let whole = embedded(body);
    let Some(members) = members(&whole) else { return whole };
    let mut out = String::with_capacity(whole.len());
    let mut end = None;
    for (n, member) in members.iter().enumerate() {
        if n == 0 {
            out.push_str(&whole[..member.start]);
        }
        if names.contains(&member.name.as_ref()) {
            continue;
        }
        if end.is_some() {
            // What stood before it, comma and white space, unless it is the first that stays.
            out.push_str(&whole[members[n - 1].end..member.start]);
        }
        out.push_str(&whole[member.start..member.end]);
        end = Some(member.end);
    }
    out.push_str(&whole[members.last().map_or(0, |last| last.end)..]);
    out
}

/// An object with this member set: where it stands its value is replaced, else it is added at the end. `None` when the
/// body is no object.
pub fn with(body: &[u8], name: &str, value: &Value) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let members = members(text)?;
    let value = value.to_string();
    let mut out = String::with_capacity(text.len() + name.len() + value.len() + 4);
    let mut copied = 0;
    for member in members.iter().filter(|member| member.name == name) {
        out.push_str(&text[copied..member.value]);
        out.push_str(&value);
        copied = member.end;
    }
    if copied == 0 {
        let end = match members.last() {
            Some(last) => last.end,
            None => text.find('{')? + 1,
        };
        out.push_str(&text[..end]);
        out.push_str(if members.is_empty() { "" } else { "," });
        out.push_str(&Value::from(name).to_string());
        out.push(':');
        out.push_str(&value);
        copied = end;
    }
    out.push_str(&text[copied..]);
    Some(out)
}

struct Member {
    name: String,
    start: usize,
    /// Where its value begins.
    value: usize,
    end: usize,
}

/// Where the members of an object lie in its text.
fn members(text: &str) -> Option<Vec<Member>> {
    struct Places<'a>(Vec<(&'a RawValue, &'a RawValue)>);
    impl<'de: 'a, 'a> Deserialize<'de> for Places<'a> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Read;
            impl<'de> serde::de::Visitor<'de> for Read {
                type Value = Places<'de>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut places = Vec::new();
                    while let Some(place) = map.next_entry()? {
                        places.push(place);
                    }
                    Ok(Places(places))
                }
            }
            deserializer.deserialize_map(Read)
        }
    }
    let Places(places) = serde_json::from_str(text).ok()?;
    let at = |raw: &RawValue| raw.get().as_ptr() as usize - text.as_ptr() as usize;
    places
        .into_iter()
        .map(|(key, value)| {
            let name = serde_json::from_str(key.get()).ok()?;
            Some(Member { name, start: at(key), value: at(value), end: at(value) + value.get().len() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_are_cut_out_cleanly() {
        for (body, wanted) in [
            (r#"{"auth_token":"t"}"#, "{}"),
            (r#"{"a":1,"auth_token":"t"}"#, r#"{"a":1}"#),
            (r#"{"a":1, "auth_token":"t" , "b":2 }"#, r#"{"a":1 , "b":2 }"#),
            (r#"{"auth\u005ftoken":"t","a":{"auth_token":1}}"#, r#"{"a":{"auth_token":1}}"#),
            (r#"{"auth_token":"t","a":1,"auth_token":"u"}"#, r#"{"a":1}"#),
            ("[1]", "[1]"),
            ("", "null"),
            ("no json", "\"no json\""),
        ] {
            assert_eq!(without(body.as_bytes(), &["auth_token"]), wanted, "{body}");
        }
    }

    #[test]
    fn members_are_set_in_place() {
        for (body, wanted) in [
            (r#"{ "url" : "a", "x":1.50 }"#, r#"{ "url" : "b\"", "x":1.50 }"#),
            (r#"{"url":null,"url":[1]}"#, r#"{"url":"b\"","url":"b\""}"#),
            (r#" { "x":1 }"#, r#" { "x":1,"url":"b\"" }"#),
            (" { } ", " {\"url\":\"b\\\"\" } "),
            ("{\"x\":{\"url\":1}}", "{\"x\":{\"url\":1},\"url\":\"b\\\"\"}"),
        ] {
            assert_eq!(with(body.as_bytes(), "url", &json!("b\"")).as_deref(), Some(wanted), "{body}");
        }
        for no_object in ["", "[]", "x", "{"] {
            assert_eq!(with(no_object.as_bytes(), "url", &json!(1)), None, "{no_object}");
        }
    }
}
