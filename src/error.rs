//! The crate's one error type: which layer failed, on which side, doing what, with whom, and what to do about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::refusal::{Refusal, RefusalError};

/// A specialised `Result`, as in [`std::io::Result`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something failed, with everything an operator needs to act on it.
///
/// An error names the [`Layer`] that failed, the [`Side`] at fault, what was being done and with which peer; on a
/// nested path also the hop. [`Error::kind`] is for programs, the `Display` form is one line for people and ends with
/// advice. Cloning is cheap, so that one failure can be handed to everyone who waited.
///
/// Errors that come out of [`AsyncRead`](tokio::io::AsyncRead) and [`AsyncWrite`](tokio::io::AsyncWrite) are wrapped in
/// [`io::Error`]; [`Error::from_io`] gets them back.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    layer: Layer,
    side: Side,
    hop: Option<usize>,
    target: Option<String>,
    doing: Cow<'static, str>,
    peer: Option<String>,
    advice: Option<Cow<'static, str>>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// What went wrong, for a program to decide on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value handed in by the caller, a file or a flag is not valid.
    InvalidInput,
    /// Our own certificate, key or trusted roots can't be used.
    InvalidCredentials,
    /// The mesh knows no way to the target.
    NoRoute,
    /// No byte stream to the peer could be opened.
    Unreachable,
    /// The peer did not answer in time.
    Timeout,
    /// The peer's certificate chain is not valid here: unknown CA, expired, wrong usage, no SPIFFE ID or more than one.
    CertificateInvalid,
    /// The peer proved an identity, and it is not one that this hop accepts.
    IdentityNotAccepted,
    /// The peer rejected our side of the TLS handshake, mostly our certificate.
    RejectedByPeer,
    /// What arrived does not follow TLS 1.3, ALPN `h2` or HTTP/2.
    Protocol,
    /// The peer answered the CONNECT with a status other than 2xx.
    Refused(Refusal),
    /// The tunnel was reset; the code is HTTP/2's (RFC 9113, section 7).
    Reset(u32),
    /// The connection was shut down by GOAWAY; the code is HTTP/2's (RFC 9113, section 7).
    GoAway(u32),
    /// The connection ended without saying why.
    Closed,
    /// A write after this side had shut the tunnel down.
    WriteAfterShutdown,
    /// A resource of this machine is missing: a port in use, no file descriptor, no memory.
    Local,
    /// Something else, in code that wraps this crate; the cause says what.
    Other,
}

/// The part of the stack in which something failed, from the outside in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Layer {
    /// Reading configuration, certificates or the mesh.
    Config,
    /// Deciding where a connection goes.
    Route,
    /// Opening the byte stream under a hop (mostly TCP).
    Dial,
    /// The TLS handshake and the check of identities.
    Tls,
    /// The HTTP/2 connection.
    Http2,
    /// The CONNECT request and its answer.
    Connect,
    /// The bytes of one open tunnel.
    Tunnel,
    /// The plain connection to an application.
    Application,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// This process.
    Local,
    /// The peer.
    Remote,
}

impl Error {
    /// An error of `kind`, in code that wraps this crate or is plugged into it: `side` is at fault for what went wrong
    /// in `layer` while `doing` something, said as in "opening a tunnel".
    ///
    /// ```
    /// use hbone::{Error, ErrorKind, Layer, Side};
    ///
    /// let error = Error::new(ErrorKind::NoRoute, Layer::Route, Side::Local, "choosing a tenant's gateway")
    ///     .with_source("no tenant `acme`")
    ///     .with_advice("add the tenant, or correct the host name");
    /// assert_eq!(
    ///     error.to_string(),
    ///     "route: choosing a tenant's gateway: no tenant `acme`; add the tenant, or correct the host name"
    /// );
    /// ```
    pub fn new(kind: ErrorKind, layer: Layer, side: Side, doing: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner {
            kind,
            layer,
            side,
            hop: None,
            target: None,
            doing: doing.into(),
            peer: None,
            advice: None,
            source: None,
        }))
    }

    pub(crate) fn invalid(doing: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidInput, Layer::Config, Side::Local, doing)
    }

    /// Adds the cause.
    pub fn with_source(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.edit(|e| e.source = Some(Arc::from(source.into())))
    }

    /// Says what this was part of, before what was being done. An error that came from elsewhere keeps all else.
    ///
    /// ```
    /// use hbone::{Error, ErrorKind, Layer, Side};
    ///
    /// let error = Error::new(ErrorKind::Timeout, Layer::Dial, Side::Remote, "connecting");
    /// let error = error.with_context("warming the cache");
    /// assert!(error.to_string().starts_with("dial: warming the cache: connecting: timed out"));
    /// assert!(error.is_timeout());
    /// ```
    pub fn with_context(self, context: impl fmt::Display) -> Self {
        self.edit(|e| e.doing = format!("{context}: {}", e.doing).into())
    }

    /// Names the peer, unless a layer further in has already done so.
    pub fn with_peer(self, peer: impl fmt::Display) -> Self {
        if self.0.peer.is_some() {
            return self;
        }
        self.edit(|e| e.peer = Some(peer.to_string()))
    }

    /// Names the destination that the application asked for.
    pub fn with_target(self, target: impl fmt::Display) -> Self {
        self.edit(|e| e.target = Some(target.to_string()))
    }

    /// Replaces the general advice for this kind of failure.
    pub fn with_advice(self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.edit(|e| e.advice = Some(advice.into()))
    }

    /// Says which hop of the path it was: 0 for the direct one.
    pub fn with_hop(self, hop: usize) -> Self {
        self.edit(|e| e.hop = Some(hop))
    }

    fn edit(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Where in the stack it went wrong.
    pub fn layer(&self) -> Layer {
        self.0.layer
    }

    /// Who is at fault.
    pub fn side(&self) -> Side {
        self.0.side
    }

    /// The hop of the [`Path`](crate::Path) that failed: 0 is the direct (outer) one, 1 the first nested one. `None`
    /// where no client's connection is involved.
    pub fn hop(&self) -> Option<usize> {
        self.0.hop
    }

    /// The peer: an address, an authority or a SPIFFE ID, whichever says most.
    pub fn peer(&self) -> Option<&str> {
        self.0.peer.as_deref()
    }

    /// The destination that the application asked for, where a proxy role or a connector is involved.
    pub fn target(&self) -> Option<&str> {
        self.0.target.as_deref()
    }

    /// The refusal, if the peer refused the CONNECT.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.0.kind {
            ErrorKind::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the peer did not answer in time.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == ErrorKind::Timeout
    }

    /// Whether the peer refused the CONNECT with a status.
    pub fn is_refused(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Refused(_))
    }

    /// Whether one tunnel was reset while its connection lives on.
    pub fn is_reset(&self) -> bool {
        matches!(self.0.kind, ErrorKind::Reset(_))
    }

    /// Whether the connection was shut down by GOAWAY.
    pub fn is_go_away(&self) -> bool {
        matches!(self.0.kind, ErrorKind::GoAway(_))
    }

    /// Whether one side's identity or certificate is the reason, so that trying again won't help until it is replaced.
    pub fn is_identity(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::IdentityNotAccepted
                | ErrorKind::CertificateInvalid
                | ErrorKind::RejectedByPeer
                | ErrorKind::InvalidCredentials
        )
    }

    /// Gets back the error that a tunnel wrapped in an [`io::Error`].
    pub fn from_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What was being done.
    pub fn doing(&self) -> &str {
        &self.0.doing
    }

    /// What to do about it, in one sentence.
    pub fn advice(&self) -> Option<&str> {
        if let Some(advice) = &self.0.advice {
            return Some(advice);
        }
        Some(match (&self.0.kind, self.0.layer) {
            (ErrorKind::InvalidCredentials, _) => {
                "check that certificate, key and roots are there, belong together and are in date"
            }
            (ErrorKind::Unreachable, _) => "check the address, that the peer listens, and network policies on its port",
            (ErrorKind::Timeout, Layer::Dial) => "check that no network policy or firewall drops packets to this port",
            (ErrorKind::Timeout, Layer::Tls | Layer::Http2) => {
                "the peer accepts connections and then stalls: check that it speaks HBONE"
            }
            (ErrorKind::Timeout, _) => "check the health of the peer and of what lies behind it",
            (ErrorKind::CertificateInvalid, _) => "check the peer's certificate and that both sides share a root",
            (ErrorKind::IdentityNotAccepted, _) => {
                "check that the address belongs to the intended workload, and the service's subject alternative names"
            }
            (ErrorKind::RejectedByPeer, _) => "check our own certificate: its root, trust domain and dates",
            (ErrorKind::Protocol, Layer::Tls) => "check that the peer speaks HBONE: TLS 1.3 with ALPN h2",
            (ErrorKind::Local, _) => "free the resource named above, or choose another",
            _ => return None,
        })
    }

    /// The closest [`io::ErrorKind`].
    pub fn io_kind(&self) -> io::ErrorKind {
        match &self.0.kind {
            ErrorKind::InvalidInput | ErrorKind::InvalidCredentials => io::ErrorKind::InvalidInput,
            ErrorKind::NoRoute => io::ErrorKind::NotFound,
            ErrorKind::Unreachable | ErrorKind::Refused(_) => io::ErrorKind::ConnectionRefused,
            ErrorKind::Timeout => io::ErrorKind::TimedOut,
            ErrorKind::CertificateInvalid | ErrorKind::IdentityNotAccepted | ErrorKind::RejectedByPeer => {
                io::ErrorKind::PermissionDenied
            }
            ErrorKind::Protocol => io::ErrorKind::InvalidData,
            ErrorKind::Reset(_) => io::ErrorKind::ConnectionReset,
            ErrorKind::GoAway(_) | ErrorKind::Closed => io::ErrorKind::ConnectionAborted,
            ErrorKind::WriteAfterShutdown => io::ErrorKind::BrokenPipe,
            ErrorKind::Local | ErrorKind::Other => io::ErrorKind::Other,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        if let Some(target) = &e.target {
            write!(f, "to {target}: ")?;
        }
        if let Some(hop) = e.hop {
            write!(f, "hop {hop}, ")?;
        }
        write!(f, "{}: {}", e.layer, e.doing)?;
        if let Some(peer) = &e.peer {
            write!(f, " (peer {peer})")?;
        }
        match &e.kind {
            ErrorKind::Refused(refusal) => write!(f, ": refused with {refusal}")?,
            ErrorKind::Reset(code) => {
                write!(f, ": reset by {} with {}", e.side, h2::Reason::from(*code).description())?;
            }
            ErrorKind::GoAway(code) => {
                write!(f, ": shut down by {} with GOAWAY, {}", e.side, h2::Reason::from(*code).description())?;
            }
            ErrorKind::Timeout => f.write_str(": timed out")?,
            _ => {}
        }
        let mut source = e.source.as_deref().map(|s| s as &(dyn StdError + 'static));
        let mut last = String::new();
        while let Some(cause) = source {
            let text = cause.to_string();
            // Wrappers such as `io::Error` print their source's text as their own.
            if text != last {
                write!(f, ": {text}")?;
            }
            last = text;
            source = cause.source();
        }
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        f.debug_struct("Error")
            .field("kind", &e.kind)
            .field("layer", &e.layer)
            .field("side", &e.side)
            .field("hop", &e.hop)
            .field("doing", &e.doing)
            .field("peer", &e.peer)
            .field("source", &e.source.as_ref().map(ToString::to_string))
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

impl From<RefusalError> for Error {
    fn from(error: RefusalError) -> Self {
        Self::invalid("making a refusal").with_source(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.io_kind(), error)
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "configuration",
            Self::Route => "route",
            Self::Dial => "dial",
            Self::Tls => "TLS",
            Self::Http2 => "HTTP/2",
            Self::Connect => "CONNECT",
            Self::Tunnel => "tunnel",
            Self::Application => "application",
        })
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "this side",
            Self::Remote => "the peer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_hop_layer_action_peer_cause_and_advice() {
        let error = Error::new(ErrorKind::Unreachable, Layer::Dial, Side::Remote, "connecting")
            .with_peer("10.0.0.1:15008")
            .with_hop(0)
            .with_source(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert_eq!(
            error.to_string(),
            "hop 0, dial: connecting (peer 10.0.0.1:15008): connection refused; \
             check the address, that the peer listens, and network policies on its port"
        );
    }

    #[test]
    fn an_error_stays_as_small_as_a_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn context_keeps_all_else() {
        let error = Error::new(ErrorKind::Reset(8), Layer::Tunnel, Side::Remote, "reading").with_peer("p").with_hop(1);
        let error = error.with_context("copying").with_context("a session of tenant 7");
        assert_eq!((error.kind(), error.peer(), error.hop()), (&ErrorKind::Reset(8), Some("p"), Some(1)));
        assert!(error.to_string().starts_with("hop 1, tunnel: a session of tenant 7: copying: reading (peer p)"));
    }

    #[test]
    fn survives_the_trip_through_io_error() {
        let error = io::Error::from(Error::new(ErrorKind::Reset(8), Layer::Tunnel, Side::Remote, "reading"));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(Error::from_io(&error).map(Error::kind), Some(&ErrorKind::Reset(8)));
        assert_eq!(error.to_string(), "tunnel: reading: reset by the peer with stream no longer needed");
    }

    #[test]
    fn the_innermost_peer_is_kept() {
        let error = Error::invalid("x").with_peer("inner").with_peer("outer");
        assert_eq!(error.peer(), Some("inner"));
    }
}
