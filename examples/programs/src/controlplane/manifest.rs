//! Manifests: YAML documents with one object each, as `kubectl` takes them.

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::kinds::{
    AuthorizationPolicy, Bare, ConfigMap, EndpointSlice, Gateway, Metadata, PeerAuthentication, Pod, Service,
    ServiceEntry, WorkloadEntry,
};

/// An object that the control plane reads.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the kinds, by name")]
pub enum Object {
    AuthorizationPolicy(AuthorizationPolicy),
    ConfigMap(ConfigMap),
    EndpointSlice(EndpointSlice),
    Gateway(Gateway),
    Namespace(Bare),
    Node(Bare),
    PeerAuthentication(PeerAuthentication),
    Pod(Box<Pod>),
    Service(Box<Service>),
    ServiceEntry(ServiceEntry),
    WorkloadEntry(WorkloadEntry),
}

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, or another source.
    pub source: String,
    /// The line, counted from 1. 0 is not known.
    pub line: usize,
    /// Kind, namespace and name, as far as they are known.
    pub object: String,
    /// What is wrong.
    pub reason: String,
}

/// The head of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    kind: String,
    metadata: Metadata,
}

impl Object {
    /// Its name and labels.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Gateway(object) => &object.metadata,
            Self::Namespace(object) | Self::Node(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::WorkloadEntry(object) => &object.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Self::AuthorizationPolicy(object) => &mut object.metadata,
            Self::ConfigMap(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Gateway(object) => &mut object.metadata,
            Self::Namespace(object) | Self::Node(object) => &mut object.metadata,
            Self::PeerAuthentication(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::ServiceEntry(object) => &mut object.metadata,
            Self::WorkloadEntry(object) => &mut object.metadata,
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AuthorizationPolicy(_) => "AuthorizationPolicy",
            Self::ConfigMap(_) => "ConfigMap",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::Gateway(_) => "Gateway",
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::PeerAuthentication(_) => "PeerAuthentication",
            Self::Pod(_) => "Pod",
            Self::Service(_) => "Service",
            Self::ServiceEntry(_) => "ServiceEntry",
            Self::WorkloadEntry(_) => "WorkloadEntry",
        }
    }

    /// Kind, namespace and name: no two objects of a cluster have the same.
    pub fn describe(&self) -> String {
        describe(self.kind(), self.metadata())
    }

    /// Reads an object of a kind. `None` for kinds that say nothing here.
    ///
    /// # Errors
    ///
    /// What the deserializer says of it.
    pub fn read<E>(kind: &str, read: impl ReadAs<E>) -> Result<Option<Self>, E> {
        let mut object = match kind {
            "AuthorizationPolicy" => Self::AuthorizationPolicy(read.read_as()?),
            "ConfigMap" => Self::ConfigMap(read.read_as()?),
            "EndpointSlice" => Self::EndpointSlice(read.read_as()?),
            "Gateway" => Self::Gateway(read.read_as()?),
            "Namespace" => Self::Namespace(read.read_as()?),
            "Node" => Self::Node(read.read_as()?),
            "PeerAuthentication" => Self::PeerAuthentication(read.read_as()?),
            "Pod" => Self::Pod(Box::new(read.read_as()?)),
            "Service" => Self::Service(Box::new(read.read_as()?)),
            "ServiceEntry" => Self::ServiceEntry(read.read_as()?),
            "WorkloadEntry" => Self::WorkloadEntry(read.read_as()?),
            _ => return Ok(None),
        };
        let is_namespaced = !matches!(object, Self::Namespace(_) | Self::Node(_));
        let metadata = object.metadata_mut();
        if is_namespaced && metadata.namespace.is_empty() {
            metadata.namespace = "default".into();
        }
        Ok(Some(object))
    }
}

/// Reads a document as whatever type is asked for.
pub trait ReadAs<E> {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What does not fit the type.
    fn read_as<T: DeserializeOwned>(self) -> Result<T, E>;
}

impl ReadAs<serde_saphyr::Error> for &str {
    fn read_as<T: DeserializeOwned>(self) -> Result<T, serde_saphyr::Error> {
        serde_saphyr::from_str(self)
    }
}

/// The line that an error is about, which has the field and the value.
fn excerpt(document: &str, line: usize) -> &str {
    line.checked_sub(1).and_then(|before| document.lines().nth(before)).unwrap_or_default().trim()
}

/// Reads all documents of a file. What is wrong with one of them does not touch the others.
pub fn parse(source: &str, text: &str) -> (Vec<Object>, Vec<Problem>) {
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for (first_line, document) in documents(text) {
        match read(document) {
            Ok(Some(object)) => objects.push(object),
            Ok(None) => {}
            Err(failed) => {
                let (object, error) = *failed;
                let line = error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(0));
                let reason = match excerpt(document, line) {
                    "" => first_sentence(&error.to_string()),
                    at => format!("{}, in {at:?}", first_sentence(&error.to_string())),
                };
                problems.push(Problem { source: source.into(), line: first_line + line, object, reason });
            }
        }
    }
    (objects, problems)
}

/// The error, and the object that has it.
fn read(document: &str) -> Result<Option<Object>, Box<(String, serde_saphyr::Error)>> {
    let is_empty = |line: &str| matches!(line.trim_start().chars().next(), None | Some('#'));
    if document.lines().all(is_empty) {
        return Ok(None);
    }
    let Head { kind, metadata } = document.read_as().map_err(|error| Box::new((String::new(), error)))?;
    let object = Object::read(&kind, document).map_err(|error| Box::new((describe(&kind, &metadata), error)))?;
    Ok(object)
}

fn describe(kind: &str, metadata: &Metadata) -> String {
    match &*metadata.namespace {
        "" => format!("{kind} {}", metadata.name),
        namespace => format!("{kind} {namespace}/{}", metadata.name),
    }
}

/// The documents of a file, each with the number of lines before it.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let (mut found, mut start, mut start_line, mut offset) = (Vec::new(), 0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        // At the beginning of a line this ends a document even inside a block of text.
        if line.trim_end() == "---" || line.starts_with("--- ") {
            found.push((start_line, &text[start..offset]));
            (start, start_line) = (offset + line.len(), number + 1);
        }
        offset += line.len();
    }
    found.push((start_line, &text[start..]));
    found
}

/// Without the excerpt that follows.
fn first_sentence(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    // The line stands before, counted in the file and not in the document.
    line.rsplit_once(": ").map_or(line, |(_, reason)| reason).trim().into()
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.object.is_empty() {
            write!(f, ": {}", self.object)?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_document_is_an_object_and_unknown_kinds_and_fields_are_left_out() {
        let text = "# a comment\n---\nkind: Pod\nmetadata: {name: a}\nspec: {odd: 1}\n---\nkind: Deployment\nmetadata: {name: d}\n\
                    ---\n# nothing\n---\nkind: Namespace\nmetadata: {name: n}\n";
        let (objects, problems) = parse("f.yaml", text);
        assert_eq!(problems, []);
        let names: Vec<_> = objects.iter().map(|o| (&*o.metadata().namespace, &*o.metadata().name)).collect();
        assert_eq!(names, [("default", "a"), ("", "n")]);
    }

    #[test]
    fn a_bad_document_is_reported_with_file_line_and_object_and_the_others_are_read() {
        let text = "kind: Service\nmetadata: {name: a, namespace: shop}\nspec:\n  ports:\n  - port: many\n---\nkind: Pod\nmetadata: {name: b}\n";
        let (objects, problems) = parse("f.yaml", text);
        assert_eq!(objects.len(), 1);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        let said = problem.to_string();
        assert!(said.starts_with("f.yaml:5: Service shop/a: ") && said.contains("many"), "{said}");
    }
}
