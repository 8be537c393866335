//! How much is done in one go.

/// What a task may read in one poll before other directions and other tasks have their turn.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    reads: usize,
}

impl Budget {
    /// Of one direction of a relay. Small reads cost a system call each.
    pub(crate) const RELAY: Self = Self { bytes: 256 << 10, reads: 16 };

    /// Of a connection, before the readers of its tunnels have their turn. Without it a busy connection reads a whole
    /// window ahead of them: memory that is cold, and given back to the system and fetched again, by the time it is
    /// used.
    pub(crate) const CONNECTION: Self = Self { bytes: 128 << 10, reads: usize::MAX };

    pub(crate) fn is_spent(&self) -> bool {
        self.bytes == 0 || self.reads == 0
    }

    /// Takes one read off it.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.reads = self.reads.saturating_sub(1);
    }
}
