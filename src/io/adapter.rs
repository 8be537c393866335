//! Any `AsyncRead + AsyncWrite` as [`BytesRead`] and [`BytesWrite`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffer::ReadBuffer;
use super::{BytesRead, BytesWrite};

/// Gives any byte stream [`BytesRead`] and [`BytesWrite`].
///
/// Reading uses a buffer that follows the traffic, between 2 KiB and 128 KiB, and holds none while there is nothing to
/// read.
#[derive(Debug)]
pub struct BytesAdapter<T> {
    io: T,
    buffer: ReadBuffer,
}

impl<T> BytesAdapter<T> {
    /// Wraps a byte stream.
    pub fn new(io: T) -> Self {
        Self { io, buffer: ReadBuffer::default() }
    }

    /// The byte stream.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// The byte stream. What is written to or read from it directly is not seen here.
    pub fn get_mut(&mut self) -> &mut T {
        &mut self.io
    }

    /// The byte stream. Nothing that was read is lost: a read buffer is handed out as soon as it holds something.
    pub fn into_inner(self) -> T {
        self.io
    }
}

impl<T: AsyncRead + Unpin> BytesRead for BytesAdapter<T> {
    fn poll_read_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let this = self.get_mut();
        ready!(this.buffer.poll_fill(cx, &mut this.io))?;
        Poll::Ready(Ok(this.buffer.bytes.split().freeze()))
    }
}

impl<T: AsyncWrite + Unpin> BytesWrite for BytesAdapter<T> {
    fn poll_write_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        poll_write_some(&mut self.io, cx, data)
    }
}

/// Writes as much of the front of `data` as `io` takes in one go.
pub(crate) fn poll_write_some<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    data: &mut Bytes,
) -> Poll<io::Result<()>> {
    if data.is_empty() {
        return Poll::Ready(Ok(()));
    }
    match ready!(Pin::new(io).poll_write(cx, data))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        n => {
            data.advance(n);
            Poll::Ready(Ok(()))
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for BytesAdapter<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for BytesAdapter<T> {
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
    use tokio::io::AsyncWriteExt;

    use super::super::read_bytes;
    use super::*;

    #[tokio::test]
    async fn an_idle_reader_holds_no_buffer() {
        let (mut far, near) = tokio::io::duplex(64);
        let mut near = BytesAdapter::new(near);
        far.write_all(b"hello").await.unwrap();
        assert_eq!(read_bytes(&mut near).await.unwrap(), "hello");
        for _ in 0..2 {
            tokio_test::assert_pending!(tokio_test::task::spawn(read_bytes(&mut near)).poll());
        }
        assert_eq!(near.buffer.bytes.capacity(), 0);
        drop(far);
        assert!(read_bytes(&mut near).await.unwrap().is_empty());
    }
}
