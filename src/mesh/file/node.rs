//! YAML as a tree in which every value knows its line, and readers that name line and field in each error.
//!
//! Derived `Deserialize` would give the line of an error, and not the field.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Spanned, Tagged};

use crate::error::Error;

/// A value with its line and, where it has one, its tag.
pub(super) struct Node {
    line: u64,
    tag: Option<String>,
    value: Value,
}

enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

struct Entry {
    line: u64,
    key: String,
    node: Node,
}

/// A place in the file: a node and the way to it.
#[derive(Clone)]
pub(super) struct At<'a> {
    path: String,
    node: &'a Node,
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) line: u64,
    pub(super) field: String,
    pub(super) reason: String,
}

/// The fields of a map, all of which have names that are known.
pub(super) struct Fields<'a> {
    at: At<'a>,
    entries: &'a [Entry],
}

/// Reads the text of a file.
pub(super) fn parse(file: &str, text: &str) -> Result<Node, Error> {
    // A whole mesh is far bigger than what the library's limits are made for, and the file is the operator's own. The
    // limit on depth stays.
    let budget = serde_saphyr::budget! { max_events: usize::MAX, max_nodes: usize::MAX };
    let options = serde_saphyr::options! {
        budget: budget,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let line = error.location().map_or(1, |l| l.line());
        let text = error.to_string();
        // The library repeats the place at the end.
        let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
        Error::invalid(format!("{file}:{line}: {text}"))
    })
}

impl Node {
    /// The place of the whole file.
    pub(super) fn root(&self) -> At<'_> {
        At { path: String::new(), node: self }
    }
}

impl<'a> At<'a> {
    /// An error about this place. `message` goes on after the name of the field.
    pub(super) fn error(&self, message: impl fmt::Display) -> Fault {
        Fault::new(self.node.line, &self.path, message)
    }

    fn is_not(&self, what: impl fmt::Display) -> Fault {
        self.error(format_args!("{} is not {what}", self.node.value))
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tag without its exclamation mark.
    pub(super) fn tag(&self) -> Option<&'a str> {
        self.node.tag.as_deref().and_then(|tag| tag.strip_prefix('!'))
    }

    pub(super) fn text(&self) -> Result<&'a str, Fault> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                Err(self.error(format_args!("{} is not a text; write it in quotes", self.node.value)))
            }
            _ => Err(self.is_not("a text")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Fault> {
        match self.node.value {
            Value::Bool(value) => Ok(value),
            _ => Err(self.is_not("true or false")),
        }
    }

    pub(super) fn number<T: TryFrom<i128> + fmt::Display>(&self, max: T) -> Result<T, Fault> {
        let number = match self.node.value {
            Value::Integer(number) => T::try_from(number).ok(),
            // JSON of protobuf may have numbers in quotes.
            Value::Text(ref text) if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().ok().and_then(|number: i128| T::try_from(number).ok())
            }
            _ => None,
        };
        number.ok_or_else(|| self.is_not(format_args!("a number from 0 to {max}")))
    }

    /// A text that another type is parsed from; `what` says what it should be.
    pub(super) fn parse<T: FromStr>(&self, what: &str) -> Result<T, Fault> {
        self.text()?.parse().map_err(|_| self.is_not(what))
    }

    /// One of some words. Neither upper and lower case nor `-` and `_` matter: the file writes `AllowAll` what WDS
    /// writes `ALLOW_ALL`.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Fault> {
        let text = self.text()?;
        words.iter().find(|(word, _)| same_word(word, text)).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.is_not(format_args!("one of {}", words.join(", ")))
        })
    }

    pub(super) fn list(&self) -> Result<impl Iterator<Item = At<'a>> + use<'a>, Fault> {
        let Value::List(list) = &self.node.value else {
            return Err(self.is_not("a list"));
        };
        let path = self.path.clone();
        Ok(list.iter().enumerate().map(move |(i, node)| At { path: format!("{path}[{i}]"), node }))
    }

    /// The entries of a map with keys of any kind: key, its own place, value.
    pub(super) fn entries(&self) -> Result<impl Iterator<Item = (&'a str, At<'a>)> + use<'a>, Fault> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.is_not("a map"));
        };
        let path = self.path.clone();
        Ok(entries.iter().map(move |e| {
            let at = At { path: format!("{path}[{}]", e.key), node: &e.node };
            (&*e.key, at)
        }))
    }

    /// The map, whatever its keys.
    pub(super) fn any_fields(self) -> Result<Fields<'a>, Fault> {
        match &self.node.value {
            Value::Map(entries) => Ok(Fields { entries, at: self }),
            _ => Err(self.is_not("a map")),
        }
    }

    /// The map, whose keys must all be in `known`.
    pub(super) fn fields(self, known: &[&str]) -> Result<Fields<'a>, Fault> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.is_not("a map"));
        };
        for (i, entry) in entries.iter().enumerate() {
            let path = join(&self.path, &entry.key);
            if !known.iter().any(|k| same_word(k, &entry.key)) {
                return Err(Fault::new(entry.line, &path, "no such field"));
            }
            if entries[..i].iter().any(|e| same_word(&e.key, &entry.key)) {
                return Err(Fault::new(entry.line, &path, "is set twice"));
            }
        }
        Ok(Fields { at: self, entries })
    }
}

impl<'a> Fields<'a> {
    /// The field, unless it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<At<'a>> {
        let entry = self.entries.iter().find(|e| same_word(&e.key, name))?;
        let at = At { path: join(&self.at.path, &entry.key), node: &entry.node };
        (!at.is_null()).then_some(at)
    }

    /// The field under one of two names.
    pub(super) fn either(&self, name: &str, other: &str) -> Result<Option<At<'a>>, Fault> {
        match (self.get(name), self.get(other)) {
            (Some(_), Some(at)) => Err(at.error(format_args!("means the same as {name}, which is set too"))),
            (one, two) => Ok(one.or(two)),
        }
    }

    /// An error about the map itself.
    pub(super) fn error(&self, message: impl fmt::Display) -> Fault {
        self.at.error(message)
    }

    /// The field, which has to be there.
    pub(super) fn require(&self, name: &str) -> Result<At<'a>, Fault> {
        self.get(name).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Fault {
        Fault::new(self.at.node.line, &join(&self.at.path, name), "is missing")
    }

    /// The text of a field, empty if it is missing.
    pub(super) fn text(&self, name: &str) -> Result<&'a str, Fault> {
        self.get(name).map_or(Ok(""), |at| at.text())
    }

    /// The text of a field that has to be there and not be empty.
    pub(super) fn require_text(&self, name: &str) -> Result<&'a str, Fault> {
        match self.require(name)?.text()? {
            "" => Err(self.missing(name)),
            text => Ok(text),
        }
    }

    /// The items of a list, none if it is missing.
    pub(super) fn list(&self, name: &str) -> Result<Vec<At<'a>>, Fault> {
        self.get(name).map_or(Ok(Vec::new()), |at| Ok(at.list()?.collect()))
    }
}

impl Fault {
    fn new(line: u64, path: &str, reason: impl fmt::Display) -> Self {
        let field = if path.is_empty() { "the file" } else { path };
        Self { line, field: field.to_owned(), reason: reason.to_string() }
    }

    /// As an error about this file.
    pub(super) fn in_file(&self, file: &str) -> Error {
        Error::invalid(format!("{file}:{self}"))
    }
}

/// Line, field and reason; the file is to be put in front.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.line, self.field, self.reason)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Whether two words are the same, whatever their case and with or without `-` and `_`.
pub(super) fn same_word(a: &str, b: &str) -> bool {
    fn letters(text: &str) -> impl Iterator<Item = u8> {
        text.bytes().filter(|b| !matches!(b, b'_' | b'-')).map(|b| b.to_ascii_lowercase())
    }
    letters(a).eq(letters(b))
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tagged<Value>>::deserialize(deserializer)?;
        let Tagged(value, tag) = spanned.value;
        Ok(Self { line: spanned.referenced.line(), tag, value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            entries.push(Entry { line: key.referenced.line(), key: key.value, node: access.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}

/// What is quoted of a value at most.
const MAX_QUOTED: usize = 40;

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => value.fmt(f),
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            // A file given by mistake may be a key: no more of it is shown than it takes to find the place.
            Self::Text(text) => match text.char_indices().nth(MAX_QUOTED) {
                Some((end, _)) => write!(f, "{:?}...", &text[..end]),
                None => write!(f, "{text:?}"),
            },
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a map"),
        }
    }
}
