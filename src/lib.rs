//! HBONE tunnels, singly and nested.

mod authority;
pub mod balance;
mod error;
mod identity;
pub mod mesh;
mod path;
pub mod policy;
mod refusal;
pub mod route;

pub use crate::authority::{Authority, AuthorityError, HostPort};
pub use crate::error::{Error, ErrorKind, Layer, Result, Side};
pub use crate::identity::{AcceptedIdentities, SpiffeId, SpiffeIdError, TrustDomain, TrustDomains};
pub use crate::path::{DirectHop, Path, Reuse, TunnelledHop};
pub use crate::refusal::{Refusal, RefusalReason};
