//! The three roles of a mesh proxy.
//!
//! * [`Outbound`]: an application's plain connection goes into a tunnel.
//! * [`Inbound`]: a tunnel ends, and goes on as a plain connection to the application of its workload.
//! * [`Gateway`]: a tunnel from another network is passed on to a pod, as opaque bytes: the session inside it is
//!   between the client and the pod, and the gateway holds no key for it.
//!
//! Each role serves one byte stream at a time, of any kind, and is shared by all of them. [`Inbound`] and [`Gateway`]
//! serve connections by a [`ConnectionServer`](crate::server::ConnectionServer), whose registry says who is connected.
//! [`tcp`] has what sockets need: dialing, listening, capture; [`Workers`] are threads for them. Nothing is plaintext
//! between workloads: where a tunnel can't be built, the connection fails.

pub mod socks5;
pub mod tcp;

mod gateway;
mod inbound;
mod outbound;
mod ports;
mod reset_on_drop;
mod splice;
#[cfg(test)]
mod tests;
mod token;
mod unreachable;
mod workers;

pub use gateway::Gateway;
pub use inbound::Inbound;
pub use outbound::Outbound;
pub use workers::{WorkerSet, Workers};
