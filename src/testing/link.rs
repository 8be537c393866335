//! A path with a delay and a bandwidth, without sockets.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A path between two places: bytes arrive after half of its round trip, no more of them at a time than its rate
/// allows, and none is lost. All time is tokio's, so on a paused clock a long path takes no time and measures the same
/// each time.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    one_way: Duration,
    bits_per_second: Option<u64>,
}

/// One end of a connection over a [`Link`]. Dropped, it ends in order.
#[derive(Debug)]
pub struct LinkEnd {
    sends: Arc<Mutex<Way>>,
    receives: Arc<Mutex<Way>>,
    link: Link,
    send_timer: Option<Pin<Box<Sleep>>>,
    receive_timer: Option<Pin<Box<Sleep>>>,
}

/// One direction.
#[derive(Debug)]
struct Way {
    flying: VecDeque<(Instant, Bytes)>,
    /// When all that was written has left the sender.
    free_at: Instant,
    ended: bool,
    /// There is nobody to read.
    deaf: bool,
    reader: Option<Waker>,
}

/// How much the sender's end holds, as the time that it takes to leave.
const SEND_BUFFER: Duration = Duration::from_millis(4);

/// What one write takes at most.
const PIECE: usize = 64 << 10;

impl Link {
    /// A path with this round-trip time and no limit to its rate.
    pub fn new(round_trip: Duration) -> Self {
        Self { one_way: round_trip / 2, bits_per_second: None }
    }

    /// Limits what it carries in each direction.
    pub fn with_rate(mut self, bits_per_second: u64) -> Self {
        self.bits_per_second = Some(bits_per_second.max(1));
        self
    }

    /// How long there and back takes.
    pub fn round_trip(&self) -> Duration {
        2 * self.one_way
    }

    /// The two ends of a new connection, with the whole path to itself. It is open at once: to open one as TCP does,
    /// wait for a round trip first.
    pub fn connection(&self) -> (LinkEnd, LinkEnd) {
        let way = || {
            let now = Instant::now();
            let way = Way { flying: VecDeque::new(), free_at: now, ended: false, deaf: false, reader: None };
            Arc::new(Mutex::new(way))
        };
        let (there, back) = (way(), way());
        let end = |sends: &Arc<Mutex<Way>>, receives: &Arc<Mutex<Way>>| LinkEnd {
            sends: sends.clone(),
            receives: receives.clone(),
            link: *self,
            send_timer: None,
            receive_timer: None,
        };
        (end(&there, &back), end(&back, &there))
    }

    fn time_for(&self, bytes: usize) -> Duration {
        match self.bits_per_second {
            Some(rate) => Duration::from_nanos((bytes as u64 * 8).saturating_mul(1_000_000_000) / rate),
            None => Duration::ZERO,
        }
    }
}

fn lock(way: &Mutex<Way>) -> MutexGuard<'_, Way> {
    way.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait_until(timer: &mut Option<Pin<Box<Sleep>>>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
    if timer.deadline() != at {
        timer.as_mut().reset(at);
    }
    timer.as_mut().poll(cx)
}

impl crate::io::Stream for LinkEnd {}

impl AsyncRead for LinkEnd {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let receives = self.receives.clone();
        let mut way = lock(&receives);
        loop {
            let Some((arrives, data)) = way.flying.front_mut() else {
                way.reader = Some(cx.waker().clone());
                return if way.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            if *arrives > Instant::now() {
                let arrives = *arrives;
                way.reader = Some(cx.waker().clone());
                ready!(wait_until(&mut self.receive_timer, arrives, cx));
                continue;
            }
            let n = data.len().min(buf.remaining());
            buf.put_slice(&data[..n]);
            data.advance(n);
            // The end is an empty piece, which stays.
            let is_end = data.is_empty() && n == 0;
            if data.is_empty() && !is_end {
                way.flying.pop_front();
            }
            if is_end || buf.remaining() == 0 || way.flying.front().is_none_or(|(at, _)| *at > Instant::now()) {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for LinkEnd {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let (sends, link, now) = (self.sends.clone(), self.link, Instant::now());
        let mut way = lock(&sends);
        if way.deaf || way.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if way.free_at > now + SEND_BUFFER {
            let at = way.free_at - SEND_BUFFER / 2;
            drop(way);
            ready!(wait_until(&mut self.send_timer, at, cx));
            way = lock(&sends);
        }
        let data = Bytes::copy_from_slice(&buf[..buf.len().min(PIECE)]);
        let n = data.len();
        if n > 0 {
            way.send(link, data);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.sends).end(self.link);
        Poll::Ready(Ok(()))
    }
}

impl Way {
    fn send(&mut self, link: Link, data: Bytes) {
        self.free_at = self.free_at.max(Instant::now()) + link.time_for(data.len());
        self.flying.push_back((self.free_at + link.one_way, data));
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn end(&mut self, link: Link) {
        if !std::mem::replace(&mut self.ended, true) {
            self.send(link, Bytes::new());
        }
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        lock(&self.sends).end(self.link);
        let mut receives = lock(&self.receives);
        receives.deaf = true;
        receives.flying.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_and_the_end_arrive_after_half_a_round_trip() {
        let (mut near, mut far) = Link::new(Duration::from_millis(100)).connection();
        let begin = Instant::now();
        near.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!((&got, begin.elapsed()), (b"hello", Duration::from_millis(50)));
        drop(near);
        assert_eq!(far.read(&mut got).await.unwrap(), 0);
        assert_eq!(begin.elapsed(), Duration::from_millis(100));
        assert_eq!(far.read(&mut got).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_carries_what_its_rate_allows() {
        let (mut near, mut far) = Link::new(Duration::from_millis(100)).with_rate(1_000_000_000).connection();
        let begin = Instant::now();
        tokio::spawn(async move { near.write_all(&vec![0; 12_500_000]).await });
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 12_500_000);
        let took = begin.elapsed().as_millis();
        assert!((150..155).contains(&took), "{took} ms");
    }
}
