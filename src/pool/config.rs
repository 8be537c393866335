//! How many connections a pool keeps, and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::state::Limits;
use crate::config::Config;
use crate::observe::Observer;

/// The limits and times of a [`Pool`](super::Pool). Those of single connections are in [`Config`].
#[derive(Clone, Debug)]
pub struct PoolConfig {
    pub(super) connections_per_path: usize,
    pub(super) connections: usize,
    pub(super) busy_connections: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Duration,
    pub(super) open_timeout: Duration,
    pub(super) checkout_timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) connect_attempts: usize,
    pub(super) back_off: (Duration, Duration),
    pub(super) observer: Option<Arc<dyn Observer>>,
}

/// Longer is the same as for ever, and would overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl PoolConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            connections_per_path: 128,
            connections: 16 << 10,
            busy_connections: 4,
            idle_timeout: Duration::from_secs(300),
            max_age: Duration::from_secs(600),
            open_timeout: Duration::from_secs(10),
            checkout_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(30),
            connect_attempts: 16,
            back_off: (Duration::from_millis(100), Duration::from_secs(3)),
            observer: None,
        }
    }

    /// How many connections one source has along one path, at most. Default 128; those of
    /// [`Reuse::Never`](crate::Reuse) don't count. Raising it lets one path take more of the whole; with a spread over
    /// more backends than this, some get no traffic from here.
    pub fn with_connections_per_path(mut self, connections: usize) -> Self {
        self.connections_per_path = connections.max(1);
        self
    }

    /// What [`with_connections_per_path`](Self::with_connections_per_path) says.
    pub fn connections_per_path(&self) -> usize {
        self.connections_per_path
    }

    /// How many connections there are in all, dials among them. Default 16,384. At the limit the one that has been idle
    /// for the longest time makes room; while none is idle, callers wait.
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(2);
        self
    }

    /// What [`with_connections`](Self::with_connections) says.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Up to how many connections are opened along a path whose others are busy: one connection uses one core at a
    /// time. Default 4; 1 opens another one only when all are full. Raising it lets bulk transfers use more cores.
    pub fn with_busy_connections(mut self, connections: usize) -> Self {
        self.busy_connections = connections.max(1);
        self
    }

    /// What [`with_busy_connections`](Self::with_busy_connections) says.
    pub fn busy_connections(&self) -> usize {
        self.busy_connections
    }

    /// How long a connection without tunnels is kept. Default 5 minutes, as ztunnel. Raising it saves handshakes and
    /// costs memory on both sides. One beside others to the same peer is kept for 15 s at most.
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_idle_timeout`](Self::with_idle_timeout) says.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout
    }

    /// How long a connection takes new tunnels, give or take a tenth by chance, so that not all are replaced at once.
    /// Default 10 minutes. Its successor is there before it stops, and its tunnels run on to their ends. It bounds for
    /// how long a new backend behind a gateway goes unnoticed where the mesh does not announce it.
    pub fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = age.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// What [`with_max_age`](Self::with_max_age) says.
    pub fn max_age(&self) -> Duration {
        self.max_age
    }

    /// How long opening a connection may take: all of it, from the first byte stream to HTTP/2, and on a nested path
    /// the hops before as well. Default 10 s. Its waiters learn by then why there is none.
    pub fn with_open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_open_timeout`](Self::with_open_timeout) says.
    pub fn open_timeout(&self) -> Duration {
        self.open_timeout
    }

    /// How long [`Pool::checkout`](super::Pool::checkout) waits in all, for a connection to be opened or for room on
    /// one. Default 20 s. Raising it lets callers queue for longer where all connections are full.
    pub fn with_checkout_timeout(mut self, timeout: Duration) -> Self {
        self.checkout_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_checkout_timeout`](Self::with_checkout_timeout) says.
    pub fn checkout_timeout(&self) -> Duration {
        self.checkout_timeout
    }

    /// How long [`Pool::connect`](super::Pool::connect) takes in all. Default 30 s, for a connection and a slow answer.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_connect_timeout`](Self::with_connect_timeout) says.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How many connections [`Pool::connect`](super::Pool::connect) tries where the end of one undoes the last attempt
    /// each time. Default 16, at least 1: peers that go away after a few tunnels, and many callers who compete for
    /// them, undo several attempts in a row. Raising it costs handshakes with a peer that answers nobody.
    pub fn with_connect_attempts(mut self, attempts: usize) -> Self {
        self.connect_attempts = attempts.max(1);
        self
    }

    /// What [`with_connect_attempts`](Self::with_connect_attempts) says.
    pub fn connect_attempts(&self) -> usize {
        self.connect_attempts
    }

    /// How long after a failed dial others fail with the same error instead of dialing again. It doubles with each
    /// failure in a row. Default 100 ms, and 3 s at most.
    pub fn with_back_off(mut self, first: Duration, longest: Duration) -> Self {
        let longest = longest.min(LONGEST);
        self.back_off = (first.min(longest), longest);
        self
    }

    /// What [`with_back_off`](Self::with_back_off) says.
    pub fn back_off(&self) -> (Duration, Duration) {
        self.back_off
    }

    /// Who is told of the pool's connections, of tunnels on them, and of limits that make callers wait. Default:
    /// nobody.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// What [`with_observer`](Self::with_observer) says.
    pub fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.observer.as_ref()
    }

    pub(super) fn limits(&self, config: &Config) -> Limits {
        Limits {
            tunnels: config.max_tunnels as usize,
            per_path: self.connections_per_path,
            in_all: self.connections,
            busy_connections: self.busy_connections,
            idle_timeout: self.idle_timeout,
            max_age: self.max_age,
            back_off: self.back_off,
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self::new()
    }
}
