//! The control plane's protocols: workload discovery over delta xDS, and certificates for CSRs.
//!
//! A [`Store`](crate::mesh::Store) can be kept by a control plane instead of a file.

mod client;
mod decode;
pub mod delta;
pub mod proto;
mod server;
pub mod view;

#[cfg(test)]
mod tests;

pub use self::client::{Client, ClientConfig, ClientStatus, Demand};
pub use self::decode::{DecodeError, policy, resource, service, workload};
pub use self::server::{Admit, DiscoveryServer, Publisher};
