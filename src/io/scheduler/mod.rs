//! Who moves bytes next, where bulk and small messages share threads.
//!
//! *What is measured*: turns, which are the bytes that a task moves each time it is polled. A turn of 128 KiB or more
//! is a bulk turn; one of less than 16 KiB is a small turn, unless its task has moved bulk a moment ago. Over a tenth
//! of a second, bytes and time add up to the [`Load`] of a connection or a thread. *What is decided*: after a bulk turn
//! the runtime looks for events before that task goes on, and while there are small turns on any of the threads, the
//! thread offers its core to the others. New tunnels and connections go where the load is light: the pool and the
//! workers ask for that. *Why it pays*: the tasks of a bulk transfer wake each other, so the runtime never runs out of
//! tasks and looks for events only after many turns of a tenth of a millisecond each; and where such threads outnumber
//! the cores, the system lets each go on for milliseconds. A small message passes through several threads on its way
//! and would wait at each. Without small turns, giving up the core would cost a tenth of the bulk for nothing.
//! `bench-mesh` tells: p99 of `rate-busy` against that of `rate`, beside the rate of `bulk-down`.
//!
//! What one poll may move at most is a [`Budget`]. That holds everywhere; all the rest is off until a [`Scheduler`] is
//! handed over.

mod budget;
mod load;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use budget::Budget;
pub(crate) use load::{Load, LoadMeter, Sample};

/// From this many bytes on a turn is a bulk turn.
const BULK: u64 = 128 << 10;

/// A turn of fewer bytes is a small one.
const SMALL: u64 = 16 << 10;

/// For how long after a turn of one kind more of it is expected.
const EXPECTED: Duration = Duration::from_millis(100);

/// Keeps small messages fast beside bulk transfers on the same threads. Clones are the same scheduler.
///
/// The default is off: tasks are left to their runtime. One that is on belongs to [`Workers`], whose threads it knows;
/// [`Config::with_scheduler`](crate::Config::with_scheduler) hands it to all connections of a config and to their
/// tunnels' relays. Tasks that run on other threads may have it as well, but their bulk counts for no worker.
///
#[cfg_attr(feature = "proxy", doc = "[`Workers`]: crate::proxy::Workers")]
#[cfg_attr(not(feature = "proxy"), doc = "[`Workers`]: crate#features")]
#[derive(Clone, Default)]
pub struct Scheduler(Option<Arc<Shared>>);

struct Shared {
    threads: Box<dyn Threads>,
    /// Small turns so far, on all threads.
    small_turns: AtomicU64,
    /// Bytes moved in bulk turns so far, by thread.
    bulk: Box<[AtomicU64]>,
}

/// What a [`Scheduler`] asks of those who own the threads.
pub(crate) trait Threads: Send + Sync {
    /// Which of them this code runs on.
    fn current(&self) -> Option<usize>;

    /// Wakes the task once its runtime has looked for events.
    fn wake_after_events(&self, cx: &mut Context<'_>);

    /// Offers this thread's core to other threads.
    fn yield_core(&self);
}

impl Scheduler {
    /// For so many threads.
    #[cfg(any(feature = "proxy", test))]
    pub(crate) fn new(count: usize, threads: impl Threads + 'static) -> Self {
        let bulk = (0..count).map(|_| AtomicU64::new(0)).collect();
        Self(Some(Arc::new(Shared { threads: Box::new(threads), small_turns: AtomicU64::new(0), bulk })))
    }

    /// Whether it does anything.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How many bytes a thread has moved in bulk turns so far.
    #[cfg(any(feature = "proxy", test))]
    pub(crate) fn bulk_moved(&self, thread: usize) -> u64 {
        self.0.as_ref().and_then(|shared| shared.bulk.get(thread)).map_or(0, |moved| moved.load(Relaxed))
    }
}

/// Two are equal when they are the same scheduler, or both off.
impl PartialEq for Scheduler {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Eq for Scheduler {}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("on", &self.is_on()).finish()
    }
}

/// The turns of one task that moves bytes.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    scheduler: Scheduler,
    /// The last turn was a bulk turn, and the runtime has not looked for events since.
    events_are_due: bool,
    /// Until when more bulk turns of this task are expected.
    bulk_until: Option<Instant>,
    others: SmallTurns,
}

impl Turns {
    pub(crate) fn new(scheduler: &Scheduler) -> Self {
        Self { scheduler: scheduler.clone(), ..Self::default() }
    }

    /// Whether the task may begin a turn now. It is woken when it may.
    pub(crate) fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.scheduler.0 {
            Some(shared) if std::mem::take(&mut self.events_are_due) => {
                shared.threads.wake_after_events(cx);
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }

    /// Takes note of how many bytes the turn that ends has moved.
    pub(crate) fn end(&mut self, moved: u64) {
        let Some(shared) = &self.scheduler.0 else { return };
        if moved >= BULK {
            let now = Instant::now();
            self.events_are_due = true;
            self.bulk_until = Some(now + EXPECTED);
            if let Some(of_thread) = shared.threads.current().and_then(|thread| shared.bulk.get(thread)) {
                of_thread.fetch_add(moved, Relaxed);
            }
            if self.others.are_expected(shared.small_turns.load(Relaxed), now) {
                shared.threads.yield_core();
            }
        } else if (1..SMALL).contains(&moved) && self.bulk_until.is_none_or(|until| Instant::now() >= until) {
            shared.small_turns.fetch_add(1, Relaxed);
        }
    }
}

/// The small turns of all tasks, as a task that moves bulk sees them. It alone looks at the clock: small turns are
/// many.
#[derive(Debug, Default)]
struct SmallTurns {
    seen: u64,
    until: Option<Instant>,
}

impl SmallTurns {
    /// Whether there may be more of them soon, when there have been so many by now.
    fn are_expected(&mut self, count: u64, now: Instant) -> bool {
        if count != self.seen {
            *self = Self { seen: count, until: Some(now + EXPECTED) };
        }
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
