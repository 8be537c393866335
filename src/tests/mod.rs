//! Integration tests: whole tunnels over pipes, TCP and Unix sockets.

mod bulk;
mod ends;
mod harness;

mod any_bytes;
mod bad_answers;
mod bad_input;
mod credentials;
mod frames;
mod handshakes;
mod identity;
mod layering;
mod peers;
mod rust_source;
