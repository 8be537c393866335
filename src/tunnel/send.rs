//! The sending half of a tunnel.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use super::ResetReason;
use crate::conn::{Frame, OpenTunnel, SendQueue, Shared, SharedPermit};
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::io::BytesWrite;

/// What one write asks room for at most.
const MAX_RESERVATION: usize = 256 << 10;

/// What it asks for while it has to wait. A write that is given up leaves its request standing until the next one, and
/// on a connection whose peer has a small window that room would be missing elsewhere. From this size on, frames cost a
/// peer none of the overhead that it counts (see
/// [`Config::with_small_frame_budget`](crate::Config::with_small_frame_budget)).
const WAITING_RESERVATION: usize = 256;

/// The sending half of a [`TunnelStream`](super::TunnelStream).
///
/// Writing waits for the peer's window and for room in the send buffer, then takes as much as fits. Dropped without
/// having been shut down, it resets the tunnel once the receiving half is gone too.
#[derive(Debug)]
pub struct TunnelSend {
    stream: h2::SendStream<Frame>,
    shared: Arc<Shared>,
    _permit: Option<SharedPermit>,
    tunnel: Arc<OpenTunnel>,
    queue: Arc<SendQueue>,
    reset_here: bool,
}

impl TunnelSend {
    pub(super) fn new(
        stream: h2::SendStream<Frame>,
        shared: Arc<Shared>,
        permit: Option<SharedPermit>,
        tunnel: Arc<OpenTunnel>,
    ) -> Self {
        Self { stream, shared, _permit: permit, tunnel, queue: Arc::default(), reset_here: false }
    }

    /// Ends the tunnel at once in both directions. What was written and not yet sent is lost; wait for
    /// [`poll_sent`](BytesWrite::poll_sent) first where it matters.
    pub fn reset(&mut self, reason: ResetReason) {
        self.stream.send_reset(reason.code());
        self.reset_here = true;
    }

    #[cfg(any(fuzzing, test))]
    pub(super) fn stream_id(&self) -> u32 {
        self.stream.stream_id().as_u32()
    }

    /// Ready when the peer has reset the tunnel or the connection is gone. A reset with NO_ERROR only asks this side to
    /// stop sending (RFC 9113, section 8.1), so it counts once the peer's direction has been `read` to its end.
    pub(super) fn poll_failed(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<io::Error> {
        match ready!(self.stream.poll_reset(cx)) {
            Ok(h2::Reason::NO_ERROR) if !read => Poll::Pending,
            _ => Poll::Ready(self.broken(None, cx)),
        }
    }

    /// [`Stream::sent`](crate::io::Stream::sent).
    pub(super) fn sent(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let queue = self.queue.clone();
        Box::pin(poll_fn(move |cx| queue.poll_empty(cx)))
    }

    /// Waits until something can be sent; returns how much of `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.tunnel.is_finished() {
            let error = Error::new(ErrorKind::WriteAfterShutdown, Layer::Tunnel, Side::Local, "writing after shutdown");
            return Poll::Ready(Err(self.shared.describe(error).into()));
        }
        let wanted = wanted.min(MAX_RESERVATION);
        self.stream.reserve_capacity(wanted);
        loop {
            let room = self.stream.capacity().min(wanted);
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            self.stream.reserve_capacity(wanted.min(WAITING_RESERVATION));
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => self.stream.reserve_capacity(wanted),
                Some(Err(e)) => return Poll::Ready(Err(self.broken(Some(e), cx))),
                None => return Poll::Ready(Err(self.broken(None, cx))),
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, data: Bytes, wanted: usize) -> io::Result<()> {
        let sent = data.len();
        if let Err(e) = self.stream.send_data(self.queue.frame(data), false) {
            return Err(self.broken(Some(e), cx));
        }
        self.tunnel.count_sent(sent);
        if sent < wanted {
            // The writer may not come back for the rest.
            self.stream.reserve_capacity(0);
        }
        Ok(())
    }

    fn send_last(&mut self, cx: &mut Context<'_>, data: Bytes) -> io::Result<()> {
        let sent = data.len();
        if let Err(e) = self.stream.send_data(self.queue.frame(data), true) {
            return Err(self.broken(Some(e), cx));
        }
        self.tunnel.count_sent(sent);
        self.tunnel.finish();
        Ok(())
    }

    /// Why nothing can be sent any more; the peer's reset is the best explanation.
    fn broken(&mut self, error: Option<h2::Error>, cx: &mut Context<'_>) -> io::Error {
        let explained = match (self.stream.poll_reset(cx), error) {
            (Poll::Ready(Ok(reason)), _) => {
                let code = reason.into();
                let side = if self.reset_here { Side::Local } else { Side::Remote };
                self.shared.failure_behind_reset(code).unwrap_or_else(|| {
                    self.shared.describe(Error::new(ErrorKind::Reset(code), Layer::Tunnel, side, "writing"))
                })
            }
            (Poll::Ready(Err(e)), _) | (Poll::Pending, Some(e)) => self.shared.explain(e, Layer::Tunnel, "writing"),
            (Poll::Pending, None) => self.shared.gone("writing"),
        };
        self.tunnel.fail(&explained);
        match explained.kind() {
            // A reset that came first means there is nobody to write to.
            ErrorKind::Reset(_) => io::Error::new(io::ErrorKind::BrokenPipe, explained),
            _ => explained.into(),
        }
    }
}

impl BytesWrite for TunnelSend {
    fn poll_write_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let this = self.get_mut();
        let wanted = data.len();
        let room = ready!(this.poll_room(cx, wanted))?;
        Poll::Ready(this.send(cx, data.split_to(room), wanted))
    }

    /// The last frame has END_STREAM.
    fn poll_write_last(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        while !data.is_empty() {
            let wanted = data.len();
            let room = ready!(self.poll_room(cx, wanted))?;
            if room == wanted {
                self.send_last(cx, data.clone())?;
                data.clear();
                return Poll::Ready(Ok(()));
            }
            self.send(cx, data.slice(..room), wanted)?;
            data.advance(room);
        }
        self.poll_shutdown(cx)
    }

    fn poll_sent(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.reset_here { Poll::Ready(()) } else { self.queue.poll_empty(cx) }
    }
}

impl AsyncWrite for TunnelSend {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        let room = ready!(this.poll_room(cx, buf.len()))?;
        this.send(cx, Bytes::copy_from_slice(&buf[..room]), buf.len())?;
        Poll::Ready(Ok(room))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let this = self.get_mut();
        let room = ready!(this.poll_room(cx, wanted))?;
        let mut data = BytesMut::with_capacity(room);
        for buf in bufs {
            data.put_slice(&buf[..buf.len().min(room - data.len())]);
        }
        this.send(cx, data.freeze(), wanted)?;
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Always ready: the connection's driver sends what was written.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Finishes this direction: END_STREAM follows what was written. Ready at once.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.tunnel.is_finished() {
            return Poll::Ready(Ok(()));
        }
        match this.send_last(cx, Bytes::new()) {
            // The peer has asked to stop sending, so that nothing is lost.
            Err(e) if Error::from_io(&e).map(Error::kind) == Some(&ErrorKind::Reset(h2::Reason::NO_ERROR.into())) => {
                this.tunnel.finish();
                Poll::Ready(Ok(()))
            }
            ended => Poll::Ready(ended),
        }
    }
}

impl Drop for TunnelSend {
    fn drop(&mut self) {
        // Otherwise HTTP/2 resets the stream with CANCEL.
        if self.tunnel.is_violated() {
            self.stream.send_reset(h2::Reason::PROTOCOL_ERROR);
        }
    }
}
