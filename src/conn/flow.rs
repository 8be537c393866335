//! What the tunnels of a connection have read, and what is still unread.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use h2::{FlowControl, RecvStream};

/// What the tunnels count, for their driver.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    read: AtomicU64,
    /// Counts the rounds in which the tunnels are measured.
    round: AtomicU32,
    /// The most that one reader took in this round.
    best: AtomicU64,
    /// By stream. Each keeps its stream alive, so it must go before that is dropped.
    windows: Mutex<HashMap<u32, FlowControl>>,
}

/// What one reader has taken in this round.
#[derive(Debug, Default)]
pub(crate) struct RoundMeter {
    round: u32,
    taken: u64,
}

impl Flow {
    pub(crate) fn add(&self, recv: &mut RecvStream) {
        let (id, window) = (recv.stream_id().into(), recv.flow_control().clone());
        self.windows().insert(id, window);
    }

    pub(crate) fn remove(&self, recv: &RecvStream) {
        let window = self.windows().remove(&recv.stream_id().into());
        drop(window);
    }

    /// A reader has taken so many bytes.
    pub(crate) fn take(&self, meter: &mut RoundMeter, bytes: usize) {
        self.read.fetch_add(bytes as u64, Relaxed);
        let round = self.round.load(Relaxed);
        if meter.round != round {
            *meter = RoundMeter { round, taken: 0 };
        }
        meter.taken += bytes as u64;
        if meter.taken > self.best.load(Relaxed) {
            self.best.fetch_max(meter.taken, Relaxed);
        }
    }

    /// What has been read so far.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    pub(super) fn begin_round(&self) {
        self.best.store(0, Relaxed);
        self.round.fetch_add(1, Relaxed);
    }

    pub(super) fn best(&self) -> u64 {
        self.best.load(Relaxed)
    }

    /// What has come and was not read. Looks at each tunnel.
    pub(super) fn unread(&self) -> u64 {
        self.windows().values().map(|window| window.used_capacity() as u64).sum()
    }

    /// Returns to the peer what was read of each tunnel. HTTP/2 collects that until it is a part of the window worth a
    /// frame, and looks only when something is read: once the window is smaller, what it has collected may be more than
    /// all of it, and nothing would ever come to be read.
    pub(super) fn announce(&self) {
        for window in self.windows().values_mut() {
            // Fails only when the stream has ended.
            let _ = window.release_capacity(0);
        }
    }

    fn windows(&self) -> MutexGuard<'_, HashMap<u32, FlowControl>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
