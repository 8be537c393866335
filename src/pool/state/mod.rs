//! The pool's decisions: a pure state machine. Events and a time go in, actions come out.
//!
//! What always holds is in one function, `State::check`.

mod entry;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use self::entry::{Conn, Entry, Failure, Whereabouts};
use self::timers::{Timer, Timers};
use super::Backend;
use crate::error::{Error, ErrorKind, Layer, Side};
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
        }
        if !entry.waiters.is_empty() {
            return None;
        }
        let grant = self.grant(id)?;
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
            conn.idle_since = now;
        }
        self.settle(id, now);
        self.feed(now);
    }

    /// A dial has ended.
    pub(super) fn dialled(&mut self, dial: ConnId, result: Result<Landed<H>, Error>, now: Instant) {
        let Some(&id) = self.at.get(&dial) else {
            // Nobody wants it any more.
            self.actions.extend(result.ok().map(|landed| Action::Drop(landed.handle)));
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.dials.retain(|other| *other != dial);
        match result {
            Ok(landed) => self.landed(id, dial, landed, now),
            Err(error) => {
                self.at.remove(&dial);
                self.fail(id, error, now);
            }
        }
        self.settle(id, now);
        self.grow(id, now);
        self.feed(now);
    }

    /// A connection has ended before its peer said anything: that is as if its dial had failed.
    pub(super) fn failed(&mut self, conn: ConnId, error: Error, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        if self.conn_mut(id, conn).is_some_and(|conn| conn.handle.is_some()) {
            self.fail(id, error, now);
            self.retire(conn, Why::Ending, now);
        }
    }

    /// Notes why there is no connection, and tells those who wait unless there is hope for them.
    fn fail(&mut self, id: EntryId, error: Error, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = entry.failure.take().filter(|failure| now < failure.forget_at());
        let in_a_row = before.map_or(1, |failure| failure.in_a_row.saturating_add(1));
        let retry_at = now + back_off(self.limits.back_off, in_a_row - 1);
        self.timers.set(Timer::Entry(id), retry_at);
        if entry.dials.is_empty() && !entry.conns.iter().any(Conn::is_usable) {
            // Nothing is kept for a peer that may never be there.
            entry.dials = Vec::new();
            let waiters = std::mem::take(&mut entry.waiters).into_iter();
            self.actions.extend(waiters.map(|(_, waiter)| Action::Fail(waiter, error.clone())));
        }
        entry.failure = Some(Failure { error, in_a_row, retry_at });
    }

    fn landed(&mut self, id: EntryId, dial: ConnId, landed: Landed<H>, now: Instant) {
        let jitter = 0.9 + 0.2 * self.rng.f64();
        let expires = now + self.limits.max_age.mul_f64(jitter);
        let Landed { handle, parent, backend } = landed;
        let parent_ends = parent.is_some_and(|parent| self.is_ending(parent));
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match &mut entry.failure {
            // The peer has said nothing yet.
            Some(failure) if handle.is_unsettled() => failure.retry_at = failure.retry_at.min(now),
            failure => *failure = None,
        }
        let told = backend.is_some();
        let whereabouts = match (entry.reuse, backend) {
            (_, Some(backend)) => Whereabouts::At(backend),
            (Reuse::Spread(_), None) => Whereabouts::Untold,
            _ => Whereabouts::Unknown,
        };
        self.timers.set(Timer::Conn(dial), expires.min(now + self.limits.idle_timeout));
        if let Some(parent) = parent.filter(|_| !parent_ends) {
            self.children.entry(parent).or_default().push(dial);
        }
        let replaced = entry.conns.iter().filter(|conn| conn.aged && conn.is_usable());
        let replaced = replaced.min_by_key(|conn| (conn.whereabouts != whereabouts, conn.expires)).map(|conn| conn.id);
        entry.conns.push(Conn {
            id: dial,
            parent,
            handle: Some(handle),
            open: 0,
            whereabouts,
            expires,
            idle_since: now,
            aged: false,
            busy: false,
            ending: false,
        });
        entry.recount();
        if parent_ends {
            return self.retire(dial, Why::Ending, now);
        }
        if let Some(replaced) = replaced {
            self.retire(replaced, Why::Spent, now);
        }
        if told {
            self.arrived(id, dial, now);
        }
    }

    /// The first tunnel on a connection has told where it leads to, or that it doesn't say.
    pub(super) fn learned(&mut self, conn: ConnId, backend: Option<Backend>, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        if found.whereabouts != Whereabouts::Untold {
            return;
        }
        let told = backend.is_some();
        found.whereabouts = backend.map_or(Whereabouts::Unknown, Whereabouts::At);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.recount();
        }
        if told {
            self.arrived(id, conn, now);
        }
        self.settle(id, now);
        self.grow(id, now);
    }

    /// It is known which backend a new connection leads to: a new one, or one that needed no further connection.
    fn arrived(&mut self, id: EntryId, conn: ConnId, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Reuse::Spread(backends) = entry.reuse else { return };
        let known = entry.conns.iter().find(|c| c.id == conn).map(|c| &c.whereabouts);
        let twin =
            entry.conns.iter().any(|c| c.id != conn && c.is_usable() && !c.aged && Some(&c.whereabouts) == known);
        if !twin {
            (entry.misses, entry.grow_at) = (0, None);
            return;
        }
        entry.misses = entry.misses.saturating_add(1);
        if let Some(over) = entry.misses.checked_sub(FREE_MISSES.saturating_mul(backends).saturating_add(1)) {
            entry.grow_at = Some(now + back_off(MISS_BACK_OFF, over));
        }
        if entry.waiters.is_empty() && entry.is_redundant(conn) {
            self.retire(conn, Why::Spent, now);
        }
    }

    /// Something has changed that [`Handle`] tells.
    pub(super) fn changed(&mut self, conn: ConnId, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        let settled = found.handle.as_ref().is_some_and(|handle| !handle.is_unsettled());
        if found.handle.is_some() && !found.is_usable() {
            self.retire(conn, Why::Ending, now);
        } else if let Some(entry) = self.entries.get_mut(&id).filter(|_| settled) {
            entry.failure = None;
        }
        self.settle(id, now);
    }

    /// A connection shall take no more tunnels, and what runs through it neither.
    pub(super) fn doomed(&mut self, conn: ConnId, now: Instant) {
        self.retire(conn, Why::Ending, now);
    }

    /// Whether a connection's thread has no time left.
    pub(super) fn busy(&mut self, conn: ConnId, busy: bool, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        if let Some(conn) = self.conn_mut(id, conn) {
            conn.busy = busy;
        }
        self.grow(id, now);
    }

    /// A connection's driver has ended.
    pub(super) fn gone(&mut self, conn: ConnId, now: Instant) {
        self.retire(conn, Why::Ending, now);
        let Some(id) = self.at.remove(&conn) else { return };
        self.timers.clear(Timer::Conn(conn));
        self.children.remove(&conn);
        if let Some(entry) = self.entries.get_mut(&id) {
            if let Some(parent) = entry.conns.iter().find(|c| c.id == conn).and_then(|c| c.parent)
                && let Some(siblings) = self.children.get_mut(&parent)
            {
                siblings.retain(|sibling| *sibling != conn);
                if siblings.is_empty() {
                    self.children.remove(&parent);
                }
            }
            entry.conns.retain(|other| other.id != conn);
            entry.recount();
        }
        self.settle(id, now);
        self.feed(now);
    }

    /// The source's certificate was replaced, or the source itself is gone (`error` is then for those who wait).
    pub(super) fn source_ended(&mut self, source: SourceId, error: Option<&Error>, now: Instant) {
        let ids: Vec<EntryId> =
            self.entries.iter().filter(|(_, entry)| entry.key.source == source).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, error, now);
        }
        self.feed(now);
    }

    /// Nobody gets a place any more. What is open goes on.
    pub(super) fn close(&mut self, now: Instant) {
        self.closed = true;
        let ids: Vec<EntryId> = self.entries.keys().copied().collect();
        for id in ids {
            self.end(id, Some(&closed()), now);
        }
        self.starved.clear();
    }

    fn end(&mut self, id: EntryId, error: Option<&Error>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let conns: Vec<ConnId> = entry.conns.iter().map(|conn| conn.id).collect();
        if let Some(error) = error {
            self.actions.extend(entry.waiters.drain(..).map(|(_, waiter)| Action::Fail(waiter, error.clone())));
        }
        // They show a certificate that is not to be used any more. What comes of them is dropped.
        for dial in entry.dials.drain(..) {
            self.at.remove(&dial);
        }
        entry.failure = None;
        self.timers.clear(Timer::Entry(id));
        conns.into_iter().for_each(|conn| self.retire(conn, Why::Ending, now));
        self.settle(id, now);
    }

    /// Looks at what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Conn(conn) => self.look_at(conn, now),
                Timer::Entry(id) => {
                    let failure = self.entries.get(&id).and_then(|entry| entry.failure.as_ref());
                    if let Some(forget_at) = failure.map(Failure::forget_at).filter(|at| now < *at) {
                        self.timers.set(timer, forget_at);
                    }
                    self.settle(id, now);
                    self.grow(id, now);
                }
            }
        }
    }

    fn look_at(&mut self, id: ConnId, now: Instant) {
        let idle_timeout = self.limits.idle_timeout;
        let Some(&entry) = self.at.get(&id) else { return };
        let Some(conn) = self.conn_mut(entry, id).filter(|conn| conn.handle.is_some()) else { return };
        let idle_until = if conn.open == 0 { conn.idle_since } else { now } + idle_timeout;
        let old = now >= conn.expires;
        if now >= idle_until || (old && conn.open == 0) {
            return self.retire(id, Why::Spent, now);
        }
        conn.aged |= old;
        let next = if old { idle_until } else { idle_until.min(conn.expires) };
        self.timers.set(Timer::Conn(id), next);
        self.settle(entry, now);
        self.grow(entry, now);
    }

    fn retire(&mut self, conn: ConnId, why: Why, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        let handle = found.handle.take();
        found.ending |= why == Why::Ending;
        self.actions.extend(handle.map(Action::Drop));
        self.timers.clear(Timer::Conn(conn));
        if why == Why::Ending {
            let children = self.children.get(&conn).cloned().unwrap_or_default();
            children.into_iter().for_each(|child| self.retire(child, Why::Ending, now));
        }
        self.settle(id, now);
    }

    /// Gives waiters what there is, dials for the rest, and forgets the entry if nothing is left of it.
    fn settle(&mut self, id: EntryId, now: Instant) {
        while self.entries.get(&id).is_some_and(|entry| !entry.waiters.is_empty()) {
            let Some(grant) = self.grant(id) else { break };
            let Some((_, waiter)) = self.entries.get_mut(&id).and_then(|entry| entry.waiters.pop_front()) else {
                break;
            };
            self.actions.push(Action::Grant(waiter, grant));
        }
        self.dial(id, now);
        if self.entries.get(&id).is_some_and(|entry| entry.is_empty(now))
            && let Some(entry) = self.entries.remove(&id)
        {
            self.by_key.remove(&entry.key);
            self.timers.clear(Timer::Entry(id));
            self.starved.retain(|starved| *starved != id);
        }
    }

    /// There may be room for connections that were not to be had before.
    fn feed(&mut self, now: Instant) {
        while self.at.len() < self.limits.in_all {
            let Some(id) = self.starved.pop_front() else { return };
            self.dial(id, now);
        }
        self.make_room(now);
    }

    fn grant(&mut self, id: EntryId) -> Option<Grant<H>> {
        let entry = self.entries.get_mut(&id)?;
        let conn = entry.pick(&mut self.rng)?;
        let conn = &mut entry.conns[conn];
        let handle = match entry.reuse {
            Reuse::Never => conn.handle.take(),
            _ => conn.handle.clone(),
        }?;
        conn.open += 1;
        Some(Grant { conn: conn.id, handle })
    }

    /// Opens one more connection that nobody waits for, if it would do good. Only where the key is in use: what has just lost
    /// a connection does not show that anybody will want another one.
    fn grow(&mut self, id: EntryId, now: Instant) {
        if self.entries.get(&id).is_some_and(|entry| entry.wants_to_grow(&self.limits, now)) {
            self.start(id, 1, now);
        }
    }

    /// Starts the dials that are waited for.
    fn dial(&mut self, id: EntryId, now: Instant) {
        let wanted = self.entries.get(&id).map_or(0, |entry| entry.dials_wanted(&self.limits, now));
        self.start(id, wanted, now);
    }

    fn start(&mut self, id: EntryId, dials: usize, now: Instant) {
        if self.closed {
            return;
        }
        for _ in 0..dials {
            if self.at.len() >= self.limits.in_all {
                return self.starve(id, now);
            }
            let dial = self.id();
            let Some(entry) = self.entries.get_mut(&id) else { return };
            let covered = match entry.reuse {
                Reuse::Spread(_) => entry.covered(),
                _ => Vec::new(),
            };
            entry.dials.push(dial);
            self.at.insert(dial, id);
            self.actions.push(Action::Dial { id: dial, key: entry.key.clone(), covered });
        }
    }

    /// There is no room for another connection. What nobody waits for does without.
    fn starve(&mut self, id: EntryId, now: Instant) {
        if self.entries.get(&id).is_none_or(|entry| entry.waiters.is_empty()) {
            return;
        }
        if !self.starved.contains(&id) {
            self.starved.push_back(id);
        }
        self.make_room(now);
    }

    /// Retires those that have been idle for the longest time, until as many are on their way out as are wanted.
    fn make_room(&mut self, now: Instant) {
        if self.starved.is_empty() {
            return;
        }
        let unused = self.entries.values().flat_map(|entry| &entry.conns).filter(|conn| conn.open == 0);
        let (idle, leaving): (Vec<_>, Vec<_>) = unused.partition(|conn| conn.handle.is_some());
        let wanted = self.starved.len().saturating_sub(leaving.len());
        let mut idle: Vec<_> = idle.into_iter().map(|conn| (conn.idle_since, conn.id)).collect();
        idle.sort_unstable();
        idle.into_iter().take(wanted).for_each(|(_, conn)| self.retire(conn, Why::Spent, now));
    }

    /// Whether a connection, or what it runs through, is gone or about to end.
    fn is_ending(&self, conn: ConnId) -> bool {
        let entry = self.at.get(&conn).and_then(|id| self.entries.get(id));
        entry.and_then(|entry| entry.conns.iter().find(|c| c.id == conn)).is_none_or(|conn| conn.ending)
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
