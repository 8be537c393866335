//! The records of a session, once its handshake is done.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of what was encrypted waits for a flush before it is sent. tokio-rustls sends with each write, which makes
/// each frame of HTTP/2 a system call; and rustls' own limit of 64 KiB cuts the tail off a frame of that size.
const WRITE_BUFFER: usize = 256 << 10;

/// A byte stream and the session on it.
pub(super) struct Session<IO> {
    io: IO,
    connection: Connection,
    /// Why reading failed, until what had come before that has been read.
    failed: Option<io::Error>,
    closing: bool,
}

impl<IO> Session<IO> {
    pub(super) fn new(io: IO, mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(WRITE_BUFFER));
        Self { io, connection, failed: None, closing: false }
    }

    pub(super) fn get_ref(&self) -> &IO {
        &self.io
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Session<IO> {
    /// Reads what there is, as much as `buf` has room for. Nothing means the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(e) = self.failed.take() {
            return Poll::Ready(Err(e));
        }
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let some = buf.filled().len() > before;
            match self.poll_chunk(cx, buf) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) if some => {
                    self.failed = Some(e);
                    break;
                }
                Poll::Pending if some => break,
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads from the next record; 0 is the end.
    fn poll_chunk(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let mut blocked = false;
        while self.connection.wants_read() && !blocked {
            match self.connection.read_tls(&mut Blocking { io: &mut self.io, cx }) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(e) => return Poll::Ready(Err(e)),
            }
            if let Err(e) = self.connection.process_new_packets() {
                // The alert that tells the peer, as far as it can be sent now.
                let _ = self.send(cx);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, e)));
            }
        }
        let mut reader = self.connection.reader();
        let taken = match reader.fill_buf() {
            Ok(chunk) => {
                let taken = chunk.len().min(buf.remaining());
                buf.put_slice(&chunk[..taken]);
                taken
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !blocked {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            Err(e) => return Poll::Ready(Err(e)),
        };
        reader.consume(taken);
        Poll::Ready(Ok(taken))
    }

    /// Encrypts what there is room for.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            match self.connection.writer().write_vectored(bufs)? {
                0 => ready!(self.send(cx))?,
                n => return Poll::Ready(Ok(n)),
            }
        }
    }

    /// Sends some of what was encrypted.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.connection.write_tls(&mut Blocking { io: &mut self.io, cx }) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(_) => Poll::Ready(Ok(())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(e) => Poll::Ready(Err(e)),
        }
    }

    fn send_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            ready!(self.send(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send_all(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Sends `close_notify` behind what was written, and ends the byte stream.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            self.connection.send_close_notify();
        }
        ready!(self.send_all(cx))?;
        match ready!(Pin::new(&mut self.io).poll_shutdown(cx)) {
            // The peer has gone already.
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

/// A byte stream as rustls wants it: what would have to wait is [`io::ErrorKind::WouldBlock`], and the task is woken
/// later.
struct Blocking<'a, 'b, IO> {
    io: &'a mut IO,
    cx: &'a mut Context<'b>,
}

fn blocking<T>(result: Poll<io::Result<T>>) -> io::Result<T> {
    match result {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<IO: AsyncRead + Unpin> Read for Blocking<'_, '_, IO> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        blocking(Pin::new(&mut *self.io).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl<IO: AsyncWrite + Unpin> Write for Blocking<'_, '_, IO> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        blocking(Pin::new(&mut *self.io).poll_flush(self.cx))
    }
}
