//! For tests and demos: an in-memory network, a path with delay and rate, and a throwaway SPIFFE certificate authority.

mod ca;
mod link;
mod network;

pub use ca::{Ca, Issued, Issuing};
pub use link::{Link, LinkEnd};
pub use network::{Network, NetworkListener};
