//! `numeric` in binary: digits to the base of 10,000.

use bytes::{BufMut, BytesMut};

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const GROUP: usize = 4;

/// Writes a number that is given in decimal digits.
pub fn put_binary(text: &str, out: &mut BytesMut) {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (NEGATIVE, digits),
        None => (0, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let pad = |length: usize| (GROUP - length % GROUP) % GROUP;
    let mut all = "0".repeat(pad(whole.len()));
    all.push_str(whole);
    let mut weight = (all.len() / GROUP) as i16 - 1;
    all.push_str(fraction);
    all.push_str(&"0".repeat(pad(fraction.len())));
    let group = |digits: &[u8]| digits.iter().fold(0_i16, |sum, digit| sum * 10 + i16::from(digit - b'0'));
    let mut groups: Vec<i16> = all.as_bytes().chunks(GROUP).map(group).collect();
    let zeros = groups.iter().take_while(|group| **group == 0).count();
    groups.drain(..zeros);
    // Numbers have fewer digits than would overflow it.
    weight -= zeros as i16;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    if groups.is_empty() {
        weight = 0;
    }
    out.put_i16(groups.len() as i16);
    out.put_i16(weight);
    out.put_u16(if groups.is_empty() { 0 } else { sign });
    out.put_i16(fraction.len() as i16);
    groups.into_iter().for_each(|group| out.put_i16(group));
}

/// Reads a number into decimal digits; `None` where it is none.
pub fn read_binary(bytes: &[u8]) -> Option<String> {
    let mut words = bytes.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let (count, weight, sign, scale) = (words.next()?, words.next()?.cast_signed(), words.next()?, words.next()?);
    let groups: Vec<u16> = words.collect();
    let is_sound = groups.len() == usize::from(count)
        && bytes.len() == 8 + groups.len() * 2
        && groups.iter().all(|group| *group < 10_000)
        && matches!(sign, 0 | NEGATIVE)
        && sign != NAN
        // More digits than any number here has.
        && weight.unsigned_abs() < 256
        && scale < 1024;
    if !is_sound {
        return None;
    }
    let group = |at: i32| usize::try_from(at).ok().and_then(|at| groups.get(at)).copied().unwrap_or(0);
    let weight = i32::from(weight);
    let whole: String = (0..=weight).map(|at| format!("{:04}", group(at))).collect();
    let whole = whole.trim_start_matches('0');
    let scale = usize::from(scale);
    let parts = i32::try_from(scale.div_ceil(GROUP)).ok()?;
    let mut fraction: String = (0..parts).map(|part| format!("{:04}", group(weight + 1 + part))).collect();
    fraction.truncate(scale);
    let sign = if sign == NEGATIVE { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<i16> {
        let mut out = BytesMut::new();
        put_binary(text, &mut out);
        assert_eq!(read_binary(&out).as_deref(), Some(text), "{text}");
        out.chunks(2).map(|word| i16::from_be_bytes([word[0], word[1]])).collect()
    }

    #[test]
    fn numbers_are_written_as_postgresql_writes_them() {
        // As psycopg writes them.
        assert_eq!(words("0.000000"), [0, 0, 0, 6]);
        assert_eq!(words("12345.678900"), [3, 1, 0, 6, 1, 2345, 6789]);
        assert_eq!(words("-0.014000"), [1, -1, 0x4000, 6, 140]);
        assert_eq!(words("100000000"), [1, 2, 0, 0, 1]);
        assert_eq!(words("18446744073709551615"), [5, 4, 0, 0, 1844, 6744, 737, 955, 1615]);
    }

    #[test]
    fn what_is_no_number_is_not_read() {
        for bytes in [
            &[][..],
            &[0; 7],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0xC0, 0, 0, 0],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10],
        ] {
            assert_eq!(read_binary(bytes), None, "{bytes:?}");
        }
    }
}
