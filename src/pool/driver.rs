//! The pool's tasks: one for each connection, and one for what is due.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Inner;
use super::dial::BoxDriver;
use super::lease::Connection;
use super::state::{ConnId, Strain};
use super::turn::GiveWay;
use crate::conn::Traffic;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::Turns;
use crate::tunnel::Slots;

/// Drives one connection, and tells the pool what changes.
pub(super) struct Driven {
    pool: Weak<Inner>,
    id: ConnId,
    driver: BoxDriver,
    /// Does not keep the connection open.
    connection: Weak<Connection>,
    slots: Arc<Slots>,
    traffic: Traffic,
    /// What had been moved after the last turn.
    moved: u64,
    turns: GiveWay,
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

/// How much a connection has to do, measured over a tenth of a second each time.
struct Load {
    since: Instant,
    worked: Duration,
    /// What had been moved by then.
    moved: u64,
    /// When it worked last, and what had been moved by then.
    last: (Instant, u64),
    strain: Strain,
}

const WINDOW: Duration = Duration::from_millis(100);

/// So many bytes in that time are bulk: 340 Mbit/s.
const BULK: u64 = 4 << 20;

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
            traffic: connection.client.traffic(),
            moved: 0,
            turns: GiveWay::default(),
            load: Load::new(Instant::now()),
        }
    }

    /// Tells the pool what has changed.
    fn tell(&mut self, strain: Option<Strain>, result: &Poll<Result<()>>) {
        let before = self.told;
        let heard = || self.connection.upgrade().is_none_or(|connection| connection.client.reads() > 0);
        let (limit, closed) = (self.slots.limit(), self.slots.is_closed());
        self.told = Told { limit, settled: before.settled || heard(), closed };
        let stillborn = match result {
            Poll::Ready(result) if !self.told.settled => Some(result.clone().err().unwrap_or_else(unheard)),
            _ => None,
        };
        let news = limit > before.limit || closed != before.closed || self.told.settled != before.settled;
        if !news && strain.is_none() {
            return;
        }
        let Some(pool) = self.pool.upgrade() else { return };
        pool.step(|state, now| match (stillborn, closed) {
            (Some(error), _) => state.failed(self.id, error, now),
            // Also when the pool gives no places on it any more: those inside it have to know.
            (None, true) => state.doomed(self.id, now),
            (None, false) => {
                state.changed(self.id, now);
                if let Some(strain) = strain {
                    state.strained(self.id, strain, now);
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
        let this = &mut *self;
        ready!(this.turns.poll_begin(cx));
        let began = Instant::now();
        let result = this.driver.as_mut().poll(cx);
        let moved = this.traffic.moved();
        let strain = this.load.add(began, Instant::now(), moved);
        this.tell(strain, &result);
        this.turns.end(moved - std::mem::replace(&mut this.moved, moved));
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
    fn new(now: Instant) -> Self {
        Self { since: now, worked: Duration::ZERO, moved: 0, last: (now, 0), strain: Strain::Light }
    }

    /// Adds some work. Says how much there is whenever that makes a difference, and again and again while it is much: the pool
    /// forgets it when the last tunnel ends.
    fn add(&mut self, began: Instant, ended: Instant, moved: u64) -> Option<Strain> {
        if began - self.last.0 >= WINDOW {
            // What moved before the pause says nothing of what comes now.
            (self.since, self.moved) = (began, self.last.1);
            self.worked = Duration::ZERO;
        }
        self.last = (ended, moved);
        self.worked += ended - began;
        let elapsed = ended - self.since;
        if elapsed < WINDOW {
            return None;
        }
        let bytes = u128::from(moved.saturating_sub(self.moved)) * WINDOW.as_nanos() / elapsed.as_nanos();
        // Full at four fifths of the time, and no more below a half; likewise with bulk.
        let full = self.worked * 10 >= elapsed * if self.strain == Strain::Full { 5 } else { 8 };
        let bulk = bytes >= u128::from(if self.strain == Strain::Light { BULK } else { BULK / 2 });
        let strain = match (full, bulk) {
            (true, _) => Strain::Full,
            (false, true) => Strain::Bulk,
            (false, false) => Strain::Light,
        };
        (self.since, self.worked, self.moved) = (ended, Duration::ZERO, moved);
        let before = std::mem::replace(&mut self.strain, strain);
        (before != strain || strain != Strain::Light).then_some(strain)
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

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(1);

    /// Bulk for as long as that, in turns that follow each other. What was said last.
    fn bulk(load: &mut Load, now: &mut Instant, moved: &mut u64, turns: u32) -> Option<Strain> {
        let mut said = None;
        for _ in 0..turns {
            *moved += BULK / 50;
            said = load.add(*now, *now + TURN / 2, *moved).or(said);
            *now += TURN;
        }
        said
    }

    #[test]
    fn bulk_is_told_again_and_again() {
        let mut now = Instant::now();
        let (mut load, mut moved) = (Load::new(now), 0);
        for _ in 0..3 {
            assert_eq!(bulk(&mut load, &mut now, &mut moved, 110), Some(Strain::Bulk));
        }
    }

    #[test]
    fn what_moved_before_a_pause_is_not_told_after_it() {
        let mut now = Instant::now();
        let (mut load, mut moved) = (Load::new(now), 0);
        bulk(&mut load, &mut now, &mut moved, 190);
        now += 3 * WINDOW;
        let after: Vec<_> = (0..300)
            .filter_map(|_| {
                now += TURN;
                moved += 1000;
                load.add(now, now + TURN / 100, moved)
            })
            .collect();
        assert_eq!(after, [Strain::Light]);
    }
}
