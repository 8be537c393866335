//! From a name to a tunnel: the mesh says where to, a balancer chooses, the pool has the connection, and what fails before
//! its 200 is tried elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::authority::Authority;
use crate::balance::Balance;
use crate::balance::health::{Attempt, HealthKey, OutlierConfig, Outliers};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::mesh::{BaggageCache, Snapshot, Workload};
use crate::metadata::{Forwarded, Metadata, Traceparent};
use crate::path::Reuse;
use crate::pool::{Pool, Source};
use crate::route::{self, Choice, Route};
use crate::tls::CredentialSource;
use crate::tunnel::TunnelStream;

/// The mesh as its users see it: the newest snapshot. When the sender is gone the last one stays.
pub type MeshWatch = tokio::sync::watch::Receiver<Snapshot>;

/// Opens tunnels from one workload to whatever the mesh has. Clones are the same connector.
///
/// # What is tried again
///
/// Until the peer's 200 is here, not a byte of the application has been sent, so that another endpoint can be tried without
/// harm. That is done when the attempt failed for a [reason that another endpoint may cure](route::is_retryable) and there
/// is one, or when the connection went away under it: never after 400 or 401, and never after the 200. Endpoints and
/// gateways that failed are not chosen again while there is any other, and those that
/// [fail repeatedly](crate::balance::health) are left out for a while by this connector.
///
/// Behind a gateway the connector can't name a pod, so there the other endpoint is another gateway, or what the gateway
/// makes of a second request for the same service.
///
/// # Example
///
/// Two pods, of which only one answers. No connection fails:
///
/// ```
/// use std::sync::Arc;
///
/// use hbone::balance::RoundRobin;
/// use hbone::connector::{Connector, ConnectorConfig};
/// use hbone::mesh::Snapshot;
/// # use hbone::metadata::Metadata;
/// use hbone::pool::{Pool, PoolConfig};
/// use hbone::testing::{Ca, Network};
/// # use hbone::tls::Acceptor;
/// use hbone::{Authority, Config, SpiffeId};
/// # use hbone::{TrustDomains, server};
///
/// const MESH: &str = "
/// workloads:
/// - {uid: web, name: web, namespace: shop, serviceAccount: web, protocol: HBONE, workloadIps: [10.0.0.1]}
/// - {uid: c1, name: c1, namespace: shop, serviceAccount: cart, protocol: HBONE, workloadIps: [10.0.0.2], services: {shop/cart.shop: {}}}
/// - {uid: c2, name: c2, namespace: shop, serviceAccount: cart, protocol: HBONE, workloadIps: [10.0.0.3], services: {shop/cart.shop: {}}}
/// services:
/// - {name: cart, namespace: shop, hostname: cart.shop, ports: {80: 8080}}
/// ";
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # let (ca, network, config) = (Ca::new(), Network::new(), Arc::new(Config::new()));
/// # let id = |sa| format!("spiffe://cluster.local/ns/shop/sa/{sa}").parse::<SpiffeId>();
/// # let (web, cart) = (id("web")?, id("cart")?);
/// # let trusted = TrustDomains::new("cluster.local".parse()?);
/// # let acceptor = Acceptor::new(Arc::new(ca.issue(&cart)), trusted, config.clone());
/// # let mut listener = network.listen("10.0.0.3:15008".parse()?);
/// # tokio::spawn(async move {
/// #     while let Some(stream) = listener.accept().await {
/// #         let mut server = server::handshake(acceptor.accept(stream).await?).await?;
/// #         tokio::spawn(async move {
/// #             let mut tunnels = Vec::new();
/// #             while let Some(Ok(incoming)) = server.accept().await {
/// #                 tunnels.push(incoming.accept(&Metadata::default()).expect("a client that waits"));
/// #             }
/// #         });
/// #     }
/// #     Ok::<_, hbone::Error>(())
/// # });
/// // `ca`, `network` and `config` are at hand; a pod listens at 10.0.0.3, and nobody at 10.0.0.2.
/// let (_mesh, mesh) = tokio::sync::watch::channel(Snapshot::parse("the mesh", MESH)?);
/// let pool = Pool::new(Arc::new(network), config, PoolConfig::new());
/// let (own, balance) = (Arc::new(ca.issue(&web)), Arc::new(RoundRobin::new()));
/// let connector = Connector::new(mesh, "shop", "web", &pool, own, balance, ConnectorConfig::new())?;
///
/// let target: Authority = "cart.shop:80".parse()?;
/// for _ in 0..20 {
///     let connected = connector.connect(&target, None).await?;
///     assert_eq!(connected.identities, [cart.clone()]);
///     assert_eq!(&*connected.route.picked.name, "c2");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Connector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mesh: MeshWatch,
    namespace: String,
    name: String,
    pool: Pool,
    source: Source,
    credentials: Arc<dyn CredentialSource>,
    balance: Arc<dyn Balance>,
    settings: ConnectorConfig,
    health: Arc<Mutex<Outliers<HealthKey>>>,
    baggage: BaggageCache,
    trace_ids: Mutex<fastrand::Rng>,
}

/// How often and for how long a [`Connector`] tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorConfig {
    attempts: usize,
    deadline: Duration,
    attempt_timeout: Duration,
    outliers: OutlierConfig,
}

/// A tunnel to where an application wanted to go, the way it took, and whom it met there.
///
/// Who takes it apart keeps [`route.in_flight`](Route::in_flight) for as long as the tunnel: dropping it tells the balancer
/// that the tunnel has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Connected {
    /// The tunnel.
    pub tunnel: TunnelStream,
    /// The way.
    pub route: Route,
    /// The verified identities, from the outer hop to the inner one.
    pub identities: Vec<SpiffeId>,
}

/// One attempt that failed.
struct Failed {
    error: Error,
    /// Whether it says nothing new of the peer.
    is_repeated: bool,
}

impl ConnectorConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            deadline: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(3),
            outliers: OutlierConfig::new().with_max_ejection_percent(100),
        }
    }

    /// How many attempts one connection gets. Default 3, at least 1. Raising it lets a connection come to more endpoints
    /// before it fails.
    pub fn with_attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// How long all attempts together may take, from the route to the 200. Default 20 s.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(Duration::from_secs(365 * 24 * 60 * 60));
        self
    }

    /// How long an attempt may take while another endpoint is left to try; the last attempt, and one without an alternative,
    /// has all the time there is. Default 3 s: four round trips between continents, and a slow application. Raising it makes
    /// connections wait longer for a peer that has stalled. A connection on which nothing at all has come for half of this
    /// time, or a second, by the end of an attempt takes no more tunnels.
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout.min(Duration::from_secs(365 * 24 * 60 * 60));
        self
    }

    /// When endpoints are left out because they failed. Default: as [`OutlierConfig`] has it, except that any number of
    /// endpoints may be left out, since all are used when none is left.
    pub fn with_outliers(mut self, outliers: OutlierConfig) -> Self {
        self.outliers = outliers;
        self
    }
}

impl Default for ConnectorConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl Connector {
    /// A connector for the workload `namespace`/`name` of the mesh, with its `credentials`. Connections are those of `pool`,
    /// endpoints are chosen by `balance`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidCredentials`] when there are no credentials.
    pub fn new(
        mesh: MeshWatch,
        namespace: &str,
        name: &str,
        pool: &Pool,
        credentials: Arc<dyn CredentialSource>,
        balance: Arc<dyn Balance>,
        settings: ConnectorConfig,
    ) -> Result<Self> {
        let source = source(&mesh, namespace, name, pool, &credentials)?;
        Ok(Self(Arc::new(Inner {
            mesh,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            pool: pool.clone(),
            source,
            credentials,
            balance,
            health: Arc::new(Mutex::new(Outliers::new(settings.outliers.clone()))),
            settings,
            baggage: BaggageCache::default(),
            trace_ids: Mutex::new(fastrand::Rng::new()),
        })))
    }

    /// The same over another pool, such as one of another thread. The two share what they learn of endpoints, and the balancer.
    ///
    /// # Errors
    ///
    /// As [`Connector::new`].
    pub fn with_pool(&self, pool: &Pool) -> Result<Self> {
        let Inner { mesh, namespace, name, credentials, balance, settings, health, .. } = &*self.0;
        Ok(Self(Arc::new(Inner {
            source: source(mesh, namespace, name, pool, credentials)?,
            mesh: mesh.clone(),
            namespace: namespace.clone(),
            name: name.clone(),
            pool: pool.clone(),
            credentials: credentials.clone(),
            balance: balance.clone(),
            settings: settings.clone(),
            health: health.clone(),
            baggage: BaggageCache::default(),
            trace_ids: Mutex::new(fastrand::Rng::new()),
        })))
    }

    /// Opens a tunnel to `target`: a service by name or virtual address, or a workload. `from` is the application's address,
    /// for the far side's telemetry.
    ///
    /// Must be called on a tokio runtime. Cancel safe: when dropped, the tunnel that was about to be opened is cancelled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoute`] when the mesh knows no way, else why the last attempt failed: as
    /// [`Pool::checkout`] and [`Lease::connect`](crate::pool::Lease::connect). [`Error::hop`] says at which hop.
    pub async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        self.0.connect(target, from).await.map_err(|e| e.with_target(target))
    }
}

fn source(
    mesh: &MeshWatch,
    namespace: &str,
    name: &str,
    pool: &Pool,
    credentials: &Arc<dyn CredentialSource>,
) -> Result<Source> {
    let own = mesh.borrow().workload_named(namespace, name).map(|workload| workload.baggage());
    let metadata = own.map(|own| Metadata::default().with_baggage(own)).unwrap_or_default();
    pool.source(credentials.clone(), metadata)
}

impl Inner {
    async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        let deadline = Instant::now() + self.settings.deadline;
        let mut tried = Vec::new();
        let mut last = None;
        for attempts_left in (0..self.settings.attempts).rev() {
            let mesh = self.mesh.borrow().clone();
            let source = self.workload(&mesh)?;
            let (route, attempts) = match self.choose(&mesh, source, target, &tried) {
                Ok(chosen) => chosen,
                // The mesh has changed meanwhile. What happened before says more.
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let elsewhere = route.others > 0 || matches!(route.path.reuse(), Reuse::Spread(2..));
            let until = match elsewhere && attempts_left > 0 {
                true => deadline.min(Instant::now() + self.settings.attempt_timeout),
                false => deadline,
            };
            let failed = match self.attempt(source, &route, from, until).await {
                Ok((tunnel, identities)) => {
                    self.succeeded(attempts);
                    return Ok(Connected { tunnel, route, identities });
                }
                Err(failed) => failed,
            };
            let blamed = route.blame(&failed.error);
            let retryable = route::is_retryable(&failed.error) && (elsewhere || went_away(&failed.error));
            self.failed(attempts, blamed.as_ref().filter(|_| !failed.is_repeated));
            tracing::debug!(%target, error = %failed.error, attempts_left, "attempt failed");
            if !retryable || Instant::now() >= deadline {
                return Err(failed.error);
            }
            tried.extend(blamed);
            last = Some(failed.error);
        }
        Err(last.unwrap_or_else(|| Error::invalid("the number of attempts")))
    }

    fn workload<'a>(&self, mesh: &'a Snapshot) -> Result<&'a Arc<Workload>> {
        mesh.workload_named(&self.namespace, &self.name).ok_or_else(|| {
            let doing = format!("{}/{} is not in the mesh (any more)", self.namespace, self.name);
            Error::new(ErrorKind::NoRoute, Layer::Route, Side::Local, doing)
        })
    }

    /// Where to, and the attempts that this is.
    fn choose(
        &self,
        mesh: &Snapshot,
        source: &Workload,
        target: &Authority,
        tried: &[HealthKey],
    ) -> Result<(Route, Vec<Attempt<HealthKey>>)> {
        let now = Instant::now();
        // Held until the attempts have begun: two must not become the same probe.
        let mut health = self.health();
        let choice = Choice::new(&*self.balance).with_health(&health, now).with_tried(tried);
        let route = route::outbound(mesh, source, target, &choice)?;
        let attempts = route.health_keys().map(|key| health.begin(key, now)).collect();
        Ok((route, attempts))
    }

    async fn attempt(
        &self,
        source: &Arc<Workload>,
        route: &Route,
        from: Option<SocketAddr>,
        until: Instant,
    ) -> Result<(TunnelStream, Vec<SpiffeId>), Failed> {
        let opening = async {
            let lease = self.pool.checkout(&self.source, &route.path).await.map_err(Failed::from)?;
            let identities = lease.identities().to_vec();
            let metadata = self.metadata(source, route, from);
            // Part of the attempt may have gone by until there was a connection.
            let patience = self.settings.attempt_timeout / 2;
            let tunnel = lease.connect_within(&route.authority, &metadata, patience).await;
            let tunnel = tunnel.map_err(|e| Failed { error: e.error, is_repeated: e.is_repeated })?;
            Ok((tunnel, identities))
        };
        match timeout_at(until, opening).await {
            Ok(result) => result,
            Err(_) => Err(Failed::from(self.pool.timed_out(&self.source, &route.path))),
        }
    }

    fn succeeded(&self, attempts: Vec<Attempt<HealthKey>>) {
        let (now, mut health) = (Instant::now(), self.health());
        attempts.into_iter().for_each(|attempt| health.success(attempt, now));
    }

    /// What comes before the one that is blamed has done its part. Of what comes after, nothing is known.
    fn failed(&self, attempts: Vec<Attempt<HealthKey>>, blamed: Option<&HealthKey>) {
        let Some(blamed) = blamed else { return };
        let (now, mut health) = (Instant::now(), self.health());
        for attempt in attempts {
            if attempt.key() == blamed {
                return health.failure(attempt, now);
            }
            health.success(attempt, now);
        }
    }

    fn health(&self) -> MutexGuard<'_, Outliers<HealthKey>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the last CONNECT says, to the far end alone.
    fn metadata(&self, source: &Arc<Workload>, route: &Route, from: Option<SocketAddr>) -> Metadata {
        let trace = Traceparent::random(&mut self.trace_ids.lock().unwrap_or_else(PoisonError::into_inner));
        let mut metadata = Metadata::default().with_baggage(self.baggage.of(source)).with_traceparent(trace);
        if let Some(from) = from {
            let mut forwarded = Forwarded::default().with_for(from);
            if let Some(service) = &route.service {
                // A hostname of the mesh is always a valid one here.
                forwarded = forwarded.clone().with_host(service.hostname().to_string()).unwrap_or(forwarded);
            }
            metadata = metadata.with_forwarded(forwarded);
        }
        if route.path.depth() > 1 && !source.network.as_str().is_empty() {
            metadata = metadata.clone().with_forwarded_network(source.network.as_str()).unwrap_or(metadata);
        }
        metadata
    }
}

/// Whether a connection that had served before may have ended at that moment. Another one to the same peer may do better.
fn went_away(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Closed | ErrorKind::GoAway(_) | ErrorKind::Reset(_))
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, is_repeated: false }
    }
}
