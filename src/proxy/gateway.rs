//! Between networks: a tunnel for a service goes on to one of its pods.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::serve::{serve, unreachable};
use super::splice::splice;
use super::token::{Known, Tokens};
use super::unfinished::Unfinished;
use crate::authority::Authority;
use crate::balance::Balance;
use crate::balance::health::{Attempt, HealthKey, OutlierConfig, Outliers};
use crate::config::Config;
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::Result;
use crate::identity::TrustDomains;
use crate::io::{Dial, Stream, dial};
use crate::mesh::{Network, Workload};
use crate::metadata::Metadata;
use crate::refusal::Refusal;
use crate::route::{self, Backend, Choice};
use crate::server::Incoming;
use crate::tls::{Acceptor, CredentialSource};

/// An east-west gateway: takes tunnels that name a global service of its network, picks one of the service's pods, and
/// passes the bytes on to the pod's HBONE port.
///
/// What is inside is TLS between the client and the pod. The gateway has no key for it and looks at none of it.
///
/// # Which pod
///
/// One that is in service, and that the client is not connected to already, as far as there are such; among these the
/// balancer chooses. [`LeastRequests`](crate::balance::LeastRequests) is the one to use here: tunnels through a gateway are
/// the shared connections of whole workloads, few and long, and it picks pods with fewer of them.
///
/// A pod that can't be dialled is followed by another one before the client hears of it, and one that fails several times in
/// a row is left out for a while ([`with_outliers`](Self::with_outliers)). Only dialling counts: the gateway does not see
/// what becomes of a tunnel.
///
/// Each 200 says by a [`BackendToken`](crate::metadata::BackendToken) which pod the tunnel leads to, and a client may name
/// the tokens that it has ([`with_known_backends`](Metadata::with_known_backends)) to be led to another pod. Tokens are
/// hashes of the pods' uids with a salt that is drawn for each `Gateway` and shared by its clones.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    mesh: MeshWatch,
    network: Network,
    acceptor: Acceptor,
    dialer: Arc<dyn Dial>,
    balance: Arc<dyn Balance>,
    config: Arc<Config>,
    outliers: Arc<Mutex<Outliers<HealthKey>>>,
    tokens: Tokens,
    attempts: usize,
    attempt_timeout: Duration,
}

impl Gateway {
    /// A gateway of `network`, with its `credentials`, for peers of the `trusted` domains. Pods are picked by `balance` and
    /// reached with `dialer`.
    pub fn new(
        mesh: MeshWatch,
        network: Network,
        credentials: Arc<dyn CredentialSource>,
        trusted: TrustDomains,
        dialer: Arc<dyn Dial>,
        balance: Arc<dyn Balance>,
        config: Arc<Config>,
    ) -> Self {
        let acceptor = Acceptor::new(credentials, trusted, config.clone());
        let outliers = OutlierConfig::new().with_max_ejection_percent(100);
        Self(Arc::new(Inner {
            mesh,
            network,
            acceptor,
            dialer,
            balance,
            config,
            outliers: Arc::new(Mutex::new(Outliers::new(outliers))),
            tokens: Tokens::new(),
            attempts: 3,
            attempt_timeout: Duration::from_secs(2),
        }))
    }

    /// When a pod that can't be dialled is left out, and for how long. Default: that of [`OutlierConfig::new`] with a maximum
    /// ejection percentage of 100, since a pod that can't be dialled takes no load, in use or not. What has been learned so
    /// far is forgotten; clones made before keep theirs.
    pub fn with_outliers(mut self, config: OutlierConfig) -> Self {
        Arc::make_mut(&mut self.0).outliers = Arc::new(Mutex::new(Outliers::new(config)));
        self
    }

    /// How many pods are dialled for one tunnel before it is refused. Default 3, at least 1. Raising it costs dials where
    /// many pods are dead at once. All of them together, with whatever else it takes to answer a CONNECT, have the
    /// [`connect_timeout`](Config::with_connect_timeout).
    pub fn with_attempts(mut self, attempts: usize) -> Self {
        Arc::make_mut(&mut self.0).attempts = attempts.max(1);
        self
    }

    /// How long dialling a pod may take while there are others to dial. Default 2 s. The last one has the
    /// [`dial_timeout`](Config::with_dial_timeout), which this is never longer than. Raising it gives slow pods more time;
    /// lowering it comes sooner to a pod that answers.
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        Arc::make_mut(&mut self.0).attempt_timeout = timeout;
        self
    }

    /// Serves one connection until it ends or the drain does. `from` is its peer's address, for errors.
    ///
    /// Must be called on a tokio runtime: each tunnel gets a task. Dropping the future breaks the connection.
    ///
    /// # Errors
    ///
    /// Why the handshake or the connection failed. What becomes of single tunnels is logged at `debug`.
    pub async fn serve(&self, stream: impl Stream + 'static, from: Option<SocketAddr>, drain: &Watch) -> Result<()> {
        let inner = self.0.clone();
        let tunnel = move |incoming| {
            let inner = inner.clone();
            async move { inner.tunnel(incoming).await }
        };
        serve(Box::new(stream), from, &self.0.acceptor, &self.0.config, drain, tunnel).await
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
                tracing::debug!(peer, %target, "given up by the client");
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
    async fn reach(&self, target: &Authority, known: &Known<'_>) -> Result<(Unfinished, Backend), Refusal> {
        let deadline = Instant::now() + self.config.connect_timeout;
        let mut tried = Vec::new();
        loop {
            let (backend, attempt) = self.choose(target, known, &tried)?;
            let is_last = backend.others == 0 || tried.len() + 1 >= self.attempts;
            let dial_timeout = self.config.dial_timeout;
            let time = if is_last { dial_timeout } else { dial_timeout.min(self.attempt_timeout) };
            let time = time.min(deadline.saturating_duration_since(Instant::now()));
            let dialled = dial(&*self.dialer, backend.address, time).await;
            let now = Instant::now();
            let error = match dialled {
                Ok(pod) => {
                    self.outliers().success(attempt, now);
                    return Ok((Unfinished::new(pod), backend));
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
        known: &Known<'_>,
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
