//! A slow link: what all connections through it share, in each direction.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until};

/// Bytes per second: 100 Mb/s.
const RATE: f64 = 12.5e6;
/// So little may wait in the link itself: what is behind it queues at the sender, as before a router with a short
/// queue.
pub(crate) const QUEUE: u32 = 64 << 10;
const PIECE: usize = 16 << 10;
/// Timers are as coarse as a millisecond; a link that was woken late may catch up so much.
const CATCH_UP: Duration = Duration::from_millis(2);

/// One direction.
#[derive(Clone)]
struct Line(Arc<Mutex<Instant>>);

impl Line {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// When so many bytes are through, behind those of all who asked before.
    fn through(&self, bytes: usize) -> Instant {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(*free);
        *free = earliest.max(*free) + Duration::from_secs_f64(bytes as f64 / RATE);
        *free
    }

    async fn carry(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        loop {
            let bytes = from.read(&mut piece).await?;
            if bytes == 0 {
                return to.shutdown().await;
            }
            sleep_until(self.through(bytes)).await;
            to.write_all(&piece[..bytes]).await?;
        }
    }
}

/// Both directions.
#[derive(Clone)]
pub(crate) struct Link {
    there: Line,
    back: Line,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self { there: Line::new(), back: Line::new() }
    }

    /// Carries one connection to `upstream`.
    pub(crate) async fn carry(self, mut near: TcpStream, upstream: SocketAddr) -> io::Result<()> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(QUEUE)?;
        socket.set_nodelay(true)?;
        let mut far = socket.connect(upstream).await?;
        let ((from_near, to_near), (from_far, to_far)) = (near.split(), far.split());
        tokio::try_join!(self.there.carry(from_near, to_far), self.back.carry(from_far, to_near)).map(|_| ())
    }
}
