//! The future that moves a client connection's frames.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::conn::{Outbox, Shared, Transport, Upkeep, driver_result};
use crate::error::Result;
use crate::tunnel::Slots;

/// Moves the frames of one client connection. Spawn it; it ends by itself.
///
/// It ends with `Ok` when all handles and tunnels are gone and what was sent is flushed, or when the peer closed in order;
/// with the reason otherwise, which every tunnel of the connection has got as well. Dropping it breaks the connection.
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver<IO> {
    connection: h2::client::Connection<Transport<IO>, Bytes>,
    outbox: Outbox<IO>,
    upkeep: Upkeep,
    slots: Arc<Slots>,
    shared: Arc<Shared>,
}

impl<IO> Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(
        connection: h2::client::Connection<Transport<IO>, Bytes>,
        outbox: Outbox<IO>,
        upkeep: Upkeep,
        slots: Arc<Slots>,
        shared: Arc<Shared>,
    ) -> Self {
        Self { connection, outbox, upkeep, slots, shared }
    }
}

impl<IO> Future for Driver<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.upkeep.poll(cx, &this.shared) {
            this.slots.close();
            return Poll::Ready(Err(error));
        }
        this.upkeep.resize(cx, &this.shared, |window| this.connection.set_initial_window_size(window));
        this.outbox.hold();
        let result = Pin::new(&mut this.connection).poll(cx);
        // The peer may change its limit at any time, and tells it first right after the handshake.
        this.slots.set_peer_limit(this.connection.max_concurrent_send_streams());
        if this.shared.is_going_away() && !this.slots.is_closed() {
            this.slots.close();
        }
        match result {
            Poll::Pending => {
                this.upkeep.resize(cx, &this.shared, |window| this.connection.set_initial_window_size(window));
                this.outbox.send(cx);
                Poll::Pending
            }
            Poll::Ready(result) => {
                let result = driver_result(&this.shared, result);
                this.slots.close();
                Poll::Ready(result)
            }
        }
    }
}

impl<IO> Drop for Driver<IO> {
    fn drop(&mut self) {
        self.slots.close();
        self.shared.close();
    }
}

impl<IO> fmt::Debug for Driver<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("client::Driver").field("peer", &self.shared.peer()).finish_non_exhaustive()
    }
}
