//! What a peer does with bytes that come before its answer to a CONNECT.

use std::sync::atomic::{AtomicU8, Ordering};

/// Found out by trying. Belongs to one connection, and so to one peer.
#[derive(Debug, Default)]
pub(crate) struct EarlyBytes(AtomicU8);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Manner {
    /// Nothing is known.
    #[default]
    Unknown,
    /// It keeps them until it is connected.
    Takes,
    /// It fails the tunnel, or loses them.
    Waits,
}

impl EarlyBytes {
    pub(crate) fn get(&self) -> Manner {
        match self.0.load(Ordering::Relaxed) {
            1 => Manner::Takes,
            2 => Manner::Waits,
            _ => Manner::Unknown,
        }
    }

    pub(crate) fn set(&self, manner: Manner) {
        self.0.store(manner as u8, Ordering::Relaxed);
    }
}
