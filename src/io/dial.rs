//! Opening byte streams: the hook for an embedder's own transport.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

#[cfg(feature = "proxy")]
use tokio::time::Instant;
use tokio::time::timeout;

use super::BoxStream;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::path::DirectHop;
use crate::target::DialTarget;

/// What [`Dial::dial`] returns.
pub type DialFuture<'a> = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send + 'a>>;

/// Opens byte streams within one network: TCP in production, pipes in tests. The hook for an embedder's own transport,
/// for address translation and for source addresses.
///
/// ```
/// use std::io;
/// use hbone::io::{BoxStream, Dial, DialFuture, DialRequest};
/// # use tokio::io::DuplexStream;
/// # async fn open(to: std::net::SocketAddr) -> io::Result<DuplexStream> { unimplemented!("{to}") }
///
/// #[derive(Debug)]
/// struct Pipes;
///
/// impl Dial for Pipes {
///     fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
///         Box::pin(async move { Ok(Box::new(open(request.socket_addr()?).await?) as BoxStream) })
///     }
/// }
/// ```
pub trait Dial: fmt::Debug + Send + Sync {
    /// Connects to [`request.target`](DialRequest::target). Timeouts are the caller's business: it drops the future.
    ///
    /// A panic is reported to whoever waits for the stream as an error of this side.
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a>;
}

/// What to dial, and for whom.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct DialRequest<'a> {
    /// Where to.
    pub target: &'a DialTarget,
    /// For whom: the identity that this side will show, or at a proxy that leads a tunnel on, the tunnel's client.
    /// `None` where it is not known.
    pub source: Option<&'a SpiffeId>,
    /// The hop that the stream is for. `None` for one that carries no HBONE of this side's, such as to an application.
    pub hop: Option<&'a DirectHop>,
}

impl<'a> DialRequest<'a> {
    /// A request for nobody in particular.
    pub fn new(target: &'a DialTarget) -> Self {
        Self { target, source: None, hop: None }
    }

    /// Says for whom.
    pub fn with_source(mut self, source: Option<&'a SpiffeId>) -> Self {
        self.source = source;
        self
    }

    /// Says for which hop.
    pub fn with_hop(mut self, hop: &'a DirectHop) -> Self {
        self.hop = Some(hop);
        self
    }

    /// The target's address, for dialers that know of nothing else.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] for a name or a Unix socket.
    pub fn socket_addr(&self) -> io::Result<SocketAddr> {
        self.target.socket_addr().ok_or_else(|| {
            let text = format!("{} is not an address, and this dialer takes nothing else", self.target);
            io::Error::new(io::ErrorKind::Unsupported, text)
        })
    }
}

/// Dials the addresses of one thing, one after another until one answers, within this time. The error is that of the last.
#[cfg(feature = "proxy")]
pub(crate) async fn dial_any(
    dialer: &dyn Dial,
    addresses: &[SocketAddr],
    source: Option<&SpiffeId>,
    time: Duration,
) -> Result<BoxStream> {
    let deadline = Instant::now() + time;
    let mut result = Err(Error::new(ErrorKind::Unreachable, Layer::Dial, Side::Local, "connecting to no address"));
    for (tried, address) in addresses.iter().enumerate() {
        // One that does not answer leaves the others their share.
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let target = DialTarget::from(*address);
        let request = DialRequest::new(&target).with_source(source);
        result = dial(dialer, &request, deadline.saturating_duration_since(Instant::now()) / left).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Dials within this time.
pub(crate) async fn dial(dialer: &dyn Dial, request: &DialRequest<'_>, time: Duration) -> Result<BoxStream> {
    let failed = |kind| Error::new(kind, Layer::Dial, Side::Remote, "connecting").with_peer(request.target);
    match timeout(time, dialer.dial(request)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => Err(failed(ErrorKind::Timeout).with_source(e)),
        Ok(Err(e)) => Err(failed(ErrorKind::Unreachable).with_source(e)),
        Err(_) => Err(failed(ErrorKind::Timeout)),
    }
}
