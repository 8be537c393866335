//! How many tunnels a connection carries, and may carry.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

/// The right to have one stream open on a connection, held by the tunnel and returned when dropped.
///
/// Whoever issues permits counts the tunnels: [`Permits`] for a client by itself, the pool for its connections.
pub(crate) trait Permit: fmt::Debug + Send + Sync {}

/// A permit as the two halves of a tunnel share it: the stream counts until both are gone.
pub(crate) type SharedPermit = Arc<dyn Permit>;

/// The permits of one connection: as many as the smaller of this side's limit and the peer's.
#[derive(Debug)]
pub(crate) struct Permits {
    own: usize,
    peer: AtomicUsize,
    used: AtomicUsize,
    closed: AtomicBool,
    changed: Notify,
    /// Held by the first of the waiters; the others queue for it in order.
    turn: Mutex<()>,
}

/// A permit issued by [`Permits`].
#[derive(Debug)]
struct Issued(Arc<Permits>);

/// The connection takes no new tunnels.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Closed;

impl Permits {
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

    /// Waits for a permit. Cancel safe; waiters are served in order.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Result<SharedPermit, Closed> {
        let _turn = self.turn.lock().await;
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before the look, so that a permit returned in between is not missed.
            changed.as_mut().enable();
            if self.is_closed() {
                return Err(Closed);
            }
            if let Some(permit) = self.try_acquire() {
                return Ok(Arc::new(permit));
            }
            changed.await;
        }
    }

    fn try_acquire(self: &Arc<Self>) -> Option<Issued> {
        let limit = self.limit();
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < limit).then_some(used + 1))
            .ok()
            .map(|_| Issued(self.clone()))
    }

    /// How many tunnels may be open now.
    pub(crate) fn limit(&self) -> usize {
        self.own.min(self.peer.load(Ordering::Acquire))
    }

    /// How many permits are out.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Takes over what the peer allows now. With a limit below what is open nobody gets a permit until enough have
    /// ended.
    pub(crate) fn set_peer_limit(&self, limit: usize) {
        if self.peer.swap(limit, Ordering::AcqRel) < limit {
            self.changed.notify_waiters();
        }
    }

    /// Turns away everybody who waits or comes later.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Permit for Issued {}

impl Drop for Issued {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, assert_ready, task};

    use super::*;

    #[test]
    fn the_smaller_limit_counts_and_is_read_again() {
        let permits = Permits::new(3, 1);
        let first = assert_ready!(task::spawn(permits.acquire()).poll()).unwrap();
        let mut second = task::spawn(permits.acquire());
        assert_pending!(second.poll());
        permits.set_peer_limit(10);
        assert!(second.is_woken());
        let second = assert_ready!(second.poll()).unwrap();
        let third = assert_ready!(task::spawn(permits.acquire()).poll()).unwrap();
        let mut fourth = task::spawn(permits.acquire());
        assert_pending!(fourth.poll());
        drop((second, third));
        permits.set_peer_limit(1);
        assert_pending!(fourth.poll(), "one is open, and one is allowed");
        drop(first);
        assert_ready!(fourth.poll()).unwrap();
    }

    #[test]
    fn a_waiter_that_goes_away_hands_its_turn_on_and_leaks_nothing() {
        let permits = Permits::new(1, 1);
        let held = assert_ready!(task::spawn(permits.acquire()).poll()).unwrap();
        let mut leaves = task::spawn(permits.acquire());
        let mut stays = task::spawn(permits.acquire());
        assert_pending!(leaves.poll());
        assert_pending!(stays.poll());
        drop(held);
        assert!(leaves.is_woken());
        drop(leaves);
        assert!(stays.is_woken());
        drop(assert_ready!(stays.poll()).unwrap());
        assert_eq!(permits.used(), 0);
    }

    #[test]
    fn closing_turns_all_away() {
        let permits = Permits::new(1, 1);
        let _held = assert_ready!(task::spawn(permits.acquire()).poll()).unwrap();
        let mut waiting = task::spawn(permits.acquire());
        assert_pending!(waiting.poll());
        permits.close();
        assert_eq!(assert_ready!(waiting.poll()).unwrap_err(), Closed);
    }
}
