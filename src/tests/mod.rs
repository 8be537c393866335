//! Integration tests: whole tunnels over pipes, TCP and Unix sockets.

pub(crate) mod harness;
mod peers;
pub(crate) mod raw;
mod rust_source;

mod any_bytes;
mod bad_answers;
mod bad_input;
mod bulk;
mod content_length;
mod credentials;
mod ends;
mod flow;
mod frames;
mod goaway;
mod handshakes;
mod identity;
mod last_bytes;
mod layering;
mod limits;
mod long_path;
mod relay;
#[cfg(all(feature = "mesh-file", feature = "proxy"))]
mod roles;
mod server;
#[cfg(feature = "tower")]
mod service;
mod silence;
mod vectors;
mod windows;
mod wire;
