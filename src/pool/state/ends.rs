//! How connections go: what takes them out of use, and what goes with them.

use tokio::time::Instant;

use super::entry::Failure;
use super::timers::Timer;
use super::{Action, ConnId, EntryId, Handle, Load, SPARE, SourceId, State, Why, closed};
use crate::error::Error;

impl<H: Handle, W> State<H, W> {
    /// Something has changed that [`Handle`] tells.
    pub(in crate::pool) fn changed(&mut self, conn: ConnId, now: Instant) {
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
    pub(in crate::pool) fn doomed(&mut self, conn: ConnId, now: Instant) {
        self.retire(conn, Why::Ending, now);
    }

    /// A connection has more or less to do than before.
    pub(in crate::pool) fn load_changed(&mut self, conn: ConnId, load: Load, now: Instant) {
        let Some(&id) = self.at.get(&conn) else { return };
        // Without tunnels it has nothing to do; what it did before is what its driver still tells of.
        if let Some(conn) = self.conn_mut(id, conn).filter(|conn| conn.open > 0) {
            conn.load = load;
        }
        self.grow(id, now);
    }

    /// A connection's driver has ended.
    pub(in crate::pool) fn gone(&mut self, conn: ConnId, now: Instant) {
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
    pub(in crate::pool) fn source_ended(&mut self, source: SourceId, error: Option<&Error>, now: Instant) {
        let ids: Vec<EntryId> =
            self.entries.iter().filter(|(_, entry)| entry.key.source == source).map(|(id, _)| *id).collect();
        for id in ids {
            self.end(id, error, now);
        }
        self.feed(now);
    }

    /// Nobody gets a place any more. What is open goes on.
    pub(in crate::pool) fn close(&mut self, now: Instant) {
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
    pub(in crate::pool) fn tick(&mut self, now: Instant) {
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
        let Some(&entry) = self.at.get(&id) else { return };
        let is_spare = self.entries.get(&entry).is_some_and(|entry| entry.is_spare(id));
        let idle_timeout = if is_spare { self.limits.idle_timeout.min(SPARE) } else { self.limits.idle_timeout };
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

    pub(super) fn retire(&mut self, conn: ConnId, why: Why, now: Instant) {
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

    /// Whether a connection, or what it runs through, is gone or about to end.
    pub(super) fn is_ending(&self, conn: ConnId) -> bool {
        let entry = self.at.get(&conn).and_then(|id| self.entries.get(id));
        entry.and_then(|entry| entry.conns.iter().find(|c| c.id == conn)).is_none_or(|conn| conn.ending)
    }
}
