//! Integration tests: whole tunnels over pipes, TCP and Unix sockets.

mod bulk;
mod ends;
mod flow;
mod goaway;
mod harness;
mod limits;
mod raw;
mod silence;
mod wire;
