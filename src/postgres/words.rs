//! A text of SQL in words, as far as telling statements and their kinds apart needs it.

/// A part of a text that means something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub kind: Kind,
    /// Bytes of the text.
    pub start: usize,
    pub end: usize,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A name or key word, in lower case.
    Plain(String),
    /// What stands in quotation marks: a name.
    Quoted(String),
    /// What stands in apostrophes or between dollar signs: a text.
    Text(String),
    Number(String),
    Sign(char),
}

impl Word {
    /// Whether it is this key word.
    pub fn is(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Plain(plain) if plain == word)
    }

    /// As a name.
    pub fn name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Plain(name) | Kind::Quoted(name) => Some(name),
            _ => None,
        }
    }

    /// As the value of a setting.
    pub fn value(&self) -> Option<&str> {
        match &self.kind {
            Kind::Plain(value) | Kind::Quoted(value) | Kind::Text(value) | Kind::Number(value) => Some(value),
            Kind::Sign(_) => None,
        }
    }
}

/// The statements of a text, each by its words; none that has no word. What is left open goes on to the end.
pub fn statements(sql: &str) -> Vec<Vec<Word>> {
    let mut all = Vec::new();
    let mut words = Vec::new();
    let mut at = 0;
    while let Some((kind, start, end)) = next(sql, at) {
        at = end;
        if kind == Kind::Sign(';') {
            all.push(std::mem::take(&mut words));
        } else {
            words.push(Word { kind, start, end });
        }
    }
    all.push(words);
    all.retain(|words| !words.is_empty());
    all
}

fn next(sql: &str, mut at: usize) -> Option<(Kind, usize, usize)> {
    loop {
        let rest = &sql[at..];
        let first = rest.chars().next()?;
        if first.is_whitespace() {
            at += first.len_utf8();
        } else if rest.starts_with("--") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += comment(rest);
        } else {
            let (kind, length) = word(rest, first);
            return Some((kind, at, at + length));
        }
    }
}

/// The length of a comment, with those within it.
fn comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn word(text: &str, first: char) -> (Kind, usize) {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let length = |is: &dyn Fn(char) -> bool| text.find(|c| !is(c)).unwrap_or(text.len());
    match first {
        '\'' => quoted(text, 0, '\'', false, Kind::Text),
        '"' => quoted(text, 0, '"', false, Kind::Quoted),
        'e' | 'E' if text[1..].starts_with('\'') => quoted(text, 1, '\'', true, Kind::Text),
        '$' => match dollar(text) {
            Some(found) => found,
            None => (Kind::Sign('$'), 1),
        },
        first if first.is_ascii_digit() => {
            let length = length(&|c| c.is_ascii_alphanumeric() || c == '.');
            (Kind::Number(text[..length].to_owned()), length)
        }
        first if first.is_alphabetic() || first == '_' => {
            let length = length(&is_part);
            (Kind::Plain(text[..length].to_lowercase()), length)
        }
        sign => (Kind::Sign(sign), sign.len_utf8()),
    }
}

/// What stands between two marks, of which one within is written twice.
fn quoted(text: &str, before: usize, mark: char, escapes: bool, kind: fn(String) -> Kind) -> (Kind, usize) {
    let mut inner = String::new();
    let mut rest = text[before + 1..].char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        if c == '\\' && escapes {
            inner.extend(rest.next().map(|(_, escaped)| escaped));
        } else if c == mark {
            if rest.peek().is_none_or(|(_, next)| *next != mark) {
                return (kind(inner), before + 1 + at + 1);
            }
            rest.next();
            inner.push(mark);
        } else {
            inner.push(c);
        }
    }
    (kind(inner), text.len())
}

/// `$tag$ … $tag$`.
fn dollar(text: &str) -> Option<(Kind, usize)> {
    let tag = text[1..].find('$').map(|end| &text[..end + 2])?;
    let name = &tag[1..tag.len() - 1];
    if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let inner = &text[tag.len()..];
    let end = inner.find(tag);
    let length = end.map_or(text.len(), |end| tag.len() + end + tag.len());
    Some((Kind::Text(inner[..end.unwrap_or(inner.len())].to_owned()), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(sql: &str) -> Vec<&str> {
        statements(sql).iter().map(|words| &sql[words[0].start..words[words.len() - 1].end]).collect()
    }

    #[test]
    fn statements_are_told_apart() {
        assert_eq!(cut("select 1; select 2 ;;"), ["select 1", "select 2"]);
        assert_eq!(cut(" ; -- nothing; here\n /* nor; /* here; */ ; */ "), Vec::<&str>::new());
        assert_eq!(cut("select ';', \";\", $a$;$a$, e'\\';' ; x"), ["select ';', \";\", $a$;$a$, e'\\';'", "x"]);
        assert_eq!(cut("select 'it''s; ü'; y"), ["select 'it''s; ü'", "y"]);
        assert_eq!(cut("select 'open; x"), ["select 'open; x"]);
        assert_eq!(cut("select $1, $2; z"), ["select $1, $2", "z"]);
    }

    #[test]
    fn words_have_their_meaning() {
        let sql = r#"SET "My Name" = 'a''b', E'c\'d', 12.5, $$e$$"#;
        let words = statements(sql).remove(0);
        let values: Vec<&str> = words.iter().filter_map(Word::value).collect();
        assert_eq!(values, ["set", "My Name", "a'b", "c'd", "12.5", "e"]);
    }
}
