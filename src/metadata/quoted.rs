//! Quoted strings, as RFC 9110 (section 5.6.4) and RFC 9651 (section 3.3.3) share them.

/// Whether `byte` may stand in a token (RFC 9110, section 5.6.2).
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Splits at a separator that stands outside of quotes. What follows a quote that is never closed is one piece.
pub(super) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    #[derive(Clone, Copy, PartialEq)]
    enum Place {
        Outside,
        Quoted,
        Escaped,
        /// A display string, `%"..."` (RFC 9651, section 3.3.8): a backslash escapes nothing in it.
        Display,
    }

    let mut place = Place::Outside;
    let mut previous = None;
    text.split(move |c: char| {
        let found = c == separator && place == Place::Outside;
        place = match (place, c) {
            (Place::Outside, '"') if previous == Some('%') => Place::Display,
            (Place::Outside, '"') => Place::Quoted,
            (Place::Quoted, '\\') => Place::Escaped,
            (Place::Escaped, _) => Place::Quoted,
            (Place::Quoted | Place::Display, '"') => Place::Outside,
            (unchanged, _) => unchanged,
        };
        previous = Some(c);
        found
    })
}

/// The text of a string in quotes; `None` when `text` is not exactly one such string.
pub(super) fn unquote(text: &str) -> Option<String> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut unquoted = String::with_capacity(text.len());
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => unquoted.push(chars.next()?),
            c => unquoted.push(c),
        }
    }
    chars.next().is_none().then_some(unquoted)
}

/// Puts `text` in quotes. Control characters must not be in it: no quoting makes them legal.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", &[""])]
    #[case("a;b;;c", &["a", "b", "", "c"])]
    #[case(r#"a=";";b"#, &[r#"a=";""#, "b"])]
    #[case(r#"a="\";";b"#, &[r#"a="\";""#, "b"])]
    #[case(r#"a="\\";b"#, &[r#"a="\\""#, "b"])]
    #[case(r#"a=%"\";b"#, &[r#"a=%"\""#, "b"])]
    #[case(r#"a=%";";b"#, &[r#"a=%";""#, "b"])]
    #[case(r#"a;b=";c"#, &["a", r#"b=";c"#])]
    fn separators_inside_quotes_do_not_split(#[case] text: &str, #[case] pieces: &[&str]) {
        assert_eq!(split(text, ';').collect::<Vec<_>>(), pieces);
    }

    #[rstest]
    #[case("")]
    #[case("a")]
    #[case(r#"""#)]
    #[case(r#""a"#)]
    #[case(r#""a"b"#)]
    #[case(r#""a\""#)]
    #[case(r#""a" "#)]
    fn what_is_not_one_quoted_string_has_no_text(#[case] text: &str) {
        assert_eq!(unquote(text), None);
    }

    proptest! {
        #[test]
        fn a_quoted_text_comes_back_and_is_one_piece(text in ".{0,40}", separator in "[,;]") {
            let quoted = quote(&text);
            prop_assert_eq!(split(&quoted, separator.chars().next().unwrap()).count(), 1);
            prop_assert_eq!(unquote(&quoted), Some(text));
        }
    }
}
