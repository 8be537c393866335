//! How many tunnels a connection carries, and may carry.

use std::any::Any;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

/// The places on one connection: the smaller of the own limit and the peer's.
#[derive(Debug)]
pub(crate) struct Slots {
    own: usize,
    peer: AtomicUsize,
    used: AtomicUsize,
    closed: AtomicBool,
    changed: Notify,
    /// Held by the first of those who wait; the others queue for it in order.
    turn: Mutex<()>,
}

/// The right to have one stream open. Freed when dropped.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    /// Dropped once the slot is free, so that whoever is told by it finds the slot.
    held: Option<Box<dyn Any + Send + Sync>>,
}

/// The connection takes no more tunnels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Slots {
    pub(crate) fn new(own: usize, peer: usize) -> Arc<Self> {
        Arc::new(Self {
            own,
            peer: AtomicUsize::new(peer),
            used: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            changed: Notify::new(),
            turn: Mutex::new(()),
        })
    }

    /// Waits for a free slot. Cancel safe; those who wait are served in order.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<Slot, Closed> {
        let _turn = self.turn.lock().await;
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before the look, so that a slot freed in between is not missed.
            changed.as_mut().enable();
            if self.closed.load(Ordering::Acquire) {
                return Err(Closed);
            }
            if let Some(slot) = self.try_acquire() {
                return Ok(slot);
            }
            changed.await;
        }
    }

    fn try_acquire(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < limit).then_some(used + 1))
            .ok()
            .map(|_| Slot { slots: self.clone(), held: None })
    }

    /// How many tunnels may be open now.
    pub(crate) fn limit(&self) -> usize {
        self.own.min(self.peer.load(Ordering::Acquire))
    }

    /// How many are.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Takes over what the peer allows now. A lower limit than what is open lets nobody in until enough have ended.
    pub(crate) fn set_peer_limit(&self, limit: usize) {
        if self.peer.swap(limit, Ordering::AcqRel) < limit {
            self.changed.notify_waiters();
        }
    }

    /// Turns away all who wait and come.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Slot {
    /// Keeps `held` until the slot is free again.
    pub(crate) fn hold(&mut self, held: impl Any + Send + Sync) {
        self.held = Some(Box::new(held));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.used.fetch_sub(1, Ordering::AcqRel);
        self.slots.changed.notify_one();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("slots", &self.slots).field("held", &self.held.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn the_smaller_limit_counts_and_is_read_again() {
        let slots = Slots::new(3, 1);
        let first = assert_ready!(task::spawn(slots.acquire()).poll()).unwrap();
        let mut second = task::spawn(slots.acquire());
        assert_pending!(second.poll());
        slots.set_peer_limit(10);
        assert!(second.is_woken());
        let second = assert_ready!(second.poll()).unwrap();
        let third = assert_ready!(task::spawn(slots.acquire()).poll()).unwrap();
        let mut fourth = task::spawn(slots.acquire());
        assert_pending!(fourth.poll());
        drop((second, third));
        slots.set_peer_limit(1);
        assert_pending!(fourth.poll(), "one is open, and one is allowed");
        drop(first);
        assert_ready!(fourth.poll()).unwrap();
    }

    #[test]
    fn a_waiter_that_goes_away_hands_its_turn_on_and_leaks_nothing() {
        let slots = Slots::new(1, 1);
        let held = assert_ready!(task::spawn(slots.acquire()).poll()).unwrap();
        let mut leaves = task::spawn(slots.acquire());
        let mut stays = task::spawn(slots.acquire());
        assert_pending!(leaves.poll());
        assert_pending!(stays.poll());
        drop(held);
        assert!(leaves.is_woken());
        drop(leaves);
        assert!(stays.is_woken());
        drop(assert_ready!(stays.poll()).unwrap());
        assert_eq!(slots.used(), 0);
    }

    #[test]
    fn closing_turns_all_away() {
        let slots = Slots::new(1, 1);
        let _held = assert_ready!(task::spawn(slots.acquire()).poll()).unwrap();
        let mut waiting = task::spawn(slots.acquire());
        assert_pending!(waiting.poll());
        slots.close();
        assert_eq!(assert_ready!(waiting.poll()).unwrap_err(), Closed);
    }
}
