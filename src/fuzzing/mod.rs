//! The bodies of the fuzz targets in `fuzz/`. Compiled for fuzzing and tests only; not part of the API.
//!
//! A target is a function of bytes that panics on a fault. It must be deterministic: no clock, no threads, no
//! randomness. Asynchronous targets run on a current-thread runtime with a paused clock. `corpus.rs` runs each target
//! over its corpus on stable.

#[cfg(test)]
mod corpus;
pub(crate) mod frames;
mod goaway;
mod headers;
mod http2;
mod local;
pub(crate) mod mesh_store;
mod nested_path;
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

/// The body of a target.
pub type Target = fn(&[u8]);

/// All targets, named as in `fuzz/fuzz_targets`.
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
