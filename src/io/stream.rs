//! Byte streams of any kind, and how to accept one.

use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::mpsc;

/// A byte stream that a connection can be put on, and that a role can serve. Sockets, tunnels, TLS sessions and
/// in-memory pipes are such; implement it for a type of your own.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// Makes the coming drop look like a failure to the peer (a TCP reset) rather than like an end, so that a truncated
    /// answer can't be mistaken for a whole one. Where a kind of stream makes no difference between the two, this does
    /// nothing.
    fn fail(&mut self) {}

    /// Says that only the last bytes and the shutdown are still to be written, one right behind the other. The bytes
    /// may then wait for the shutdown, flushed or not, to leave in one piece (for TCP on Linux, in one segment). It may
    /// be called more than once, and a stream that is dropped without the shutdown treats them as usual. Where a kind
    /// of stream makes no difference between the two, this does nothing; one that wraps another should pass it on.
    fn expect_shutdown(&mut self) {}

    /// Says that a write had to wait for the peer to read. One that reads slowly, or pauses, is not one that has
    /// vanished: what looks out for the latter may have to bear with it. Called once at most. The default does nothing;
    /// one that wraps another should pass it on.
    fn write_blocked(&mut self) {}

    /// Waits until what was written has left, so that a [`fail`](Self::fail) that follows can't overtake it. Whether it
    /// has arrived, nobody can say. Where the kind of stream can't tell, or its failure destroys nothing, this is ready
    /// at once, which is the default; one that wraps another should pass it on.
    fn sent(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(ready(()))
    }
}

/// Any [`Stream`].
pub type BoxStream = Box<dyn Stream>;

impl Stream for DuplexStream {}

impl<S: Stream + ?Sized> Stream for Box<S> {
    fn fail(&mut self) {
        (**self).fail();
    }

    fn expect_shutdown(&mut self) {
        (**self).expect_shutdown();
    }

    fn write_blocked(&mut self) {
        (**self).write_blocked();
    }

    fn sent(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        (**self).sent()
    }
}

/// A byte stream that somebody opened, with the address of its peer where there is such a thing.
pub type Accepted<S> = io::Result<(S, Option<SocketAddr>)>;

/// Takes the byte streams that others open: a socket that listens, a queue (`mpsc::Receiver`) that something else
/// fills, or the tunnels of a connection further out. The hook for an embedder's own transport.
pub trait Accept {
    /// What is taken.
    type Io: Stream + 'static;

    /// Waits for the next one. `None` when no more will come. Cancel safe.
    ///
    /// # Errors
    ///
    /// What kept one from being taken, mostly a lack of file descriptors. This is not the end: the next may succeed.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<Self::Io>>>;
}

impl<S: Stream + 'static> Accept for mpsc::Receiver<S> {
    type Io = S;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<S>>> {
        self.poll_recv(cx).map(|stream| stream.map(|stream| Ok((stream, None))))
    }
}
