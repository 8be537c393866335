//! Between networks: a tunnel for a service goes on to one of its pods.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::reset_on_drop::ResetOnDrop;
use super::splice::splice;
use super::tcp::TcpDialer;
use super::token::{KnownBackends, Tokens};
use super::unreachable::unreachable;
use crate::authority::Authority;
use crate::balance::health::{Attempt, HealthKey, OutlierConfig, Outliers};
use crate::balance::{Balance, LeastRequests};
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::Result;
use crate::io::{Dial, Stream, dial};
use crate::mesh::{Network, Workload};
use crate::metadata::Metadata;
use crate::refusal::Refusal;
use crate::route::{self, Backend, Choice};
use crate::server::{ConnectionServer, Incoming};

/// An east-west gateway: accepts tunnels that name a global service of its network, picks one of the service's pods, and
/// passes the bytes on to the pod's HBONE port.
///
/// What is inside is TLS between the client and the pod. The gateway has no key for it and looks at none of it.
///
/// # Which pod
///
/// One that is in service, and that the client is not connected to already, as far as there are such; among these the
/// balancer chooses.
///
/// A pod that can't be dialed is followed by another one before the client hears of it, and one that fails several times in
/// a row is left out for a while ([`with_outliers`](Self::with_outliers)). Only dialing counts: the gateway does not see
/// what becomes of a tunnel.
///
/// Each 200 says by a [`BackendToken`](crate::metadata::BackendToken) which pod the tunnel leads to, and a client may name
/// the tokens that it has ([`with_known_backends`](Metadata::with_known_backends)) to be led to another pod. Tokens are
/// hashes of the pods' uids with a salt that is drawn for each `Gateway` and shared by its clones.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    server: ConnectionServer,
    mesh: MeshWatch,
    network: Network,
    dialer: Arc<dyn Dial>,
    balance: Arc<dyn Balance>,
    outliers: Arc<Mutex<Outliers<HealthKey>>>,
    tokens: Tokens,
    attempts: usize,
    attempt_timeout: Duration,
}

impl Gateway {
    /// A gateway of `network`, on the connections of `server`.
    pub fn new(server: ConnectionServer, mesh: MeshWatch, network: Network) -> Self {
        let outliers = OutlierConfig::new().with_max_ejection_percent(100);
        Self(Arc::new(Inner {
            server,
            mesh,
            network,
            dialer: Arc::new(TcpDialer::new()),
            balance: Arc::new(LeastRequests::new()),
            outliers: Arc::new(Mutex::new(Outliers::new(outliers))),
            tokens: Tokens::new(),
            attempts: 3,
            attempt_timeout: Duration::from_secs(2),
        }))
    }

    /// How pods are reached. Default: a [`TcpDialer`] without a mark.
    pub fn with_dialer(mut self, dialer: Arc<dyn Dial>) -> Self {
        Arc::make_mut(&mut self.0).dialer = dialer;
        self
    }

    /// How a pod is picked. Default: [`LeastRequests`], which is the one to use here: tunnels through a gateway are the shared
    /// connections of whole workloads, few and long, and it picks pods with fewer of them.
    pub fn with_balance(mut self, balance: Arc<dyn Balance>) -> Self {
        Arc::make_mut(&mut self.0).balance = balance;
        self
    }

    /// When a pod that can't be dialed is left out, and for how long. Default: that of [`OutlierConfig::new`] with a maximum
    /// ejection percentage of 100, since a pod that can't be dialed takes no load, in use or not. What has been learned so
    /// far is forgotten; clones made before keep theirs.
    pub fn with_outliers(mut self, config: OutlierConfig) -> Self {
        Arc::make_mut(&mut self.0).outliers = Arc::new(Mutex::new(Outliers::new(config)));
        self
    }

    /// How many pods are dialed for one tunnel before it is refused. Default 3, at least 1. Raising it costs dials where
    /// many pods are dead at once. All of them together, with whatever else it takes to answer a CONNECT, have the
    /// [`connect_timeout`](Config::with_connect_timeout).
    pub fn with_attempts(mut self, attempts: usize) -> Self {
        Arc::make_mut(&mut self.0).attempts = attempts.max(1);
        self
    }

    /// How long dialing a pod may take while there are others to dial. Default 2 s. The last one has the
    /// [`dial_timeout`](Config::with_dial_timeout), which this is never longer than. Raising it gives slow pods more time;
    /// lowering it comes sooner to a pod that answers.
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.0).attempt_timeout = timeout;
        self
    }

    /// How many pods are dialed for one tunnel.
    pub fn attempts(&self) -> usize {
        self.0.attempts
    }

    /// How long dialing a pod may take while there are others.
    pub fn attempt_timeout(&self) -> Duration {
        self.0.attempt_timeout
    }

    /// What its connections are served by. Its registry is that of this gateway and its clones.
    pub fn server(&self) -> &ConnectionServer {
        &self.0.server
    }

    /// Serves one connection until it ends or the drain does. `from` is its peer's address, for errors.
    ///
    /// Must be called on a tokio runtime: each tunnel gets a task. Dropping the future breaks the connection.
    ///
    /// # Errors
    ///
    /// Why the handshake or the connection failed. What becomes of single tunnels is logged at `debug`.
    pub async fn serve(&self, stream: impl Stream + 'static, from: Option<SocketAddr>, drain: &Watch) -> Result<()> {
        let tunnel = |incoming| {
            let inner = self.0.clone();
            async move { inner.tunnel(incoming).await }
        };
        self.0.server.serve(stream, from, drain, tunnel).await
    }
}

impl Inner {
    async fn tunnel(&self, mut incoming: Incoming) {
        let (peer, target) = (incoming.peer_identity().cloned(), incoming.authority().clone());
        let peer = peer.as_ref().map(tracing::field::display);
        let known = self.tokens.known(incoming.metadata());
        let reached = tokio::select! {
            // Boxed, so that its memory is free again while bytes flow, or don't.
            reached = Box::pin(self.reach(&target, &known)) => reached,
            () = incoming.cancelled() => {
                tracing::debug!(peer, %target, "canceled by the client");
                return;
            }
        };
        let (mut pod, backend) = match reached {
            Ok(reached) => reached,
            Err(refusal) => {
                tracing::info!(peer, %target, %refusal, "tunnel refused");
                return incoming.reject(&refusal);
            }
        };
        let Backend { workload, in_flight, .. } = backend;
        tracing::debug!(peer, %target, pod = %workload.name, "tunnel opened");
        let answer = Metadata::default().with_backend(self.tokens.of(&workload));
        let ended = match incoming.accept(&answer) {
            Ok(mut tunnel) => splice(&mut tunnel, &mut pod).await,
            Err(error) => Err(error),
        };
        drop(in_flight);
        let pod = &workload.name;
        match ended {
            Ok(stats) => {
                tracing::debug!(peer, %target, %pod, received = stats.a_to_b, sent = stats.b_to_a, "tunnel ended")
            }
            Err(error) => tracing::debug!(peer, %target, %pod, %error, "tunnel broke"),
        }
    }

    /// Connects to a pod, and to another one where that fails. Cancel safe: a dial that is cut short counts for nothing.
    async fn reach(&self, target: &Authority, known: &KnownBackends<'_>) -> Result<(ResetOnDrop, Backend), Refusal> {
        let deadline = Instant::now() + self.server.config().connect_timeout;
        let mut tried = Vec::new();
        loop {
            let (backend, attempt) = self.choose(target, known, &tried)?;
            let is_last = backend.others == 0 || tried.len() + 1 >= self.attempts;
            let dial_timeout = self.server.config().dial_timeout;
            let time = if is_last { dial_timeout } else { dial_timeout.min(self.attempt_timeout) };
            let time = time.min(deadline.saturating_duration_since(Instant::now()));
            let dialed = dial(&*self.dialer, backend.address, time).await;
            let now = Instant::now();
            let error = match dialed {
                Ok(pod) => {
                    self.outliers().success(attempt, now);
                    return Ok((ResetOnDrop::new(pod), backend));
                }
                Err(error) => error,
            };
            tracing::info!(%target, pod = %backend.workload.name, %error, "pod not reached");
            tried.push(attempt.key().clone());
            self.outliers().failure(attempt, now);
            if is_last || now >= deadline {
                return Err(unreachable(&error, "pod"));
            }
        }
    }

    fn choose(
        &self,
        target: &Authority,
        known: &KnownBackends<'_>,
        tried: &[HealthKey],
    ) -> Result<(Backend, Attempt<HealthKey>), Refusal> {
        let (mesh, now) = (self.mesh.borrow().clone(), Instant::now());
        let known = |pod: &Workload| known.contains(pod);
        // Locked until the attempt has begun, so that two tunnels never compete for a probe.
        let mut outliers = self.outliers();
        let choice = Choice::new(&*self.balance).with_health(&outliers, now).with_tried(tried);
        let backend = route::gateway(&mesh, &self.network, target, &choice.with_passed_over(&known))?;
        let attempt = outliers.begin(backend.health_key(), now);
        Ok((backend, attempt))
    }

    fn outliers(&self) -> MutexGuard<'_, Outliers<HealthKey>> {
        self.outliers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
