//! The pool's tasks: one for each connection, and one for what is due.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::BoxDriver;
use super::state::ConnId;
use crate::tunnel::Slots;

/// Drives one connection, and tells the pool what changes.
pub(super) struct Driven {
    pool: Weak<Inner>,
    id: ConnId,
    driver: BoxDriver,
    slots: Arc<Slots>,
    limit: usize,
    load: Load,
}

/// How much of its time a task is at work.
struct Load {
    since: Instant,
    worked: Duration,
    busy: bool,
}

/// Over how long it is measured.
const WINDOW: Duration = Duration::from_millis(100);

impl Driven {
    pub(super) fn new(pool: Weak<Inner>, id: ConnId, driver: BoxDriver, slots: Arc<Slots>) -> Self {
        let load = Load { since: Instant::now(), worked: Duration::ZERO, busy: false };
        Self { pool, id, driver, limit: slots.limit(), slots, load }
    }
}

impl Future for Driven {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let began = Instant::now();
        let result = this.driver.as_mut().poll(cx);
        let busy = this.load.add(began, Instant::now());
        let limit = this.slots.limit();
        let closed = this.slots.is_closed();
        if limit > this.limit || closed || busy.is_some() {
            this.limit = limit;
            if let Some(pool) = this.pool.upgrade() {
                pool.step(|state, now| {
                    state.changed(this.id, now);
                    if let Some(busy) = busy {
                        state.busy(this.id, busy, now);
                    }
                });
            }
        }
        this.limit = limit;
        match result {
            Poll::Ready(result) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.gone(self.id);
        }
    }
}

impl Load {
    /// Adds some work. Says so when it has become too much, or is no more.
    fn add(&mut self, began: Instant, ended: Instant) -> Option<bool> {
        self.worked += ended - began;
        let elapsed = ended - self.since;
        if elapsed < WINDOW {
            return None;
        }
        // Becomes busy at four fifths, and idle again below a half.
        let busy = self.worked * 10 >= elapsed * if self.busy { 5 } else { 8 };
        (self.since, self.worked) = (ended, Duration::ZERO);
        (std::mem::replace(&mut self.busy, busy) != busy).then_some(busy)
    }
}

/// Does what is due until nothing is, or the pool is gone.
pub(super) async fn timer(pool: Weak<Inner>) {
    loop {
        let Some(strong) = pool.upgrade() else { return };
        let Some(next) = strong.tick() else { return };
        let wake = strong.wake.clone();
        let woken = wake.notified();
        drop(strong);
        tokio::select! {
            () = sleep_until(next) => {}
            () = woken => {}
        }
    }
}
