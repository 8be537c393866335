//! How connections come: dials, their outcomes, and which backends they lead to.

use tokio::time::Instant;

use super::entry::{Conn, Failure, Identification};
use super::timers::Timer;
use super::{
    Action, BackendId, ConnId, Dialed, EntryId, FREE_MISSES, Handle, Load, MISS_BACK_OFF, Retire, State, back_off,
};
use crate::error::Error;
use crate::path::Reuse;

impl<H: Handle, W> State<H, W> {
    /// A dial has ended.
    pub(in crate::pool) fn dialed(&mut self, dial: ConnId, result: Result<Dialed<H>, Error>, now: Instant) {
        let Some(&id) = self.entry_of.get(&dial) else {
            // Its source has ended or its certificate was replaced since.
            self.actions.extend(result.ok().map(|dialed| Action::Drop(dialed.handle)));
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.dials.retain(|other| *other != dial);
        match result {
            Ok(dialed) => self.add(id, dial, dialed, now),
            Err(error) => {
                self.entry_of.remove(&dial);
                self.fail(id, error, now);
            }
        }
        self.settle(id, now);
        self.grow(id, now);
        self.start_pending(now);
    }

    /// A dial was dropped before it had an outcome. That says nothing about the peer, and the waiters know better where
    /// to dial again.
    pub(in crate::pool) fn dial_lost(&mut self, dial: ConnId, now: Instant) {
        let Some(id) = self.entry_of.remove(&dial) else { return };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.dials.retain(|other| *other != dial);
            self.actions.extend(entry.waiters.drain(..).map(|waiting| Action::AskAgain(waiting.waiter)));
        }
        self.settle(id, now);
        self.start_pending(now);
    }

    /// A connection has ended before its peer sent anything, which counts as a failed dial.
    pub(in crate::pool) fn failed_before_settings(&mut self, conn: ConnId, error: Error, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        if self.conn_mut(id, conn).is_some_and(|conn| conn.handle.is_some()) {
            self.fail(id, error, now);
            self.retire(conn, Retire::Draining, now);
        }
    }

    /// Records why there is no connection, and fails the waiters unless something else may still serve them.
    fn fail(&mut self, id: EntryId, error: Error, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let before = entry.failure.take().filter(|failure| now < failure.forget_at());
        let in_a_row = before.map_or(1, |failure| failure.in_a_row.saturating_add(1));
        let retry_at = now + back_off(self.limits.back_off, in_a_row - 1);
        self.timers.set(Timer::Entry(id), retry_at);
        if entry.dials.is_empty() && !entry.conns.iter().any(Conn::is_usable) {
            // Keep no allocation for a peer that may never answer.
            entry.dials = Vec::new();
            let waiters = std::mem::take(&mut entry.waiters).into_iter();
            self.actions.extend(waiters.map(|waiting| Action::Fail(waiting.waiter, error.clone())));
        }
        entry.failure = Some(Failure { error, in_a_row, retry_at });
    }

    fn add(&mut self, id: EntryId, dial: ConnId, dialed: Dialed<H>, now: Instant) {
        let jitter = 0.9 + 0.2 * self.rng.f64();
        let expires = now + self.limits.max_age.mul_f64(jitter);
        let Dialed { handle, parent, backend } = dialed;
        let parent_drains = parent.is_some_and(|parent| self.is_draining(parent));
        let parent_is_gone = parent.is_some_and(|parent| !self.entry_of.contains_key(&parent));
        let Some(entry) = self.entries.get_mut(&id) else { return };
        match &mut entry.failure {
            // The peer has sent nothing yet, so it may still turn out to be dead.
            Some(failure) if handle.awaits_settings() => failure.retry_at = failure.retry_at.min(now),
            failure => *failure = None,
        }
        let identified = backend.is_some();
        let backend = match (entry.reuse, backend) {
            (_, Some(backend)) => Identification::Identified(backend),
            (Reuse::Spread(_), None) => Identification::Pending,
            _ => Identification::Unidentified,
        };
        self.timers.set(Timer::Conn(dial), expires.min(now + self.limits.idle_timeout));
        if let Some(parent) = parent.filter(|_| !parent_drains) {
            self.children.entry(parent).or_default().push(dial);
        }
        let replaced = entry.conns.iter().filter(|conn| conn.aged && conn.is_usable());
        let replaced = replaced.min_by_key(|conn| (conn.backend != backend, conn.expires)).map(|conn| conn.id);
        entry.conns.push(Conn {
            id: dial,
            parent,
            handle: Some(handle),
            open: 0,
            nested: 0,
            backend,
            expires,
            idle_since: now,
            aged: false,
            load: Load::Light,
            draining: false,
            recent: 0,
        });
        entry.find_duplicates();
        if parent_drains {
            // What the peer has let in runs to its end. So the waiters are served, as the next connection may fare no
            // better with a peer that goes away each time; callers that come later are not.
            if !parent_is_gone {
                self.serve(id, now);
            }
            return self.retire(dial, Retire::Draining, now);
        }
        if let Some(replaced) = replaced {
            self.retire(replaced, Retire::Unneeded, now);
        }
        if identified {
            self.check_duplicate(id, dial, now);
        }
    }

    /// The 200 of a connection's first tunnel has said which backend it leads to, or that it doesn't say.
    pub(in crate::pool) fn identified(&mut self, conn: ConnId, backend: Option<BackendId>, now: Instant) {
        let Some(&id) = self.entry_of.get(&conn) else { return };
        let Some(found) = self.conn_mut(id, conn) else { return };
        if found.backend != Identification::Pending {
            return;
        }
        let identified = backend.is_some();
        found.backend = backend.map_or(Identification::Unidentified, Identification::Identified);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.find_duplicates();
        }
        if identified {
            self.check_duplicate(id, conn, now);
        }
        self.settle(id, now);
        self.grow(id, now);
    }

    /// A new connection's backend is known: counts it as a miss if that backend had a connection already.
    fn check_duplicate(&mut self, id: EntryId, conn: ConnId, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Reuse::Spread(backends) = entry.reuse else { return };
        let backend = entry.conns.iter().find(|c| c.id == conn).map(|c| &c.backend);
        let is_duplicate =
            entry.conns.iter().any(|c| c.id != conn && c.is_usable() && !c.aged && Some(&c.backend) == backend);
        if !is_duplicate {
            (entry.misses, entry.grow_at) = (0, None);
            return;
        }
        entry.misses = entry.misses.saturating_add(1);
        if let Some(over) = entry.misses.checked_sub(FREE_MISSES.saturating_mul(backends).saturating_add(1)) {
            entry.grow_at = Some(now + back_off(MISS_BACK_OFF, over));
        }
        if entry.waiters.is_empty() && entry.is_redundant(conn) {
            self.retire(conn, Retire::Unneeded, now);
        }
    }

    /// Starts dials that had to wait, now that there may be room for their connections.
    pub(super) fn start_pending(&mut self, now: Instant) {
        while self.entry_of.len() < self.limits.in_all {
            let Some(id) = self.pending_dials.pop_front() else { return };
            self.dial(id, now);
        }
        self.make_room(now);
    }

    /// Opens one more connection that nobody waits for, if it would help. Only where the key is in use: one that has
    /// just lost a connection may never be asked for again.
    pub(super) fn grow(&mut self, id: EntryId, now: Instant) {
        if self.entries.get(&id).is_some_and(|entry| entry.wants_to_grow(&self.limits, now)) {
            self.start(id, 1, now);
        }
    }

    /// Starts the dials that waiters need.
    pub(super) fn dial(&mut self, id: EntryId, now: Instant) {
        let wanted = self.entries.get(&id).map_or(0, |entry| entry.dials_wanted(&self.limits, now));
        self.start(id, wanted, now);
    }

    fn start(&mut self, id: EntryId, dials: usize, now: Instant) {
        if self.closed {
            return;
        }
        for _ in 0..dials {
            if self.entry_of.len() >= self.limits.in_all {
                return self.postpone(id, now);
            }
            let dial = self.id();
            let Some(entry) = self.entries.get_mut(&id) else { return };
            let known_backends = match entry.reuse {
                Reuse::Spread(_) => entry.known_backends(),
                _ => Vec::new(),
            };
            entry.dials.push(dial);
            self.entry_of.insert(dial, id);
            self.actions.push(Action::Dial { id: dial, key: entry.key.clone(), known_backends });
        }
    }

    /// Leaves a dial for when there is room for another connection. One that nobody waits for is not made up for.
    fn postpone(&mut self, id: EntryId, now: Instant) {
        if self.entries.get(&id).is_none_or(|entry| entry.waiters.is_empty()) {
            return;
        }
        if !self.pending_dials.contains(&id) {
            self.pending_dials.push_back(id);
        }
        self.make_room(now);
    }

    /// Retires the connections that have been idle for the longest time, until as many are closing as dials are
    /// pending.
    fn make_room(&mut self, now: Instant) {
        if self.pending_dials.is_empty() {
            return;
        }
        let unused = self.entries.values().flat_map(|entry| &entry.conns).filter(|conn| conn.open == 0);
        let (idle, closing): (Vec<_>, Vec<_>) = unused.partition(|conn| conn.handle.is_some());
        let wanted = self.pending_dials.len().saturating_sub(closing.len());
        let mut idle: Vec<_> = idle.into_iter().map(|conn| (conn.idle_since, conn.id)).collect();
        idle.sort_unstable();
        idle.into_iter().take(wanted).for_each(|(_, conn)| self.retire(conn, Retire::Unneeded, now));
    }
}
