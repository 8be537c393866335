//! Where tunnels end: at a workload.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::time::Instant;

use super::reset_on_drop::ResetOnDrop;
use super::splice::splice;
use super::tcp::TcpDialer;
use super::unreachable::unreachable;
use crate::authority::Authority;
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::Result;
use crate::io::{Dial, Stream, dial_any};
use crate::mesh::{BaggageCache, Workload};
use crate::metadata::Metadata;
use crate::observe::{ConnectFailed, Connected, Event, Request, RequestId, notify};
use crate::policy::{ConnectionInfo, authorize};
use crate::refusal::{Refusal, RefusalReason};
use crate::route;
use crate::server::{ConnectionServer, Incoming};
use crate::tunnel::TunnelStream;

/// Serves one workload: accepts tunnels to it, checks them against its policies, and connects them to its application.
#[derive(Clone, Debug)]
pub struct Inbound(Arc<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    server: ConnectionServer,
    mesh: MeshWatch,
    namespace: String,
    name: String,
    dialer: Arc<dyn Dial>,
    baggage: Arc<BaggageCache>,
}

impl Inbound {
    /// Serves the workload `namespace`/`name` of the mesh, on the connections of `server`.
    pub fn new(server: ConnectionServer, mesh: MeshWatch, namespace: &str, name: &str) -> Self {
        Self(Arc::new(Inner {
            server,
            mesh,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            dialer: Arc::new(TcpDialer::new()),
            baggage: Arc::default(),
        }))
    }

    /// How the application is reached. Default: a [`TcpDialer`] without a mark. Each dial has the
    /// [`dial_timeout`](crate::Config::with_dial_timeout) of the server.
    pub fn with_dialer(mut self, dialer: Arc<dyn Dial>) -> Self {
        Arc::make_mut(&mut self.0).dialer = dialer;
        self
    }

    /// What its connections are served by. Its registry is that of this role and its clones.
    pub fn server(&self) -> &ConnectionServer {
        &self.0.server
    }

    /// Serves one connection until it ends or the drain does. `from` is its peer's address: policies may ask for it,
    /// and errors name it.
    ///
    /// Must be called on a tokio runtime: each tunnel gets a task. Dropping the future breaks the connection.
    ///
    /// # Errors
    ///
    /// Why the handshake or the connection failed. What becomes of single tunnels is logged at `debug`.
    pub async fn serve(&self, stream: impl Stream + 'static, from: Option<SocketAddr>, drain: &Watch) -> Result<()> {
        let tunnel = |incoming| self.0.clone().tunnel(incoming);
        self.0.server.serve(stream, from, drain, tunnel).await
    }
}

/// A tunnel, and the application that it leads to.
struct Opened {
    tunnel: TunnelStream,
    application: ResetOnDrop,
}

impl Inner {
    /// Serves one tunnel until it ends.
    fn tunnel(self: Arc<Self>, incoming: Incoming) -> impl Future<Output = ()> + Send + use<> {
        // Boxed, so that its memory is free again while bytes flow, or don't.
        let opening = Box::pin(self.open(incoming));
        async move {
            let Some(mut opened) = opening.await else { return };
            let ended = splice(&mut opened.tunnel, &mut opened.application).await;
            let (tunnel, target) = (opened.tunnel.id(), opened.tunnel.authority());
            let peer = opened.tunnel.peer_identity().map(tracing::field::display);
            match ended {
                Ok(stats) => {
                    tracing::debug!(%tunnel, peer, %target, received = stats.a_to_b, sent = stats.b_to_a, "tunnel ended")
                }
                Err(error) => tracing::debug!(%tunnel, peer, %target, %error, "tunnel broke"),
            }
        }
    }

    /// Connects a tunnel that is asked for to its application. `None` when it was refused, canceled by the client, or
    /// broke.
    async fn open(self: Arc<Self>, mut incoming: Incoming) -> Option<Box<Opened>> {
        let (peer, target) = (incoming.peer_identity().cloned(), incoming.authority().clone());
        let (tunnel, shown) = (incoming.id(), peer.as_ref().map(tracing::field::display));
        let (destinations, workload) = match self.decide(&incoming) {
            Ok(decision) => decision,
            Err(refusal) => {
                tracing::info!(%tunnel, peer = shown, %target, %refusal, "tunnel refused");
                incoming.reject(&refusal);
                return None;
            }
        };
        let (asked, began) = (request(&incoming, &target), Instant::now());
        let dial_timeout = self.server.config().dial_timeout;
        let dialed = tokio::select! {
            dialed = dial_any(&*self.dialer, &destinations, peer.as_ref(), dial_timeout) => dialed,
            () = incoming.cancelled() => {
                tracing::debug!(%tunnel, peer = shown, %target, "canceled by the client");
                return None;
            }
        };
        let (observer, attempts, elapsed) = (self.server.observer(), 1, began.elapsed());
        let application = match dialed {
            Ok(application) => {
                notify(observer, || Event::Connected(Connected { request: asked, tunnel: None, attempts, elapsed }));
                ResetOnDrop::new(application)
            }
            Err(error) => {
                let failed = ConnectFailed { request: asked, error: &error, attempts, elapsed };
                notify(observer, || Event::ConnectFailed(failed));
                tracing::info!(%tunnel, peer = shown, %target, %error, "application not reached");
                incoming.reject(&unreachable(&error, "application"));
                return None;
            }
        };
        tracing::debug!(%tunnel, peer = shown, %target, ?destinations, "tunnel opened");
        let answer = Metadata::default().with_baggage(self.baggage.of(&workload));
        match incoming.accept(&answer) {
            Ok(tunnel) => Some(Box::new(Opened { tunnel, application })),
            Err(error) => {
                tracing::debug!(%tunnel, peer = shown, %target, %error, "tunnel broke");
                None
            }
        }
    }

    /// The addresses of the application to dial, in this order.
    fn decide(&self, incoming: &Incoming) -> Result<(Vec<SocketAddr>, Arc<Workload>), Refusal> {
        let mesh = self.mesh.borrow().clone();
        let Some(workload) = mesh.workload_named(&self.namespace, &self.name).cloned() else {
            let details = format!("{}/{} is not in the mesh (any more)", self.namespace, self.name);
            return Err(Refusal::new(RefusalReason::DestinationNotFound).with_details(details));
        };
        let destination = route::inbound(&mesh, &workload, incoming.authority())?;
        let Some(peer) = incoming.peer_identity() else {
            return Err(Refusal::new(RefusalReason::Denied).with_details("the peer has no identity"));
        };
        let source_ip = incoming.peer_address().map(|from| from.ip());
        let (mut allowed, mut denied) = (Vec::new(), None);
        for destination in destinations(&workload, incoming.authority(), destination, source_ip) {
            let verdict = authorize(mesh.policies_for(&workload), &ConnectionInfo { peer, source_ip, destination });
            match verdict.is_allowed() {
                true => allowed.push(destination),
                false => _ = denied.get_or_insert(verdict),
            }
        }
        match denied {
            Some(verdict) if allowed.is_empty() => {
                Err(Refusal::new(RefusalReason::Denied).with_details(verdict.to_string()))
            }
            _ => Ok((allowed, workload)),
        }
    }
}

/// Where a tunnel may lead: by address to that one only, by name to each of the workload's addresses. Those of the family that
/// the tunnel came by are first: an application may listen on one family alone.
fn destinations(
    workload: &Workload,
    authority: &Authority,
    destination: SocketAddr,
    peer: Option<IpAddr>,
) -> Vec<SocketAddr> {
    if let Authority::Ip(_) = authority {
        return vec![destination];
    }
    let mut all: Vec<_> = workload.addresses.iter().map(|ip| SocketAddr::new(*ip, destination.port())).collect();
    if let Some(peer) = peer.map(|peer| peer.to_canonical()) {
        all.sort_by_key(|address| address.is_ipv4() != peer.is_ipv4());
    }
    all
}

/// The request for the connection to the application, for events.
fn request<'a>(incoming: &Incoming, target: &'a Authority) -> Request<'a> {
    let (id, incoming, from) = (RequestId::random(), Some(incoming.id()), incoming.peer_address());
    Request { id, incoming, source: None, from, target }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::by_address("10.0.0.1:80", Some("fd00::9"), &["10.0.0.1:80"])]
    #[case::by_name("web:80", None, &["[fd00::1]:80", "10.0.0.1:80", "10.0.0.2:80"])]
    #[case::that_came_by_ipv6("web:80", Some("fd00::9"), &["[fd00::1]:80", "10.0.0.1:80", "10.0.0.2:80"])]
    #[case::that_came_by_ipv4("web:80", Some("10.0.0.9"), &["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"])]
    #[case::that_came_by_ipv4_as_ipv6("web:80", Some("::ffff:10.0.0.9"), &["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"])]
    fn a_tunnel_leads_to_the_family_that_it_came_by_first(
        #[case] authority: &str,
        #[case] peer: Option<&str>,
        #[case] expected: &[&str],
    ) {
        let identity = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
        let mut workload = Workload::new("web", "web", identity);
        workload.addresses = ["fd00::1", "10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap()).into();
        let peer = peer.map(|peer| peer.parse().unwrap());
        let all = destinations(&workload, &authority.parse().unwrap(), "10.0.0.1:80".parse().unwrap(), peer);
        assert_eq!(all.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }
}
