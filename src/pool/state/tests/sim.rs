//! A world around the machine: callers, dials and drivers that do what a test says, and checks after every event.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::timers::Timer;
use super::super::*;
use crate::identity::{AcceptedIdentities, SpiffeId};
use crate::path::{DirectHop, TunnelledHop};

/// A connection's own knowledge.
#[derive(Clone, Debug)]
pub(super) struct Mock(Rc<Knobs>);

#[derive(Debug)]
struct Knobs {
    limit: Cell<usize>,
    awaiting_settings: Cell<bool>,
    closed: Cell<bool>,
}

impl Handle for Mock {
    fn limit(&self) -> usize {
        self.0.limit.get()
    }

    fn awaits_settings(&self) -> bool {
        self.0.awaiting_settings.get()
    }

    fn is_closed(&self) -> bool {
        self.0.closed.get()
    }
}

#[derive(Debug)]
pub(super) struct SimConn {
    mock: Mock,
    pub(super) key: Key,
    pub(super) parent: Option<ConnId>,
    pub(super) open: usize,
    /// How many of them carry a nested connection or its dial.
    pub(super) nested: usize,
    /// The machine has let go of it.
    pub(super) dropped: bool,
    /// It, or a connection that it runs through, takes no new tunnels.
    pub(super) draining: bool,
}

#[derive(Debug)]
pub(super) struct SimDial {
    pub(super) id: ConnId,
    pub(super) key: Key,
    pub(super) known_backends: Vec<BackendId>,
    /// The connection whose permit it holds.
    pub(super) parent: Option<ConnId>,
}

#[derive(Debug)]
pub(super) struct SimWaiter {
    tag: u64,
    id: WaiterId,
    pub(super) key: Key,
}

#[derive(Debug)]
pub(super) struct Sim {
    pub(super) state: State<Mock, u64>,
    pub(super) now: Instant,
    pub(super) dials: Vec<SimDial>,
    pub(super) conns: BTreeMap<ConnId, SimConn>,
    pub(super) waiters: Vec<SimWaiter>,
    /// Who got a permit after waiting, in order.
    pub(super) granted: Vec<(u64, ConnId)>,
    pub(super) failed: Vec<(u64, Error)>,
    /// The keys of callers that have been told to ask again.
    asking_again: Vec<Key>,
    next_tag: u64,
}

pub(super) fn limits() -> Limits {
    Limits {
        tunnels: 4,
        per_path: 8,
        in_all: 100,
        busy_connections: 1,
        idle_timeout: secs(300),
        max_age: secs(600),
        back_off: (millis(100), secs(3)),
    }
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn token(n: u64) -> BackendId {
    BackendId::Token(n.into())
}

pub(super) fn direct(n: u8, reuse: Reuse) -> Key {
    let accept = AcceptedIdentities::from("spiffe://td/ns/a/sa/b".parse::<SpiffeId>().expect("an identity"));
    let hop = DirectHop::new(([10, 0, 0, n], 15008).into(), accept).with_reuse(reuse);
    Key { source: 1, path: Path::direct(hop) }
}

pub(super) fn inside(parent: &Key, name: &str, reuse: Reuse) -> Key {
    let hop =
        TunnelledHop::new(name.parse().expect("an authority"), parent.path.first().accept.clone()).with_reuse(reuse);
    Key { source: parent.source, path: parent.path.clone().then(hop) }
}

pub(super) fn dial_error() -> Error {
    Error::new(ErrorKind::Unreachable, Layer::Dial, Side::Remote, "opening a connection")
}

impl Sim {
    pub(super) fn new(limits: Limits) -> Self {
        Self::seeded(limits, 7)
    }

    pub(super) fn seeded(limits: Limits, seed: u64) -> Self {
        Self {
            state: State::new(limits, fastrand::Rng::with_seed(seed)),
            now: Instant::now(),
            dials: Vec::new(),
            conns: BTreeMap::new(),
            waiters: Vec::new(),
            granted: Vec::new(),
            failed: Vec::new(),
            asking_again: Vec::new(),
            next_tag: 0,
        }
    }

    /// As a caller does it: a permit at once, or the tag under which it waits.
    pub(super) fn checkout(&mut self, key: &Key) -> Result<ConnId, u64> {
        let conn = self.try_checkout(key);
        conn.ok_or_else(|| self.enqueue(key))
    }

    pub(super) fn try_checkout(&mut self, key: &Key) -> Option<ConnId> {
        self.try_checkout_for(key, Purpose::Tunnel)
    }

    fn try_checkout_for(&mut self, key: &Key, purpose: Purpose) -> Option<ConnId> {
        let permit = self.state.try_checkout(key, purpose, self.now);
        let conn = permit.map(|permit| self.take(&permit));
        self.act();
        conn
    }

    /// The n-th dial under way gets a permit on the connection that it runs through, if there is room.
    pub(super) fn enter(&mut self, n: usize) -> bool {
        let key = &self.dials[n].key;
        let Some((path, _)) = key.path.parent() else { return false };
        let parent = Key { source: key.source, path };
        self.dials[n].parent = self.try_checkout_for(&parent, Purpose::Nested);
        self.dials[n].parent.is_some()
    }

    pub(super) fn enqueue(&mut self, key: &Key) -> u64 {
        self.next_tag += 1;
        let tag = self.next_tag;
        match self.state.enqueue(key, Purpose::Tunnel, tag, self.now) {
            Ok(id) => self.waiters.push(SimWaiter { tag, id, key: key.clone() }),
            Err(error) => self.failed.push((tag, error)),
        }
        self.act();
        tag
    }

    fn take(&mut self, permit: &Permit<Mock>) -> ConnId {
        let conn = self.conns.get_mut(&permit.conn).expect("a permit on a connection that is there");
        assert!(Rc::ptr_eq(&conn.mock.0, &permit.handle.0));
        assert!(!conn.draining && !conn.dropped && !conn.mock.is_closed(), "a permit on one that takes no more");
        assert!(conn.open < conn.mock.limit(), "more tunnels than allowed");
        conn.open += 1;
        conn.nested += usize::from(permit.purpose == Purpose::Nested);
        if conn.key.path.reuse() == Reuse::Never {
            assert!(!std::mem::replace(&mut conn.dropped, true), "used twice");
        }
        permit.conn
    }

    pub(super) fn act(&mut self) {
        for action in self.state.take_actions() {
            match action {
                Action::Dial { id, key, known_backends } => {
                    self.dials.push(SimDial { id, key, known_backends, parent: None });
                }
                Action::Grant(tag, permit) => {
                    let index = self.waiters.iter().position(|waiter| waiter.tag == tag).expect("one that waits");
                    self.waiters.remove(index);
                    let conn = self.take(&permit);
                    self.granted.push((tag, conn));
                }
                Action::Fail(tag, error) => {
                    let index = self.waiters.iter().position(|waiter| waiter.tag == tag).expect("one that waits");
                    self.waiters.remove(index);
                    self.failed.push((tag, error));
                }
                Action::AskAgain(tag) => {
                    let index = self.waiters.iter().position(|waiter| waiter.tag == tag).expect("one that waits");
                    self.asking_again.push(self.waiters.remove(index).key);
                }
                Action::Drop(handle) => {
                    if let Some(conn) = self.conns.values_mut().find(|conn| Rc::ptr_eq(&conn.mock.0, &handle.0)) {
                        conn.dropped = true;
                    }
                }
            }
        }
        self.check();
    }

    /// What holds between events, beyond what the machine checks itself.
    fn check(&self) {
        let (state, counts) = (&self.state, self.state.counts());
        assert_eq!(counts.waiters, self.waiters.len(), "each waiter is known");
        assert_eq!(counts.connections, self.conns.len(), "each connection is known");
        assert_eq!(counts.permits, self.conns.values().map(|conn| conn.open).sum::<usize>());
        assert_eq!(counts.tunnels, self.conns.values().map(|conn| conn.open - conn.nested).sum::<usize>());
        assert!(counts.connections + counts.dials <= state.limits.in_all, "too many: {counts:?}");
        for (id, entry) in &state.entries {
            let waits_for_retry = entry.failure.as_ref().is_some_and(|failure| failure.retry_at > self.now)
                && state.timers.contains(Timer::Entry(*id));
            assert!(
                entry.waiters.is_empty()
                    || !entry.dials.is_empty()
                    || entry.conns.iter().any(Conn::is_usable)
                    || state.pending_dials.contains(id)
                    || waits_for_retry,
                "a caller waits for nothing: {entry:?}"
            );
            assert!(!entry.is_empty(self.now) || state.timers.contains(Timer::Entry(*id)), "a dead entry: {entry:?}");
        }
        for id in &state.pending_dials {
            assert!(state.entries.contains_key(id), "a removed entry has pending dials");
        }
        if !state.pending_dials.is_empty() {
            assert!(state.entry_of.len() >= state.limits.in_all, "a dial is pending although there is room");
        }
        for (parent, children) in &state.children {
            assert!(!children.is_empty() && state.entry_of.contains_key(parent), "children of {parent}, which is gone");
            assert!(children.iter().all(|child| state.entry_of.contains_key(child)), "a child that is gone");
        }
    }

    /// The n-th dial under way succeeds.
    pub(super) fn land(&mut self, n: usize, backend: Option<BackendId>, limit: usize) -> ConnId {
        self.land_as(n, backend, limit, false)
    }

    pub(super) fn land_as(
        &mut self,
        n: usize,
        backend: Option<BackendId>,
        limit: usize,
        awaiting_settings: bool,
    ) -> ConnId {
        let SimDial { id, key, parent, .. } = self.dials.remove(n);
        let knobs = Knobs { limit: limit.into(), awaiting_settings: awaiting_settings.into(), closed: false.into() };
        let mock = Mock(Rc::new(knobs));
        if self.state.entry_of.contains_key(&id) {
            // Inside a draining connection it still serves those who wait already.
            let draining = parent.is_some_and(|parent| !self.conns.contains_key(&parent));
            let conn = SimConn { mock: mock.clone(), key, parent, open: 0, nested: 0, dropped: false, draining };
            self.conns.insert(id, conn);
        }
        let landed = Dialed { handle: mock, parent, backend };
        self.state.dialed(id, Ok(landed), self.now);
        self.act();
        if parent.is_some_and(|parent| self.conns.get(&parent).is_some_and(|parent| parent.draining)) {
            self.note_draining(id);
        }
        if !self.conns.contains_key(&id) {
            self.release_parent(parent);
        }
        id
    }

    pub(super) fn fail(&mut self, n: usize) {
        let SimDial { id, parent, .. } = self.dials.remove(n);
        self.state.dialed(id, Err(dial_error()), self.now);
        self.act();
        self.release_parent(parent);
    }

    /// The n-th dial under way is dropped without an outcome, and its waiters ask again.
    pub(super) fn lose(&mut self, n: usize) {
        let SimDial { id, parent, .. } = self.dials.remove(n);
        self.state.dial_lost(id, self.now);
        self.act();
        self.release_parent(parent);
        for key in std::mem::take(&mut self.asking_again) {
            let _ = self.checkout(&key);
        }
    }

    fn release_parent(&mut self, parent: Option<ConnId>) {
        if let Some(parent) = parent {
            self.release_for(parent, Purpose::Nested);
        }
    }

    pub(super) fn release(&mut self, id: ConnId) {
        self.release_for(id, Purpose::Tunnel);
    }

    fn release_for(&mut self, id: ConnId, purpose: Purpose) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.open -= 1;
            conn.nested -= usize::from(purpose == Purpose::Nested);
        }
        self.state.release(id, purpose, self.now);
        self.act();
    }

    pub(super) fn cancel(&mut self, n: usize) {
        let waiter = self.waiters.remove(n);
        self.state.cancel(&waiter.key, waiter.id, self.now);
        self.act();
    }

    pub(super) fn identified(&mut self, id: ConnId, backend: Option<BackendId>) {
        self.state.identified(id, backend, self.now);
        self.act();
    }

    pub(super) fn limit(&mut self, id: ConnId, limit: usize) {
        let mock = &self.conns[&id].mock.0;
        mock.limit.set(limit);
        mock.awaiting_settings.set(false);
        self.state.changed(id, self.now);
        self.act();
    }

    /// GOAWAY, as a driver reports it.
    pub(super) fn close_conn(&mut self, id: ConnId) {
        self.conns[&id].mock.0.closed.set(true);
        self.drain(id);
    }

    pub(super) fn drain(&mut self, id: ConnId) {
        self.note_draining(id);
        self.state.drain(id, self.now);
        self.act();
    }

    fn note_draining(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.draining = true;
        }
        let children: Vec<_> =
            self.conns.iter().filter(|(_, conn)| conn.parent == Some(id)).map(|(id, _)| *id).collect();
        children.into_iter().for_each(|child| self.note_draining(child));
    }

    /// It ends before its peer has sent anything, as a driver reports it.
    pub(super) fn fail_before_settings(&mut self, id: ConnId) {
        self.conns[&id].mock.0.closed.set(true);
        self.note_draining(id);
        self.state.failed_before_settings(id, dial_error(), self.now);
        self.act();
    }

    pub(super) fn load_changed(&mut self, id: ConnId, load: Load) {
        self.state.load_changed(id, load, self.now);
        self.act();
    }

    /// A driver ends, and with it the tunnels of its connection.
    pub(super) fn end(&mut self, id: ConnId) {
        self.note_draining(id);
        let conn = self.conns.remove(&id).expect("a connection that is there");
        conn.mock.0.closed.set(true);
        self.state.ended(id, self.now);
        self.act();
        self.release_parent(conn.parent);
    }

    pub(super) fn source_ended(&mut self, source: SourceId, error: Option<&Error>) {
        let ids: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.key.source == source).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.note_draining(id));
        self.state.source_ended(source, error, self.now);
        self.act();
    }

    pub(super) fn close(&mut self) {
        self.conns.values_mut().for_each(|conn| conn.draining = true);
        self.state.close(self.now);
        self.act();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        while self.state.next_tick().is_some_and(|at| at <= self.now) {
            self.state.tick(self.now);
            self.act();
        }
    }

    /// Ends the connections that were let go of and have no tunnels, as drivers do by themselves.
    pub(super) fn reap(&mut self) {
        while let Some(id) = self.conns.iter().find(|(_, conn)| conn.dropped && conn.open == 0).map(|(id, _)| *id) {
            self.end(id);
        }
    }

    /// All callers give up and all tunnels end: nothing may be left.
    pub(super) fn wind_up(mut self) {
        while !self.waiters.is_empty() {
            self.cancel(0);
        }
        for round in 0.. {
            assert!(round < 1000, "it never ends: {self:?}");
            while !self.dials.is_empty() {
                self.fail(0);
            }
            for id in self.conns.keys().copied().collect::<Vec<_>>() {
                while self.conns[&id].open > self.conns[&id].nested {
                    self.release(id);
                }
            }
            self.reap();
            if self.conns.is_empty() && self.dials.is_empty() {
                break;
            }
            self.pass(secs(60));
        }
        self.pass(secs(3600));
        let state = &self.state;
        assert!(state.by_key.is_empty() && state.entries.is_empty(), "{:?}", state.entries);
        assert!(state.entry_of.is_empty() && state.children.is_empty() && state.pending_dials.is_empty(), "{state:?}");
        assert_eq!(state.timers.len(), 0, "{:?}", state.timers);
    }
}
