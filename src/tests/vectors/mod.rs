//! The test vectors of `docs/vectors`, which go with `docs/wire.md`, replayed on this implementation.

#[cfg(feature = "mesh-file")]
mod decisions;
mod hpack;
mod peer;
mod player;
mod script;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;
use serde::de::DeserializeOwned;

use player::play;
use script::Session;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/vectors")
}

/// A file of vectors.
fn load<T: DeserializeOwned>(name: &str) -> T {
    let path = directory().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_else(|| panic!("{text:?} is not hexadecimal")) as u8;
    assert!(text.len().is_multiple_of(2), "{text:?} ends within a byte");
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Each session is a test of its own, named after its file.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_session_goes_as_its_vector_says(#[files("docs/vectors/sessions/*.json")] path: PathBuf) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let session: Session = load(&format!("sessions/{name}"));
    play(&session).await;
}
