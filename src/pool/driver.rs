//! The pool's tasks: one for each connection, and one for what is due.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::BoxDriver;
use super::lease::Connection;
use super::state::ConnId;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::tunnel::Slots;

/// Drives one connection, and tells the pool what changes.
pub(super) struct Driven {
    pool: Weak<Inner>,
    id: ConnId,
    driver: BoxDriver,
    /// Does not keep the connection open.
    connection: Weak<Connection>,
    slots: Arc<Slots>,
    told: Told,
    load: Load,
}

/// What the pool knows of a connection.
#[derive(Clone, Copy)]
struct Told {
    limit: usize,
    /// The peer has said something.
    settled: bool,
    closed: bool,
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
    pub(super) fn new(pool: Weak<Inner>, connection: &Arc<Connection>, driver: BoxDriver) -> Self {
        let slots = connection.client.slots().clone();
        Self {
            pool,
            id: connection.id,
            driver,
            connection: Arc::downgrade(connection),
            told: Told { limit: slots.limit(), settled: false, closed: false },
            slots,
            load: Load { since: Instant::now(), worked: Duration::ZERO, busy: false },
        }
    }

    /// Tells the pool what has changed.
    fn tell(&mut self, busy: Option<bool>, result: &Poll<Result<()>>) {
        let before = self.told;
        let heard = || self.connection.upgrade().is_none_or(|connection| connection.client.reads() > 0);
        let (limit, closed) = (self.slots.limit(), self.slots.is_closed());
        self.told = Told { limit, settled: before.settled || heard(), closed };
        let stillborn = match result {
            Poll::Ready(result) if !self.told.settled => Some(result.clone().err().unwrap_or_else(unheard)),
            _ => None,
        };
        let news = limit > before.limit || closed != before.closed || self.told.settled != before.settled;
        if !news && busy.is_none() {
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        pool.step(|state, now| match (stillborn, closed) {
            (Some(error), _) => state.failed(self.id, error, now),
            // Also when the pool gives no places on it any more: those inside it have to know.
            (None, true) => state.doomed(self.id, now),
            (None, false) => {
                state.changed(self.id, now);
                if let Some(busy) = busy {
                    state.busy(self.id, busy, now);
                }
            }
        });
    }
}

fn unheard() -> Error {
    Error::new(ErrorKind::Closed, Layer::Http2, Side::Remote, "waiting for the peer's HTTP/2 preface")
}

impl Future for Driven {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let began = Instant::now();
        let result = self.driver.as_mut().poll(cx);
        let busy = self.load.add(began, Instant::now());
        self.tell(busy, &result);
        result.map(|result| {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        })
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
