//! Headers that are parsed only when needed.

use std::sync::OnceLock;

use http::HeaderMap;

use super::Metadata;

/// A peer's metadata, parsed on first use: a proxy that only relays bytes mostly does not need it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Received {
    headers: HeaderMap,
    read: OnceLock<Box<Metadata>>,
}

impl Received {
    pub(crate) fn new(headers: HeaderMap) -> Self {
        Self { headers, read: OnceLock::new() }
    }

    pub(crate) fn get(&self) -> &Metadata {
        self.read.get_or_init(|| Box::new(Metadata::from_headers(&self.headers)))
    }
}
