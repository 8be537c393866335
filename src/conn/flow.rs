//! What the tunnels of a connection have been sent, and have read.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Counted by the transport and the tunnels, for the driver.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Bytes of DATA frames that have come, and those of them that hold no window any more.
    received: AtomicU64,
    released: AtomicU64,
    /// How many tunnels have a reader.
    readers: AtomicUsize,
    /// Counts the rounds in which the tunnels are measured; 0 before the first.
    round: AtomicU32,
    /// The most that one reader took in this round.
    best: AtomicU64,
    /// Streams that nobody reads any more, and that more may come for. HTTP/2 throws it away unseen.
    abandoned: Mutex<Vec<u32>>,
    has_abandoned: AtomicBool,
}

/// The streams whose rest is known not to count. One that is forgotten makes the windows grow a little later.
const MOST_ABANDONED: usize = 32;

/// What one reader has taken in this round.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    round: u32,
    taken: u64,
}

impl Flow {
    pub(super) fn receive(&self, stream: u32, bytes: usize) {
        if self.has_abandoned.load(Relaxed) && self.abandoned().contains(&stream) {
            return;
        }
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn release(&self, bytes: usize) {
        self.released.fetch_add(bytes as u64, Relaxed);
    }

    /// A reader has taken this.
    pub(crate) fn take(&self, meter: &mut Meter, bytes: usize) {
        self.release(bytes);
        let round = self.round.load(Relaxed);
        if meter.round != round {
            *meter = Meter { round, taken: 0 };
        }
        meter.taken += bytes as u64;
        if meter.taken > self.best.load(Relaxed) {
            self.best.fetch_max(meter.taken, Relaxed);
        }
    }

    /// Nobody reads the stream any more.
    pub(crate) fn abandon(&self, recv: &mut h2::RecvStream) {
        self.release(recv.flow_control().used_capacity());
        if recv.is_end_stream() {
            return;
        }
        let mut abandoned = self.abandoned();
        if abandoned.len() == MOST_ABANDONED {
            abandoned.remove(0);
        }
        abandoned.push(recv.stream_id().into());
        self.has_abandoned.store(true, Relaxed);
    }

    pub(crate) fn reader_added(&self) {
        self.readers.fetch_add(1, Relaxed);
    }

    pub(crate) fn reader_gone(&self) {
        self.readers.fetch_sub(1, Relaxed);
    }

    /// What has come and was not read.
    pub(super) fn held(&self) -> u64 {
        let (received, released) = (self.received.load(Relaxed), self.released.load(Relaxed));
        if received > released && self.readers.load(Relaxed) == 0 {
            // What HTTP/2 threw away with tunnels that the peer has reset.
            self.released.fetch_add(received - released, Relaxed);
            return 0;
        }
        received.saturating_sub(released)
    }

    /// What has been read and thrown away so far.
    pub(super) fn released(&self) -> u64 {
        self.released.load(Relaxed)
    }

    pub(super) fn begin_round(&self) {
        self.best.store(0, Relaxed);
        self.round.fetch_add(1, Relaxed);
    }

    pub(super) fn best(&self) -> u64 {
        self.best.load(Relaxed)
    }

    fn abandoned(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
