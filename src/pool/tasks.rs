//! The pool's own tasks: one for each dial, and one for the timers. Each reports when it is lost.
//!
//! A task is lost when the runtime that it was started on shuts down, which drops the task. A runtime that is gone
//! already drops it while it is being started: no task may be started under the pool's lock.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable};
use tokio::time::{Instant, sleep_until};

use super::dial::{self, NewConnection};
use super::source::SourceShared;
use super::state::{ConnId, Key};
use super::{BackendId, Inner};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::path::Reuse;

/// A task that has not been started.
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What becomes of a dial is reported once: its outcome, or that it was lost.
struct DialGuard {
    pool: Weak<Inner>,
    id: ConnId,
    reported: bool,
}

/// A dial, and the handle that stops it.
pub(super) fn dial_task(
    pool: &Arc<Inner>,
    source: Arc<SourceShared>,
    id: ConnId,
    key: Key,
    known_backends: Vec<BackendId>,
    deadline: Instant,
) -> (Task, AbortHandle) {
    let pool = Arc::downgrade(pool);
    let guard = DialGuard { pool: pool.clone(), id, reported: false };
    let (depth, spread) = (key.path.depth(), matches!(key.path.reuse(), Reuse::Spread(_)));
    let task = async move {
        // The dialer and the credential source are an embedder's code.
        let dialing = AssertUnwindSafe(dial::dial(pool, source, key, known_backends, deadline)).catch_unwind();
        let result = dialing.await.unwrap_or_else(|panic| Err(panicked(&*panic)));
        guard.report(depth, spread, result);
    };
    let (abort, registration) = AbortHandle::new_pair();
    (Box::pin(Abortable::new(task, registration).map(drop)), abort)
}

impl DialGuard {
    fn report(mut self, depth: usize, spread: bool, result: Result<NewConnection>) {
        self.reported = true;
        if let Some(pool) = self.pool.upgrade() {
            pool.dialed(self.id, depth, spread, result);
        }
    }
}

impl Drop for DialGuard {
    fn drop(&mut self) {
        if !self.reported
            && let Some(pool) = self.pool.upgrade()
        {
            pool.dial_lost(self.id);
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::new(ErrorKind::Local, Layer::Dial, Side::Local, "opening a connection")
        .with_source(format!("the dialer or the credential source panicked: {}", text.unwrap_or("without a message")))
        .with_advice("this is a defect of the dialer or the credential source")
}

/// Reports a timer task that is dropped before it has nothing left to do.
struct TimerGuard {
    pool: Weak<Inner>,
    done: bool,
}

/// Handles timers until none is set, or the pool is gone.
pub(super) fn timer_task(pool: &Arc<Inner>) -> Task {
    let guard = TimerGuard { pool: Arc::downgrade(pool), done: false };
    Box::pin(async move {
        loop {
            let Some(pool) = guard.pool.upgrade() else { return };
            let Some(next) = pool.tick() else { return guard.disarm() };
            let wake = pool.wake.clone();
            let woken = wake.notified();
            drop(pool);
            tokio::select! {
                () = sleep_until(next) => {}
                () = woken => {}
            }
        }
    })
}

impl TimerGuard {
    fn disarm(mut self) {
        self.done = true;
    }
}

impl Drop for TimerGuard {
    fn drop(&mut self) {
        if !self.done
            && let Some(pool) = self.pool.upgrade()
        {
            pool.timer_lost();
        }
    }
}
