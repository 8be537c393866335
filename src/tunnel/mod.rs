//! One tunnel: a byte stream inside an HTTP/2 stream.

mod opening;
mod recv;
mod send;

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::authority::Authority;
use crate::conn::{Frame, OpenTunnel, Shared, SharedPermit};
use crate::error::Result;
use crate::identity::SpiffeId;
#[cfg(feature = "proxy")]
use crate::io::Turns;
use crate::io::{BytesRead, BytesWrite, Stream};
use crate::metadata::{Metadata, Received};
use crate::observe::TunnelId;

pub(crate) use opening::{Opening, Progress, Stage};
use recv::Source;
pub use recv::TunnelRecv;
pub use send::TunnelSend;

/// An open tunnel: what is written comes out at its far end, and the other way round.
///
/// It **is** a byte stream ([`AsyncRead`] + [`AsyncWrite`]), so TLS and another HTTP/2 connection can be put on it; and
/// it moves [`Bytes`] without copying ([`BytesRead`] + [`BytesWrite`]).
///
/// Shutting it down (`poll_shutdown`) finishes this side's direction with END_STREAM; the other direction goes on until
/// the peer finishes it. Dropping a tunnel resets it, unless it was shut down: then the connection's driver waits a
/// while for the peer's end, so that an orderly end costs no reset.
///
/// # Before the 200
///
/// What [`Client::connect_early`](crate::client::Client::connect_early) returns is not open yet. It takes what is
/// written, reading waits for the answer, and [`opened`](Self::opened) waits for it alone. Where the answer is a
/// refusal, or there is none in time, both fail with the [`Error`](crate::Error) that
/// [`Client::connect`](crate::client::Client::connect) would have returned. A tunnel that is dropped before its answer
/// is reset, shut down or not. All other tunnels are open from the start.
///
/// # Errors
///
/// An [`io::Error`] from reading or writing wraps an [`Error`](crate::Error) that says what happened;
/// [`Error::from_io`](crate::Error::from_io) gets it. After its END_STREAM, a peer's reset with NO_ERROR only asks this
/// side to stop sending (RFC 9113, section 8.1): reading comes to the end. Without an END_STREAM, any reset is a
/// failure.
///
/// # Cancel safety
///
/// *Cancel safe* in this crate means: when a future is dropped before it is ready, nothing is lost and the operation
/// can be started again. All reads are; `poll_write` is, `write_all` is not, as everywhere.
#[derive(Debug)]
pub struct TunnelStream {
    recv: TunnelRecv,
    send: TunnelSend,
    tunnel: Arc<OpenTunnel>,
    /// Boxed, and dropped early: tunnels are many and mostly idle. `None` stands for the empty one.
    metadata: Option<Box<Received>>,
}

/// Why this side resets a tunnel (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResetReason {
    /// CANCEL: it is no longer needed.
    Cancel,
    /// CONNECT_ERROR: the connection behind the tunnel was reset or failed (RFC 9113, section 8.5).
    ConnectError,
    /// REFUSED_STREAM: it was not processed, and may be tried again.
    Refused,
    /// INTERNAL_ERROR.
    Internal,
}

impl ResetReason {
    pub(crate) fn code(self) -> h2::Reason {
        match self {
            Self::Cancel => h2::Reason::CANCEL,
            Self::ConnectError => h2::Reason::CONNECT_ERROR,
            Self::Refused => h2::Reason::REFUSED_STREAM,
            Self::Internal => h2::Reason::INTERNAL_ERROR,
        }
    }
}

impl TunnelStream {
    /// A tunnel that this side has answered with 200.
    pub(crate) fn answered(
        recv: h2::RecvStream,
        send: h2::SendStream<Frame>,
        shared: Arc<Shared>,
        tunnel: Arc<OpenTunnel>,
        metadata: Box<Received>,
    ) -> Self {
        Self::with(Source::Open(recv), send, shared, None, tunnel, Some(metadata))
    }

    /// A tunnel whose CONNECT has no answer yet.
    pub(crate) fn opening(
        opening: Box<Opening>,
        send: h2::SendStream<Frame>,
        shared: Arc<Shared>,
        permit: SharedPermit,
        tunnel: Arc<OpenTunnel>,
    ) -> Self {
        Self::with(Source::Opening(opening), send, shared, Some(permit), tunnel, None)
    }

    fn with(
        source: Source,
        send: h2::SendStream<Frame>,
        shared: Arc<Shared>,
        permit: Option<SharedPermit>,
        tunnel: Arc<OpenTunnel>,
        metadata: Option<Box<Received>>,
    ) -> Self {
        Self {
            send: TunnelSend::new(send, shared.clone(), permit.clone(), tunnel.clone()),
            recv: TunnelRecv::new(source, shared, permit, tunnel.clone()),
            tunnel,
            metadata,
        }
    }

    /// Whether the answer to the CONNECT is here, and is 200.
    pub fn is_open(&self) -> bool {
        self.recv.is_open()
    }

    /// Waits for the answer to the CONNECT: ready at once unless the tunnel comes from
    /// [`Client::connect_early`](crate::client::Client::connect_early). Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`](crate::client::Client::connect), and the same again when asked again. What was written is
    /// lost then.
    pub async fn opened(&mut self) -> Result<()> {
        poll_fn(|cx| self.poll_opened(cx)).await
    }

    /// The poll form of [`TunnelStream::opened`].
    pub fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        match ready!(self.recv.poll_opened(cx)) {
            Ok(None) => {}
            Ok(metadata) => self.metadata = metadata,
            Err(error) => {
                if error.is_refused() {
                    // Ends the stream in order: dropping it alone would reset it, and peers count resets.
                    let _ = Pin::new(&mut self.send).poll_shutdown(cx);
                }
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// For a task that has to know how far it is while others have the tunnel.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.recv.progress()
    }

    /// Where the tunnel leads.
    pub fn authority(&self) -> &Authority {
        self.tunnel.authority()
    }

    /// Its id in events and in the registry of a server's connections.
    pub fn id(&self) -> TunnelId {
        self.tunnel.id()
    }

    /// What the peer said of itself: with the CONNECT at the server, with the 200 at the client, and nothing before
    /// that.
    pub fn metadata(&self) -> &Metadata {
        static NOTHING: LazyLock<Metadata> = LazyLock::new(Metadata::default);
        self.metadata.as_deref().map_or(&NOTHING, Received::get)
    }

    /// For a task that relays this tunnel's bytes.
    #[cfg(feature = "proxy")]
    pub(crate) fn turns(&self) -> Turns {
        self.recv.shared().turns()
    }

    /// Drops the peer's metadata, which takes memory for as long as the tunnel is open.
    #[cfg(feature = "proxy")]
    pub(crate) fn forget_metadata(&mut self) {
        self.metadata = None;
    }

    /// The verified identity of the peer of this tunnel's connection. `None` where the connection runs over a byte
    /// stream without one.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.recv.shared().peer()
    }

    /// The HTTP/2 stream that it is.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn stream_id(&self) -> u32 {
        self.send.stream_id()
    }

    /// Ends the tunnel at once in both directions. What was written and not yet sent is lost; wait for
    /// [`poll_sent`](BytesWrite::poll_sent) first where it matters.
    pub fn reset(&mut self, reason: ResetReason) {
        self.send.reset(reason);
    }

    /// Splits it into its two directions. The tunnel counts as open until both halves are dropped.
    pub fn into_split(self) -> (TunnelRecv, TunnelSend) {
        (self.recv, self.send)
    }
}

impl Stream for TunnelStream {
    fn fail(&mut self) {
        self.reset(ResetReason::ConnectError);
    }

    fn sent(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.send.sent()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.recv.is_open() {
            ready!(self.poll_opened(cx))?;
        }
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl BytesRead for TunnelStream {
    fn poll_read_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.recv.is_open() {
            ready!(self.poll_opened(cx))?;
        }
        Pin::new(&mut self.recv).poll_read_bytes(cx)
    }

    fn poll_failed(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let read = self.recv.is_finished();
        self.send.poll_failed(cx, read)
    }

    fn is_at_end(&self) -> bool {
        self.recv.is_at_end()
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.send.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

impl BytesWrite for TunnelStream {
    fn poll_write_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_write_bytes(cx, data)
    }

    fn poll_write_last(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_write_last(cx, data)
    }

    fn poll_sent(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.send).poll_sent(cx)
    }
}
