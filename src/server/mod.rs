//! Servers, from one byte stream to many connections.
//!
//! * [`handshake`] and [`Server`]: HTTP/2 on a byte stream of any kind, polled by the caller. Nothing is spawned.
//! * [`ConnectionServer`]: whole connections, with TLS, a task for each tunnel, and a drain. For an accept loop of your
//!   own.
//! * [`Listener`]: an accept loop around it, which hands out tunnels or has each served.
//!
//! Both keep a registry of their live [`Connections`], and tell an [`Observer`](crate::observe::Observer) what happens.
//!
//! # Dial first, then answer
//!
//! A 200 promises that the far side is there, so a tunnel is handed out as [`Incoming`], before its answer:
//!
//! ```
//! use hbone::io::{Accept, BytesAdapter, Dial, DialRequest, relay};
//! use hbone::metadata::Metadata;
//! use hbone::server::{ConnectionServer, Listener};
//! use hbone::{DialTarget, Refusal, RefusalReason, drain};
//!
//! /// Leads tunnels to where they ask for, until the drain has ended.
//! async fn serve(accept: impl Accept, server: ConnectionServer, dialer: impl Dial + Clone + 'static, drain: drain::Watch) {
//!     let lead = move |incoming: hbone::server::Incoming| {
//!         let dialer = dialer.clone();
//!         async move {
//!             let target = DialTarget::from(incoming.authority().clone());
//!             let Ok(stream) = dialer.dial(&DialRequest::new(&target)).await else {
//!                 return incoming.reject(&Refusal::new(RefusalReason::ConnectionRefused));
//!             };
//!             if let Ok(mut tunnel) = incoming.accept(&Metadata::default()) {
//!                 let _ = relay(&mut tunnel, &mut BytesAdapter::new(stream)).await;
//!             }
//!         }
//!     };
//!     Listener::new(accept, server).with_drain(drain).serve(lead).await;
//! }
//! ```

mod accept;
mod connection;
mod http2;
mod incoming;
mod listener;
mod registry;

#[cfg(feature = "proxy")]
pub(crate) use accept::{Accepting, accept_each};
pub use connection::ConnectionServer;
pub use http2::{Builder, Server, handshake};
pub use incoming::Incoming;
pub use listener::Listener;
pub use registry::{Connections, LiveConnection, LiveTunnel};
