//! For tests and demos: an in-memory network, and a throwaway SPIFFE certificate authority.

mod ca;
mod network;

pub use ca::{Ca, Issued, Issuing};
pub use network::{Network, NetworkListener};
