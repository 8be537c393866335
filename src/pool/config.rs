//! How many connections a pool keeps, and for how long.

use std::time::Duration;

use super::state::Limits;
use crate::config::Config;

/// The limits and times of a [`Pool`](super::Pool). Those of single connections are in [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    pub(super) per_path: usize,
    pub(super) in_all: usize,
    pub(super) busy_connections: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Duration,
    pub(super) open_timeout: Duration,
    pub(super) checkout_timeout: Duration,
    pub(super) back_off: (Duration, Duration),
}

/// Longer is the same as for ever, and would overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl PoolConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            per_path: 128,
            in_all: 16 << 10,
            busy_connections: 4,
            idle_timeout: Duration::from_secs(300),
            max_age: Duration::from_secs(600),
            open_timeout: Duration::from_secs(10),
            checkout_timeout: Duration::from_secs(20),
            back_off: (Duration::from_millis(100), Duration::from_secs(3)),
        }
    }

    /// How many connections one source has along one path, at most. Default 128; those of [`Reuse::Never`](crate::Reuse)
    /// don't count. Raising it lets one path take more of the whole; with a spread over more backends than this, some get no
    /// traffic from here.
    pub fn with_connections_per_path(mut self, connections: usize) -> Self {
        self.per_path = connections.max(1);
        self
    }

    /// How many connections there are in all, dials among them. Default 16,384. At the limit the one that has been idle for
    /// the longest time makes room; while none is idle, callers wait.
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.in_all = connections.max(2);
        self
    }

    /// Up to how many connections are opened along a path whose others are busy: one connection uses one core at a time.
    /// Default 4; 1 opens another one only when all are full. Raising it lets bulk transfers use more cores.
    pub fn with_busy_connections(mut self, connections: usize) -> Self {
        self.busy_connections = connections.max(1);
        self
    }

    /// How long a connection without tunnels is kept. Default 5 minutes, as ztunnel. Raising it saves handshakes and costs
    /// memory on both sides. One beside others to the same peer is kept for 15 s at most.
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout.min(LONGEST);
        self
    }

    /// How long a connection takes new tunnels, give or take a tenth by chance, so that not all are replaced at once. Default
    /// 10 minutes. Its successor is there before it stops, and its tunnels run on to their ends. It bounds for how long a
    /// new backend behind a gateway goes unnoticed where the mesh does not tell.
    pub fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = age.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// How long opening a connection may take: all of it, from the first byte stream to HTTP/2, and on a nested path the hops
    /// before as well. Default 10 s. Its waiters learn by then why there is none.
    pub fn with_open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout.min(LONGEST);
        self
    }

    /// How long [`Pool::checkout`](super::Pool::checkout) waits in all, for a connection to be opened or for room on one.
    /// Default 20 s. Raising it lets callers queue for longer where all connections are full.
    pub fn with_checkout_timeout(mut self, timeout: Duration) -> Self {
        self.checkout_timeout = timeout.min(LONGEST);
        self
    }

    /// How long after a failed dial others fail with the same error instead of dialling again. It doubles with each failure
    /// in a row. Default 100 ms, and 3 s at most.
    pub fn with_back_off(mut self, first: Duration, longest: Duration) -> Self {
        let longest = longest.min(LONGEST);
        self.back_off = (first.min(longest), longest);
        self
    }

    pub(super) fn limits(&self, config: &Config) -> Limits {
        Limits {
            tunnels: config.max_tunnels as usize,
            per_path: self.per_path,
            in_all: self.in_all,
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
