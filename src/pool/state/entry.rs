//! What the pool knows of one key: its connections, who waits for one, and its recent failures.

use std::cmp::Ordering;
use std::collections::VecDeque;

use tokio::time::Instant;

use super::{ConnId, Handle, Key, Limits, Load, Purpose, WaiterId};
use crate::error::Error;
use crate::path::Reuse;
use crate::pool::BackendId;

/// One key.
#[derive(Debug)]
pub(super) struct Entry<H, W> {
    pub(super) key: Key,
    /// As in the latest checkout: the number of a spread follows the mesh.
    pub(super) reuse: Reuse,
    pub(super) conns: Vec<Conn<H>>,
    pub(super) waiters: VecDeque<Waiting<W>>,
    /// Dials under way.
    pub(super) dials: Vec<ConnId>,
    pub(super) failure: Option<Failure>,
    /// How many connections in a row have led to a backend that had one already.
    pub(super) misses: u32,
    /// When the spread may grow again.
    pub(super) grow_at: Option<Instant>,
    /// Whether two connections lead to the same backend.
    has_duplicates: bool,
    /// When [`Conn::recent`] was halved last.
    decayed_at: Option<Instant>,
}

/// A caller that waits for a permit.
#[derive(Debug)]
pub(super) struct Waiting<W> {
    pub(super) id: WaiterId,
    pub(super) purpose: Purpose,
    pub(super) waiter: W,
}

/// One connection, from when its dial succeeded until its driver has ended.
#[derive(Debug)]
pub(super) struct Conn<H> {
    pub(super) id: ConnId,
    pub(super) parent: Option<ConnId>,
    /// `None` once it takes no new tunnels.
    pub(super) handle: Option<H>,
    /// Permits that are out.
    pub(super) open: usize,
    /// How many of them carry a nested connection.
    pub(super) nested: usize,
    /// How many permits it has issued, decaying by half each second.
    pub(super) recent: usize,
    pub(super) backend: Identification,
    pub(super) expires: Instant,
    pub(super) idle_since: Instant,
    /// Past its maximum age, and used only until it has a successor.
    pub(super) aged: bool,
    pub(super) load: Load,
    /// It, or the connection it runs through, is about to end.
    pub(super) draining: bool,
}

/// So many recent permits more than another connection's weigh as one open tunnel, [up to](MAX_RECENT_WEIGHT) a few.
/// That makes up for what a connection got while it was the only one, without overrunning one that has just arrived.
const RECENT_PER_OPEN: usize = 64;
const MAX_RECENT_WEIGHT: usize = 2;

/// Which backend a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identification {
    /// The 200 of its first tunnel will say, or not.
    Pending,
    /// It did not say. Counts as a backend of its own.
    Unidentified,
    Identified(BackendId),
}

/// The failed dials of a key since its last success.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) in_a_row: u32,
    pub(super) retry_at: Instant,
}

impl Identification {
    fn is_known(&self) -> bool {
        matches!(self, Self::Identified(_))
    }
}

impl<H: Handle> Conn<H> {
    pub(super) fn is_usable(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.is_closed())
    }

    pub(super) fn has_room(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.is_closed() && self.open < handle.limit())
    }
}

impl<H: Handle, W> Entry<H, W> {
    pub(super) fn new(key: Key) -> Self {
        Self {
            reuse: key.path.reuse(),
            key,
            conns: Vec::new(),
            waiters: VecDeque::new(),
            dials: Vec::new(),
            failure: None,
            misses: 0,
            grow_at: None,
            has_duplicates: false,
            decayed_at: None,
        }
    }

    /// Which connection gets the next tunnel, if any has room: connections within their age before aged ones, and ones
    /// whose thread has time left before saturated ones.
    ///
    /// In a spread, the backend with the fewest tunnels; among equals the one with the fewest recent permits, so that a
    /// connection that arrived late catches up at once; else at random. Among connections to the same backend one
    /// without bulk, then the one with the most tunnels, then the oldest: small writes leave together, and the others
    /// become idle and are closed.
    pub(super) fn pick(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        let with_room = || self.conns.iter().enumerate().filter(|(_, conn)| conn.has_room());
        let backends = self.backends();
        let least_recent = with_room().map(|(_, conn)| self.at_backend(conn, &backends).1).min().unwrap_or(0);
        let ranked = with_room().map(|(index, conn)| {
            let (open, recent) = self.at_backend(conn, &backends);
            let recent_weight = ((recent - least_recent) / RECENT_PER_OPEN).min(MAX_RECENT_WEIGHT);
            let among_backends = (open + recent_weight, recent);
            let among_equals = (conn.load, usize::MAX - conn.open);
            ((conn.aged, conn.load == Load::Full, among_backends, among_equals), index)
        });
        let (mut best, mut ties) = (None, 0);
        for (rank, index) in ranked {
            let other = best.as_ref().map(|(least, other)| (rank.cmp(least), &self.conns[*other]));
            match other {
                Some((Ordering::Greater, _)) => continue,
                // The earlier one is the older one: connections are in the order of their age.
                Some((Ordering::Equal, other)) if self.lead_to_the_same(other, &self.conns[index]) => continue,
                Some((Ordering::Equal, _)) => ties += 1,
                Some((Ordering::Less, _)) | None => ties = 1,
            }
            // Each of so many equals with the same chance.
            if rng.usize(..ties) == 0 {
                best = Some((rank, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Whether two connections are known to lead to the same backend.
    fn lead_to_the_same(&self, a: &Conn<H>, b: &Conn<H>) -> bool {
        match self.reuse {
            Reuse::Shared => true,
            Reuse::Spread(_) => a.backend.is_known() && a.backend == b.backend,
            Reuse::Never => false,
        }
    }

    /// Halves the recent counts for each second that has passed.
    pub(super) fn decay(&mut self, now: Instant) {
        let since = now.saturating_duration_since(*self.decayed_at.get_or_insert(now)).as_secs();
        if since > 0 {
            let times = u32::try_from(since).unwrap_or(u32::MAX);
            self.conns.iter_mut().for_each(|conn| conn.recent = conn.recent.checked_shr(times).unwrap_or(0));
            self.decayed_at = Some(now);
        }
    }

    /// The open and recent permits of each backend that several connections lead to.
    fn backends(&self) -> Vec<(&BackendId, usize, usize)> {
        let mut backends: Vec<(&BackendId, usize, usize)> = Vec::new();
        if !self.has_duplicates || !matches!(self.reuse, Reuse::Spread(_)) {
            return backends;
        }
        for conn in &self.conns {
            let Identification::Identified(backend) = &conn.backend else { continue };
            match backends.iter_mut().find(|(known, ..)| *known == backend) {
                Some((_, open, recent)) => (*open, *recent) = (*open + conn.open, *recent + conn.recent),
                None => backends.push((backend, conn.open, conn.recent)),
            }
        }
        backends
    }

    /// The open and recent permits of the backend that `conn` leads to. Zero where all connections lead to the same
    /// one.
    fn at_backend(&self, conn: &Conn<H>, backends: &[(&BackendId, usize, usize)]) -> (usize, usize) {
        if !matches!(self.reuse, Reuse::Spread(_)) {
            return (0, 0);
        }
        match &conn.backend {
            Identification::Identified(backend) => backends.iter().find(|(known, ..)| *known == backend),
            _ => None,
        }
        .map_or((conn.open, conn.recent), |(_, open, recent)| (*open, *recent))
    }

    /// To be called when a connection was added, removed or identified.
    pub(super) fn find_duplicates(&mut self) {
        let is_duplicate = |(index, conn): (usize, &Conn<H>)| {
            conn.backend.is_known() && self.conns[..index].iter().any(|earlier| earlier.backend == conn.backend)
        };
        self.has_duplicates = self.conns.iter().enumerate().any(is_duplicate);
    }

    /// The backends that need no further connection.
    pub(super) fn known_backends(&self) -> Vec<BackendId> {
        let mut backends: Vec<BackendId> = Vec::new();
        for conn in self.conns.iter().filter(|conn| conn.is_usable() && !conn.aged) {
            match &conn.backend {
                Identification::Identified(backend) if !backends.contains(backend) => backends.push(backend.clone()),
                _ => {}
            }
        }
        backends
    }

    fn count_known_backends(&self) -> usize {
        if self.has_duplicates {
            return self.known_backends().len();
        }
        self.conns.iter().filter(|conn| conn.backend.is_known() && conn.is_usable() && !conn.aged).count()
    }

    /// Whether another usable connection leads to the same backend and has room, so that this one is not needed.
    pub(super) fn is_redundant(&self, id: ConnId) -> bool {
        let Some(conn) = self.conns.iter().find(|conn| conn.id == id) else { return false };
        conn.backend.is_known()
            && self.conns.iter().any(|other| {
                other.id != id
                    && !other.aged
                    && other.load == Load::Light
                    && other.backend == conn.backend
                    && other.has_room()
            })
    }

    /// Whether this connection is idle and another one leads to the same backend: one in use, or an older one.
    pub(super) fn is_redundant_idle(&self, id: ConnId) -> bool {
        let Some(conn) = self.conns.iter().find(|conn| conn.id == id && conn.open == 0) else { return false };
        let same = |other: &Conn<H>| self.lead_to_the_same(conn, other);
        let outlives = |other: &Conn<H>| other.open > 0 || other.id < id;
        self.conns
            .iter()
            .any(|other| other.id != id && other.is_usable() && !other.aged && same(other) && outlives(other))
    }

    /// How many dials the waiters need started now.
    pub(super) fn dials_wanted(&self, limits: &Limits, now: Instant) -> usize {
        if self.backs_off(now) {
            return 0;
        }
        let wanted = match (self.waiters.len(), self.reuse) {
            (0, _) => return 0,
            (waiters, Reuse::Never) => return waiters.saturating_sub(self.dials.len()),
            (waiters, _) => {
                let usable = self.conns.iter().filter(|conn| conn.is_usable()).filter_map(|conn| conn.handle.as_ref());
                let before_settings = usable.filter(|handle| handle.awaits_settings());
                let coming: usize = before_settings.map(|handle| limits.tunnels.saturating_sub(handle.limit())).sum();
                let left = waiters.saturating_sub(coming);
                left.div_ceil(limits.tunnels.max(1)).saturating_sub(self.dials.len())
            }
        };
        let connections = self.dials.len() + self.conns.iter().filter(|conn| conn.is_usable() && !conn.aged).count();
        wanted.min(limits.per_path.saturating_sub(connections))
    }

    fn backs_off(&self, now: Instant) -> bool {
        self.failure.as_ref().is_some_and(|failure| now < failure.retry_at)
    }

    /// Whether one more connection would help although nobody waits for it.
    pub(super) fn wants_to_grow(&self, limits: &Limits, now: Instant) -> bool {
        let too_early = self.backs_off(now) || self.grow_at.is_some_and(|at| now < at);
        if too_early || !self.waiters.is_empty() || !self.dials.is_empty() {
            return false;
        }
        let (mut usable, mut fresh, mut light, mut pending, mut unidentified) = (0, 0, 0, 0, 0);
        for conn in self.conns.iter().filter(|conn| conn.is_usable()) {
            usable += 1;
            fresh += usize::from(!conn.aged);
            light += usize::from(!conn.aged && conn.load == Load::Light);
            pending += usize::from(!conn.aged && conn.backend == Identification::Pending);
            unidentified += usize::from(!conn.aged && conn.backend == Identification::Unidentified);
        }
        if usable == 0 || fresh >= limits.per_path {
            return false;
        }
        let busy = light == 0 && fresh < limits.busy_connections;
        match self.reuse {
            Reuse::Shared => fresh == 0 || busy,
            Reuse::Spread(backends) => {
                let some_left = 2 * self.count_known_backends() + unidentified < 2 * backends.max(1) as usize;
                pending == 0 && (fresh == 0 || some_left || busy)
            }
            Reuse::Never => false,
        }
    }

    /// Whether there is nothing left to remember.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        let forgotten = |failure: &Failure| now >= failure.forget_at();
        self.conns.is_empty()
            && self.waiters.is_empty()
            && self.dials.is_empty()
            && self.failure.as_ref().is_none_or(forgotten)
    }
}

/// For how long after its retry a failure still makes the next one back off longer.
const MEMORY: std::time::Duration = std::time::Duration::from_secs(5);

impl Failure {
    pub(super) fn forget_at(&self) -> Instant {
        self.retry_at + MEMORY
    }
}
