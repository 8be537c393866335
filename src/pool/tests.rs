//! The pool over an in-memory network, with real TLS.

mod cancelled;
mod credentials;
mod dead;
mod ends;
mod limits;
mod nested;
mod round_trips;
mod spread;
mod world;
