//! The future that moves a client connection's frames.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::conn::{Frame, Maintenance, Permits, Shared, Transport, WriteBatch, driver_result};
use crate::error::Result;
use crate::io::Turns;

/// Moves the frames of one client connection. Spawn it; it ends by itself.
///
/// It ends with `Ok` when all handles and tunnels are gone and what was sent is flushed, or when the peer closed in
/// order; with the reason otherwise, which every tunnel of the connection has got as well. Dropping it breaks the
/// connection.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver<IO> {
    connection: h2::client::Connection<Transport<IO>, Frame>,
    batch: WriteBatch<IO>,
    maintenance: Maintenance,
    permits: Arc<Permits>,
    shared: Arc<Shared>,
    turns: Turns,
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(
        connection: h2::client::Connection<Transport<IO>, Frame>,
        batch: WriteBatch<IO>,
        maintenance: Maintenance,
        permits: Arc<Permits>,
        shared: Arc<Shared>,
    ) -> Self {
        let turns = shared.turns();
        Self { connection, batch, maintenance, permits, shared, turns }
    }

    /// Moves all frames that can be moved now.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Poll::Ready(error) = self.maintenance.poll(cx, &self.shared) {
            self.permits.close();
            return Poll::Ready(Err(error));
        }
        self.maintenance.resize(cx, &self.shared, &mut self.connection);
        self.batch.begin();
        let result = Pin::new(&mut self.connection).poll(cx);
        // The peer may change its limit at any time, and announces the first one right after the handshake.
        self.permits.set_peer_limit(self.connection.max_concurrent_send_streams());
        if self.shared.is_going_away() && !self.permits.is_closed() {
            self.permits.close();
        }
        match result {
            Poll::Pending => {
                self.maintenance.resize(cx, &self.shared, &mut self.connection);
                self.batch.send(cx);
                Poll::Pending
            }
            Poll::Ready(result) => {
                let result = driver_result(&self.shared, result);
                self.permits.close();
                Poll::Ready(result)
            }
        }
    }
}

impl<IO> Future for Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        ready!(this.turns.poll_begin(cx));
        let before = this.shared.moved();
        let result = this.poll_frames(cx);
        this.turns.end(this.shared.moved() - before);
        result
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.permits.close();
        self.shared.close();
    }
}

impl<IO> fmt::Debug for Driver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("client::Driver").field("peer", &self.shared.peer()).finish_non_exhaustive()
    }
}
