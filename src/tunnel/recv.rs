//! The receiving half of a tunnel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use super::opening::{Opening, Progress, Stage};
use crate::conn::{LingeringTunnel, OpenTunnel, RoundMeter, Shared, SharedPermit};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::BytesRead;
use crate::metadata::Received;

/// The receiving half of a [`TunnelStream`](super::TunnelStream).
///
/// Dropped before its end, it throws away what still comes, and the tunnel is reset once the sending half is gone too;
/// unless that half was shut down before, as described there.
#[derive(Debug)]
pub struct TunnelRecv {
    /// `None` before the answer to the CONNECT is here, and once handed to the driver, on drop.
    stream: Option<h2::RecvStream>,
    /// `None` once the tunnel is open.
    unopened: Option<Unopened>,
    /// `None` once bytes have arrived.
    progress: Option<Arc<Progress>>,
    /// What is left of a frame that did not fit into the reader's buffer.
    rest: Bytes,
    reading: Reading,
    meter: RoundMeter,
    shared: Arc<Shared>,
    permit: Option<SharedPermit>,
    tunnel: Arc<OpenTunnel>,
}

/// Whether there is more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Open,
    /// Up to the peer's END_STREAM.
    Ended,
    Failed,
}

/// Why there is nothing to read yet, or never will be.
#[derive(Debug)]
enum Unopened {
    Opening(Box<Opening>),
    Failed(Error),
}

/// Where the bytes come from.
pub(super) enum Source {
    Open(h2::RecvStream),
    Opening(Box<Opening>),
}

impl TunnelRecv {
    pub(super) fn new(
        source: Source,
        shared: Arc<Shared>,
        permit: Option<SharedPermit>,
        tunnel: Arc<OpenTunnel>,
    ) -> Self {
        let (stream, unopened, progress) = match source {
            Source::Open(stream) => (Some(stream), None, None),
            Source::Opening(opening) => (None, Some(Unopened::Opening(opening)), Some(Arc::default())),
        };
        let mut this = Self {
            stream,
            unopened,
            progress,
            rest: Bytes::new(),
            reading: Reading::Open,
            meter: RoundMeter::default(),
            shared,
            permit,
            tunnel,
        };
        this.register();
        this
    }

    /// Adds the stream to those that the driver measures.
    fn register(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.shared.flow().add(stream);
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.unopened.is_none()
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone().unwrap_or_else(Progress::open)
    }

    /// Ready when the tunnel is open, with the peer's metadata the first time, or has failed to open.
    pub(super) fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<Received>>>> {
        let opening = match &mut self.unopened {
            None => return Poll::Ready(Ok(None)),
            Some(Unopened::Failed(error)) => return Poll::Ready(Err(error.clone())),
            Some(Unopened::Opening(opening)) => opening,
        };
        let result = match ready!(opening.poll(cx, &self.shared)) {
            Ok(opened) => {
                self.stream = Some(opened.recv);
                self.register();
                opened.result
            }
            Err(error) => Err(error),
        };
        match &result {
            Ok(received) => self.tunnel.opened(|| received.get()),
            Err(error) => self.tunnel.not_opened(error),
        }
        self.unopened = result.as_ref().err().cloned().map(Unopened::Failed);
        if let (None, Some(progress)) = (&self.unopened, &self.progress) {
            progress.enter(Stage::Open);
        }
        Poll::Ready(result.map(Some))
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Whether reading has come to the end, or failed.
    pub(super) fn is_finished(&self) -> bool {
        self.reading != Reading::Open
    }

    /// The next frame with anything in it; empty at the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.is_open() {
            ready!(self.poll_opened(cx))?;
        }
        let Some(stream) = self.stream.as_mut().filter(|_| self.reading == Reading::Open) else {
            return Poll::Ready(Ok(Bytes::new()));
        };
        loop {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    if let Some(progress) = self.progress.take() {
                        progress.enter(Stage::Heard);
                    }
                    self.shared.flow().take(&mut self.meter, data.len());
                    self.tunnel.count_received(data.len());
                    // Fails only when the stream has ended meanwhile; then there is no window to return.
                    let _ = stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Ok(data));
                }
                None => {
                    // HTTP/2 has trailers, and a tunnel has none: what they end may have been cut (RFC 9113, section
                    // 8.5).
                    return Poll::Ready(match ready!(stream.poll_trailers(cx)) {
                        Ok(None) => Ok(self.end()),
                        Ok(Some(_)) => {
                            self.tunnel.set_violated();
                            let error = Error::new(ErrorKind::Protocol, Layer::Tunnel, Side::Remote, "reading");
                            Err(self.fail(self.shared.describe(error.with_source("HEADERS on an open tunnel"))))
                        }
                        Err(e) => Err(self.fail(self.shared.explain(e, Layer::Tunnel, "reading"))),
                    });
                }
                Some(Err(e)) => {
                    let asks_to_stop = e.is_reset() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR);
                    return Poll::Ready(match asks_to_stop && self.tunnel.has_peer_ended() {
                        true => Ok(self.end()),
                        false => Err(self.fail(self.shared.explain(e, Layer::Tunnel, "reading"))),
                    });
                }
            }
        }
    }
}

impl TunnelRecv {
    /// Everything up to the peer's END_STREAM has been read.
    fn end(&mut self) -> Bytes {
        self.reading = Reading::Ended;
        self.tunnel.read_all();
        Bytes::new()
    }

    fn fail(&mut self, error: Error) -> io::Error {
        self.reading = Reading::Failed;
        self.tunnel.fail(&error);
        error.into()
    }
}

impl BytesRead for TunnelRecv {
    fn poll_read_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.rest)));
        }
        self.poll_frame(cx)
    }

    fn is_at_end(&self) -> bool {
        let is_end_stream = || self.stream.as_ref().is_some_and(h2::RecvStream::is_end_stream);
        self.rest.is_empty() && (self.reading == Reading::Ended || is_end_stream())
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
            // Frees the frame's memory.
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelRecv {
    fn drop(&mut self) {
        let Some(recv) = self.stream.take() else { return };
        self.shared.flow().remove(&recv);
        if recv.is_end_stream() {
            self.tunnel.read_all();
        }
        if self.tunnel.is_finished() && !self.is_finished() && !recv.is_end_stream() {
            self.shared.linger(LingeringTunnel { recv, _permit: self.permit.take() });
        }
    }
}
