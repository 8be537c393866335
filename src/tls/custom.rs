//! TLS stacks other than rustls.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;

use rustls::CipherSuite;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Certificate;
use crate::error::Result;
use crate::identity::AcceptedIdentities;
use crate::io::{BoxStream, Stream};

/// A TLS stack of your own for the client's side, in place of rustls. [`Connector::custom`](super::Connector::custom)
/// puts it to use, in a [`Pool`](crate::pool::Pool) and in [`nested::extend`](crate::nested::extend) as well.
///
/// The other side speaks TLS 1.3 with ALPN `h2`, requires a certificate with a SPIFFE ID, and shows one.
pub trait ClientTls: fmt::Debug + Send + Sync {
    /// Does the handshake over `io` with a peer of one of the identities in `accept`. It is dropped when the
    /// handshake's time is over.
    ///
    /// The identity that [`Secured`] names must have been verified: the chain against the roots, the dates, and that
    /// the peer has the key. The caller checks, too, whether it is accepted.
    ///
    /// # Errors
    ///
    /// Why there is no session. An error that `io` returned explains itself, as
    /// [`Error::from_io`](crate::Error::from_io) finds out, and is best passed on.
    fn connect<'a>(&'a self, io: BoxStream, accept: &'a AcceptedIdentities) -> Handshake<'a>;

    /// The certificate that the next handshake would show. Asked at each checkout from a [`Pool`](crate::pool::Pool):
    /// when it is another than before, or has expired, connections made so far take no new tunnels. `None`, the
    /// default, changes nothing.
    fn certificate(&self) -> Option<Certificate> {
        None
    }
}

/// A TLS stack of your own for the server's side, in place of rustls. [`Acceptor::custom`](super::Acceptor::custom)
/// puts it to use.
///
/// The other side speaks TLS 1.3 with ALPN `h2`, requires a certificate with a SPIFFE ID, and shows one.
pub trait ServerTls: fmt::Debug + Send + Sync {
    /// Does the handshake over `io`. It is dropped when the handshake's time is over.
    ///
    /// The identity that [`Secured`] names must have been verified, as in [`ClientTls::connect`]. The caller checks
    /// whether its trust domain is let in.
    ///
    /// # Errors
    ///
    /// Why there is no session.
    fn accept(&self, io: BoxStream) -> Handshake<'_>;
}

/// A handshake of a TLS stack of your own: a future, boxed.
pub type Handshake<'a> = Pin<Box<dyn Future<Output = Result<Secured>> + Send + 'a>>;

/// A session that a TLS stack of your own has made.
pub struct Secured {
    pub(super) stream: BoxStream,
    pub(super) peer: Certificate,
    pub(super) peer_chain: Vec<CertificateDer<'static>>,
    pub(super) local: Option<Certificate>,
    pub(super) cipher_suite: Option<CipherSuite>,
}

impl Secured {
    /// The decrypted byte stream, and the certificate by which the peer has proved its identity. Shutting the stream
    /// down must send `close_notify`; dropping it must not.
    pub fn new(stream: BoxStream, peer: Certificate) -> Self {
        Self { stream, peer, peer_chain: Vec::new(), local: None, cipher_suite: None }
    }

    /// Adds the chain that the peer has sent, its own certificate first.
    pub fn with_peer_certificates(mut self, chain: Vec<CertificateDer<'static>>) -> Self {
        self.peer_chain = chain;
        self
    }

    /// Adds the certificate that was shown to the peer.
    pub fn with_local_certificate(mut self, certificate: Certificate) -> Self {
        self.local = Some(certificate);
        self
    }

    /// Adds the cipher suite.
    pub fn with_cipher_suite(mut self, suite: CipherSuite) -> Self {
        self.cipher_suite = Some(suite);
        self
    }
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("peer", &self.peer).field("local", &self.local).finish_non_exhaustive()
    }
}

/// A byte stream that a custom TLS stack owns, and that can still be inspected.
pub(super) struct Lent<IO>(Arc<Mutex<IO>>);

impl<IO> Lent<IO> {
    /// The stream to hand out, and the part to keep.
    pub(super) fn new(io: IO) -> (Self, Self) {
        let shared = Arc::new(Mutex::new(io));
        (Self(shared.clone()), Self(shared))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, IO> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream, unless the other part is still there.
    pub(super) fn back(self) -> Option<IO> {
        Arc::into_inner(self.0).map(|io| io.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Stream for Lent<IO> {}

impl<IO: AsyncRead + Unpin> AsyncRead for Lent<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Lent<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

/// What the next handshake would show, for a pool to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Credentials(super::Credentials),
    Certificate(Certificate),
}

impl Shown {
    pub(crate) fn certificate(&self) -> &Certificate {
        match self {
            Self::Credentials(credentials) => credentials.certificate(),
            Self::Certificate(certificate) => certificate,
        }
    }

    pub(crate) fn has_expired(&self, now: SystemTime) -> bool {
        self.certificate().has_expired(now)
    }
}
