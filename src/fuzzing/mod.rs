//! What the fuzz targets in `fuzz/` do with their input. Compiled for fuzzing and for tests only, and no part of the
//! API.
//!
//! A target is a function of bytes that panics where something is wrong. It has no clock, threads or randomness of its
//! own, so that an input does the same each time: what has to run, runs on one thread with the clock paused.
//! `corpus.rs` runs each target over its seeds on stable.

#[cfg(test)]
mod corpus;
pub(crate) mod frames;
mod goaway;
mod headers;
mod http2;
pub(crate) mod mesh_store;
mod nested_path;
mod ours;
mod peer;
mod policy;
mod script;
#[cfg(test)]
mod seeds;
mod text;

pub use crate::pool::fuzz as pool;
pub use goaway::goaway;
pub use headers::{backend_tokens, baggage, forwarded, proxy_status, traceparent};
pub use http2::{http2_client, http2_server};
pub use mesh_store::mesh_store;
pub use nested_path::nested_path;
#[cfg(test)]
pub(crate) use peer::Setup;
pub use policy::policies;
#[cfg(test)]
pub(crate) use script::{Act, Step};
pub use text::{authority, mesh_file, spiffe_id};

/// What is done with an input.
pub type Target = fn(&[u8]);

/// All targets by the name of their program in `fuzz/fuzz_targets`.
pub const TARGETS: &[(&str, Target)] = &[
    ("authority", authority),
    ("backend_tokens", backend_tokens),
    ("baggage", baggage),
    ("forwarded", forwarded),
    ("goaway", goaway),
    ("http2_client", http2_client),
    ("http2_server", http2_server),
    ("mesh_file", mesh_file),
    ("mesh_store", mesh_store),
    ("nested_path", nested_path),
    ("policies", policies),
    ("pool", pool),
    ("proxy_status", proxy_status),
    ("spiffe_id", spiffe_id),
    ("traceparent", traceparent),
];
