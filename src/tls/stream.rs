//! A TLS session whose peer is known.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, CertificateError, CipherSuite, Connection, OtherError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::custom::{Lent, Secured};
use super::session::Session;
use super::verify::IdentityError;
use super::{ALPN_H2, Certificate, Credentials};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::io::{BoxStream, Stream};

/// A byte stream inside TLS 1.3 with ALPN `h2`, whose peer has proved its identity.
///
/// What is written is encrypted at once and sent with the next flush, or when 256 KiB of it are waiting: flush when
/// there is nothing more to write for now. Shutting it down sends `close_notify`. Dropping it does not, and its peer
/// then sees an unexpected end.
pub struct TlsStream<IO> {
    session: Inner<IO>,
    peer: Certificate,
    local: Option<Certificate>,
}

enum Inner<IO> {
    Rustls(Box<Session<IO>>),
    Custom(Box<Custom<IO>>),
}

struct Custom<IO> {
    stream: BoxStream,
    below: Lent<IO>,
    peer_chain: Vec<CertificateDer<'static>>,
    cipher_suite: Option<CipherSuite>,
}

/// Dropped without having been shut down, a session ends without `close_notify`, which its peer takes for a failure.
impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Stream for TlsStream<IO> {}

impl<IO> TlsStream<IO> {
    /// Checks what TLS itself leaves open: that ALPN was used, and who the peer is.
    pub(super) fn new(io: IO, connection: Connection, credentials: &Credentials) -> Result<Self> {
        if connection.alpn_protocol() != Some(ALPN_H2) {
            return Err(failed(ErrorKind::Protocol, Side::Remote).with_source("the peer did not agree to ALPN h2"));
        }
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        let peer = match certificate.map(Certificate::read) {
            Some(Ok(peer)) => peer,
            Some(Err(e)) => return Err(failed(ErrorKind::CertificateInvalid, Side::Remote).with_source(e)),
            None => {
                return Err(failed(ErrorKind::CertificateInvalid, Side::Remote).with_source("the peer sent none"));
            }
        };
        let local = Some(credentials.certificate().clone());
        Ok(Self { session: Inner::Rustls(Box::new(Session::new(io, connection))), peer, local })
    }

    pub(super) fn custom(secured: Secured, below: Lent<IO>) -> Self {
        let Secured { stream, peer, peer_chain, local, cipher_suite } = secured;
        Self { session: Inner::Custom(Box::new(Custom { stream, below, peer_chain, cipher_suite })), peer, local }
    }

    /// Who the peer has proved to be.
    pub fn peer_identity(&self) -> &SpiffeId {
        self.peer.identity()
    }

    /// The certificate by which the peer has proved that.
    pub fn peer_certificate(&self) -> &Certificate {
        &self.peer
    }

    /// The whole chain that the peer has sent, its own certificate first. Empty if a custom TLS stack does not say.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match &self.session {
            Inner::Rustls(session) => session.connection().peer_certificates().unwrap_or_default(),
            Inner::Custom(custom) => &custom.peer_chain,
        }
    }

    /// The certificate that was shown to the peer. `None` if a custom TLS stack does not say.
    pub fn local_certificate(&self) -> Option<&Certificate> {
        self.local.as_ref()
    }

    /// When the first of the two certificates expires: from then on neither side would let the other in again.
    pub fn not_after(&self) -> SystemTime {
        let local = self.local.as_ref().map(Certificate::not_after);
        local.map_or(self.peer.not_after(), |local| local.min(self.peer.not_after()))
    }

    /// The cipher suite of the session. `None` if a custom TLS stack does not say.
    pub fn cipher_suite(&self) -> Option<CipherSuite> {
        match &self.session {
            Inner::Rustls(session) => session.connection().negotiated_cipher_suite().map(|suite| suite.suite()),
            Inner::Custom(custom) => custom.cipher_suite,
        }
    }

    /// The application protocol that both have agreed to, which is always `h2`.
    pub fn alpn(&self) -> &[u8] {
        ALPN_H2
    }

    /// The serial numbers of the peer's certificates, its own one first.
    pub(crate) fn peer_serials(&self) -> Vec<Box<[u8]>> {
        let serial = |der| Some(webpki::EndEntityCert::try_from(der).ok()?.serial().into());
        self.peer_certificates().iter().filter_map(serial).collect()
    }

    /// Looks at the byte stream underneath. Under a custom TLS stack it is locked meanwhile: don't use the session in
    /// `look`.
    pub fn inspect<T>(&self, look: impl FnOnce(&IO) -> T) -> T {
        match &self.session {
            Inner::Rustls(session) => look(session.get_ref()),
            Inner::Custom(custom) => look(&custom.below.lock()),
        }
    }
}

impl<IO> fmt::Debug for TlsStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("peer", &self.peer).field("local", &self.local).finish_non_exhaustive()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.session {
            Inner::Rustls(session) => session.poll_read(cx, buf),
            Inner::Custom(custom) => Pin::new(&mut custom.stream).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.session {
            Inner::Rustls(session) => session.poll_write(cx, &[IoSlice::new(buf)]),
            Inner::Custom(custom) => Pin::new(&mut custom.stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.session {
            Inner::Rustls(session) => session.poll_write(cx, bufs),
            Inner::Custom(custom) => Pin::new(&mut custom.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.session {
            Inner::Rustls(_) => true,
            Inner::Custom(custom) => custom.stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.session {
            Inner::Rustls(session) => session.poll_flush(cx),
            Inner::Custom(custom) => Pin::new(&mut custom.stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.session {
            Inner::Rustls(session) => session.poll_shutdown(cx),
            Inner::Custom(custom) => Pin::new(&mut custom.stream).poll_shutdown(cx),
        }
    }
}

pub(super) fn failed(kind: ErrorKind, side: Side) -> Error {
    Error::new(kind, Layer::Tls, side, "handshake")
}

/// What an I/O error of a TLS session means. In TLS 1.3 a client learns only after its handshake that the server
/// rejected its certificate, so this serves the reads and writes of HTTP/2 as well.
///
/// `None` if it is not a TLS error.
pub(crate) fn classify(error: &io::Error) -> Option<Error> {
    use AlertDescription as Alert;
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let (kind, side) = match tls {
        rustls::Error::AlertReceived(
            Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => (ErrorKind::RejectedByPeer, Side::Remote),
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            return Some(match cause.downcast_ref::<IdentityError>() {
                Some(e @ IdentityError::NotAccepted { .. }) => {
                    failed(ErrorKind::IdentityNotAccepted, Side::Remote).with_source(e.clone())
                }
                Some(e @ IdentityError::ForeignTrustDomain { .. }) => foreign(e.clone()),
                Some(e) => failed(ErrorKind::CertificateInvalid, Side::Remote).with_source(e.clone()),
                None => failed(ErrorKind::CertificateInvalid, Side::Remote).with_source(tls.clone()),
            });
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            (ErrorKind::CertificateInvalid, Side::Remote)
        }
        _ => (ErrorKind::Protocol, Side::Remote),
    };
    Some(failed(kind, side).with_source(tls.clone()))
}

fn foreign(cause: IdentityError) -> Error {
    failed(ErrorKind::IdentityNotAccepted, Side::Remote)
        .with_source(cause)
        .with_advice("add an alias if workloads of that trust domain are to be let in")
}

/// The error for a server's identity that a custom TLS stack has let pass.
pub(super) fn not_accepted(found: &SpiffeId, accepted: &AcceptedIdentities) -> Error {
    let cause = IdentityError::NotAccepted { found: found.clone(), accepted: accepted.clone() };
    failed(ErrorKind::IdentityNotAccepted, Side::Remote).with_source(cause)
}

/// The error for a client's identity that a custom TLS stack has let pass.
pub(super) fn not_trusted(found: &SpiffeId, trusted: &TrustDomains) -> Error {
    foreign(IdentityError::ForeignTrustDomain { found: found.clone(), trusted: trusted.clone() })
}

/// The error of a handshake that failed with `error`.
pub(super) fn handshake_error(error: io::Error) -> Error {
    if let Some(error) = classify(&error) {
        return error;
    }
    // A tunnel below explains itself.
    if let Some(below) = Error::from_io(&error) {
        return below.clone();
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            failed(ErrorKind::Closed, Side::Remote).with_source(error)
        }
        _ => failed(ErrorKind::Unreachable, Side::Remote).with_source(error),
    }
}

/// A rustls configuration that can't be built from credentials that were checked: a provider without TLS 1.3.
pub(super) fn unusable(error: rustls::Error) -> Error {
    failed(ErrorKind::InvalidCredentials, Side::Local).with_source(error)
}

/// A handshake whose time was over before there were credentials for it.
pub(super) fn no_credentials() -> Error {
    Error::new(ErrorKind::Timeout, Layer::Tls, Side::Local, "waiting for our own certificate")
        .with_advice("check that whoever issues certificates can be reached")
}

/// A handshake that took too long.
pub(super) fn timed_out() -> Error {
    failed(ErrorKind::Timeout, Side::Remote)
}
