//! Any `AsyncRead + AsyncWrite` as a mover of `Bytes`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{BytesRead, BytesWrite, Spare, buffer_size};

/// Gives any byte stream [`BytesRead`] and [`BytesWrite`].
///
/// Reading uses a buffer that grows with the traffic, from 2 KiB to 128 KiB, and holds none while there is nothing to read.
#[derive(Debug)]
pub struct Plain<T> {
    io: T,
    buffer: BytesMut,
    read: u64,
    spare: Spare,
}

impl<T> Plain<T> {
    /// Wraps a byte stream.
    pub fn new(io: T) -> Self {
        Self { io, buffer: BytesMut::new(), read: 0, spare: Spare::default() }
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

impl<T: AsyncRead + Unpin> BytesRead for Plain<T> {
    fn poll_read_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let this = self.get_mut();
        let size = buffer_size(this.read);
        if this.buffer.capacity() < size / 2 {
            // Takes the old memory again when everything read into it has been let go of.
            this.buffer.reserve(size);
        }
        match poll_read_buf(Pin::new(&mut this.io), cx, &mut this.buffer) {
            Poll::Ready(Ok(n)) => {
                this.read += n as u64;
                this.spare.used();
                Poll::Ready(Ok(this.buffer.split().freeze()))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                this.spare.unused(&mut this.buffer);
                Poll::Pending
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> BytesWrite for Plain<T> {
    fn poll_write_bytes(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        if data.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.io).poll_write(cx, data))? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            n => {
                data.advance(n);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Plain<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Plain<T> {
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
        let mut near = Plain::new(near);
        far.write_all(b"hello").await.unwrap();
        assert_eq!(read_bytes(&mut near).await.unwrap(), "hello");
        for _ in 0..2 {
            tokio_test::assert_pending!(tokio_test::task::spawn(read_bytes(&mut near)).poll());
        }
        assert_eq!(near.buffer.capacity(), 0);
        drop(far);
        assert!(read_bytes(&mut near).await.unwrap().is_empty());
    }
}
