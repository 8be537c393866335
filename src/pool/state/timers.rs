//! When to look at each connection and entry again.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::{ConnId, EntryId};

/// What to look at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Timer {
    Conn(ConnId),
    Entry(EntryId),
}

/// At most one pending time for each timer.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, Timer)>,
    at: HashMap<Timer, Instant>,
}

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.clear(timer);
        self.at.insert(timer, at);
        self.queue.insert((at, timer));
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.queue.remove(&(at, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (_, timer) = *self.queue.first().filter(|(at, _)| *at <= now)?;
        self.clear(timer);
        Some(timer)
    }

    pub(super) fn contains(&self, timer: Timer) -> bool {
        self.at.contains_key(&timer)
    }

    #[cfg(any(fuzzing, test))]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.at.len(), self.queue.len());
        self.queue.len()
    }
}
