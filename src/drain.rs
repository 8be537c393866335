//! Shutdown in two stages: graceful, so that nothing is lost, then forced, so that it ends.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::time::Duration;
//! use hbone::drain;
//!
//! let (drain, watch) = drain::channel();
//! let worker = tokio::spawn(async move {
//!     watch.graceful().await; // stop taking new work, finish what there is
//! });
//! let report = drain.drain(Duration::from_secs(5)).await;
//! assert!(report.completed);
//! # worker.await.unwrap(); }
//! ```

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Stage {
    Running,
    Graceful,
    Forced,
}

/// Starts a drain. Dropping it is *not* a drain: the [`Watch`]es then never signal.
#[derive(Debug)]
pub struct Drain {
    stage: watch::Sender<Stage>,
    watches: Weak<()>,
    force_timeout: Duration,
}

/// Waits for a drain, and holds it open until dropped: keep one in each task that has something to finish.
#[derive(Clone, Debug)]
pub struct Watch {
    stage: watch::Receiver<Stage>,
    // Counts the watches: receivers do not, since one that waits is cloned.
    _alive: Option<Arc<()>>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Whether every [`Watch`] was gone before force was used.
    pub completed: bool,
    /// How many were left when it was.
    pub forced: usize,
    /// How many were still left after the [force timeout](Drain::with_force_timeout): whoever holds them does not
    /// listen.
    pub left: usize,
}

/// A drain and its first watch.
pub fn channel() -> (Drain, Watch) {
    let (sender, receiver) = watch::channel(Stage::Running);
    let alive = Arc::new(());
    let drain = Drain { stage: sender, watches: Arc::downgrade(&alive), force_timeout: Duration::from_secs(5) };
    (drain, Watch { stage: receiver, _alive: Some(alive) })
}

impl Drain {
    /// How long the forced stage waits for the watches that are left. Default 5 s. Raising it lets a process that is
    /// about to exit wait longer for a task that is stuck.
    pub fn with_force_timeout(mut self, timeout: Duration) -> Self {
        self.force_timeout = timeout;
        self
    }

    /// How long the forced stage waits.
    pub fn force_timeout(&self) -> Duration {
        self.force_timeout
    }

    /// Asks all watches to finish and waits up to `grace`. Then it tells those that are left to stop at once, and waits
    /// for them up to the [force timeout](Self::with_force_timeout).
    ///
    /// Not cancel safe: when cancelled, the stages reached stay reached and no further one follows.
    pub async fn drain(self, grace: Duration) -> Report {
        self.stage.send_replace(Stage::Graceful);
        if timeout(grace, self.stage.closed()).await.is_ok() {
            return Report { completed: true, forced: 0, left: 0 };
        }
        let forced = self.watches.strong_count();
        self.stage.send_replace(Stage::Forced);
        let ended = timeout(self.force_timeout, self.stage.closed()).await;
        let left = if ended.is_ok() { 0 } else { self.watches.strong_count() };
        // Those that only wait for others may still have been about to end.
        Report { completed: forced == 0, forced, left }
    }
}

impl Watch {
    /// Waits until the drain starts. Never returns when the [`Drain`] is dropped. Cancel safe.
    pub async fn graceful(&self) {
        self.reached(Stage::Graceful).await;
    }

    /// Waits until the time for a graceful end is over. Never returns when the [`Drain`] is dropped. Cancel safe.
    pub async fn forced(&self) {
        self.reached(Stage::Forced).await;
    }

    /// A watch that holds the drain open and is not counted in a [`Report`]: for a task that only waits for others that
    /// are, or whose connection is counted by the one that accepted it.
    pub(crate) fn uncounted(&self) -> Self {
        Self { stage: self.stage.clone(), _alive: None }
    }

    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Graceful
    }

    async fn reached(&self, stage: Stage) {
        if self.stage.clone().wait_for(|now| *now >= stage).await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_test::{assert_pending, task};

    use super::*;

    #[tokio::test]
    async fn a_lost_sender_is_not_a_drain() {
        let (drain, watch) = channel();
        drop(drain);
        assert_pending!(task::spawn(watch.graceful()).poll());
        assert!(!watch.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn force_follows_when_the_grace_is_over() {
        let (drain, watch) = channel();
        let other = watch.clone();
        let obedient = tokio::spawn(async move { other.graceful().await });
        let stubborn = tokio::spawn(async move { watch.forced().await });
        let report = drain.drain(Duration::from_secs(5)).await;
        assert_eq!(report, Report { completed: false, forced: 1, left: 0 });
        obedient.await.unwrap();
        stubborn.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_nobody_drops_holds_a_drain_for_the_force_timeout_at_most() {
        let (drain, _watch) = channel();
        let start = tokio::time::Instant::now();
        let report = drain.with_force_timeout(Duration::from_secs(2)).drain(Duration::from_secs(5)).await;
        assert_eq!(report, Report { completed: false, forced: 1, left: 1 });
        assert_eq!(start.elapsed(), Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_as_soon_as_all_watches_are_gone() {
        let (drain, watch) = channel();
        let start = tokio::time::Instant::now();
        let task = tokio::spawn(async move { watch.graceful().await });
        assert!(drain.drain(Duration::from_secs(5)).await.completed);
        assert_eq!(start.elapsed(), Duration::ZERO);
        task.await.unwrap();
    }
}
