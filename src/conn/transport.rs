//! The byte stream under HTTP/2.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::Shared;
use super::goaway::GoAwayScanner;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::tls::classify;

/// What is read and thrown away at most while waiting for the peer's end.
const MAX_DISCARD: usize = 1 << 20;

/// What is read in one go before the tunnels' readers get their turn. Without it a busy connection reads a whole window
/// ahead of them: memory that is cold, and given back to the system and fetched again, by the time it is used.
const READ_BURST: usize = 128 << 10;

/// Watches over a byte stream for its connection: counts signs of life, notes why it failed, and closes it in order.
///
/// Closing waits for the peer's end, up to the linger timeout. Closing a socket with unread bytes makes the kernel answer
/// with a reset, which can destroy what was sent last on its way.
#[derive(Debug)]
pub(crate) struct Transport<IO> {
    io: IO,
    shared: Arc<Shared>,
    linger_timeout: Duration,
    burst_left: usize,
    incoming: GoAwayScanner,
    outgoing: GoAwayScanner,
    closing: Closing,
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
        Self {
            io,
            shared,
            linger_timeout,
            burst_left: READ_BURST,
            incoming: GoAwayScanner::new(client == Side::Remote),
            outgoing: GoAwayScanner::new(client == Side::Local),
            closing: Closing::Open,
        }
    }

    fn written<'a>(&mut self, pieces: impl IntoIterator<Item = &'a [u8]>, mut written: usize) {
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

impl<IO: AsyncRead + Unpin> Transport<IO> {
    /// Notes why writing failed. A peer that turns us away says so and closes; what is written after that fails because
    /// nobody is there, and why is still to be read. HTTP/2 reads no more after a write that failed.
    fn note_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(result, Poll::Ready(Err(_)))
            && let Some(reason) = self.last_words(cx)
        {
            self.shared.fail(reason);
        }
        self.note(result)
    }

    /// Reads on for a GOAWAY, which is noted, or a TLS alert, which is returned.
    fn last_words(&mut self, cx: &mut Context<'_>) -> Option<Error> {
        let (mut scratch, mut left) = ([0; 4096], MAX_DISCARD);
        while left > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(Err(e)) => return classify(&e),
                Poll::Ready(Ok(())) | Poll::Pending => return None,
            }
            if let Some(code) = self.incoming.scan(buf.filled()) {
                self.shared.note_go_away(code, Side::Remote);
            }
            left = left.saturating_sub(buf.filled().len());
        }
        None
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Transport<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.burst_left == 0 {
            self.burst_left = READ_BURST;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.shared.count_read();
        }
        if let Some(code) = self.incoming.scan(&buf.filled()[before..]) {
            self.shared.note_go_away(code, Side::Remote);
        }
        self.burst_left = if result.is_pending() { READ_BURST } else { self.burst_left.saturating_sub(read) };
        self.note(result)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            self.written([buf], n);
        }
        self.note_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(n)) = result {
            self.written(bufs.iter().map(|buf| &**buf), n);
        }
        self.note_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.note_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.closing {
                Closing::Open => {
                    // The peer may be gone already; all that was to be said has been flushed before.
                    if ready!(Pin::new(&mut this.io).poll_shutdown(cx)).is_err() {
                        this.closing = Closing::Closed;
                    } else {
                        let deadline = Box::pin(sleep(this.linger_timeout));
                        this.closing = Closing::Discarding { deadline, left: MAX_DISCARD };
                    }
                }
                Closing::Discarding { deadline, left } => {
                    let mut scratch = [0; 4096];
                    let mut buf = ReadBuf::new(&mut scratch);
                    let ended = match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
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
                        this.closing = Closing::Closed;
                    }
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}
