//! Arrays that clients give for parameters, in items.

use pgwire::api::Type;
use std::iter::Peekable;
use std::str::Chars;

/// The items of an array, NULLs without a value.
pub type Items = Vec<Option<Vec<u8>>>;

/// Reads `{a,"b c",NULL}`; `None` where it is no array of one dimension.
pub fn of_text(bytes: &[u8]) -> Option<Items> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?.chars().peekable();
    let mut items = Vec::new();
    skip(&mut rest);
    if rest.peek().is_none() {
        return Some(items);
    }
    loop {
        items.push(item(&mut rest)?);
        match rest.next() {
            Some(',') => {}
            None => return Some(items),
            Some(_) => return None,
        }
    }
}

fn skip(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|next| next.is_whitespace()).is_some() {}
}

fn item(rest: &mut Peekable<Chars<'_>>) -> Option<Option<Vec<u8>>> {
    let mut text = String::new();
    skip(rest);
    if rest.next_if_eq(&'"').is_some() {
        loop {
            match rest.next()? {
                '"' => {
                    skip(rest);
                    return Some(Some(text.into_bytes()));
                }
                '\\' => text.push(rest.next()?),
                other => text.push(other),
            }
        }
    }
    while let Some(next) = rest.next_if(|next| *next != ',') {
        match next {
            '{' | '}' | '"' => return None,
            '\\' => text.push(rest.next()?),
            other => text.push(other),
        }
    }
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    Some(if text.eq_ignore_ascii_case("null") { None } else { Some(text.as_bytes().to_vec()) })
}

/// Reads an array in binary; `None` where it is none of this type and one dimension.
pub fn of_binary(mut bytes: &[u8], item: &Type) -> Option<Items> {
    let dimensions = number(&mut bytes)?;
    let (_has_null, oid) = (number(&mut bytes)?, number(&mut bytes)?);
    if u32::try_from(oid) != Ok(item.oid()) {
        return None;
    }
    if dimensions == 0 {
        return bytes.is_empty().then(Vec::new);
    }
    let (count, _first) = (number(&mut bytes)?, number(&mut bytes)?);
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let value = match number(&mut bytes)? {
            -1 => None,
            length => {
                let (value, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
                bytes = rest;
                Some(value.to_vec())
            }
        };
        items.push(value);
    }
    (dimensions == 1 && usize::try_from(count) == Ok(items.len())).then_some(items)
}

fn number(bytes: &mut &[u8]) -> Option<i32> {
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(i32::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_as_they_are_written() {
        let read = |text: &str| of_text(text.as_bytes());
        let some = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(read("{}"), Some(vec![]));
        assert_eq!(read("{1,2}"), Some(vec![some("1"), some("2")]));
        assert_eq!(read(r#"{"a\"b","",null}"#), Some(vec![some("a\"b"), some(""), None]));
        for bad in ["", "1", "{1", "{1,}", "{{1},{2}}", r#"{"a}"#, r#"{"a"b}"#] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn binary_arrays_are_sound() {
        let sound = [1_i32, 0, 23, 1, 1, 4, 7].map(i32::to_be_bytes).concat();
        assert_eq!(of_binary(&sound, &Type::INT4), Some(vec![Some(7_i32.to_be_bytes().to_vec())]));
        assert_eq!(of_binary(&sound, &Type::INT8), None);
        for length in 0..sound.len() {
            assert_eq!(of_binary(&sound[..length], &Type::INT4), None, "{length}");
        }
        let two_dimensions = [2_i32, 0, 23, 1, 1, 1, 1, 4, 7].map(i32::to_be_bytes).concat();
        assert_eq!(of_binary(&two_dimensions, &Type::INT4), None);
    }
}
