//! HBONE tunnels, singly and nested.

pub mod balance;
pub mod client;
pub mod drain;
pub mod io;
pub mod mesh;
pub mod metadata;
pub mod nested;
pub mod policy;
#[cfg(feature = "proxy")]
pub mod proxy;
pub mod route;
pub mod server;
#[cfg(feature = "test-util")]
pub mod testing;
pub mod tls;

mod authority;
mod config;
mod conn;
mod error;
mod identity;
mod path;
mod refusal;
#[cfg(test)]
mod tests;
mod tunnel;

pub use crate::authority::{Authority, AuthorityError, HostPort};
pub use crate::config::Config;
pub use crate::error::{Error, ErrorKind, Layer, Result, Side};
pub use crate::identity::{AcceptedIdentities, SpiffeId, SpiffeIdError, TrustDomain, TrustDomains};
pub use crate::path::{DirectHop, Path, Reuse, TunnelledHop};
pub use crate::refusal::{Refusal, RefusalReason};
pub use crate::tunnel::{ResetReason, TunnelRecv, TunnelSend, TunnelStream};
