//! Moving bytes: [`BytesRead`] and [`BytesWrite`], which pass [`Bytes`] on without copying, [`BytesAdapter`] for any
//! other byte stream, and [`relay`] between two of them. [`Stream`], [`Dial`] and [`Accept`] are what connections are
//! put on. A [`Scheduler`] keeps small messages fast beside bulk.

mod adapter;
mod buffer;
mod dial;
mod read_ahead;
mod relay;
mod scheduler;
mod stream;
mod tcp;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use adapter::BytesAdapter;
#[cfg(feature = "proxy")]
pub(crate) use adapter::poll_write_some;
#[cfg(feature = "proxy")]
pub(crate) use buffer::ReadBuffer;
pub(crate) use dial::dial;
#[cfg(feature = "proxy")]
pub(crate) use dial::dial_any;
pub use dial::{Dial, DialFuture, DialRequest};
pub use read_ahead::ReadAhead;
#[cfg(feature = "proxy")]
pub(crate) use relay::relay_in_turns;
pub use relay::{RelayEnd, RelayError, RelayOperation, RelayStats, relay};
pub use scheduler::Scheduler;
#[cfg(feature = "proxy")]
pub(crate) use scheduler::Threads;
pub(crate) use scheduler::{Budget, Load, LoadMeter, Sample, Turns};
pub use stream::{Accept, Accepted, BoxStream, Stream};

/// A reader that hands out what it has received as [`Bytes`], without copying.
pub trait BytesRead: AsyncRead {
    /// Reads the next bytes, as many as there are; empty means the end.
    ///
    /// Cancel safe: what was not returned is returned by the next call.
    ///
    /// # Errors
    ///
    /// As [`AsyncRead::poll_read`].
    fn poll_read_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>>;

    /// Ready when the stream has failed, without reading from it: a [`relay`] asks while its other stream takes
    /// nothing, or once this one has been read to its end, so that it does not hold a dead one. A reader that can't
    /// tell is never ready, which is the default. Cancel safe.
    fn poll_failed(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Error> {
        let _ = cx;
        Poll::Pending
    }

    /// Whether it is known that everything has been read, so that the next read would be the end rather than a failure.
    /// A [`relay`] asks after each read, and passes the end on along with the last bytes. A reader that learns of the
    /// end only by reading it says no, which is the default, and that of [`BytesAdapter`].
    fn is_at_end(&self) -> bool {
        false
    }
}

/// A writer that takes [`Bytes`] over, without copying.
pub trait BytesWrite: AsyncWrite {
    /// Waits until it can take something, then takes as much as it can from the front of `data`, and at least one byte
    /// unless `data` is empty.
    ///
    /// Cancel safe: what was not taken is still in `data`.
    ///
    /// # Errors
    ///
    /// As [`AsyncWrite::poll_write`].
    fn poll_write_bytes(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>>;

    /// Writes all of `data`, and shuts down as [`AsyncWrite::poll_shutdown`] does: with the last bytes where the writer
    /// can do that, which saves the peer a wake-up and the network a packet. Otherwise it does one after the other,
    /// which is the default.
    ///
    /// Cancel safe: what was not taken is still in `data`. Nothing else may be written once this has been called.
    ///
    /// # Errors
    ///
    /// As [`AsyncWrite::poll_write`] while there is something in `data`, and as [`AsyncWrite::poll_shutdown`] when
    /// there is not.
    fn poll_write_last(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        while !data.is_empty() {
            ready!(self.as_mut().poll_write_bytes(cx, data))?;
        }
        self.poll_shutdown(cx)
    }

    /// Ready when a failure of this side can no longer overtake what was written and flushed. A [`relay`] waits for it
    /// before it reports that the other stream has failed. Ready at once where that is not known, which is the default.
    /// Cancel safe.
    fn poll_sent(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _ = cx;
        Poll::Ready(())
    }
}

/// Reads the next bytes; empty means the end. The async form of [`BytesRead::poll_read_bytes`], and as cancel safe.
///
/// # Errors
///
/// As [`BytesRead::poll_read_bytes`].
pub async fn read_bytes<R: BytesRead + Unpin + ?Sized>(reader: &mut R) -> io::Result<Bytes> {
    poll_fn(|cx| Pin::new(&mut *reader).poll_read_bytes(cx)).await
}

/// Writes all of `data`. When cancelled, an unknown part of it has been written.
///
/// # Errors
///
/// As [`BytesWrite::poll_write_bytes`].
pub async fn write_bytes<W: BytesWrite + Unpin + ?Sized>(writer: &mut W, mut data: Bytes) -> io::Result<()> {
    while !data.is_empty() {
        poll_fn(|cx| Pin::new(&mut *writer).poll_write_bytes(cx, &mut data)).await?;
    }
    Ok(())
}
