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
    unsettled: Cell<bool>,
    closed: Cell<bool>,
}

impl Handle for Mock {
    fn limit(&self) -> usize {
        self.0.limit.get()
    }

    fn is_unsettled(&self) -> bool {
        self.0.unsettled.get()
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
    /// The machine has let go of it.
    pub(super) dropped: bool,
    /// It, or what it runs through, shall take no more tunnels.
    pub(super) doomed: bool,
}

#[derive(Debug)]
pub(super) struct SimDial {
    pub(super) id: ConnId,
    pub(super) key: Key,
    pub(super) covered: Vec<Backend>,
    /// The place that it holds on the connection that it runs through.
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
    /// Who got a place after waiting, in order.
    pub(super) granted: Vec<(u64, ConnId)>,
    pub(super) failed: Vec<(u64, Error)>,
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

pub(super) fn token(n: u64) -> Backend {
    Backend::Token(n.into())
}

pub(super) fn direct(n: u8, reuse: Reuse) -> Key {
    let accept = AcceptedIdentities::from("spiffe://td/ns/a/sa/b".parse::<SpiffeId>().unwrap());
    let hop = DirectHop::new(([10, 0, 0, n], 15008).into(), accept).with_reuse(reuse);
    Key { source: 1, path: Path::direct(hop) }
}

pub(super) fn inside(parent: &Key, name: &str, reuse: Reuse) -> Key {
    let hop = TunnelledHop::new(name.parse().unwrap(), parent.path.first().accept.clone()).with_reuse(reuse);
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
            next_tag: 0,
        }
    }

    /// As a caller does it: the place at once, or the number under which it waits.
    pub(super) fn checkout(&mut self, key: &Key) -> Result<ConnId, u64> {
        let grant = self.try_checkout(key);
        grant.ok_or_else(|| self.enqueue(key))
    }

    pub(super) fn try_checkout(&mut self, key: &Key) -> Option<ConnId> {
        let grant = self.state.try_checkout(key, self.now);
        let conn = grant.map(|grant| self.take(&grant));
        self.act();
        conn
    }

    pub(super) fn enqueue(&mut self, key: &Key) -> u64 {
        self.next_tag += 1;
        let tag = self.next_tag;
        match self.state.enqueue(key, tag, self.now) {
            Ok(id) => self.waiters.push(SimWaiter { tag, id, key: key.clone() }),
            Err(error) => self.failed.push((tag, error)),
        }
        self.act();
        tag
    }

    fn take(&mut self, grant: &Grant<Mock>) -> ConnId {
        let conn = self.conns.get_mut(&grant.conn).expect("a place on a connection that is there");
        assert!(Rc::ptr_eq(&conn.mock.0, &grant.handle.0));
        assert!(!conn.doomed && !conn.dropped && !conn.mock.is_closed(), "a place on one that takes no more");
        assert!(conn.open < conn.mock.limit(), "more tunnels than allowed");
        conn.open += 1;
        if conn.key.path.reuse() == Reuse::Never {
            assert!(!std::mem::replace(&mut conn.dropped, true), "used twice");
        }
        grant.conn
    }

    pub(super) fn act(&mut self) {
        for action in self.state.take_actions() {
            match action {
                Action::Dial { id, key, covered } => self.dials.push(SimDial { id, key, covered, parent: None }),
                Action::Grant(tag, grant) => {
                    let place = self.waiters.iter().position(|waiter| waiter.tag == tag).expect("one that waits");
                    self.waiters.remove(place);
                    let conn = self.take(&grant);
                    self.granted.push((tag, conn));
                }
                Action::Fail(tag, error) => {
                    let place = self.waiters.iter().position(|waiter| waiter.tag == tag).expect("one that waits");
                    self.waiters.remove(place);
                    self.failed.push((tag, error));
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
        assert_eq!(counts.waiters, self.waiters.len(), "each who waits is known");
        assert_eq!(counts.connections, self.conns.len(), "each connection is known");
        assert_eq!(counts.tunnels, self.conns.values().map(|conn| conn.open).sum::<usize>());
        assert!(counts.connections + counts.dials <= state.limits.in_all, "too many: {counts:?}");
        for (id, entry) in &state.entries {
            let waits_for_retry = entry.failure.as_ref().is_some_and(|failure| failure.retry_at > self.now)
                && state.timers.contains(Timer::Entry(*id));
            assert!(
                entry.waiters.is_empty()
                    || !entry.dials.is_empty()
                    || entry.conns.iter().any(Conn::is_usable)
                    || state.starved.contains(id)
                    || waits_for_retry,
                "somebody waits for nothing: {entry:?}"
            );
            assert!(!entry.is_empty(self.now) || state.timers.contains(Timer::Entry(*id)), "a dead entry: {entry:?}");
        }
        for id in &state.starved {
            assert!(state.entries.contains_key(id), "an entry that is gone is starved");
        }
        if !state.starved.is_empty() {
            assert!(state.at.len() >= state.limits.in_all, "somebody is starved although there is room");
        }
        for (parent, children) in &state.children {
            assert!(!children.is_empty() && state.at.contains_key(parent), "children of {parent}, which is gone");
            assert!(children.iter().all(|child| state.at.contains_key(child)), "a child that is gone");
        }
    }

    /// The n-th dial under way succeeds.
    pub(super) fn land(&mut self, n: usize, backend: Option<Backend>, limit: usize) -> ConnId {
        self.land_as(n, backend, limit, false)
    }

    pub(super) fn land_as(&mut self, n: usize, backend: Option<Backend>, limit: usize, unsettled: bool) -> ConnId {
        let SimDial { id, key, parent, .. } = self.dials.remove(n);
        let knobs = Knobs { limit: limit.into(), unsettled: unsettled.into(), closed: false.into() };
        let mock = Mock(Rc::new(knobs));
        if self.state.at.contains_key(&id) {
            // Inside one that is about to end it is there for those who wait already.
            let doomed = parent.is_some_and(|parent| !self.conns.contains_key(&parent));
            let conn = SimConn { mock: mock.clone(), key, parent, open: 0, dropped: false, doomed };
            self.conns.insert(id, conn);
        }
        let landed = Landed { handle: mock, parent, backend };
        self.state.dialled(id, Ok(landed), self.now);
        self.act();
        if parent.is_some_and(|parent| self.conns.get(&parent).is_some_and(|parent| parent.doomed)) {
            self.note_doomed(id);
        }
        if !self.conns.contains_key(&id) {
            self.give_back(parent);
        }
        id
    }

    pub(super) fn fail(&mut self, n: usize) {
        let SimDial { id, parent, .. } = self.dials.remove(n);
        self.state.dialled(id, Err(dial_error()), self.now);
        self.act();
        self.give_back(parent);
    }

    fn give_back(&mut self, parent: Option<ConnId>) {
        if let Some(parent) = parent {
            self.release(parent);
        }
    }

    pub(super) fn release(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.open -= 1;
        }
        self.state.release(id, self.now);
        self.act();
    }

    pub(super) fn cancel(&mut self, n: usize) {
        let waiter = self.waiters.remove(n);
        self.state.cancel(&waiter.key, waiter.id, self.now);
        self.act();
    }

    pub(super) fn learned(&mut self, id: ConnId, backend: Option<Backend>) {
        self.state.learned(id, backend, self.now);
        self.act();
    }

    pub(super) fn limit(&mut self, id: ConnId, limit: usize) {
        let mock = &self.conns[&id].mock.0;
        mock.limit.set(limit);
        mock.unsettled.set(false);
        self.state.changed(id, self.now);
        self.act();
    }

    /// GOAWAY, as a driver reports it.
    pub(super) fn close_conn(&mut self, id: ConnId) {
        self.conns[&id].mock.0.closed.set(true);
        self.doom(id);
    }

    pub(super) fn doom(&mut self, id: ConnId) {
        self.note_doomed(id);
        self.state.doomed(id, self.now);
        self.act();
    }

    fn note_doomed(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.doomed = true;
        }
        let children: Vec<_> =
            self.conns.iter().filter(|(_, conn)| conn.parent == Some(id)).map(|(id, _)| *id).collect();
        children.into_iter().for_each(|child| self.note_doomed(child));
    }

    /// It ends before its peer has said anything, as a driver reports it.
    pub(super) fn stillborn(&mut self, id: ConnId) {
        self.conns[&id].mock.0.closed.set(true);
        self.note_doomed(id);
        self.state.failed(id, dial_error(), self.now);
        self.act();
    }

    pub(super) fn load_changed(&mut self, id: ConnId, load: Load) {
        self.state.load_changed(id, load, self.now);
        self.act();
    }

    /// A driver ends, and what was open on its connection.
    pub(super) fn gone(&mut self, id: ConnId) {
        self.note_doomed(id);
        let conn = self.conns.remove(&id).unwrap();
        conn.mock.0.closed.set(true);
        self.state.gone(id, self.now);
        self.act();
        self.give_back(conn.parent);
    }

    pub(super) fn source_ended(&mut self, source: SourceId, error: Option<&Error>) {
        let ids: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.key.source == source).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.note_doomed(id));
        self.state.source_ended(source, error, self.now);
        self.act();
    }

    pub(super) fn close(&mut self) {
        self.conns.values_mut().for_each(|conn| conn.doomed = true);
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

    /// Ends all that was let go of and has no tunnels, as drivers do by themselves.
    pub(super) fn reap(&mut self) {
        while let Some(id) = self.conns.iter().find(|(_, conn)| conn.dropped && conn.open == 0).map(|(id, _)| *id) {
            self.gone(id);
        }
    }

    /// Everybody goes home; nothing may be left.
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
                let inner = self.conns.values().filter(|conn| conn.parent == Some(id)).count();
                while self.conns[&id].open > inner {
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
        assert!(state.at.is_empty() && state.children.is_empty() && state.starved.is_empty(), "{state:?}");
        assert_eq!(state.timers.len(), 0, "{:?}", state.timers);
    }
}
