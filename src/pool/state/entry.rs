//! What the pool knows of one key: its connections, who waits for one, and what went wrong of late.

use std::cmp::Ordering;
use std::collections::VecDeque;

use tokio::time::Instant;

use super::{ConnId, Handle, Key, Limits, Load, WaiterId};
use crate::error::Error;
use crate::path::Reuse;
use crate::pool::Backend;

/// One key.
#[derive(Debug)]
pub(super) struct Entry<H, W> {
    pub(super) key: Key,
    /// As asked for last: the number of a spread follows the mesh.
    pub(super) reuse: Reuse,
    pub(super) conns: Vec<Conn<H>>,
    pub(super) waiters: VecDeque<(WaiterId, W)>,
    /// Dials under way.
    pub(super) dials: Vec<ConnId>,
    pub(super) failure: Option<Failure>,
    /// How often in a row a connection has landed on a backend that had one.
    pub(super) misses: u32,
    /// When the spread may grow again.
    pub(super) grow_at: Option<Instant>,
    /// Whether two connections lead to the same backend.
    twins: bool,
    /// When [`Conn::of_late`] was halved last.
    faded: Option<Instant>,
}

/// One connection, from when its dial succeeded until its driver has ended.
#[derive(Debug)]
pub(super) struct Conn<H> {
    pub(super) id: ConnId,
    pub(super) parent: Option<ConnId>,
    /// `None` once it takes no more tunnels.
    pub(super) handle: Option<H>,
    pub(super) open: usize,
    /// How many tunnels it has got, with those of a second ago counted half, and so on.
    pub(super) of_late: usize,
    pub(super) whereabouts: Whereabouts,
    pub(super) expires: Instant,
    pub(super) idle_since: Instant,
    /// Past its maximum age, and used only until another one is there.
    pub(super) aged: bool,
    pub(super) load: Load,
    /// It, or what it runs through, is about to end.
    pub(super) ending: bool,
}

/// So many short tunnels more than another one within the last seconds count as one that is open, up to the second number. So
/// what a connection got while it was the only one is made up for, and nobody who has just come is overrun.
const LEAD: usize = 64;
const MOST_LEAD: usize = 2;

/// Which backend a connection leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// Its first tunnel will tell, or not.
    Untold,
    /// It did not. Counts as a backend of its own.
    Unknown,
    At(Backend),
}

/// The failed dials of a key that has not succeeded since.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    pub(super) in_a_row: u32,
    pub(super) retry_at: Instant,
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
            twins: false,
            faded: None,
        }
    }

    /// Which connection the next tunnel goes on, if there is room on any: one in its best age before aged ones, and one with
    /// time left before full ones.
    ///
    /// In a spread, the backend with the fewest tunnels; of equals the one that has got the fewest of late, so that those
    /// whose connection came later make up for it at once; else at random. Of connections to the same backend one without
    /// bulk, then the one with the most tunnels, and then the oldest: what they have to say leaves in one piece, and the others
    /// become idle and are closed.
    pub(super) fn pick(&self, rng: &mut fastrand::Rng) -> Option<usize> {
        let with_room = || self.conns.iter().enumerate().filter(|(_, conn)| conn.has_room());
        let backends = self.backends();
        let least_of_late = with_room().map(|(_, conn)| self.at_backend(conn, &backends).1).min().unwrap_or(0);
        let ranked = with_room().map(|(place, conn)| {
            let (open, of_late) = self.at_backend(conn, &backends);
            let lead = ((of_late - least_of_late) / LEAD).min(MOST_LEAD);
            let among_backends = (open + lead, of_late);
            let among_equals = (conn.load, usize::MAX - conn.open);
            ((conn.aged, conn.load == Load::Full, among_backends, among_equals), place)
        });
        let (mut best, mut ties) = (None, 0);
        for (rank, place) in ranked {
            let other = best.as_ref().map(|(least, other)| (rank.cmp(least), &self.conns[*other]));
            match other {
                Some((Ordering::Greater, _)) => continue,
                // Which is older: connections come in the order of their age.
                Some((Ordering::Equal, other)) if self.lead_to_the_same(other, &self.conns[place]) => continue,
                Some((Ordering::Equal, _)) => ties += 1,
                Some((Ordering::Less, _)) | None => ties = 1,
            }
            // Each of so many equals with the same chance.
            if rng.usize(..ties) == 0 {
                best = Some((rank, place));
            }
        }
        best.map(|(_, place)| place)
    }

    /// Whether two connections are known to lead to the same backend.
    fn lead_to_the_same(&self, a: &Conn<H>, b: &Conn<H>) -> bool {
        match self.reuse {
            Reuse::Shared => true,
            Reuse::Spread(_) => matches!(a.whereabouts, Whereabouts::At(_)) && a.whereabouts == b.whereabouts,
            Reuse::Never => false,
        }
    }

    /// Lets the past count for less.
    pub(super) fn fade(&mut self, now: Instant) {
        let since = now.saturating_duration_since(*self.faded.get_or_insert(now)).as_secs();
        if since > 0 {
            let times = u32::try_from(since).unwrap_or(u32::MAX);
            self.conns.iter_mut().for_each(|conn| conn.of_late = conn.of_late.checked_shr(times).unwrap_or(0));
            self.faded = Some(now);
        }
    }

    /// The tunnels to each backend that several connections lead to: those that are open, and those of late.
    fn backends(&self) -> Vec<(&Backend, usize, usize)> {
        let mut backends: Vec<(&Backend, usize, usize)> = Vec::new();
        if !self.twins || !matches!(self.reuse, Reuse::Spread(_)) {
            return backends;
        }
        for conn in &self.conns {
            let Whereabouts::At(backend) = &conn.whereabouts else { continue };
            match backends.iter_mut().find(|(known, ..)| *known == backend) {
                Some((_, open, of_late)) => (*open, *of_late) = (*open + conn.open, *of_late + conn.of_late),
                None => backends.push((backend, conn.open, conn.of_late)),
            }
        }
        backends
    }

    /// The same of the backend that `conn` leads to. Nothing where all lead to the same.
    fn at_backend(&self, conn: &Conn<H>, backends: &[(&Backend, usize, usize)]) -> (usize, usize) {
        if !matches!(self.reuse, Reuse::Spread(_)) {
            return (0, 0);
        }
        match &conn.whereabouts {
            Whereabouts::At(backend) => backends.iter().find(|(known, ..)| *known == backend),
            _ => None,
        }
        .map_or((conn.open, conn.of_late), |(_, open, of_late)| (*open, *of_late))
    }

    /// To be called when connections have come, gone or told where they lead to.
    pub(super) fn recount(&mut self) {
        let known = |(place, conn): (usize, &Conn<H>)| {
            let earlier = &self.conns[..place];
            matches!(conn.whereabouts, Whereabouts::At(_)) && earlier.iter().any(|e| e.whereabouts == conn.whereabouts)
        };
        self.twins = self.conns.iter().enumerate().any(known);
    }

    /// The backends that need no further connection.
    pub(super) fn covered(&self) -> Vec<Backend> {
        let mut backends: Vec<Backend> = Vec::new();
        for conn in self.conns.iter().filter(|conn| conn.is_usable() && !conn.aged) {
            match &conn.whereabouts {
                Whereabouts::At(backend) if !backends.contains(backend) => backends.push(backend.clone()),
                _ => {}
            }
        }
        backends
    }

    fn count_covered(&self) -> usize {
        if self.twins {
            return self.covered().len();
        }
        let known = |conn: &&Conn<H>| matches!(conn.whereabouts, Whereabouts::At(_)) && conn.is_usable() && !conn.aged;
        self.conns.iter().filter(known).count()
    }

    /// Whether another usable connection leads to the same backend and has room, so that this one is not needed.
    pub(super) fn is_redundant(&self, id: ConnId) -> bool {
        let Some(conn) = self.conns.iter().find(|conn| conn.id == id) else { return false };
        matches!(conn.whereabouts, Whereabouts::At(_))
            && self.conns.iter().any(|other| {
                other.id != id
                    && !other.aged
                    && other.load == Load::Light
                    && other.whereabouts == conn.whereabouts
                    && other.has_room()
            })
    }

    /// Whether this connection is idle and another one leads to the same: one in use, or an older one.
    pub(super) fn is_spare(&self, id: ConnId) -> bool {
        let Some(conn) = self.conns.iter().find(|conn| conn.id == id && conn.open == 0) else { return false };
        let same = |other: &Conn<H>| self.lead_to_the_same(conn, other);
        let outlives = |other: &Conn<H>| other.open > 0 || other.id < id;
        self.conns
            .iter()
            .any(|other| other.id != id && other.is_usable() && !other.aged && same(other) && outlives(other))
    }

    /// How many dials those who wait want to be started now.
    pub(super) fn dials_wanted(&self, limits: &Limits, now: Instant) -> usize {
        if self.waits_to_retry(now) {
            return 0;
        }
        let wanted = match (self.waiters.len(), self.reuse) {
            (0, _) => return 0,
            (waiters, Reuse::Never) => return waiters.saturating_sub(self.dials.len()),
            (waiters, _) => {
                let unsettled =
                    self.conns.iter().filter(|conn| conn.is_usable()).filter_map(|conn| conn.handle.as_ref());
                let coming = unsettled.filter(|handle| handle.is_unsettled());
                let coming: usize = coming.map(|handle| limits.tunnels.saturating_sub(handle.limit())).sum();
                let left = waiters.saturating_sub(coming);
                left.div_ceil(limits.tunnels.max(1)).saturating_sub(self.dials.len())
            }
        };
        let there = self.dials.len() + self.conns.iter().filter(|conn| conn.is_usable() && !conn.aged).count();
        wanted.min(limits.per_path.saturating_sub(there))
    }

    fn waits_to_retry(&self, now: Instant) -> bool {
        self.failure.as_ref().is_some_and(|failure| now < failure.retry_at)
    }

    /// Whether one more connection would do good although nobody waits for it.
    pub(super) fn wants_to_grow(&self, limits: &Limits, now: Instant) -> bool {
        let early = self.waits_to_retry(now) || self.grow_at.is_some_and(|at| now < at);
        if early || !self.waiters.is_empty() || !self.dials.is_empty() {
            return false;
        }
        let (mut usable, mut fresh, mut idle_hands, mut untold, mut unknown) = (0, 0, 0, 0, 0);
        for conn in self.conns.iter().filter(|conn| conn.is_usable()) {
            usable += 1;
            fresh += usize::from(!conn.aged);
            idle_hands += usize::from(!conn.aged && conn.load == Load::Light);
            untold += usize::from(!conn.aged && conn.whereabouts == Whereabouts::Untold);
            unknown += usize::from(!conn.aged && conn.whereabouts == Whereabouts::Unknown);
        }
        if usable == 0 || fresh >= limits.per_path {
            return false;
        }
        let busy = idle_hands == 0 && fresh < limits.busy_connections;
        match self.reuse {
            Reuse::Shared => fresh == 0 || busy,
            Reuse::Spread(backends) => {
                let uncovered = 2 * self.count_covered() + unknown < 2 * backends.max(1) as usize;
                untold == 0 && (fresh == 0 || uncovered || busy)
            }
            Reuse::Never => false,
        }
    }

    /// Whether there is nothing left to know.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        let forgiven = |failure: &Failure| now >= failure.forget_at();
        self.conns.is_empty()
            && self.waiters.is_empty()
            && self.dials.is_empty()
            && self.failure.as_ref().is_none_or(forgiven)
    }
}

/// For how long after the last retry a failure makes the next one wait longer.
const MEMORY: std::time::Duration = std::time::Duration::from_secs(5);

impl Failure {
    pub(super) fn forget_at(&self) -> Instant {
        self.retry_at + MEMORY
    }
}
