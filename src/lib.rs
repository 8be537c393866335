//! HBONE for programs that carry other programs' traffic: TCP connections through HTTP/2 CONNECT over mutual TLS with
//! SPIFFE identities, singly and nested.
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
//! A [`TunnelStream`] **is** a byte stream again, so a nested tunnel is the same functions called once more on a
//! tunnel, at any depth; [`nested::extend`] does just that. Across clusters two tunnels are nested: the outer one ends
//! at the far cluster's east-west gateway, the inner one at the destination. The gateway forwards the inner one as
//! opaque bytes:
//!
//! ```text
//!  client ═══════════ outer: mutual TLS, HTTP/2 ═══════════ gateway
//!    ║                                                         │ (picks a pod by service name)
//!    ╚═══════ inner: mutual TLS, HTTP/2, end to end ═══════════╧═══════════════ destination
//! ```
//!
//! At each hop both ends verify each other's identity before a byte of HTTP/2, and nothing ever falls back to
//! plaintext. The protocol is specified in `docs/wire.md` of the repository, with test vectors.
//!
//! # A tunnel inside a tunnel
//!
//! Both sides of both sessions, over a pipe:
//!
//! ```
#![doc = include_str!("../examples/echo.rs")]
//! ```
//!
//! # From a name to a tunnel
//!
//! A program that wants to reach a service starts at the other end, with its name:
//!
//! ```text
//!  Connector::connect(name) │ ├─▶ route::outbound         mesh, health and a balancer choose an endpoint, or a gateway
//!  and the service behind it ├─▶ Pool::checkout(path)    a permit on a connection: an existing one, or one that is
//!  dialed for all who wait ├─▶ Lease::connect          CONNECT; what fails before the 200 is tried elsewhere, up to
//!  three times in all ▼ Connected { tunnel, route, identities }
//! ```
//!
//! Connections are shared at every hop, inner ones included. Where a name stands for many backends behind a gateway, the
//! pool keeps a connection to each of them and spreads the tunnels, so that sharing pins nobody to one backend.
//! [`pool`] says how.
//!
//! # Who runs what
//!
//! A handshake returns a cheap handle and a driver (or a server to be polled) and spawns nothing: the caller decides where
//! these run. What keeps many connections does spawn: a [`pool::Pool`], and with it the [`connector::Connector`],
//! [`server::Listener`], the roles of [`proxy`], and [`service`]; each says so. Decisions (routes, identities, policies,
//! balancing, which connection to use) are pure functions of a [`mesh::Snapshot`], a time, and what has happened.
//!
//! # Where to look
//!
//! | To | see |
//! |---|---|
//! | reach a service by its name | [`connector`] |
//! | open and accept tunnels | [`client`], [`server`], [`TunnelStream`], [`nested`] |
//! | share connections | [`pool`], [`Path`], [`Reuse`] |
//! | serve many connections | [`server::Listener`] |
//! | set limits and timeouts | [`Config`] |
//! | bring certificates, or a TLS stack | [`tls::CredentialSource`], [`tls::Credentials`] |
//! | say who a tunnel is for, and read it | [`metadata`] |
//! | watch what happens | [`observe`] |
//! | move bytes, or bring a transport | [`io`] |
//! | route by a mesh | [`mesh`], [`route`], [`balance`], [`policy`] |
//! | leave out what keeps failing | [`balance::health`] |
//! | follow a control plane, or be one | [`xds`] |
//! | run a proxy | [`proxy`] |
//! | serve or call HTTP without one | [`service`] |
//! | stop without losing anything | [`drain`] |
//! | know what failed | [`Error`], [`Refusal`] |
//!
//! # Features
//!
//! | Feature | Default | Meaning |
//! |---|---|---|
//! | `aws-lc-rs` | yes | TLS by aws-lc-rs, with X25519MLKEM768 offered first. The default where both providers are on. |
//! | `ring` | no | TLS by ring, without post-quantum key exchange. Without either, [hand one in](tls::provider). |
//! | `proxy` | yes | [`proxy`]: the outbound, inbound and gateway roles, over tokio's TCP. |
//! | `mesh-file` | no | The mesh from a YAML file: [`mesh::Snapshot::load`]. |
//! | `tower` | no | [`service`]: HTTP servers and clients on HBONE, for hyper, axum and tonic. |
//! | `xds` | no | [`xds`]: delta xDS, as a client and as a server, and what each cluster is told of the others. |
//! | `test-util` | no | [`testing`]: an in-memory network and a throwaway certificate authority. |
//!
//! # Cancel safety
//!
//! *Cancel safe* means: when a future is dropped before it is ready, nothing is lost, and the operation can be started
//! again. Each async function says whether it is.
//!
// What is not there leads to the feature that it needs.
#![cfg_attr(not(feature = "mesh-file"), doc = "[`mesh::Snapshot::load`]: #features")]
#![cfg_attr(not(feature = "proxy"), doc = "[`proxy`]: #features")]
#![cfg_attr(not(feature = "tower"), doc = "[`service`]: #features")]
#![cfg_attr(not(feature = "test-util"), doc = "[`testing`]: #features")]
#![cfg_attr(not(feature = "xds"), doc = "[`xds`]: #features")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(all(test, not(all(feature = "mesh-file", feature = "test-util"))))]
compile_error!("the tests need the features `mesh-file` and `test-util`: run `cargo test --all-features`");

pub mod balance;
pub mod client;
pub mod connector;
pub mod drain;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
pub mod mesh;
pub mod metadata;
pub mod nested;
pub mod observe;
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
#[cfg(feature = "xds")]
pub mod xds;

mod authority;
mod config;
mod conn;
mod error;
mod identity;
mod path;
mod refusal;
mod retry;
mod target;
#[cfg(test)]
mod tests;
mod tunnel;

pub use crate::authority::{Authority, AuthorityError, HostPort};
pub use crate::config::Config;
pub use crate::error::{Error, ErrorKind, Layer, Result, Side};
pub use crate::identity::{AcceptedIdentities, SpiffeId, SpiffeIdError, TrustDomain, TrustDomains};
pub use crate::path::{DirectHop, Path, Reuse, TunnelledHop};
pub use crate::refusal::{Refusal, RefusalError, RefusalReason};
pub use crate::target::DialTarget;
pub use crate::tunnel::{ResetReason, TunnelRecv, TunnelSend, TunnelStream};

// Runs the code of the documents with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
#[cfg(all(doctest, feature = "proxy"))]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
