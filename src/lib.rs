//! HBONE for programs that carry other programs' traffic: TCP streams through HTTP/2 CONNECT over mutual TLS with SPIFFE
//! identities, singly and nested.
//!
//! # The model
//!
//! HBONE is *a byte stream in, a byte stream out*:
//!
//! ```text
//!  any byte stream            TLS 1.3, ALPN h2            HTTP/2                   one tunnel
//!  (TCP, a pipe, ...)  ──▶  tls::Connector::connect ──▶  client::handshake  ──▶  Client::connect  ──▶  TunnelStream
//!                           tls::Acceptor::accept   ──▶  server::handshake  ──▶  Server::accept   ──▶  TunnelStream
//! ```
//!
//! A [`TunnelStream`] **is** a byte stream again, so a nested tunnel is the same functions called once more on a tunnel, at
//! any depth; [`nested::extend`] does just that. Across clusters two tunnels are nested: the outer one ends at the far
//! cluster's east-west gateway, the inner one at the destination. The gateway passes the inner one on as opaque bytes:
//!
//! ```text
//!  client ═══════════ outer: mutual TLS, HTTP/2 ═══════════ gateway
//!    ║                                                         │ (picks a pod by service name)
//!    ╚═══════ inner: mutual TLS, HTTP/2, end to end ═══════════╧═══════════════ destination
//! ```
//!
//! Identity is checked at both ends of both, before a byte of HTTP/2; there is no plaintext fallback anywhere.
//!
//! Nothing here spawns, except the roles of [`proxy`] and the listener of [`service`]: a handshake returns a cheap handle and
//! a driver, or a server to be polled, and the caller decides where these run. Decisions (routes, identities, policies,
//! balancing) are pure functions over a [`mesh::Snapshot`].
//!
//! # A tunnel inside a tunnel
//!
//! ```
#![doc = include_str!("../examples/echo.rs")]
//! ```
//!
//! # Where to look
//!
//! | To | see |
//! |---|---|
//! | open and accept tunnels | [`client`], [`server`], [`TunnelStream`], [`nested`] |
//! | set limits and timeouts | [`Config`] |
//! | bring certificates | [`tls::CredentialSource`], [`tls::Credentials`] |
//! | say and read who a connection is for | [`metadata`] |
//! | move bytes | [`io`] |
//! | route by a mesh | [`mesh`], [`route`], [`balance`], [`policy`] |
//! | run a proxy | [`proxy`] |
//! | serve or call HTTP without one | [`service`] |
//! | end without losing anything | [`drain`] |
//! | know what failed | [`Error`], [`Refusal`] |
//!
//! # Features
//!
//! | Feature | Default | Meaning |
//! |---|---|---|
//! | `aws-lc-rs` | yes | TLS by aws-lc-rs, with X25519MLKEM768 offered first. Wins when both providers are on. |
//! | `ring` | no | TLS by ring, without post-quantum key exchange. |
//! | `mesh-file` | yes | [`mesh::Snapshot::load`]: the mesh from a YAML file. |
//! | `proxy` | yes | The roles, over tokio's TCP. |
//! | `tower` | no | [`service`]: HTTP servers and clients on HBONE, for hyper, axum and tonic. |
//! | `test-util` | no | An in-memory network and a throwaway certificate authority. |

pub mod balance;
pub mod client;
pub mod connector;
pub mod drain;
pub mod io;
pub mod mesh;
pub mod metadata;
pub mod nested;
pub mod policy;
pub mod pool;
#[cfg(feature = "proxy")]
pub mod proxy;
pub mod route;
pub mod server;
#[cfg(feature = "tower")]
pub mod service;
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

// Runs the README's examples with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
