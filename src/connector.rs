//! From a name to a tunnel: the mesh says where to, a balancer chooses, the pool has the connection, and what fails
//! before its 200 is tried elsewhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::authority::Authority;
use crate::balance::health::{HealthKey, OutlierConfig};
use crate::balance::{Balance, WeightedRandom};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::mesh::{BaggageCache, Snapshot, Workload};
use crate::metadata::{Forwarded, Metadata, Traceparent};
use crate::observe::{self, AttemptFailed, ConnectFailed, Event, Observer, Picked, RequestId, notify};
use crate::path::Reuse;
use crate::pool::{ConnectRequest, LeaseError, Pool, PooledTunnel, Source};
use crate::retry::{Endpoints, Failure, Request, RetryAt, RetryPolicy, Served, Unserved};
use crate::route::{self, Choice, Route};
use crate::tls::CredentialSource;
use crate::tunnel::TunnelStream;

/// The mesh as its users see it: the newest snapshot. When the sender is gone the last one stays.
pub type MeshWatch = tokio::sync::watch::Receiver<Snapshot>;

/// Opens tunnels from one workload to whatever the mesh has. Clones are the same connector.
///
/// # What is tried again
///
/// Until the peer's 200 is here, not a byte of the application has been sent, so that another endpoint can be tried
/// without harm. That is done when the attempt failed for a [reason that another endpoint may
/// cure](route::is_retryable) and there is one, or when the tunnel was reset: never after 400 or 401, and never after
/// the 200. What only the end of a connection undid, the [pool](Pool::connect) sends again within the attempt.
/// Endpoints and gateways that failed are not chosen again while there is any other, and those that [fail
/// repeatedly](crate::balance::health) are left out for a while by this connector.
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
/// use hbone::connector::Connector;
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
/// let connector = Connector::builder(mesh, "shop", "web").build(&pool, Arc::new(ca.issue(&web)))?;
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
    builder: ConnectorBuilder,
    pool: Pool,
    source: Source,
    credentials: Arc<dyn CredentialSource>,
    endpoints: Endpoints,
    baggage: BaggageCache,
    trace_ids: Mutex<fastrand::Rng>,
}

/// Makes a [`Connector`]. See [`Connector::builder`].
#[derive(Clone, Debug)]
pub struct ConnectorBuilder {
    mesh: MeshWatch,
    namespace: String,
    name: String,
    balance: Arc<dyn Balance>,
    config: ConnectorConfig,
    observer: Option<Arc<dyn Observer>>,
}

/// What one tunnel is opened with, beside its target.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    from: Option<SocketAddr>,
    metadata: Metadata,
}

/// How often and for how long a [`Connector`] tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorConfig {
    attempts: usize,
    connect_timeout: Duration,
    attempt_timeout: Duration,
    outliers: OutlierConfig,
}

/// Longer is the same as for ever, and would overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A tunnel to where an application wanted to go, the way it took, and whom it met there.
///
/// To take it apart, keep [`route.in_flight`](Route::in_flight) for as long as the tunnel: dropping it tells the
/// balancer that the tunnel has ended.
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

impl ConnectorConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            attempts: 3,
            connect_timeout: Duration::from_secs(20),
            attempt_timeout: Duration::from_secs(3),
            outliers: OutlierConfig::new().with_max_ejection_percent(100),
        }
    }

    /// How many attempts one connection gets. Default 3, at least 1. Raising it lets a connection come to more
    /// endpoints before it fails.
    pub fn with_attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// What [`with_attempts`](Self::with_attempts) says.
    pub fn attempts(&self) -> usize {
        self.attempts
    }

    /// How long all attempts together may take, from the route to the 200. Default 20 s.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_connect_timeout`](Self::with_connect_timeout) says.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// How long an attempt may take while another endpoint is left to try; the last attempt, and one without an
    /// alternative, has all the time there is. Default 3 s: four round trips between continents, and a slow
    /// application. Raising it makes connections wait longer for a peer that has stalled. A connection on which nothing
    /// at all has come for half of this time, or a second, by the end of an attempt takes no new tunnels.
    pub fn with_attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = timeout.min(LONGEST);
        self
    }

    /// What [`with_attempt_timeout`](Self::with_attempt_timeout) says.
    pub fn attempt_timeout(&self) -> Duration {
        self.attempt_timeout
    }

    /// When endpoints are left out because they failed. Default: as [`OutlierConfig`] has it, except that any number of
    /// endpoints may be left out, since all are used when none is left.
    pub fn with_outliers(mut self, outliers: OutlierConfig) -> Self {
        self.outliers = outliers;
        self
    }

    /// What [`with_outliers`](Self::with_outliers) says.
    pub fn outliers(&self) -> &OutlierConfig {
        &self.outliers
    }
}

impl Default for ConnectorConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectorBuilder {
    /// Who chooses among endpoints. Default: [`WeightedRandom`], as ztunnel.
    pub fn with_balance(mut self, balance: Arc<dyn Balance>) -> Self {
        self.balance = balance;
        self
    }

    /// How often and for how long it tries. Default: [`ConnectorConfig::new`].
    pub fn with_config(mut self, config: ConnectorConfig) -> Self {
        self.config = config;
        self
    }

    /// Who is told of requests, picks, failed attempts and ejections. Default: nobody.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// The connector, whose connections are those of `pool` and show the workload's `credentials`.
    ///
    /// # Errors
    ///
    /// As [`Pool::source`].
    pub fn build(self, pool: &Pool, credentials: Arc<dyn CredentialSource>) -> Result<Connector> {
        let endpoints = Endpoints::new(self.balance.clone(), self.config.outliers.clone(), self.observer.clone());
        Connector::with(self, pool, credentials, endpoints)
    }

    fn workload<'a>(&self, mesh: &'a Snapshot) -> Result<&'a Arc<Workload>> {
        mesh.workload_named(&self.namespace, &self.name).ok_or_else(|| {
            let doing = format!("{}/{} is not in the mesh (any more)", self.namespace, self.name);
            Error::new(ErrorKind::NoRoute, Layer::Route, Side::Local, doing)
        })
    }
}

impl ConnectOptions {
    /// Nothing beside the target.
    pub fn new() -> Self {
        Self::default()
    }

    /// The application's address, for the far side's telemetry.
    pub fn with_from(mut self, from: SocketAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// What the CONNECT says to the far end, such as the application's own trace or headers of one's own. What it
    /// leaves out of baggage, `forwarded`, `traceparent` and `x-forwarded-network`, the connector fills in.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }
}

impl Connector {
    /// Begins to make a connector for the workload `namespace`/`name` of the mesh.
    pub fn builder(mesh: MeshWatch, namespace: &str, name: &str) -> ConnectorBuilder {
        ConnectorBuilder {
            mesh,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            balance: Arc::new(WeightedRandom::new()),
            config: ConnectorConfig::new(),
            observer: None,
        }
    }

    fn with(
        builder: ConnectorBuilder,
        pool: &Pool,
        credentials: Arc<dyn CredentialSource>,
        endpoints: Endpoints,
    ) -> Result<Self> {
        let own = builder.workload(&builder.mesh.borrow()).ok().map(|workload| workload.baggage());
        let metadata = own.map(|own| Metadata::default().with_baggage(own)).unwrap_or_default();
        Ok(Self(Arc::new(Inner {
            source: pool.source(credentials.clone(), metadata)?,
            builder,
            pool: pool.clone(),
            credentials,
            endpoints,
            baggage: BaggageCache::default(),
            trace_ids: Mutex::new(fastrand::Rng::new()),
        })))
    }

    /// The same over another pool, such as one of another thread. The two share what they learn of endpoints, and the
    /// balancer.
    ///
    /// # Errors
    ///
    /// As [`ConnectorBuilder::build`].
    pub fn with_pool(&self, pool: &Pool) -> Result<Self> {
        let Inner { builder, credentials, endpoints, .. } = &*self.0;
        Self::with(builder.clone(), pool, credentials.clone(), endpoints.clone())
    }

    /// Opens a tunnel to `target`: a service by name or virtual address, or a workload. `from` is the application's
    /// address, for the far side's telemetry.
    ///
    /// Must be called on a tokio runtime. Cancel safe: when dropped, the tunnel that was about to be opened is
    /// canceled.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoute`] when the mesh knows no way, else why the last attempt failed: as [`Pool::connect`].
    /// [`Error::hop`] says at which hop.
    pub async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        self.connect_with(target, &ConnectOptions { from, metadata: Metadata::default() }).await
    }

    /// [`Connector::connect`] with more to say.
    ///
    /// # Errors
    ///
    /// As [`Connector::connect`].
    pub async fn connect_with(&self, target: &Authority, options: &ConnectOptions) -> Result<Connected> {
        let connector = &*self.0;
        let began = Instant::now();
        let request = TunnelRequest { connector, id: RequestId::random(), target, options };
        let policy = connector.builder.config.policy();
        let observer = connector.builder.observer.as_ref();
        match connector.endpoints.serve(&request, &policy).await {
            Ok(Served { endpoint: Endpoint { route, .. }, output: PooledTunnel { tunnel, identities }, attempts }) => {
                let (request, elapsed) = (request.observed(None), began.elapsed());
                notify(observer, || {
                    Event::Connected(observe::Connected { request, tunnel: Some(tunnel.id()), attempts, elapsed })
                });
                Ok(Connected { tunnel, route, identities })
            }
            Err(Unserved { error, attempts }) => {
                let error = error.with_target(target);
                let (request, elapsed) = (request.observed(None), began.elapsed());
                notify(observer, || Event::ConnectFailed(ConnectFailed { request, error: &error, attempts, elapsed }));
                Err(error)
            }
        }
    }
}

impl ConnectorConfig {
    fn policy(&self) -> RetryPolicy {
        let &Self { attempts, connect_timeout, attempt_timeout, .. } = self;
        RetryPolicy { attempts, timeout: connect_timeout, attempt_timeout }
    }
}

/// One call of [`Connector::connect_with`].
struct TunnelRequest<'a> {
    connector: &'a Inner,
    id: RequestId,
    target: &'a Authority,
    options: &'a ConnectOptions,
}

/// A way that was chosen, and for whom.
struct Endpoint {
    source: Arc<Workload>,
    route: Route,
}

impl TunnelRequest<'_> {
    fn observed<'a>(&'a self, source: Option<&'a Workload>) -> observe::Request<'a> {
        observe::Request { id: self.id, incoming: None, source, from: self.options.from, target: self.target }
    }

    fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.connector.builder.observer.as_ref()
    }
}

impl Request for TunnelRequest<'_> {
    type Endpoint = Endpoint;
    type Output = PooledTunnel;
    type Error = Error;

    fn choose(&self, choice: &Choice<'_>) -> Result<Endpoint> {
        let mesh = self.connector.builder.mesh.borrow().clone();
        let source = self.connector.builder.workload(&mesh)?;
        let route = route::outbound(&mesh, source, self.target, choice)?;
        Ok(Endpoint { source: source.clone(), route })
    }

    fn health_keys(&self, Endpoint { route, .. }: &Endpoint) -> Vec<HealthKey> {
        route.health_keys().collect()
    }

    fn has_others(&self, Endpoint { route, .. }: &Endpoint) -> bool {
        route.others > 0 || matches!(route.path.reuse(), Reuse::Spread(2..))
    }

    async fn attempt(&self, endpoint: &Endpoint, until: Instant) -> Result<PooledTunnel, Failure<Error>> {
        let Endpoint { source, route } = endpoint;
        let request = ConnectRequest {
            source: &self.connector.source,
            path: &route.path,
            authority: &route.authority,
            metadata: &self.connector.metadata(source, route, self.options),
            deadline: until,
            // Part of the attempt may have gone by until there was a connection.
            silence: self.connector.builder.config.attempt_timeout / 2,
        };
        self.connector.pool.open(&request).await.map_err(|LeaseError { error, is_repeated, .. }| Failure {
            blamed: route.blame(&error),
            is_repeated,
            retry: match error.kind() {
                _ if !route::is_retryable(&error) => RetryAt::Nowhere,
                ErrorKind::Reset(_) => RetryAt::Any,
                _ => RetryAt::Others,
            },
            error,
        })
    }

    fn on_picked(&self, Endpoint { source, route }: &Endpoint, attempt: usize) {
        notify(self.observer(), || {
            Event::Picked(Picked {
                request: self.observed(Some(source)),
                attempt,
                service: route.service.as_deref(),
                endpoint: &route.picked,
                gateway: route.gateway.as_deref(),
                path: Some(&route.path),
                others: route.others,
            })
        });
    }

    fn on_failed(&self, attempt: usize, failure: &Failure<Error>, is_retried: bool, elapsed: Duration) {
        let Failure { error, blamed, .. } = failure;
        tracing::debug!(target = %self.target, %error, attempt, is_retried, "attempt failed");
        notify(self.observer(), || {
            let (request, blamed) = (self.observed(None), blamed.as_ref());
            Event::AttemptFailed(AttemptFailed { request, attempt, error, blamed, is_retried, elapsed })
        });
    }
}

impl Inner {
    /// What the last CONNECT says, to the far end alone.
    fn metadata(&self, source: &Arc<Workload>, route: &Route, options: &ConnectOptions) -> Metadata {
        let mut metadata = options.metadata.clone();
        if metadata.baggage().is_none() {
            metadata = metadata.with_baggage(self.baggage.of(source));
        }
        if metadata.traceparent().is_none() {
            let mut ids = self.trace_ids.lock().unwrap_or_else(PoisonError::into_inner);
            metadata = metadata.with_traceparent(Traceparent::from_random(ids.u128(..), ids.u64(..)));
        }
        if let Some(from) = options.from.filter(|_| metadata.forwarded().is_none()) {
            let mut forwarded = Forwarded::default().with_for(from);
            if let Some(service) = &route.service {
                // A hostname of the mesh is always a valid one here.
                forwarded = forwarded.clone().with_host(service.hostname().to_string()).unwrap_or(forwarded);
            }
            metadata = metadata.with_forwarded(forwarded);
        }
        let is_across = route.path.depth() > 1 && !source.network.as_str().is_empty();
        if is_across && metadata.forwarded_network().is_none() {
            metadata = metadata.clone().with_forwarded_network(source.network.as_str()).unwrap_or(metadata);
        }
        metadata
    }
}
