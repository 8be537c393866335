//! The pool's decisions: a pure state machine. Events and a time go in, actions come out.
//!
//! Its invariants are in one function, `State::check`.

mod dials;
mod ends;
mod entry;
#[cfg(any(fuzzing, test))]
mod tests;
mod timers;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use self::entry::{Conn, Entry, Waiting};
use self::timers::{Timer, Timers};
use super::BackendId;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::io::Load;
use crate::observe::Limit;
use crate::path::{Path, Reuse};

#[cfg(any(fuzzing, test))]
pub use self::tests::fuzz;

/// A connection, and its dial before that.
pub(super) type ConnId = u64;
pub(super) type WaiterId = u64;
pub(super) type SourceId = u64;
type EntryId = u64;

/// What connections are shared by: who connects, and the hops.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: SourceId,
    pub(super) path: Path,
}

/// What a permit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A caller's tunnel.
    Tunnel,
    /// The tunnel under a nested connection of the pool.
    Nested,
}

/// A connection as the machine sees it. All of it may change at any time and is read anew for each decision.
pub(super) trait Handle: Clone {
    /// How many tunnels it may carry now.
    fn limit(&self) -> usize;
    /// Whether the peer's SETTINGS, with the number of tunnels that it allows, have not arrived yet.
    fn awaits_settings(&self) -> bool;
    /// Whether it takes no new tunnels.
    fn is_closed(&self) -> bool;
}

/// The numbers that decide.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Tunnels on a connection, if the peer allows as many.
    pub(super) tunnels: usize,
    pub(super) per_path: usize,
    pub(super) in_all: usize,
    /// Up to how many connections a path gets because its others are busy.
    pub(super) busy_connections: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Duration,
    /// The back-off after the first failed dial, and the longest.
    pub(super) back_off: (Duration, Duration),
}

/// The idle timeout of a connection beside another one to the same backend: what a burst of tunnels needed should not
/// stay for as long as an only connection does.
const REDUNDANT_IDLE: Duration = Duration::from_secs(15);

/// The right to open one tunnel on a connection. Return it with [`State::release`].
#[derive(Debug)]
pub(super) struct Permit<H> {
    pub(super) conn: ConnId,
    pub(super) purpose: Purpose,
    pub(super) handle: H,
}

/// What the machine wants done.
#[derive(Debug)]
pub(super) enum Action<H, W> {
    /// Dial, and report the outcome with [`State::dialed`] under this id.
    Dial {
        id: ConnId,
        key: Key,
        known_backends: Vec<BackendId>,
    },
    Grant(W, Permit<H>),
    Fail(W, Error),
    /// Have the waiter ask again: the dial that it waited for was lost.
    AskAgain(W),
    /// Let go of a connection, which closes when its tunnels have ended.
    Drop(H),
}

/// A dial that succeeded.
#[derive(Debug)]
pub(super) struct Dialed<H> {
    pub(super) handle: H,
    /// The connection whose tunnel carries it.
    pub(super) parent: Option<ConnId>,
    pub(super) backend: Option<BackendId>,
}

/// Why a connection takes no new tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retire {
    /// It, or a connection that it runs through, is about to end.
    Draining,
    /// It is too old, idle or a duplicate. The connections inside it may go on.
    Unneeded,
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) keys: usize,
    pub(super) connections: usize,
    pub(super) dials: usize,
    pub(super) waiters: usize,
    /// Permits that are out, for tunnels of callers and for nested connections.
    pub(super) permits: usize,
    /// Those for tunnels of callers.
    pub(super) tunnels: usize,
}

#[derive(Debug)]
pub(super) struct State<H, W> {
    limits: Limits,
    rng: fastrand::Rng,
    by_key: HashMap<Key, EntryId>,
    entries: HashMap<EntryId, Entry<H, W>>,
    /// Which entry each connection and dial belongs to.
    entry_of: HashMap<ConnId, EntryId>,
    timers: Timers,
    /// The connections inside each connection.
    children: HashMap<ConnId, Vec<ConnId>>,
    /// Entries whose waiters need a dial when there is room for another connection.
    pending_dials: VecDeque<EntryId>,
    next_id: u64,
    closed: bool,
    actions: Vec<Action<H, W>>,
}

/// A spread may miss this many times its number of backends before it backs off: as many misses as chance alone makes
/// likely.
const FREE_MISSES: u32 = 2;
/// The back-off after the first miss beyond those, and the longest.
const MISS_BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

impl<H: Handle, W> State<H, W> {
    pub(super) fn new(limits: Limits, rng: fastrand::Rng) -> Self {
        Self {
            limits,
            rng,
            by_key: HashMap::new(),
            entries: HashMap::new(),
            entry_of: HashMap::new(),
            timers: Timers::default(),
            children: HashMap::new(),
            pending_dials: VecDeque::new(),
            next_id: 0,
            closed: false,
            actions: Vec::new(),
        }
    }

    /// What to do. To be called after each event.
    pub(super) fn take_actions(&mut self) -> Vec<Action<H, W>> {
        self.check();
        std::mem::take(&mut self.actions)
    }

    /// When [`tick`](Self::tick) is due.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Issues a permit if a connection has room.
    pub(super) fn try_checkout(&mut self, key: &Key, purpose: Purpose, now: Instant) -> Option<Permit<H>> {
        let id = *self.by_key.get(key)?;
        let entry = self.entries.get_mut(&id)?;
        let reuse = key.path.reuse();
        if entry.reuse != reuse {
            entry.reuse = reuse;
            // With another number of backends, the chance of a miss is another one too.
            (entry.misses, entry.grow_at) = (0, None);
            // And a new backend does not make up for what the others got before.
            entry.conns.iter_mut().for_each(|conn| conn.recent = 0);
        }
        if !entry.waiters.is_empty() {
            return None;
        }
        let permit = self.grant(id, purpose, now)?;
        self.grow(id, now);
        Some(permit)
    }

    /// Waits for a permit. Fails at once while the last failed dial is backed off from.
    pub(super) fn enqueue(&mut self, key: &Key, purpose: Purpose, waiter: W, now: Instant) -> Result<WaiterId, Error> {
        if self.closed {
            return Err(pool_closed());
        }
        let id = self.entry(key);
        let waiter_id = self.id();
        let Some(entry) = self.entries.get_mut(&id) else { return Err(pool_closed()) };
        if let Some(failure) = &entry.failure
            && now < failure.retry_at
            && entry.dials.is_empty()
            && !entry.conns.iter().any(Conn::is_usable)
        {
            return Err(failure.error.clone());
        }
        entry.waiters.push_back(Waiting { id: waiter_id, purpose, waiter });
        // There may be room since the caller tried.
        self.settle(id, now);
        Ok(waiter_id)
    }

    /// A waiter has given up.
    pub(super) fn cancel(&mut self, key: &Key, waiter: WaiterId, now: Instant) {
        let Some(&id) = self.by_key.get(key) else { return };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.waiters.retain(|waiting| waiting.id != waiter);
        }
        self.settle(id, now);
    }

    /// A permit is returned.
    pub(super) fn release(&mut self, conn: ConnId, purpose: Purpose, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        let Some(conn) = self.conn_mut(id, conn) else { return };
        conn.open = conn.open.saturating_sub(1);
        conn.nested = conn.nested.saturating_sub(usize::from(purpose == Purpose::Nested));
        if conn.open == 0 {
            let conn_id = conn.id;
            conn.idle_since = now;
            // Its driver would only report that at its next turn, along with what moved before.
            conn.load = Load::Light;
            let usable = conn.handle.is_some();
            if usable && self.entries.get(&id).is_some_and(|entry| entry.is_redundant_idle(conn_id)) {
                self.timers.set(Timer::Conn(conn_id), now + REDUNDANT_IDLE.min(self.limits.idle_timeout));
            }
        }
        self.settle(id, now);
        self.start_pending(now);
    }

    /// Serves waiters from the connections there are, dials for the rest, and removes the entry if nothing is left of
    /// it.
    fn settle(&mut self, id: EntryId, now: Instant) {
        self.serve(id, now);
        self.dial(id, now);
        if self.entries.get(&id).is_some_and(|entry| entry.is_empty(now))
            && let Some(entry) = self.entries.remove(&id)
        {
            self.by_key.remove(&entry.key);
            self.timers.clear(Timer::Entry(id));
            self.pending_dials.retain(|pending| *pending != id);
        }
    }

    fn serve(&mut self, id: EntryId, now: Instant) {
        while let Some(purpose) = self.entries.get(&id).and_then(|entry| entry.waiters.front()).map(|next| next.purpose)
        {
            let Some(permit) = self.grant(id, purpose, now) else { break };
            let Some(waiting) = self.entries.get_mut(&id).and_then(|entry| entry.waiters.pop_front()) else { break };
            self.actions.push(Action::Grant(waiting.waiter, permit));
        }
    }

    fn grant(&mut self, id: EntryId, purpose: Purpose, now: Instant) -> Option<Permit<H>> {
        let entry = self.entries.get_mut(&id)?;
        entry.decay(now);
        let conn = entry.pick(&mut self.rng)?;
        let conn = &mut entry.conns[conn];
        let handle = match entry.reuse {
            Reuse::Never => conn.handle.take(),
            _ => conn.handle.clone(),
        }?;
        conn.open += 1;
        conn.nested += usize::from(purpose == Purpose::Nested);
        conn.recent = conn.recent.saturating_add(1);
        Some(Permit { conn: conn.id, purpose, handle })
    }

    /// Whether there is a connection that takes tunnels, full or not.
    pub(super) fn is_connected(&self, key: &Key) -> bool {
        let entry = self.by_key.get(key).and_then(|id| self.entries.get(id));
        entry.is_some_and(|entry| entry.conns.iter().any(Conn::is_usable))
    }

    /// Whether a connection is being opened.
    pub(super) fn is_dialing(&self, key: &Key) -> bool {
        self.by_key.get(key).and_then(|id| self.entries.get(id)).is_some_and(|entry| !entry.dials.is_empty())
    }

    /// Which limit keeps the callers of a key waiting, and its value. `None` where it is just a dial.
    pub(super) fn limited(&self, key: &Key) -> Option<(Limit, usize)> {
        let id = self.by_key.get(key)?;
        if self.pending_dials.contains(id) {
            return Some((Limit::Connections, self.limits.in_all));
        }
        let full = self.entries.get(id)?.conns.iter().filter(|conn| conn.is_usable());
        let tunnels = full.filter_map(|conn| conn.handle.as_ref()).map(Handle::limit).max()?;
        Some((Limit::Tunnels, tunnels))
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { keys: self.entries.len(), ..Counts::default() };
        for entry in self.entries.values() {
            counts.connections += entry.conns.len();
            counts.dials += entry.dials.len();
            counts.waiters += entry.waiters.len();
            counts.permits += entry.conns.iter().map(|conn| conn.open).sum::<usize>();
            counts.tunnels += entry.conns.iter().map(|conn| conn.open - conn.nested).sum::<usize>();
        }
        counts
    }

    fn entry(&mut self, key: &Key) -> EntryId {
        if let Some(id) = self.by_key.get(key) {
            return *id;
        }
        let id = self.id();
        self.by_key.insert(key.clone(), id);
        self.entries.insert(id, Entry::new(key.clone()));
        id
    }

    fn conn_mut(&mut self, entry: EntryId, conn: ConnId) -> Option<&mut Conn<H>> {
        self.entries.get_mut(&entry)?.conns.iter_mut().find(|c| c.id == conn)
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// What holds between events. Checked in debug builds while there are few entries.
    fn check(&self) {
        if !cfg!(debug_assertions) || self.entries.len() > 64 {
            return;
        }
        assert_eq!(self.by_key.len(), self.entries.len(), "each key has one entry");
        let known: usize = self.entries.values().map(|entry| entry.conns.len() + entry.dials.len()).sum();
        assert_eq!(self.entry_of.len(), known, "each connection and dial is in one entry");
        for (key, id) in &self.by_key {
            let entry = &self.entries[id];
            assert_eq!(entry.key, *key, "an entry is found by its key");
            for conn in entry.conns.iter().map(|conn| &conn.id).chain(&entry.dials) {
                assert_eq!(self.entry_of.get(conn), Some(id), "a connection is found where it is");
            }
            if entry.waiters.is_empty() || !cfg!(any(fuzzing, test)) {
                // A connection's driver may have found room since the machine looked, and will report it: only handles
                // that stand still between events, as in the simulation, can be held to the rest.
            } else if let Some(conn) = entry.conns.iter().find(|conn| conn.has_room()) {
                panic!("a caller waits although there is room on {}", conn.id);
            }
            if self.closed {
                assert!(entry.waiters.is_empty() && entry.dials.is_empty(), "a closed pool has no waiters");
                assert!(entry.conns.iter().all(|conn| conn.handle.is_none()), "a closed pool issues no permits");
            }
            if entry.reuse != Reuse::Never {
                assert!(entry.dials.len() <= self.limits.per_path, "more dials than connections are allowed");
            }
            for conn in &entry.conns {
                assert!(conn.nested <= conn.open, "more nested connections than permits");
                let timed = self.timers.contains(Timer::Conn(conn.id));
                assert!(timed || conn.handle.is_none(), "each usable connection is looked at again");
            }
        }
    }
}

/// Doubles each time, up to the longest.
fn back_off((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(times)).min(longest)
}

fn pool_closed() -> Error {
    Error::new(ErrorKind::Closed, Layer::Http2, Side::Local, "waiting for a connection")
        .with_source("the pool is closed")
}
