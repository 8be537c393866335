//! Where tunnels begin: at a workload.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::open::Drivers;
use super::splice::{Unfinished, splice};
use super::telemetry::baggage;
use super::{MeshWatch, Opened, Opener};
use crate::authority::Authority;
use crate::balance::Balance;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{RelayStats, Stream};
use crate::mesh::Workload;
use crate::metadata::{Forwarded, Metadata, Traceparent};
use crate::route::{self, Choice, Route};
use crate::tunnel::TunnelStream;

/// Serves one workload: routes each of its connections by the mesh and sends it through a tunnel.
#[derive(Clone, Debug)]
pub struct Outbound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mesh: MeshWatch,
    namespace: String,
    name: String,
    opener: Opener,
    balance: Arc<dyn Balance>,
    trace_ids: Mutex<fastrand::Rng>,
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
    drivers: Drivers,
}

impl Outbound {
    /// Serves the workload `namespace`/`name` of the mesh. `opener` has its credentials, `balance` picks endpoints.
    pub fn new(mesh: MeshWatch, namespace: &str, name: &str, opener: Opener, balance: Arc<dyn Balance>) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Self(Arc::new(Inner { mesh, namespace, name, opener, balance, trace_ids: Mutex::new(fastrand::Rng::new()) }))
    }

    /// Opens a tunnel to `target`: a service by name or virtual address, or a workload. `from` is the application's address,
    /// for the far side's telemetry.
    ///
    /// Must be called on a tokio runtime. Cancel safe: when dropped, what was opened is closed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoRoute`] when the mesh knows no way, or as [`Opener::open`].
    pub async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        self.0.connect(target, from).await.map_err(|e| e.with_target(target))
    }

    /// Carries one application's connection to `target` until it ends. When that fails, or the future is dropped, the
    /// application sees its connection fail, not end.
    ///
    /// # Errors
    ///
    /// As [`Outbound::connect`], or why the connection broke later.
    pub async fn serve(
        &self,
        stream: impl Stream + 'static,
        target: &Authority,
        from: Option<SocketAddr>,
    ) -> Result<RelayStats> {
        let stream = Unfinished::new(Box::new(stream));
        let connected = self.connect(target, from).await?;
        Self::join(connected, stream).await
    }

    /// Joins an application's connection with the tunnel opened for it, until both have ended and everything is sent. When
    /// dropped, the connection fails.
    ///
    /// # Errors
    ///
    /// Why the connection broke, on whichever side. The other side then sees it fail, not end.
    pub async fn carry(&self, connected: Connected, stream: impl Stream + 'static) -> Result<RelayStats> {
        Self::join(connected, Unfinished::new(Box::new(stream))).await
    }

    async fn join(connected: Connected, stream: Unfinished) -> Result<RelayStats> {
        let Connected { tunnel, route, identities, drivers } = connected;
        let Route { authority: target, in_flight, .. } = route;
        let result = splice(tunnel, stream).await;
        drop(in_flight);
        // A tunnel takes more than the network has taken yet.
        drivers.ended().await;
        if let Ok(stats) = &result {
            tracing::debug!(%target, ?identities, received = stats.a_to_b, sent = stats.b_to_a, "connection ended");
        }
        result
    }
}

impl Inner {
    async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        let mesh = self.mesh.borrow().clone();
        let Some(source) = mesh.workload_named(&self.namespace, &self.name) else {
            let doing = format!("{}/{} is not in the mesh (any more)", self.namespace, self.name);
            return Err(Error::new(ErrorKind::NoRoute, Layer::Route, Side::Local, doing));
        };
        let route = route::outbound(&mesh, source, target, &Choice::new(&*self.balance))?;
        let (outer, last) = self.metadata(source, &route, from);
        let opened = self.opener.open(&route.path, &route.authority, &outer, &last).await?;
        let Opened { tunnel, identities, drivers } = opened;
        Ok(Connected { tunnel, route, identities, drivers })
    }

    /// What the CONNECTs say: to the hops on the way, and to the far end alone.
    fn metadata(&self, source: &Workload, route: &Route, from: Option<SocketAddr>) -> (Metadata, Metadata) {
        let trace = Traceparent::random(&mut self.trace_ids.lock().unwrap_or_else(PoisonError::into_inner));
        let mut common = Metadata::default().with_baggage(baggage(source)).with_traceparent(trace);
        if let Some(from) = from {
            let mut forwarded = Forwarded::default().with_for(from);
            if let Some(service) = &route.service {
                // A hostname of the mesh is always a valid one here.
                forwarded = forwarded.clone().with_host(service.hostname().to_string()).unwrap_or(forwarded);
            }
            common = common.with_forwarded(forwarded);
        }
        let mut last = common.clone();
        if route.path.depth() > 1 && !source.network.as_str().is_empty() {
            last = last.clone().with_forwarded_network(source.network.as_str()).unwrap_or(last);
        }
        (common, last)
    }
}
