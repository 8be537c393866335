//! The receiving half of a tunnel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use super::{Finished, Slot};
use crate::conn::{LingeringTunnel, Shared};
use crate::error::Layer;
use crate::io::BytesRead;

/// The receiving half of a [`TunnelStream`](super::TunnelStream).
///
/// Dropped before its end, it throws away what still comes, and the tunnel is reset once the sending half is gone too;
/// unless that half was shut down before, as described there.
#[derive(Debug)]
pub struct TunnelRecv {
    /// `None` once handed to the driver, on drop.
    stream: Option<h2::RecvStream>,
    /// The rest of a frame that did not fit the reader's buffer.
    rest: Bytes,
    ended: bool,
    shared: Arc<Shared>,
    slot: Option<Arc<Slot>>,
    finished: Arc<Finished>,
}

impl TunnelRecv {
    pub(super) fn new(
        stream: h2::RecvStream,
        shared: Arc<Shared>,
        slot: Option<Arc<Slot>>,
        finished: Arc<Finished>,
    ) -> Self {
        Self { stream: Some(stream), rest: Bytes::new(), ended: false, shared, slot, finished }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The next frame with anything in it; empty at the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else {
            return Poll::Ready(Ok(Bytes::new()));
        };
        loop {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    // Fails only when the stream has ended meanwhile; then there is no window to return.
                    let _ = stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Ok(data));
                }
                None => {
                    self.ended = true;
                    return Poll::Ready(Ok(Bytes::new()));
                }
                Some(Err(e)) => {
                    self.ended = true;
                    if e.is_reset() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR) {
                        return Poll::Ready(Ok(Bytes::new()));
                    }
                    return Poll::Ready(Err(self.shared.explain(e, Layer::Tunnel, "reading").into()));
                }
            }
        }
    }
}

impl BytesRead for TunnelRecv {
    fn poll_read_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.rest)));
        }
        self.poll_frame(cx)
    }
}

impl AsyncRead for TunnelRecv {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if self.rest.is_empty() {
            self.rest = ready!(self.poll_frame(cx))?;
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        if self.rest.is_empty() {
            // Lets go of the frame's memory.
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelRecv {
    fn drop(&mut self) {
        if self.ended || !self.finished.get() {
            return;
        }
        if let Some(recv) = self.stream.take()
            && !recv.is_end_stream()
        {
            self.shared.linger(LingeringTunnel { recv, _slot: self.slot.take() });
        }
    }
}
