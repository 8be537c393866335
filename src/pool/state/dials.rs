//! How connections come: dials, what becomes of them, and where they turn out to lead.

use tokio::time::Instant;

use super::entry::{Conn, Failure, Whereabouts};
use super::timers::Timer;
use super::{Action, Backend, ConnId, EntryId, FREE_MISSES, Handle, Landed, Load, MISS_BACK_OFF, State, Why, back_off};
use crate::error::Error;
use crate::path::Reuse;

impl<H: Handle, W> State<H, W> {
    /// A dial has ended.
    pub(in crate::pool) fn dialled(&mut self, dial: ConnId, result: Result<Landed<H>, Error>, now: Instant) {
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
    pub(in crate::pool) fn failed(&mut self, conn: ConnId, error: Error, now: Instant) {
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
        let parent_is_gone = parent.is_some_and(|parent| !self.at.contains_key(&parent));
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
            load: Load::Light,
            ending: false,
            of_late: 0,
        });
        entry.recount();
        if parent_ends {
            // What the peer had let in runs to its end. So those who wait get their places, as the next connection may fare
            // no better with a peer that goes away each time; whoever comes later doesn't.
            if !parent_is_gone {
                self.serve(id, now);
            }
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
    pub(in crate::pool) fn learned(&mut self, conn: ConnId, backend: Option<Backend>, now: Instant) {
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

    /// There may be room for connections that were not to be had before.
    pub(super) fn feed(&mut self, now: Instant) {
        while self.at.len() < self.limits.in_all {
            let Some(id) = self.starved.pop_front() else { return };
            self.dial(id, now);
        }
        self.make_room(now);
    }

    /// Opens one more connection that nobody waits for, if it would do good. Only where the key is in use: what has just lost
    /// a connection does not show that anybody will want another one.
    pub(super) fn grow(&mut self, id: EntryId, now: Instant) {
        if self.entries.get(&id).is_some_and(|entry| entry.wants_to_grow(&self.limits, now)) {
            self.start(id, 1, now);
        }
    }

    /// Starts the dials that are waited for.
    pub(super) fn dial(&mut self, id: EntryId, now: Instant) {
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
}
