//! Tunnels that this side has finished and dropped before the peer has finished.
//!
//! HTTP/2 would reset the stream. Peers count resets and close the whole connection when there are too many (Envoy:
//! 1,000 and 33 per second), so the driver holds such a stream until the peer's END_STREAM is here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, Sleep, sleep_until};

use super::SharedPermit;

/// How many bytes are discarded while waiting for the peer's end. A peer that sends more gets a reset.
const MAX_DISCARD: usize = 256 << 10;

/// A stream whose sending half is finished.
#[derive(Debug)]
pub(crate) struct LingeringTunnel {
    pub(crate) recv: h2::RecvStream,
    /// Counts the stream as open until it is not.
    pub(crate) _permit: Option<SharedPermit>,
}

/// From the tunnels to the driver.
#[derive(Debug, Default)]
pub(super) struct LingerQueue {
    queue: Mutex<Queue>,
    driver: AtomicWaker,
}

#[derive(Debug, Default)]
struct Queue {
    tunnels: Vec<LingeringTunnel>,
    closed: bool,
}

impl LingerQueue {
    /// Hands a tunnel to the driver, or drops it when the driver is gone.
    pub(super) fn push(&self, tunnel: LingeringTunnel) {
        let mut queue = self.lock();
        if !queue.closed {
            queue.tunnels.push(tunnel);
            self.driver.wake();
        }
    }

    /// The driver is gone.
    pub(super) fn close(&self) {
        let tunnels = {
            let mut queue = self.lock();
            queue.closed = true;
            std::mem::take(&mut queue.tunnels)
        };
        drop(tunnels);
    }

    fn take(&self, cx: &Context<'_>) -> Vec<LingeringTunnel> {
        self.driver.register(cx.waker());
        std::mem::take(&mut self.lock().tunnels)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The driver's side.
#[derive(Debug)]
pub(super) struct Lingering {
    timeout: Duration,
    /// Oldest first; all wait equally long.
    tunnels: VecDeque<(Instant, usize, LingeringTunnel)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Lingering {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, tunnels: VecDeque::new(), timer: None }
    }

    /// Drops what has ended, and what has waited too long, which HTTP/2 then resets.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, queue: &LingerQueue) {
        let added = queue.take(cx);
        if !added.is_empty() {
            let deadline = Instant::now() + self.timeout;
            self.tunnels.extend(added.into_iter().map(|tunnel| (deadline, MAX_DISCARD, tunnel)));
        }
        if self.tunnels.is_empty() {
            return;
        }
        self.tunnels.retain_mut(|(_, left, tunnel)| still_open(cx, left, &mut tunnel.recv));
        while let Some((deadline, ..)) = self.tunnels.front() {
            let deadline = *deadline;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.tunnels.pop_front();
        }
        self.timer = None;
    }
}

fn still_open(cx: &mut Context<'_>, left: &mut usize, recv: &mut h2::RecvStream) -> bool {
    loop {
        match recv.poll_data(cx) {
            Poll::Pending => return true,
            Poll::Ready(Some(Ok(data))) if data.len() < *left => {
                *left -= data.len();
                // Fails only when the stream has ended, which the next poll finds out.
                let _ = recv.flow_control().release_capacity(data.len());
            }
            Poll::Ready(_) => return false,
        }
    }
}
