//! Integration tests: whole tunnels over pipes, TCP and Unix sockets.

mod bulk;
mod ends;
mod harness;

mod bad_answers;
mod bad_input;
mod frames;
mod handshakes;
mod identity;
mod peers;
