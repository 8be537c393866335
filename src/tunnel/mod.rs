//! One tunnel: a byte stream inside an HTTP/2 stream.

mod recv;
mod send;
mod slot;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::authority::Authority;
use crate::conn::Shared;
use crate::identity::SpiffeId;
use crate::io::{BytesRead, BytesWrite, Stream};
use crate::metadata::Metadata;

pub use recv::TunnelRecv;
pub use send::TunnelSend;
pub(crate) use slot::{Slot, Slots};

/// An open tunnel: what is written comes out at its far end, and the other way round.
///
/// It **is** a byte stream ([`AsyncRead`] + [`AsyncWrite`]), so TLS and another HTTP/2 connection can be put on it; and it
/// moves [`Bytes`] without copying ([`BytesRead`] + [`BytesWrite`]).
///
/// Shutting it down (`poll_shutdown`) finishes this side's direction with END_STREAM; the other direction goes on until the
/// peer finishes it. Dropping a tunnel resets it, unless it was shut down: then the connection's driver waits a while for
/// the peer's end, so that an orderly end costs no reset.
///
/// # Errors
///
/// An [`io::Error`] from reading or writing wraps an [`Error`](crate::Error) that says what happened;
/// [`Error::from_io`](crate::Error::from_io) gets it. A reset by the peer with NO_ERROR reads as the end (RFC 9113, section
/// 8.1: the peer has said everything and wants to hear no more).
///
/// # Cancel safety
///
/// *Cancel safe* in this crate means: when a future is dropped before it is ready, nothing is lost and the operation can be
/// started again. All reads are; `poll_write` is, `write_all` is not, as everywhere.
#[derive(Debug)]
pub struct TunnelStream {
    recv: TunnelRecv,
    send: TunnelSend,
    authority: Authority,
    /// Boxed, and dropped early: tunnels are many and mostly idle. `None` stands for the empty one.
    metadata: Option<Box<Metadata>>,
}

/// Why this side ends a tunnel before its time (RFC 9113, section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResetReason {
    /// CANCEL: nobody needs it any more.
    Cancel,
    /// CONNECT_ERROR: the connection behind the tunnel was reset or failed (RFC 9113, section 8.5).
    ConnectError,
    /// REFUSED_STREAM: it was not looked at, and may be tried again.
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
    pub(crate) fn new(
        recv: h2::RecvStream,
        send: h2::SendStream<Bytes>,
        shared: Arc<Shared>,
        slot: Option<Slot>,
        authority: Authority,
        metadata: Box<Metadata>,
    ) -> Self {
        let slot = slot.map(Arc::new);
        let finished = Arc::new(Finished::default());
        Self {
            send: TunnelSend::new(send, shared.clone(), slot.clone(), finished.clone()),
            recv: TunnelRecv::new(recv, shared, slot, finished),
            authority,
            metadata: Some(metadata),
        }
    }

    /// Where the tunnel leads.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the peer said of itself: with the CONNECT at the server, with the 200 at the client.
    pub fn metadata(&self) -> &Metadata {
        static NOTHING: LazyLock<Metadata> = LazyLock::new(Metadata::default);
        self.metadata.as_deref().unwrap_or(&NOTHING)
    }

    /// Forgets what the peer said of itself, for the sake of memory.
    #[cfg(feature = "proxy")]
    pub(crate) fn forget_metadata(&mut self) {
        self.metadata = None;
    }

    /// The verified identity of the peer of this tunnel's connection. `None` where the connection runs over a byte stream
    /// that knows of none.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.recv.shared().peer()
    }

    /// Ends the tunnel at once in both directions. What was written and not yet sent is lost.
    pub fn reset(&mut self, reason: ResetReason) {
        self.send.reset(reason);
    }

    /// The two directions apart. The tunnel counts as open until both are gone.
    pub fn into_split(self) -> (TunnelRecv, TunnelSend) {
        (self.recv, self.send)
    }
}

impl Stream for TunnelStream {
    fn fail(&mut self) {
        self.reset(ResetReason::ConnectError);
    }
}

/// Whether this side has sent END_STREAM.
#[derive(Debug, Default)]
struct Finished(AtomicBool);

impl Finished {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl BytesRead for TunnelStream {
    fn poll_read_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        Pin::new(&mut self.recv).poll_read_bytes(cx)
    }

    fn poll_failed(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.send.poll_failed(cx)
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
}
