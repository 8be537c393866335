//! Headers that came and may never be looked at.

use std::sync::OnceLock;

use http::HeaderMap;

use super::Metadata;

/// What a peer said of itself, read when somebody asks: a proxy that passes bytes on mostly does not.
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
