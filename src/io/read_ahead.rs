//! Fewer and larger reads from a socket.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::ReadBuffer;

/// Reads ahead from a byte stream on which each read is a system call. TLS asks for one record of 16 KiB at a time;
/// with this in between, a busy socket is read in pieces of up to 128 KiB.
///
/// The buffer follows the traffic and is freed while there is nothing to read. Put it on sockets, not on tunnels: those
/// already hold whole frames. Writes go through unchanged.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    buffer: ReadBuffer,
}

impl<IO> ReadAhead<IO> {
    /// Wraps a byte stream.
    pub fn new(io: IO) -> Self {
        Self { io, buffer: ReadBuffer::default() }
    }

    /// The byte stream. Reading from it directly would skip what has been read ahead.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> ReadAhead<IO> {
    /// Waits for the first bytes, which stay to be read. `false` when the stream ends or fails before them. Cancel
    /// safe.
    pub(crate) async fn begins(&mut self) -> bool {
        let first = poll_fn(|cx| self.buffer.poll_fill(cx, &mut self.io));
        matches!(first.await, Ok(n) if n > 0)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.bytes.is_empty() {
            this.buffer.bytes.clear();
            ready!(this.buffer.poll_fill(cx, &mut this.io))?;
        }
        let n = this.buffer.bytes.len().min(buf.remaining());
        buf.put_slice(&this.buffer.bytes[..n]);
        this.buffer.bytes.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_are_waited_for_and_not_lost() {
        let (mut far, near) = duplex(64);
        let mut near = ReadAhead::new(near);
        far.write_all(b"hello").await.unwrap();
        assert!(near.begins().await);
        drop(far);
        let mut read = String::new();
        near.read_to_string(&mut read).await.unwrap();
        assert_eq!(read, "hello");
        assert!(!near.begins().await);
    }

    #[tokio::test]
    async fn small_reads_get_what_one_large_read_brought() {
        let (mut far, near) = duplex(4096);
        let mut near = ReadAhead::new(near);
        far.write_all(b"abcdef").await.unwrap();
        let mut two = [0; 2];
        near.read_exact(&mut two).await.unwrap();
        assert_eq!((&two, near.buffer.bytes.len()), (b"ab", 4));
        drop(far);
        let mut rest = String::new();
        near.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "cdef");
    }
}
