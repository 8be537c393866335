//! What a tunnel has given HTTP/2 to send.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;

/// Counts the frames of one tunnel that HTTP/2 still holds.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    frames: AtomicUsize,
    emptied: AtomicWaker,
}

impl SendQueue {
    /// Ready when HTTP/2 holds no frame any more: each has been written to the connection, or given up with it.
    pub(crate) fn poll_empty(&self, cx: &mut Context<'_>) -> Poll<()> {
        // Registered before the look, so that a frame that leaves in between is not missed.
        self.emptied.register(cx.waker());
        if self.frames.load(Ordering::Acquire) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// A frame, counted until it is dropped.
    pub(crate) fn frame(self: &Arc<Self>, bytes: Bytes) -> Frame {
        self.frames.fetch_add(1, Ordering::AcqRel);
        Frame { bytes, queue: self.clone() }
    }
}

/// The bytes of one DATA frame. HTTP/2 drops it once it has written it to the connection.
#[derive(Debug)]
pub(crate) struct Frame {
    bytes: Bytes,
    queue: Arc<SendQueue>,
}

impl Buf for Frame {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, n: usize) {
        self.bytes.advance(n);
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        if self.queue.frames.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.emptied.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn a_queue_is_empty_once_every_frame_is_gone() {
        let queue = Arc::new(SendQueue::default());
        let mut empty = task::spawn(poll_fn(|cx| queue.poll_empty(cx)));
        assert_ready!(empty.poll());
        let (first, last) = (queue.frame("first".into()), queue.frame(Bytes::new()));
        assert_pending!(empty.poll());
        drop(first);
        assert_pending!(empty.poll());
        drop(last);
        assert!(empty.is_woken());
        assert_ready!(empty.poll());
    }
}
