//! Integration tests: whole tunnels over pipes, TCP and Unix sockets.

mod bulk;
mod ends;
mod harness;
#[cfg(all(feature = "mesh-file", feature = "proxy"))]
mod roles;
