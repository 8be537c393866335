//! The byte stream under HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Shared;
use super::goaway::GoAwayScanner;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::io::Budget;
use crate::tls::classify;

/// What is read and thrown away at most while waiting for the peer's end.
const MAX_DISCARD: usize = 1 << 20;

/// Frames are put together up to this size, which is that of a TLS record. Larger ones are not copied.
const COALESCED: usize = 16 << 10;

/// More than HTTP/2 writes at a time: the head of a frame and its payload.
const MOST_SLICES: usize = 8;

/// What HTTP/2 reads from and writes to.
///
/// HTTP/2 flushes after each frame. While a [`WriteBatch`] is open, that does nothing: the frames of many tunnels then
/// leave together when the driver is done, in as few TLS records and system calls as they fit in.
#[derive(Debug)]
pub(crate) struct Transport<IO>(Arc<Mutex<FramedIo<IO>>>);

/// Gathers what HTTP/2 writes while the driver polls it.
#[derive(Debug)]
pub(crate) struct WriteBatch<IO>(Arc<Mutex<FramedIo<IO>>>);

/// The byte stream of a connection, as its frames see it: counts signs of life, notes why it failed, and closes it in
/// order.
///
/// Closing waits for the peer's end, up to the linger timeout: closing a socket with unread bytes makes the kernel
/// answer with a reset, which can destroy what was sent last on its way.
#[derive(Debug)]
struct FramedIo<IO> {
    io: IO,
    shared: Arc<Shared>,
    linger_timeout: Duration,
    budget: Budget,
    incoming: GoAwayScanner,
    outgoing: GoAwayScanner,
    /// Small frames that wait for others.
    small: BytesMut,
    /// Something was written since the last flush.
    unflushed: bool,
    /// A [`WriteBatch`] has begun, and is still to be sent.
    batching: bool,
    broken: Option<Broken>,
    closing: Closing,
}

/// Nothing can be sent any more. What the peer has sent before is still to be read, tunnels' bytes and its reasons for
/// turning this side away among it, but HTTP/2 reads no more after a write that failed. So it is told at the end of
/// what there is to read, and until then whatever it writes is thrown away.
#[derive(Debug)]
struct Broken {
    error: io::Error,
    /// A stream that can't be written to is mostly at its end; this is for those that go on for ever.
    deadline: Pin<Box<Sleep>>,
}

#[derive(Debug)]
enum Closing {
    Open,
    Discarding { deadline: Pin<Box<Sleep>>, left: usize },
    Closed,
}

impl<IO> Transport<IO> {
    /// `client` says which side is the client, whose bytes begin with a preface.
    pub(crate) fn new(io: IO, shared: Arc<Shared>, linger_timeout: Duration, client: Side) -> Self {
        Self(Arc::new(Mutex::new(FramedIo {
            io,
            shared,
            linger_timeout,
            budget: Budget::CONNECTION,
            incoming: GoAwayScanner::new(client == Side::Remote),
            outgoing: GoAwayScanner::new(client == Side::Local),
            small: BytesMut::new(),
            unflushed: false,
            batching: false,
            broken: None,
            closing: Closing::Open,
        })))
    }

    pub(crate) fn write_batch(&self) -> WriteBatch<IO> {
        WriteBatch(self.0.clone())
    }
}

/// One task has both, so that nobody ever waits for the lock.
fn lock<IO>(io: &Mutex<FramedIo<IO>>) -> MutexGuard<'_, FramedIo<IO>> {
    io.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<IO: AsyncRead + AsyncWrite + Unpin> WriteBatch<IO> {
    /// Lets frames wait for each other until [`WriteBatch::send`]. To be called before HTTP/2 is polled.
    pub(crate) fn begin(&self) {
        lock(&self.0).batching = true;
    }

    /// Sends what HTTP/2 has written since, as far as it can be sent now. When there is room for the rest, the task is
    /// woken.
    pub(crate) fn send(&self, cx: &mut Context<'_>) {
        let mut framed = lock(&self.0);
        framed.batching = false;
        if framed.unflushed {
            // A failure comes to light when HTTP/2 reads.
            let _ = framed.poll_flush(cx);
        }
    }
}

impl<IO> FramedIo<IO> {
    fn written<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, mut written: usize) {
        self.unflushed = true;
        self.shared.count_sent(written);
        for piece in pieces {
            let piece = &piece[..piece.len().min(written)];
            written -= piece.len();
            if let Some(code) = self.outgoing.scan(piece) {
                self.shared.note_go_away(code, Side::Local);
            }
        }
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(e)) = &result {
            let error = classify(e).unwrap_or_else(|| match Error::from_io(e) {
                // A tunnel below this connection: its hop is at fault.
                Some(below) => below.clone(),
                None => Error::new(ErrorKind::Closed, Layer::Http2, Side::Remote, "moving bytes")
                    .with_source(io::Error::new(e.kind(), e.to_string())),
            });
            self.shared.fail(error);
        }
        result
    }
}

impl<IO: AsyncRead + Unpin> FramedIo<IO> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.budget.is_spent() {
            self.budget = Budget::CONNECTION;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.shared.count_received(read);
        }
        let tunnels = self.shared.tunnels();
        if let Some(code) = self.incoming.scan_ends(&buf.filled()[before..], |stream| tunnels.note_peer_end(stream)) {
            self.shared.note_go_away(code, Side::Remote);
        }
        if result.is_pending() {
            self.budget = Budget::CONNECTION;
        } else {
            self.budget.spend(read);
        }
        let result = match &mut self.broken {
            Some(broken) if read == 0 => ready!(broken.poll_told(cx, result)),
            _ => ready!(result),
        };
        self.note(Poll::Ready(result))
    }
}

impl Broken {
    /// What reading nothing means when nothing can be written either.
    fn poll_told(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match read {
            // The peer's alert says more than that nobody takes what is written.
            Poll::Ready(Err(e)) if classify(&e).is_some() => return Poll::Ready(Err(e)),
            Poll::Ready(_) => {}
            Poll::Pending => ready!(self.deadline.as_mut().poll(cx)),
        }
        let unknown = io::Error::from(self.error.kind());
        Poll::Ready(Err(std::mem::replace(&mut self.error, unknown)))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> FramedIo<IO> {
    /// Nothing can be written any more.
    fn break_off(&mut self, cx: &mut Context<'_>, error: io::Error) {
        self.small = BytesMut::new();
        self.unflushed = false;
        if self.broken.is_none() {
            self.broken = Some(Broken { error, deadline: Box::pin(sleep(self.linger_timeout)) });
            // HTTP/2 finds out when it reads.
            cx.waker().wake_by_ref();
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        let written = loop {
            if self.broken.is_some() {
                return Poll::Ready(Ok(len));
            }
            if self.small.len() + len <= COALESCED {
                bufs.iter().for_each(|buf| self.small.extend_from_slice(buf));
                break len;
            }
            // What waits leaves with the rest.
            let mut slices = [IoSlice::new(&[]); MOST_SLICES];
            slices[0] = IoSlice::new(&self.small);
            let count = bufs.len().min(MOST_SLICES - 1);
            slices[1..=count].copy_from_slice(&bufs[..count]);
            let written = match ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..=count])) {
                Ok(0) => {
                    self.break_off(cx, io::ErrorKind::WriteZero.into());
                    continue;
                }
                Ok(n) => n,
                Err(e) => {
                    self.break_off(cx, e);
                    continue;
                }
            };
            let waited = self.small.len().min(written);
            self.small.advance(waited);
            if written > waited {
                break written - waited;
            }
        };
        self.written(bufs.iter().map(|buf| &**buf), written);
        Poll::Ready(Ok(written))
    }

    /// Never fails: see [`Broken`].
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(()));
        }
        if let Err(e) = ready!(self.poll_flush_io(cx)) {
            self.break_off(cx, e);
        }
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_flush_io(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.small.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.small))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.small.advance(n),
            }
        }
        // Idle connections are many.
        self.small = BytesMut::new();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match &mut self.closing {
                Closing::Open => {
                    if self.unflushed {
                        ready!(self.poll_flush(cx))?;
                    }
                    if let Some(broken) = self.broken.take() {
                        // HTTP/2 reads no more.
                        let _ = self.note::<()>(Poll::Ready(Err(broken.error)));
                    }
                    // The peer may be gone already; all that was to be said has been flushed before.
                    if ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err() {
                        self.closing = Closing::Closed;
                    } else {
                        let deadline = Box::pin(sleep(self.linger_timeout));
                        self.closing = Closing::Discarding { deadline, left: MAX_DISCARD };
                    }
                }
                Closing::Discarding { deadline, left } => {
                    let mut scratch = [0; 4096];
                    let mut buf = ReadBuf::new(&mut scratch);
                    let ended = match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                        Poll::Ready(Ok(())) => {
                            *left = left.saturating_sub(buf.filled().len());
                            buf.filled().is_empty() || *left == 0
                        }
                        Poll::Ready(Err(_)) => true,
                        Poll::Pending => {
                            ready!(deadline.as_mut().poll(cx));
                            true
                        }
                    };
                    if ended {
                        self.closing = Closing::Closed;
                    }
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Transport<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        lock(&self.0).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut framed = lock(&self.0);
        if framed.batching { Poll::Ready(Ok(())) } else { framed.poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_shutdown(cx)
    }
}
