//! HTTP on HBONE, in both directions, for the stacks that are built on hyper.
//!
//! * A server accepts tunnels from a [`Listener`] as a plain one accepts sockets. [`serve`] runs any tower service on
//!   one: an `axum::Router`, a `tonic::service::Routes`, a service of your own. No proxy stands in front of it, and
//!   each request says who sent it: its extensions hold a [`Peer`] with the verified identity.
//! * A client dials through [`Connector`](crate::connector::Connector), which is a `tower` service from a URI to a byte
//!   stream, for any client whose connector can be chosen: hyper-util's `Client::builder(..).build(connector)`, tonic's
//!   `Endpoint::connect_with_connector(connector)`. The responses of hyper-util's client have a [`Peer`], too.
//!
//! The TLS of HBONE is underneath, so what runs in a tunnel is plain HTTP, whatever the scheme of its URI.
//!
//! # axum
//!
//! ```
//! use axum::routing::get;
//! use axum::{Extension, Router};
//! use hbone::service::Peer;
//!
//! let app: Router = Router::new()
//!     .route("/", get(async |Extension(peer): Extension<Peer>| format!("hello {}", peer.identity())));
//! // service::serve(listener, app, watch).await;
//! ```
//!
//! # tonic
//!
//! A server is `service::serve(listener, tonic::service::Routes::new(my_service), watch)`, and a method finds out who
//! calls by `request.extensions().get::<Peer>()`. To use tonic's own server instead, give it the [`Listener`] as a
//! stream, with each tunnel in a type that has `tonic::transport::server::Connected`:
//!
//! ```text
//! Server::builder().add_service(..).serve_with_incoming(listener.map(|(tunnel, peer)| Ok::<_, Infallible>(Io(tunnel, peer))))
//! ```

mod connector;
mod listener;
mod peer;
mod serve;

pub use connector::ConnectorStream;
pub use listener::Listener;
pub use peer::Peer;
pub use serve::serve;
/// The versions of these crates whose traits the types of this module implement.
pub use {futures_util, hyper_util, tower_service};
