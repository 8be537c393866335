//! What carries the decisions out: one short lock around the state machine, and the tasks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use futures_util::future::{AbortHandle, Abortable};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task;
use tokio::time::Instant;

use super::dial::{self, Dialled};
use super::driver::{ConnectionTask, timer};
use super::early::Waiters;
use super::lease::{Connection, Lease, Place};
use super::source::{Source, SourceShared};
use super::state::{Action, ConnId, Grant, Key, Landed, SourceId, State, WaiterId};
use super::{PoolConfig, PoolStats};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::Dial;
use crate::metadata::Metadata;
use crate::path::{Path, Reuse};
use crate::tls::CredentialSource;

pub(super) struct Inner {
    locked: Mutex<Locked>,
    pub(super) dialer: Arc<dyn Dial>,
    pub(super) config: Arc<Config>,
    dial_deadline: Duration,
    waiters: Mutex<Waiters>,
    /// Tunnels of callers, in contrast to those that hold further connections of the pool.
    tunnels: AtomicUsize,
    /// Wakes the timer task.
    pub(super) wake: Arc<Notify>,
    /// A connection is gone.
    ended: Notify,
    /// Where the tasks run. Places are given back on any thread, and what follows may be a dial.
    runtime: OnceLock<Handle>,
}

pub(super) type Machine = State<Arc<Connection>, Waiter>;

struct Locked {
    state: Machine,
    sources: HashMap<SourceId, Arc<SourceShared>>,
    next_source: SourceId,
    dials: HashMap<ConnId, task::AbortHandle>,
    /// By how deep they are nested.
    drivers: HashMap<ConnId, (usize, AbortHandle)>,
    /// What the timer task sleeps until, if there is one.
    timer: Option<Instant>,
}

pub(super) struct Waiter {
    sender: oneshot::Sender<Result<Lease>>,
    /// As in [`Place`].
    inner: bool,
}

/// Somebody who waits for a connection.
struct Waiting {
    pool: Weak<Inner>,
    key: Key,
    id: WaiterId,
    receiver: oneshot::Receiver<Result<Lease>>,
}

impl Inner {
    pub(super) fn new(dialer: Arc<dyn Dial>, config: Arc<Config>, settings: &PoolConfig) -> Arc<Self> {
        Arc::new(Self {
            locked: Mutex::new(Locked {
                state: State::new(settings.limits(&config), fastrand::Rng::new()),
                sources: HashMap::new(),
                next_source: 0,
                dials: HashMap::new(),
                drivers: HashMap::new(),
                timer: None,
            }),
            dialer,
            config,
            dial_deadline: settings.dial_deadline,
            waiters: Mutex::default(),
            tunnels: AtomicUsize::new(0),
            wake: Arc::new(Notify::new()),
            ended: Notify::new(),
            runtime: OnceLock::new(),
        })
    }

    /// No [`Lease`] may be dropped under the lock: giving its place back takes the same lock.
    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_source(
        self: &Arc<Self>,
        credentials: Arc<dyn CredentialSource>,
        metadata: Metadata,
    ) -> Result<Source> {
        let id = {
            let mut locked = self.lock();
            locked.next_source += 1;
            locked.next_source
        };
        let source = Source::new(self, id, credentials, metadata, &self.config);
        self.lock().sources.insert(id, source.shared.clone());
        Ok(source)
    }

    pub(super) fn forget_source(self: &Arc<Self>, id: SourceId) {
        let shared = self.lock().sources.remove(&id);
        let error = Error::new(ErrorKind::Closed, Layer::Http2, Side::Local, "waiting for a connection")
            .with_source("the source identity was removed");
        self.step(|state, now| state.source_ended(id, Some(&error), now));
        drop(shared);
    }

    /// The peers that take no bytes before their 200.
    pub(super) fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn checkout(pool: &Weak<Self>, source: &SourceShared, key: Key, inner: bool) -> Result<Lease> {
        let mut waiting = {
            let Some(strong) = pool.upgrade() else { return Err(dial::gone("the pool is gone")) };
            strong.runtime.get_or_init(Handle::current);
            if source.has_rotated(SystemTime::now()) {
                strong.step(|state, now| state.source_ended(source.id, None, now));
            }
            if let Some(grant) = strong.step(|state, now| state.try_checkout(&key, now)) {
                return Ok(strong.lease(grant, inner));
            }
            let (sender, receiver) = oneshot::channel();
            let id = strong.step(|state, now| state.enqueue(&key, Waiter { sender, inner }, now))?;
            Waiting { pool: pool.clone(), key, id, receiver }
        };
        (&mut waiting.receiver).await.unwrap_or_else(|_| Err(dial::gone("the pool is gone")))
    }

    fn lease(self: &Arc<Self>, grant: Grant<Arc<Connection>>, inner: bool) -> Lease {
        if !inner {
            self.tunnels.fetch_add(1, Ordering::Relaxed);
        }
        Lease::new(grant.handle, Place { pool: Arc::downgrade(self), conn: grant.conn, inner })
    }

    pub(super) fn release(self: &Arc<Self>, conn: ConnId, inner: bool) {
        if !inner {
            self.tunnels.fetch_sub(1, Ordering::Relaxed);
        }
        self.step(|state, now| state.release(conn, now));
    }

    /// Tells the state machine something, and does what it wants done.
    pub(super) fn step<R>(self: &Arc<Self>, event: impl FnOnce(&mut Machine, Instant) -> R) -> R {
        let now = Instant::now();
        let mut locked = self.lock();
        let result = event(&mut locked.state, now);
        self.act(locked, now);
        result
    }

    fn act(self: &Arc<Self>, mut locked: MutexGuard<'_, Locked>, now: Instant) {
        let mut rest = Vec::new();
        loop {
            let actions = locked.state.take_actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Dial { id, key, covered } => self.dial(&mut locked, id, key, covered, now),
                    other => rest.push(other),
                }
            }
        }
        if locked.state.next_tick().is_none() && locked.timer.is_some() {
            // Nothing is left to wait for.
            self.wake.notify_one();
        }
        if let Some(next) = locked.state.next_tick() {
            match locked.timer {
                Some(at) if at <= next => {}
                Some(_) => {
                    locked.timer = Some(next);
                    self.wake.notify_one();
                }
                None => {
                    if let Some(runtime) = self.runtime.get() {
                        locked.timer = Some(next);
                        runtime.spawn(timer(Arc::downgrade(self)));
                    }
                }
            }
        }
        drop(locked);
        for action in rest {
            // Who waits no more drops the lease, and its place goes to the next.
            match action {
                Action::Grant(waiter, grant) => drop(waiter.sender.send(Ok(self.lease(grant, waiter.inner)))),
                Action::Fail(waiter, error) => drop(waiter.sender.send(Err(error))),
                Action::Drop(connection) => drop(connection),
                Action::Dial { .. } => {}
            }
        }
    }

    fn dial(self: &Arc<Self>, locked: &mut Locked, id: ConnId, key: Key, covered: Vec<super::Backend>, now: Instant) {
        let (Some(source), Some(runtime)) = (locked.sources.get(&key.source).cloned(), self.runtime.get()) else {
            // It was wanted by a dial inside, which did not know yet.
            return locked.state.dialled(id, Err(dial::gone("the source identity was removed")), now);
        };
        let pool = Arc::downgrade(self);
        let (depth, spread) = (key.path.depth(), matches!(key.path.reuse(), Reuse::Spread(_)));
        let deadline = now + self.dial_deadline;
        let task = runtime.spawn(async move {
            let result = dial::dial(pool.clone(), source, key, covered, deadline).await;
            if let Some(pool) = pool.upgrade() {
                pool.dialled(id, depth, spread, result);
            }
        });
        locked.dials.insert(id, task.abort_handle());
    }

    fn dialled(self: &Arc<Self>, id: ConnId, depth: usize, spread: bool, result: Result<Dialled>) {
        let now = Instant::now();
        let mut locked = self.lock();
        locked.dials.remove(&id);
        let mut driven = None;
        let result = result.map(|dialled| {
            let Dialled { client, driver, identities, parent, backend } = dialled;
            let untold = spread && backend.is_none();
            let handle = Arc::new(Connection::new(id, client, identities, untold));
            let (abort, registration) = AbortHandle::new_pair();
            driven = Some(Abortable::new(ConnectionTask::new(Arc::downgrade(self), &handle, driver), registration));
            locked.drivers.insert(id, (depth, abort));
            Landed { handle, parent, backend }
        });
        locked.state.dialled(id, result, now);
        self.act(locked, now);
        // Only now, when its beginning is known and nothing is locked: where no task can be started any more, it ends here.
        if let (Some(driven), Some(runtime)) = (driven, self.runtime.get()) {
            runtime.spawn(driven);
        }
    }

    /// A connection's driver has ended.
    pub(super) fn gone(self: &Arc<Self>, id: ConnId) {
        self.lock().drivers.remove(&id);
        self.step(|state, now| state.gone(id, now));
        self.ended.notify_waiters();
    }

    /// Looks at what is due, and says when to look again.
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
        let counts = self.lock().state.counts();
        PoolStats {
            keys: counts.keys,
            connections: counts.connections,
            dials: counts.dials,
            waiting: counts.waiters,
            tunnels: self.tunnels(),
        }
    }

    /// The outermost hop of a path to which there is no connection.
    fn first_without(&self, source: SourceId, path: &Path) -> Option<usize> {
        let mut paths = vec![path.clone()];
        while let Some((parent, _)) = paths.last().and_then(Path::parent) {
            paths.push(parent);
        }
        let locked = self.lock();
        paths.into_iter().rev().position(|path| !locked.state.is_connected(&Key { source, path }))
    }

    /// What it means that waiting for a connection along `path` took too long: the first hop that has none has stalled.
    /// `None` when all have one.
    pub(super) fn stalled(&self, source: SourceId, path: &Path) -> Option<Error> {
        let hop = self.first_without(source, path)?;
        let error = Error::new(ErrorKind::Timeout, Layer::Dial, Side::Remote, "waiting for a connection").with_hop(hop);
        Some(match hop.checked_sub(1) {
            None => error.with_peer(path.first().address),
            Some(inner) => error.with_peer(&path.tunnelled()[inner].authority),
        })
    }

    pub(super) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }

    /// Closes the pool. How many tunnels are open?
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
        locked.dials.values().for_each(task::AbortHandle::abort);
        self.wake.notify_one();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Also after an answer, where it finds nothing: an answer that nobody took has its place given back.
        if let Some(pool) = self.pool.upgrade() {
            pool.step(|state, now| state.cancel(&self.key, self.id, now));
        }
    }
}
