//! Texts of others as a terminal shows them. Pure.

/// The text with nothing in it that would move a cursor or change a colour: control characters stand there escaped.
pub fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Longer names are not quoted whole.
const LONGEST: usize = 20;
const BEGINNING: usize = 4;

/// A name as an error quotes it that refuses it: of a long one the beginning, as it may be a token that was put into the
/// wrong place.
pub fn brief(name: &str) -> String {
    if name.chars().count() <= LONGEST {
        return harmless(name);
    }
    let beginning: String = name.chars().take(BEGINNING).collect();
    format!("{}…", harmless(&beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_name_the_beginning_is_quoted() {
        let longest = "information_schema_2";
        assert_eq!((brief(longest).as_str(), brief(""), brief("a\n")), (longest, String::new(), "a\\n".into()));
        assert_eq!(brief("445da6az1s345z78-dazcczb2542zv51a-e0vc5fva17480im9"), "445d…");
        assert_eq!(brief(&"é".repeat(21)), "éééé…");
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(harmless("a\u{1b}[31m\n\u{9b}b"), "a\\u{1b}[31m\\n\\u{9b}b");
        assert_eq!(harmless("Привіт = \"\\\""), "Привіт = \"\\\"");
    }
}
