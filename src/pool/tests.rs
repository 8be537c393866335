//! The pool over an in-memory network, with real TLS.

mod cancelled;
mod credentials;
mod dead;
mod ends;
mod limits;
mod lost;
mod nested;
mod observed;
mod replay;
mod round_trips;
mod spread;
mod world;
