//! As much of Rust's syntax as it takes to find what a file imports.

use std::collections::HashMap;

use rstest::rstest;

/// A path that a file names, in a `use` or inline, such as `crate::tls::Connector`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    pub(super) line: usize,
    pub(super) path: Vec<String>,
}

/// The source without comments and without what is in quotes. Lines stay where they are.
pub(super) fn code(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let len = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['"', ..] => quoted(rest, '"'),
            ['r', '"' | '#', ..] if !in_word(&chars, at) => raw_string(rest),
            // A lifetime has no closing quote.
            ['\'', '\\', ..] => quoted(rest, '\''),
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if len == 0 {
            code.push(rest[0]);
            at += 1;
        } else {
            code.extend(rest[..len].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at += len;
        }
    }
    code
}

fn in_word(chars: &[char], at: usize) -> bool {
    // `br"..."` is a raw string too.
    at > 0 && chars[at - 1] != 'b' && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] if depth == 1 => return at + 2,
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            c if c == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// 0 where it is none after all, as in `r#type`.
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = &rest[2 + hashes..];
    body.windows(end.len()).position(|w| w == end).map_or(rest.len(), |n| 2 + hashes + n + end.len())
}

/// The code without the items under `#[cfg(test)]`, and the modules among them that have files of their own.
pub(super) fn without_tests(code: &str) -> (String, Vec<String>) {
    let (mut kept, mut modules) = (code.to_owned(), Vec::new());
    let mut from = 0;
    while let Some(start) = kept[from..].find("#[cfg(").map(|n| from + n) {
        let end = start + kept[start..].find(']').unwrap_or(0) + 1;
        from = end;
        let condition: Vec<_> = kept[start..end].split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if !condition.contains(&"test") || condition.contains(&"not") {
            continue;
        }
        let len = item(&kept[end..]);
        let words: Vec<_> = kept[end..end + len].split_whitespace().collect();
        if let [.., "mod", name] = words[..]
            && let Some(name) = name.strip_suffix(';')
        {
            modules.push(name.to_owned());
        }
        let blank: String = kept[start..end + len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        kept.replace_range(start..end + len, &blank);
    }
    (kept, modules)
}

/// How long the item is that `code` starts with: up to a semicolon or the end of a block.
fn item(code: &str) -> usize {
    let is_use = code.split_whitespace().find(|word| !word.starts_with("pub")) == Some("use");
    let mut depth = 0;
    for (at, c) in code.bytes().enumerate() {
        match c {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' if depth == 1 && !is_use => return at + 1,
            b'}' | b')' | b']' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// All paths of two and more segments, those from a `use` and inline ones, with what a `use` has given a name written
/// out.
pub(super) fn imports(code: &str) -> Vec<Import> {
    let tokens = tokens(code);
    let (mut used, mut inline) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = tokens[at];
        at += 1;
        if token == "use" {
            at = tree(&tokens, at, &[], &mut used);
        } else if is_word(token) && tokens.get(at).is_some_and(|t| t.1 == "::") {
            let mut path = vec![token.to_owned()];
            while let [(_, "::"), (_, word), ..] = tokens[at..]
                && is_word(word)
            {
                path.push(word.to_owned());
                at += 2;
            }
            inline.push(Import { line, path });
        }
    }
    let names: HashMap<String, Vec<String>> =
        used.iter().map(|(name, import)| (name.clone(), import.path.clone())).collect();
    for import in &mut inline {
        if let Some(full) = names.get(&import.path[0]) {
            import.path.splice(..1, full.iter().cloned());
        }
    }
    let mut all: Vec<_> = used.into_iter().map(|(_, import)| import).chain(inline).collect();
    all.retain(|import| import.path.len() > 1);
    all
}

/// Reads one tree of a `use`; returns where it ends.
fn tree(tokens: &[(usize, &str)], mut at: usize, prefix: &[String], found: &mut Vec<(String, Import)>) -> usize {
    let mut path = prefix.to_vec();
    let line = tokens.get(at).map_or(0, |t| t.0);
    let mut name = None;
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|t| t.1 != "}") {
                    at = tree(tokens, at, &path, found);
                    at += usize::from(tokens.get(at).is_some_and(|t| t.1 == ","));
                }
                return at + 1;
            }
            "as" => {
                name = tokens.get(at + 1).map(|t| t.1.to_owned());
                at += 2;
            }
            // `self` in braces is the path before them; in front it is this module.
            "self" if !path.is_empty() => at += 1,
            word if is_word(word) || word == "*" => {
                path.push(word.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
    found.push((name, Import { line, path }));
    at
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Words, `::` and single other characters, with their lines.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (line, text) in (1..).zip(code.lines()) {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let len = match first {
                ':' if rest.starts_with("::") => 2,
                c if c.is_alphanumeric() || c == '_' => {
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
                }
                c => c.len_utf8(),
            };
            tokens.push((line, &rest[..len]));
            rest = rest[len..].trim_start();
        }
    }
    tokens
}

#[rstest]
#[case("use a::b;", &["1 a::b"])]
#[case("use a::{b, c::{d, e as f}, self};", &["1 a::b", "1 a::c::d", "1 a::c::e", "1 a"])]
#[case("use a::*;\nuse ::b::c;", &["1 a::*", "2 b::c"])]
#[case("pub(crate) use crate::a::B;", &["1 crate::a::B"])]
#[case("fn f(x: a::B<c::D>) -> e::F { g::<h::I>() }", &["1 a::B", "1 c::D", "1 e::F", "1 h::I"])]
#[case("use a::b as c;\nfn f() { c::d() }", &["1 a::b", "2 a::b::d"])]
#[case("use a::b;\nfn f() { let b = x; b.c; b::d }", &["1 a::b", "2 a::b::d"])]
#[case("// a::b\n/* c::d /* e::f */ */ g::h // i::j", &["2 g::h"])]
#[case(r##"f("a::b", 'c', '"', "\"d::e", r#"f::g"h"#, b"x", '\'', i::j)"##, &["1 i::j"])]
#[case("fn f<'a>(x: &'a b::C) {}", &["1 b::C"])]
#[case("fn f() { r#type::x }", &["1 type::x"])]
fn paths_are_found(#[case] source: &str, #[case] expected: &[&str]) {
    let found = imports(&code(source));
    let mut found: Vec<_> = found.iter().map(|i| format!("{} {}", i.line, i.path.join("::"))).collect();
    // A path of one segment names nothing of another module.
    let mut expected: Vec<_> = expected.iter().filter(|e| e.contains("::")).map(|e| (*e).to_owned()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[rstest]
#[case("#[cfg(test)]\nmod tests {\n x::y { {} }\n}\nuse a::b;", "use a::b;", &[])]
#[case("#[cfg(test)]\nmod tests;\nuse a::b;", "use a::b;", &["tests"])]
#[case("#[cfg(all(test, unix))] use x::{y, z}; use a::b;", "use a::b;", &[])]
#[case("#[cfg(test)]\n#[derive(Debug)]\nstruct X([u8; 3]);\nuse a::b;", "use a::b;", &[])]
#[case("#[cfg(not(test))]\nuse a::b;", "#[cfg(not(test))]\nuse a::b;", &[])]
#[case("#[cfg(feature = \"test\")]\nuse a::b;", "#[cfg(feature =       )]\nuse a::b;", &[])]
fn tests_are_left_out(#[case] source: &str, #[case] left: &str, #[case] modules: &[&str]) {
    let (kept, found) = without_tests(&code(source));
    assert_eq!(kept.trim(), left);
    assert_eq!(kept.lines().count(), source.lines().count());
    assert_eq!(found, modules);
}
