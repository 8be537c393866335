//! Mutual TLS of one hop: TLS 1.3 only, ALPN `h2` required on both sides, no SNI, identities checked before a byte of
//! HTTP/2.
//!
//! [`Connector`] checks the server's SPIFFE ID against the set that the hop accepts, [`Acceptor`] the client's trust
//! domain. Both take their certificate from a [`CredentialSource`] at each handshake, so that a renewed one is used
//! from the next on, and the cryptography from the [`Credentials`] that it gives: see [`provider`].

mod acceptor;
mod certificate;
mod connector;
mod credentials;
mod custom;
pub mod provider;
mod reloading;
mod session;
mod source;
mod stream;
mod validity;
mod verify;

pub use acceptor::Acceptor;
pub use certificate::Certificate;
pub use connector::Connector;
pub use credentials::{Credentials, CredentialsBuilder};
pub(crate) use custom::Shown;
pub use custom::{ClientTls, Handshake, Secured, ServerTls};
pub use reloading::ReloadingCredentials;
/// The version of rustls whose types are in this crate's API.
pub use rustls;
pub use source::{CredentialSource, Ready};
pub use stream::TlsStream;
pub(crate) use stream::classify;

/// The one application protocol of HBONE (RFC 9113, section 3.1).
const ALPN_H2: &[u8] = b"h2";
