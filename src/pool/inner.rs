//! Carries the decisions out: one short lock around the state machine, and the tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use futures_util::future::{AbortHandle, Abortable};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::dial::{self, NewConnection};
use super::driver::ConnectionTask;
use super::lease::{Connection, Lease, PoolPermit};
use super::source::{Source, SourceShared};
use super::state::{Action, ConnId, Counts, Dialed, Key, Permit, Purpose, SourceId, State, WaiterId};
use super::tasks::{self, Task};
use super::{BackendId, PoolConfig, PoolStats};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::Dial;
use crate::metadata::Metadata;
use crate::nested::EarlyDataDenylist;
use crate::observe::{CheckedOut, Event, LimitReached, notify};
use crate::path::Path;
use crate::tls::Connector;

pub(super) struct Inner {
    locked: Mutex<Locked>,
    pub(super) dialer: Arc<dyn Dial>,
    pub(super) config: Arc<Config>,
    pub(super) settings: PoolConfig,
    early_data_denylist: Mutex<EarlyDataDenylist>,
    /// Wakes the timer task.
    pub(super) wake: Arc<Notify>,
    /// A connection has ended.
    ended: Notify,
}

pub(super) type Machine = State<Arc<Connection>, Waiter>;

struct Locked {
    state: Machine,
    sources: HashMap<SourceId, Arc<SourceShared>>,
    next_source: SourceId,
    dials: HashMap<ConnId, AbortHandle>,
    /// With the depth of their connections.
    drivers: HashMap<ConnId, (usize, AbortHandle)>,
    /// What the timer task sleeps until, if there is one.
    timer: Option<Instant>,
    /// Where tasks are started: the runtime of the last caller that had to wait. Permits are returned on any thread,
    /// and what follows may be a dial.
    runtime: Option<Handle>,
}

/// Dropped where the caller has to ask again: the dial that it waited for was lost.
pub(super) struct Waiter(oneshot::Sender<Result<Lease>>);

/// A caller's end of a [`Waiter`].
struct Waiting {
    pool: Weak<Inner>,
    key: Key,
    id: WaiterId,
    receiver: oneshot::Receiver<Result<Lease>>,
}

/// How often a caller asks for a connection whose dial is lost each time. Asking again starts the dial on the caller's
/// own runtime, so that the second loss says that this one is about to end too.
const ASKS: usize = 3;

impl Inner {
    pub(super) fn new(dialer: Arc<dyn Dial>, config: Arc<Config>, settings: PoolConfig) -> Arc<Self> {
        Arc::new(Self {
            locked: Mutex::new(Locked {
                state: State::new(settings.limits(&config), fastrand::Rng::new()),
                sources: HashMap::new(),
                next_source: 0,
                dials: HashMap::new(),
                drivers: HashMap::new(),
                timer: None,
                runtime: None,
            }),
            dialer,
            config,
            settings,
            early_data_denylist: Mutex::default(),
            wake: Arc::new(Notify::new()),
            ended: Notify::new(),
        })
    }

    /// No [`Lease`] may be dropped and no task started under the lock: both may take the same lock.
    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_source(self: &Arc<Self>, tls: Connector, metadata: Metadata) -> Source {
        let id = {
            let mut locked = self.lock();
            locked.next_source += 1;
            locked.next_source
        };
        let source = Source::new(self, id, tls, metadata);
        self.lock().sources.insert(id, source.shared.clone());
        source
    }

    pub(super) fn forget_source(self: &Arc<Self>, id: SourceId) {
        let shared = self.lock().sources.remove(&id);
        let error = Error::new(ErrorKind::Closed, Layer::Http2, Side::Local, "waiting for a connection")
            .with_source("the source identity was removed");
        self.step(|state, now| state.source_ended(id, Some(&error), now));
        drop(shared);
    }

    pub(super) fn early_data_denylist(&self) -> MutexGuard<'_, EarlyDataDenylist> {
        self.early_data_denylist.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease by the deadline.
    pub(super) async fn checkout(
        pool: &Weak<Self>,
        source: &SourceShared,
        key: Key,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Lease> {
        let began = Instant::now();
        for _ in 0..ASKS {
            let mut waiting = {
                let Some(strong) = pool.upgrade() else { return Err(dial::gone("the pool is gone")) };
                if source.has_rotated(SystemTime::now()) {
                    strong.step(|state, now| state.source_ended(source.id, None, now));
                }
                if let Some(permit) = strong.step(|state, now| state.try_checkout(&key, purpose, now)) {
                    let lease = strong.lease(permit);
                    strong.tell_checked_out(&lease, &key.path, began, true);
                    return Ok(lease);
                }
                strong.lock().runtime = Some(Handle::current());
                let (sender, receiver) = oneshot::channel();
                let id = strong.step(|state, now| state.enqueue(&key, purpose, Waiter(sender), now))?;
                strong.tell_limit(&key);
                Waiting { pool: pool.clone(), key: key.clone(), id, receiver }
            };
            match timeout_at(deadline, &mut waiting.receiver).await {
                Ok(Ok(result)) => {
                    if let (Ok(lease), Some(strong)) = (&result, pool.upgrade()) {
                        strong.tell_checked_out(lease, &key.path, began, false);
                    }
                    return result;
                }
                Ok(Err(_)) => {}
                Err(_) => {
                    let Some(strong) = pool.upgrade() else { return Err(dial::gone("the pool is gone")) };
                    return Err(strong.stalled(source.id, &key.path).unwrap_or_else(|| no_room(&key.path)));
                }
            }
        }
        Err(dial::gone("the runtime that it was opened on was shut down"))
    }

    fn tell_checked_out(&self, lease: &Lease, path: &Path, began: Instant, at_once: bool) {
        notify(self.settings.observer.as_ref(), || {
            let connection = &lease.connection();
            // Older than the wait.
            let is_reused = at_once || connection.client.age() > began.elapsed();
            Event::CheckedOut(CheckedOut {
                connection: connection.client.id(),
                path,
                is_reused,
                waited: began.elapsed(),
            })
        });
    }

    /// Tells the observer what keeps a caller waiting, if it is a limit.
    fn tell_limit(&self, key: &Key) {
        if self.settings.observer.is_none() {
            return;
        }
        let limited = self.lock().state.limited(key);
        if let Some((limit, value)) = limited {
            notify(self.settings.observer.as_ref(), || {
                Event::LimitReached(LimitReached { limit, value: value as u64, connection: None })
            });
        }
    }

    fn lease(self: &Arc<Self>, permit: Permit<Arc<Connection>>) -> Lease {
        let Permit { conn, purpose, handle } = permit;
        Lease::new(handle, PoolPermit { pool: Arc::downgrade(self), conn, purpose })
    }

    /// Feeds an event to the state machine, and does what it decides.
    pub(super) fn step<R>(self: &Arc<Self>, event: impl FnOnce(&mut Machine, Instant) -> R) -> R {
        let now = Instant::now();
        let mut locked = self.lock();
        let result = event(&mut locked.state, now);
        self.act(locked, now);
        result
    }

    fn act(self: &Arc<Self>, mut locked: MutexGuard<'_, Locked>, now: Instant) {
        let (mut tasks, mut rest) = (Vec::new(), Vec::new());
        loop {
            let actions = locked.state.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Dial { id, key, known_backends } => {
                        tasks.extend(self.dial(&mut locked, id, key, known_backends, now));
                    }
                    other => rest.push(other),
                }
            }
        }
        match (locked.state.next_tick(), locked.timer) {
            (None, None) => {}
            // The timer task has nothing to wait for.
            (None, Some(_)) => self.wake.notify_one(),
            (Some(next), Some(at)) if at <= next => {}
            (Some(next), Some(_)) => {
                locked.timer = Some(next);
                self.wake.notify_one();
            }
            (Some(next), None) => {
                locked.timer = Some(next);
                tasks.push(tasks::timer_task(self));
            }
        }
        let runtime = if tasks.is_empty() { None } else { locked.runtime.clone() };
        drop(locked);
        self.start(runtime, tasks);
        for action in rest {
            // A caller that has given up drops the lease, and its permit goes to the next.
            match action {
                Action::Grant(waiter, permit) => drop(waiter.0.send(Ok(self.lease(permit)))),
                Action::Fail(waiter, error) => drop(waiter.0.send(Err(error))),
                Action::AskAgain(waiter) => drop(waiter),
                Action::Drop(connection) => drop(connection),
                Action::Dial { .. } => {}
            }
        }
    }

    /// Starts tasks; those for which there is no runtime are lost at once. Without the lock.
    fn start(&self, runtime: Option<Handle>, tasks: Vec<Task>) {
        let Some(runtime) = runtime.or_else(|| Handle::try_current().ok()) else { return };
        tasks.into_iter().for_each(|task| drop(runtime.spawn(task)));
    }

    /// The task for a dial.
    fn dial(
        self: &Arc<Self>,
        locked: &mut Locked,
        id: ConnId,
        key: Key,
        known_backends: Vec<BackendId>,
        now: Instant,
    ) -> Option<Task> {
        let Some(source) = locked.sources.get(&key.source).cloned() else {
            // A dial of the next hop wanted it, which has not been notified yet.
            locked.state.dialed(id, Err(dial::gone("the source identity was removed")), now);
            return None;
        };
        let deadline = now + self.settings.open_timeout;
        let (task, abort) = tasks::dial_task(self, source, id, key, known_backends, deadline);
        locked.dials.insert(id, abort);
        Some(task)
    }

    pub(super) fn dialed(self: &Arc<Self>, id: ConnId, depth: usize, spread: bool, result: Result<NewConnection>) {
        let now = Instant::now();
        let mut locked = self.lock();
        locked.dials.remove(&id);
        let mut task = None;
        let result = result.map(|connection| {
            let NewConnection { client, driver, identities, parent, backend } = connection;
            let handle = Arc::new(Connection::new(id, client, identities, spread && backend.is_none()));
            let (abort, registration) = AbortHandle::new_pair();
            task = Some(Abortable::new(ConnectionTask::new(Arc::downgrade(self), &handle, driver), registration));
            locked.drivers.insert(id, (depth, abort));
            Dialed { handle, parent, backend }
        });
        locked.state.dialed(id, result, now);
        self.act(locked, now);
        // On the runtime of the dial. Where no task can be started any more, the connection ends here.
        if let (Some(task), Ok(runtime)) = (task, Handle::try_current()) {
            runtime.spawn(task);
        }
    }

    /// A dial's task was dropped, most likely together with its runtime. Its waiters ask again.
    pub(super) fn dial_lost(self: &Arc<Self>, id: ConnId) {
        {
            let mut locked = self.lock();
            locked.dials.remove(&id);
            locked.runtime = None;
        }
        self.step(|state, now| state.dial_lost(id, now));
    }

    /// The timer task was dropped, most likely together with its runtime. The next event starts another one.
    pub(super) fn timer_lost(&self) {
        let mut locked = self.lock();
        (locked.timer, locked.runtime) = (None, None);
    }

    /// A connection's driver has ended.
    pub(super) fn ended(self: &Arc<Self>, id: ConnId) {
        self.lock().drivers.remove(&id);
        self.step(|state, now| state.ended(id, now));
        self.ended.notify_waiters();
    }

    /// Handles the timers that are due, and says when the next one is.
    pub(super) fn tick(self: &Arc<Self>) -> Option<Instant> {
        let now = Instant::now();
        let mut locked = self.lock();
        locked.state.tick(now);
        let next = locked.state.next_tick();
        locked.timer = next;
        self.act(locked, now);
        next
    }

    pub(super) fn stats(&self) -> PoolStats {
        let Counts { keys, connections, dials, waiters, tunnels, .. } = self.lock().state.counts();
        PoolStats { keys, connections, dials, waiting: waiters, tunnels }
    }

    /// Why waiting for a connection along `path` took too long: the first hop without one has stalled, or the pool is
    /// full. `None` when all hops have a connection.
    pub(super) fn stalled(&self, source: SourceId, path: &Path) -> Option<Error> {
        let mut paths = vec![path.clone()];
        while let Some((parent, _)) = paths.last().and_then(Path::parent) {
            paths.push(parent);
        }
        let (hop, is_dialing) = {
            let state = &self.lock().state;
            let mut keys = paths.into_iter().rev().map(|path| Key { source, path }).enumerate();
            let (hop, key) = keys.find(|(_, key)| !state.is_connected(key))?;
            (hop, state.is_dialing(&key))
        };
        let error = if is_dialing {
            Error::new(ErrorKind::Timeout, Layer::Dial, Side::Remote, "waiting for a connection")
        } else {
            let doing = "waiting for room in the pool for another connection";
            Error::new(ErrorKind::Timeout, Layer::Dial, Side::Local, doing)
                .with_advice("allow the pool more connections")
        };
        let error = error.with_hop(hop);
        Some(match hop.checked_sub(1) {
            None => error.with_peer(&path.first().address),
            Some(inner) => error.with_peer(&path.tunnelled()[inner].authority),
        })
    }

    pub(super) fn tunnels(&self) -> usize {
        self.stats().tunnels
    }

    /// Closes the pool, and says how many tunnels are open.
    pub(super) fn close(self: &Arc<Self>) -> usize {
        self.step(|state, now| state.close(now));
        let dials: Vec<_> = self.lock().dials.drain().map(|(_, dial)| dial).collect();
        dials.into_iter().for_each(|dial| dial.abort());
        self.tunnels()
    }

    pub(super) async fn all_ended(&self) {
        self.until(|drivers| drivers.is_empty()).await;
    }

    /// Stops all connections, those inside others first.
    pub(super) async fn cut(&self) {
        loop {
            let (depth, deepest) = {
                let locked = self.lock();
                let Some(depth) = locked.drivers.values().map(|(depth, _)| *depth).max() else { return };
                let at = locked.drivers.values().filter(|(d, _)| *d == depth).map(|(_, driver)| driver.clone());
                (depth, at.collect::<Vec<_>>())
            };
            deepest.into_iter().for_each(|driver| driver.abort());
            self.until(|drivers| drivers.values().all(|(d, _)| *d < depth)).await;
        }
    }

    async fn until(&self, reached: impl Fn(&HashMap<ConnId, (usize, AbortHandle)>) -> bool) {
        loop {
            let ended = self.ended.notified();
            if reached(&self.lock().drivers) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let locked = self.locked.get_mut().unwrap_or_else(PoisonError::into_inner);
        locked.dials.values().for_each(AbortHandle::abort);
        self.wake.notify_one();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // After an answer this finds nothing. An answer that nobody took drops its lease.
        if let Some(pool) = self.pool.upgrade() {
            pool.step(|state, now| state.cancel(&self.key, self.id, now));
        }
    }
}

fn no_room(path: &Path) -> Error {
    Error::new(ErrorKind::Timeout, Layer::Http2, Side::Local, "waiting for room on a connection")
        .with_peer(&path.first().address)
        .with_hop(path.depth() - 1)
}
