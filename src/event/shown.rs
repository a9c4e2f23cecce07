//! Texts of others as a terminal shows them. Pure.

/// The text with nothing in it that would move a cursor or change a colour: control characters stand there escaped.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(harmless("a\u{1b}[31m\n\u{9b}b"), "a\\u{1b}[31m\\n\\u{9b}b");
        assert_eq!(harmless("Привіт = \"\\\""), "Привіт = \"\\\"");
    }
}
