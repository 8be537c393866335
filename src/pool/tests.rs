//! The pool over an in-memory network, with real TLS.

mod cancelled;
mod dead;
mod ends;
mod limits;
mod nested;
#[cfg(all(feature = "mesh-file", feature = "proxy"))]
#[cfg(any())]
mod spread;
mod world;
