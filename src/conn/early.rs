//! What a peer does with data that comes before its answer to a CONNECT.

use std::sync::atomic::{AtomicU8, Ordering};

/// Found out by trying, see [`nested`](crate::nested). Belongs to one connection, and so to one peer.
#[derive(Debug, Default)]
pub(crate) struct EarlyDataCell(AtomicU8);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EarlyData {
    /// Nothing is known.
    #[default]
    Unknown,
    /// It keeps the data until it is connected.
    Accepted,
    /// It fails the tunnel, or loses the data.
    Rejected,
}

impl EarlyDataCell {
    pub(crate) fn get(&self) -> EarlyData {
        match self.0.load(Ordering::Relaxed) {
            1 => EarlyData::Accepted,
            2 => EarlyData::Rejected,
            _ => EarlyData::Unknown,
        }
    }

    pub(crate) fn set(&self, early_data: EarlyData) {
        self.0.store(early_data as u8, Ordering::Relaxed);
    }
}
