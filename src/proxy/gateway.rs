//! Between networks: a tunnel for a service goes on to one of its pods.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::reset_on_drop::ResetOnDrop;
use super::splice::splice;
use super::tcp::TcpDialer;
use super::token::{KnownBackends, Tokens};
use super::unreachable::unreachable;
use crate::authority::Authority;
use crate::balance::health::{HealthKey, OutlierConfig};
use crate::balance::{Balance, LeastRequests};
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{Dial, Stream, dial_any};
use crate::mesh::{Network, Workload};
use crate::metadata::Metadata;
use crate::observe::{self, AttemptFailed, ConnectFailed, Connected, Event, Picked, RequestId, TunnelId, notify};
use crate::refusal::Refusal;
use crate::retry::{Endpoints, Failure, Request, RetryAt, RetryPolicy, Served, Unserved};
use crate::route::{self, Backend, Choice};
use crate::server::{ConnectionServer, Incoming};

/// An east-west gateway: accepts tunnels that name a global service of its network, picks one of the service's pods,
/// and passes the bytes on to the pod's HBONE port.
///
/// What is inside is TLS between the client and the pod. The gateway has no key for it and looks at none of it.
///
/// # Which pod
///
/// One that is in service, and that the client is not connected to already, as far as there are such; among these the
/// balancer chooses.
///
/// A pod that can't be dialed is followed by another one before the client hears of it, and one that fails several
/// times in a row is left out for a while ([`with_outliers`](Self::with_outliers)). Only dialing counts: the gateway
/// does not see what becomes of a tunnel.
///
/// Each 200 says by a [`BackendToken`](crate::metadata::BackendToken) which pod the tunnel leads to, and a client may
/// name the tokens that it has ([`with_known_backends`](Metadata::with_known_backends)) to be led to another pod.
/// Tokens are hashes of the pods' uids with a salt that is drawn for each `Gateway` and shared by its clones.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    server: ConnectionServer,
    mesh: MeshWatch,
    network: Network,
    dialer: Arc<dyn Dial>,
    pods: Endpoints,
    tokens: Tokens,
    attempts: usize,
    attempt_timeout: Duration,
}

impl Gateway {
    /// A gateway of `network`, on the connections of `server`.
    pub fn new(server: ConnectionServer, mesh: MeshWatch, network: Network) -> Self {
        let outliers = OutlierConfig::new().with_max_ejection_percent(100);
        let pods = Endpoints::new(Arc::new(LeastRequests::new()), outliers, server.observer().cloned());
        Self(Arc::new(Inner {
            server,
            mesh,
            network,
            dialer: Arc::new(TcpDialer::new()),
            pods,
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

    /// How a pod is picked. Default: [`LeastRequests`], which is the one to use here: tunnels through a gateway are the
    /// shared connections of whole workloads, few and long, and it picks pods with fewer of them.
    pub fn with_balance(mut self, balance: Arc<dyn Balance>) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.pods = inner.pods.clone().with_balance(balance);
        self
    }

    /// When a pod that can't be dialed is left out, and for how long. Default: that of [`OutlierConfig::new`] with a
    /// maximum ejection percentage of 100, since a pod that can't be dialed takes no load, in use or not. What has been
    /// learned so far is forgotten; clones made before keep theirs.
    pub fn with_outliers(mut self, config: OutlierConfig) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.pods = inner.pods.clone().with_outliers(config);
        self
    }

    /// How many pods are dialed for one tunnel before it is refused. Default 3, at least 1. Raising it costs dials
    /// where many pods are dead at once. All of them together, with whatever else it takes to answer a CONNECT, have
    /// the [`connect_timeout`](crate::Config::with_connect_timeout).
    pub fn with_attempts(mut self, attempts: usize) -> Self {
        Arc::make_mut(&mut self.0).attempts = attempts.max(1);
        self
    }

    /// How long dialing a pod may take while there are others to dial. Default 2 s. The last one has the
    /// [`dial_timeout`](crate::Config::with_dial_timeout), which this is never longer than. Raising it gives slow pods
    /// more time; lowering it comes sooner to a pod that answers.
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
        let (incoming_id, known) = (incoming.id(), self.tokens.known(incoming.metadata()));
        let reached = tokio::select! {
            // Boxed, so that its memory is free again while bytes flow, or don't.
            reached = Box::pin(self.reach(incoming_id, &target, &known)) => reached,
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

    /// Connects to a pod, and to another one where that fails. Cancel safe: a dial that is cut short counts for
    /// nothing.
    async fn reach(
        &self,
        incoming: TunnelId,
        target: &Authority,
        known: &KnownBackends<'_>,
    ) -> Result<(ResetOnDrop, Backend), Refusal> {
        let began = Instant::now();
        let request = PodRequest { gateway: self, id: RequestId::random(), incoming, target, known };
        let timeout = self.server.config().connect_timeout;
        let policy = RetryPolicy { attempts: self.attempts, timeout, attempt_timeout: self.attempt_timeout };
        let observed = request.observed();
        match self.pods.serve(&request, &policy).await {
            Ok(Served { endpoint, output, attempts }) => {
                let elapsed = began.elapsed();
                notify(self.server.observer(), || {
                    Event::Connected(Connected { request: observed, tunnel: None, attempts, elapsed })
                });
                Ok((output, endpoint))
            }
            Err(Unserved { error: Unreached { refusal, error }, attempts }) => {
                let elapsed = began.elapsed();
                notify(self.server.observer(), || {
                    Event::ConnectFailed(ConnectFailed { request: observed, error: &error, attempts, elapsed })
                });
                Err(refusal)
            }
        }
    }
}

/// A tunnel that is to lead on to a pod.
struct PodRequest<'a> {
    gateway: &'a Inner,
    id: RequestId,
    incoming: TunnelId,
    target: &'a Authority,
    known: &'a KnownBackends<'a>,
}

/// Why there is no pod: for the client, and for this side.
struct Unreached {
    refusal: Refusal,
    error: Error,
}

impl PodRequest<'_> {
    fn observed(&self) -> observe::Request<'_> {
        observe::Request { id: self.id, incoming: Some(self.incoming), source: None, from: None, target: self.target }
    }
}

impl Request for PodRequest<'_> {
    type Endpoint = Backend;
    type Output = ResetOnDrop;
    type Error = Unreached;

    fn choose(&self, choice: &Choice<'_>) -> Result<Backend, Unreached> {
        let mesh = self.gateway.mesh.borrow().clone();
        let known = |pod: &Workload| self.known.contains(pod);
        let choice = choice.with_passed_over(&known);
        route::gateway(&mesh, &self.gateway.network, self.target, &choice).map_err(|refusal| {
            let kind = ErrorKind::Refused(refusal.clone());
            Unreached { refusal, error: Error::new(kind, Layer::Route, Side::Local, "choosing a pod") }
        })
    }

    fn health_keys(&self, backend: &Backend) -> Vec<HealthKey> {
        vec![backend.health_key()]
    }

    fn has_others(&self, backend: &Backend) -> bool {
        backend.others > 0
    }

    async fn attempt(&self, backend: &Backend, until: Instant) -> Result<ResetOnDrop, Failure<Unreached>> {
        let time = until.saturating_duration_since(Instant::now()).min(self.gateway.server.config().dial_timeout);
        match dial_any(&*self.gateway.dialer, &addresses(backend), None, time).await {
            Ok(pod) => Ok(ResetOnDrop::new(pod)),
            Err(error) => {
                tracing::info!(target = %self.target, pod = %backend.workload.name, %error, "pod not reached");
                Err(Failure {
                    blamed: Some(backend.health_key()),
                    error: Unreached { refusal: unreachable(&error, "pod"), error },
                    is_repeated: false,
                    retry: RetryAt::Others,
                })
            }
        }
    }

    fn on_picked(&self, backend: &Backend, attempt: usize) {
        notify(self.gateway.server.observer(), || {
            Event::Picked(Picked {
                request: self.observed(),
                attempt,
                service: None,
                endpoint: &backend.workload,
                gateway: None,
                path: None,
                others: backend.others,
            })
        });
    }

    fn on_failed(&self, attempt: usize, failure: &Failure<Unreached>, is_retried: bool, elapsed: Duration) {
        let (error, blamed) = (&failure.error.error, failure.blamed.as_ref());
        notify(self.gateway.server.observer(), || {
            let request = self.observed();
            Event::AttemptFailed(AttemptFailed { request, attempt, error, blamed, is_retried, elapsed })
        });
    }
}

/// A pod's address that was chosen, and its others: its proxy may listen on one family alone.
fn addresses(backend: &Backend) -> Vec<SocketAddr> {
    let chosen = backend.address;
    let all = backend.workload.addresses.iter().map(|ip| SocketAddr::new(*ip, chosen.port()));
    [chosen].into_iter().chain(all.filter(|address| *address != chosen)).collect()
}
