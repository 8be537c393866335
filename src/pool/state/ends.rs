//! How connections go: what takes them out of use, and what goes with them.

use tokio::time::Instant;

use super::entry::Failure;
use super::timers::Timer;
use super::{Action, ConnId, EntryId, Handle, Load, REDUNDANT_IDLE, Retire, SourceId, State, pool_closed};
use crate::error::Error;

impl<H: Handle, W> State<H, W> {
    /// Something has changed that [`Handle`] reports.
    pub(in crate::pool) fn changed(&mut self, conn: ConnId, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        let has_settings = found.handle.as_ref().is_some_and(|handle| !handle.awaits_settings());
        if found.handle.is_some() && !found.is_usable() {
            self.retire(conn, Retire::Draining, now);
        } else if let Some(entry) = self.entries.get_mut(&id).filter(|_| has_settings) {
            entry.failure = None;
        }
        self.settle(id, now);
    }

    /// A connection, and everything that runs through it, shall take no new tunnels.
    pub(in crate::pool) fn drain(&mut self, conn: ConnId, now: Instant) {
        self.retire(conn, Retire::Draining, now);
    }

    /// A connection has more or less to do than before.
    pub(in crate::pool) fn load_changed(&mut self, conn: ConnId, load: Load, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        // A report on a connection without tunnels is about those that have ended.
        if let Some(conn) = self.conn_mut(id, conn).filter(|conn| conn.open > 0) {
            conn.load = load;
        }
        self.grow(id, now);
    }

    /// A connection's driver has ended.
    pub(in crate::pool) fn ended(&mut self, conn: ConnId, now: Instant) {
        self.retire(conn, Retire::Draining, now);
        let Some(id) = self.entry_of.remove(&conn) else { return };
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
            entry.find_duplicates();
        }
        self.settle(id, now);
        self.start_pending(now);
    }

    /// The source's certificate was replaced, or the source itself is gone; then `error` is for its waiters.
    pub(in crate::pool) fn source_ended(&mut self, source: SourceId, error: Option<&Error>, now: Instant) {
        let ids: Vec<EntryId> =
            self.entries.iter().filter(|(_, entry)| entry.key.source == source).map(|(id, _)| *id).collect();
        for id in ids {
            self.retire_all(id, error, now);
        }
        self.start_pending(now);
    }

    /// No more permits are issued. Open tunnels go on.
    pub(in crate::pool) fn close(&mut self, now: Instant) {
        self.closed = true;
        let ids: Vec<EntryId> = self.entries.keys().copied().collect();
        for id in ids {
            self.retire_all(id, Some(&pool_closed()), now);
        }
        self.pending_dials.clear();
    }

    fn retire_all(&mut self, id: EntryId, error: Option<&Error>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let conns: Vec<ConnId> = entry.conns.iter().map(|conn| conn.id).collect();
        if let Some(error) = error {
            self.actions.extend(entry.waiters.drain(..).map(|waiting| Action::Fail(waiting.waiter, error.clone())));
        }
        // The dials show a certificate that must not be used any more. What comes of them is dropped.
        for dial in entry.dials.drain(..) {
            self.entry_of.remove(&dial);
        }
        entry.failure = None;
        self.timers.clear(Timer::Entry(id));
        conns.into_iter().for_each(|conn| self.retire(conn, Retire::Draining, now));
        self.settle(id, now);
    }

    /// Handles the timers that are due.
    pub(in crate::pool) fn tick(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Conn(conn) => self.review(conn, now),
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

    /// Retires a connection that is too old or idle, or sets the time to look at it again.
    fn review(&mut self, id: ConnId, now: Instant) {
        let Some(&entry) = self.entry_of.get(&id) else { return };
        let is_redundant = self.entries.get(&entry).is_some_and(|entry| entry.is_redundant_idle(id));
        let idle_timeout =
            if is_redundant { self.limits.idle_timeout.min(REDUNDANT_IDLE) } else { self.limits.idle_timeout };
        let Some(conn) = self.conn_mut(entry, id).filter(|conn| conn.handle.is_some()) else { return };
        let idle_until = if conn.open == 0 { conn.idle_since } else { now } + idle_timeout;
        let old = now >= conn.expires;
        if now >= idle_until || (old && conn.open == 0) {
            return self.retire(id, Retire::Unneeded, now);
        }
        conn.aged |= old;
        let next = if old { idle_until } else { idle_until.min(conn.expires) };
        self.timers.set(Timer::Conn(id), next);
        self.settle(entry, now);
        self.grow(entry, now);
    }

    pub(super) fn retire(&mut self, conn: ConnId, why: Retire, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        let handle = found.handle.take();
        found.draining |= why == Retire::Draining;
        self.actions.extend(handle.map(Action::Drop));
        self.timers.clear(Timer::Conn(conn));
        if why == Retire::Draining {
            let children = self.children.get(&conn).cloned().unwrap_or_default();
            children.into_iter().for_each(|child| self.retire(child, Retire::Draining, now));
        }
        self.settle(id, now);
    }

    /// Whether a connection, or one that it runs through, has ended or is about to.
    pub(super) fn is_draining(&self, conn: ConnId) -> bool {
        let entry = self.entry_of.get(&conn).and_then(|id| self.entries.get(id));
        entry.and_then(|entry| entry.conns.iter().find(|c| c.id == conn)).is_none_or(|conn| conn.draining)
    }
}
