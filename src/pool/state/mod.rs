//! The pool's decisions: a pure state machine. Events and a time go in, actions come out.
//!
//! What always holds is in one function, `State::check`.

mod dials;
mod ends;
mod entry;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use self::entry::{Conn, Entry};
use self::timers::{Timer, Timers};
use super::Backend;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::io::Load;
use crate::path::{Path, Reuse};

/// A connection, and before that its dial.
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

/// A connection as the machine sees it. Both may change at any time and are read again each time.
pub(super) trait Handle: Clone {
    /// How many tunnels it may carry now.
    fn limit(&self) -> usize;
    /// Whether the peer has not told yet how many it allows.
    fn is_unsettled(&self) -> bool;
    /// Whether it takes no more.
    fn is_closed(&self) -> bool;
}

/// The numbers that decisions go by.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Tunnels on a connection, as far as this side goes.
    pub(super) tunnels: usize,
    pub(super) per_path: usize,
    pub(super) in_all: usize,
    /// Up to how many connections a path has because its others have no time left.
    pub(super) busy_connections: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_age: Duration,
    /// The wait after the first failed dial, and the longest.
    pub(super) back_off: (Duration, Duration),
}

/// After so long an idle connection beside another one to the same peer is closed: what a burst of tunnels needed should not
/// stay for as long as the only connection does.
const SPARE: Duration = Duration::from_secs(15);

/// A place on a connection. Give it back with [`State::release`].
#[derive(Debug)]
pub(super) struct Grant<H> {
    pub(super) conn: ConnId,
    pub(super) handle: H,
}

/// What the machine wants done, outside of the lock.
#[derive(Debug)]
pub(super) enum Action<H, W> {
    /// Dial, and report with [`State::dialled`] under this id.
    Dial {
        id: ConnId,
        key: Key,
        covered: Vec<Backend>,
    },
    Grant(W, Grant<H>),
    Fail(W, Error),
    /// A handle that is not needed any more.
    Drop(H),
}

/// A dial that succeeded.
#[derive(Debug)]
pub(super) struct Landed<H> {
    pub(super) handle: H,
    /// The connection that it runs through.
    pub(super) parent: Option<ConnId>,
    pub(super) backend: Option<Backend>,
}

/// Why a connection takes no more tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// It, or what it runs through, is about to end.
    Ending,
    /// It has served long enough, or is not needed. What runs through it may go on.
    Spent,
}

/// How many of each there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) keys: usize,
    pub(super) connections: usize,
    pub(super) dials: usize,
    pub(super) waiters: usize,
    pub(super) tunnels: usize,
}

#[derive(Debug)]
pub(super) struct State<H, W> {
    limits: Limits,
    rng: fastrand::Rng,
    by_key: HashMap<Key, EntryId>,
    entries: HashMap<EntryId, Entry<H, W>>,
    /// Connections and dials.
    at: HashMap<ConnId, EntryId>,
    timers: Timers,
    /// What runs through each connection.
    children: HashMap<ConnId, Vec<ConnId>>,
    /// Keys whose dials wait until there may be more connections.
    starved: VecDeque<EntryId>,
    next_id: u64,
    closed: bool,
    actions: Vec<Action<H, W>>,
}

/// A spread may miss this many times its number of backends before it backs off: as often as chance alone makes likely.
const FREE_MISSES: u32 = 2;
/// What it waits after the next miss, twice that after the one that follows, and so on.
const MISS_BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

impl<H: Handle, W> State<H, W> {
    pub(super) fn new(limits: Limits, rng: fastrand::Rng) -> Self {
        Self {
            limits,
            rng,
            by_key: HashMap::new(),
            entries: HashMap::new(),
            at: HashMap::new(),
            timers: Timers::default(),
            children: HashMap::new(),
            starved: VecDeque::new(),
            next_id: 0,
            closed: false,
            actions: Vec::new(),
        }
    }

    /// What is to be done. To be called after each event.
    pub(super) fn take_actions(&mut self) -> Vec<Action<H, W>> {
        self.check();
        std::mem::take(&mut self.actions)
    }

    /// When [`tick`](Self::tick) is due.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Takes a place on a connection, if there is one.
    pub(super) fn try_checkout(&mut self, key: &Key, now: Instant) -> Option<Grant<H>> {
        let id = *self.by_key.get(key)?;
        let entry = self.entries.get_mut(&id)?;
        let reuse = key.path.reuse();
        if entry.reuse != reuse {
            entry.reuse = reuse;
            // Another number of backends: what was learned of chances is void.
            (entry.misses, entry.grow_at) = (0, None);
            // And a backend that has just come does not make up for what the others got before.
            entry.conns.iter_mut().for_each(|conn| conn.of_late = 0);
        }
        if !entry.waiters.is_empty() {
            return None;
        }
        let grant = self.grant(id, now)?;
        self.grow(id, now);
        Some(grant)
    }

    /// Waits for a place. Fails at once when the last dial failed just now.
    pub(super) fn enqueue(&mut self, key: &Key, waiter: W, now: Instant) -> Result<WaiterId, Error> {
        if self.closed {
            return Err(closed());
        }
        let id = self.entry(key);
        let waiter_id = self.id();
        let Some(entry) = self.entries.get_mut(&id) else { return Err(closed()) };
        if let Some(failure) = &entry.failure
            && now < failure.retry_at
            && entry.dials.is_empty()
            && !entry.conns.iter().any(Conn::is_usable)
        {
            return Err(failure.error.clone());
        }
        entry.waiters.push_back((waiter_id, waiter));
        // There may be a place since it was looked for.
        self.settle(id, now);
        Ok(waiter_id)
    }

    /// Somebody waits no more.
    pub(super) fn cancel(&mut self, key: &Key, waiter: WaiterId, now: Instant) {
        let Some(&id) = self.by_key.get(key) else { return };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.waiters.retain(|(id, _)| *id != waiter);
        }
        self.settle(id, now);
    }

    /// A place is free again.
    pub(super) fn release(&mut self, conn: ConnId, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        let Some(conn) = self.conn_mut(id, conn) else { return };
        conn.open = conn.open.saturating_sub(1);
        if conn.open == 0 {
            let conn_id = conn.id;
            conn.idle_since = now;
            // Its driver would only find out at its next turn, and tell of what moved until now.
            conn.load = Load::Light;
            let usable = conn.handle.is_some();
            if usable && self.entries.get(&id).is_some_and(|entry| entry.is_spare(conn_id)) {
                self.timers.set(Timer::Conn(conn_id), now + SPARE.min(self.limits.idle_timeout));
            }
        }
        self.settle(id, now);
        self.feed(now);
    }

    /// Gives waiters what there is, dials for the rest, and forgets the entry if nothing is left of it.
    fn settle(&mut self, id: EntryId, now: Instant) {
        self.serve(id, now);
        self.dial(id, now);
        if self.entries.get(&id).is_some_and(|entry| entry.is_empty(now))
            && let Some(entry) = self.entries.remove(&id)
        {
            self.by_key.remove(&entry.key);
            self.timers.clear(Timer::Entry(id));
            self.starved.retain(|starved| *starved != id);
        }
    }

    fn serve(&mut self, id: EntryId, now: Instant) {
        while self.entries.get(&id).is_some_and(|entry| !entry.waiters.is_empty()) {
            let Some(grant) = self.grant(id, now) else { break };
            let Some((_, waiter)) = self.entries.get_mut(&id).and_then(|entry| entry.waiters.pop_front()) else {
                break;
            };
            self.actions.push(Action::Grant(waiter, grant));
        }
    }

    fn grant(&mut self, id: EntryId, now: Instant) -> Option<Grant<H>> {
        let entry = self.entries.get_mut(&id)?;
        entry.fade(now);
        let conn = entry.pick(&mut self.rng)?;
        let conn = &mut entry.conns[conn];
        let handle = match entry.reuse {
            Reuse::Never => conn.handle.take(),
            _ => conn.handle.clone(),
        }?;
        conn.open += 1;
        conn.of_late = conn.of_late.saturating_add(1);
        Some(Grant { conn: conn.id, handle })
    }

    /// Whether there is a connection that takes tunnels, or would if it were not full.
    pub(super) fn is_connected(&self, key: &Key) -> bool {
        let entry = self.by_key.get(key).and_then(|id| self.entries.get(id));
        entry.is_some_and(|entry| entry.conns.iter().any(Conn::is_usable))
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { keys: self.entries.len(), ..Counts::default() };
        for entry in self.entries.values() {
            counts.connections += entry.conns.len();
            counts.dials += entry.dials.len();
            counts.waiters += entry.waiters.len();
            counts.tunnels += entry.conns.iter().map(|conn| conn.open).sum::<usize>();
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

    /// What always holds between events. Checked in debug builds while there are few entries.
    fn check(&self) {
        if !cfg!(debug_assertions) || self.entries.len() > 64 {
            return;
        }
        assert_eq!(self.by_key.len(), self.entries.len(), "each key has one entry");
        let known: usize = self.entries.values().map(|entry| entry.conns.len() + entry.dials.len()).sum();
        assert_eq!(self.at.len(), known, "each connection and dial is in one entry");
        for (key, id) in &self.by_key {
            let entry = &self.entries[id];
            assert_eq!(entry.key, *key, "an entry is found by its key");
            for conn in entry.conns.iter().map(|conn| &conn.id).chain(&entry.dials) {
                assert_eq!(self.at.get(conn), Some(id), "a connection is found where it is");
            }
            if entry.waiters.is_empty() || !cfg!(test) {
                // Nothing else holds for sure. A connection's driver may have found room since the machine looked, and will
                // say so: only handles that stand still between events can be held to it.
            } else if let Some(conn) = entry.conns.iter().find(|conn| conn.has_room()) {
                panic!("somebody waits although there is room on {}", conn.id);
            }
            if self.closed {
                assert!(entry.waiters.is_empty() && entry.dials.is_empty(), "nobody waits for a closed pool");
                assert!(entry.conns.iter().all(|conn| conn.handle.is_none()), "a closed pool gives no places");
            }
            if entry.reuse != Reuse::Never {
                assert!(entry.dials.len() <= self.limits.per_path, "more dials than connections are allowed");
            }
            for conn in &entry.conns {
                let timed = self.timers.contains(Timer::Conn(conn.id));
                assert!(timed || conn.handle.is_none(), "each usable connection is looked at again");
            }
        }
    }
}

/// Doubles with each time, up to the longest.
fn back_off((first, longest): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(2u32.saturating_pow(times)).min(longest)
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, Layer::Http2, Side::Local, "waiting for a connection")
        .with_source("the pool is closed")
}
