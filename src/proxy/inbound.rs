//! Where tunnels end: at a workload.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use super::serve::{serve, unreachable};
use super::splice::splice;
use super::unfinished::Unfinished;
use crate::authority::Authority;
use crate::config::Config;
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::Result;
use crate::identity::{SpiffeId, TrustDomains};
use crate::io::{Dial, Stream, dial};
use crate::mesh::{BaggageCache, Workload};
use crate::metadata::Metadata;
use crate::policy::{ConnectionInfo, authorize};
use crate::refusal::{Refusal, RefusalReason};
use crate::route;
use crate::server::Incoming;
use crate::tls::{Acceptor, CredentialSource};
use crate::tunnel::TunnelStream;

/// Serves one workload: takes tunnels to it, checks them against its policies, and connects them to its application.
#[derive(Clone, Debug)]
pub struct Inbound(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mesh: MeshWatch,
    namespace: String,
    name: String,
    acceptor: Acceptor,
    dialer: Arc<dyn Dial>,
    config: Arc<Config>,
    baggage: BaggageCache,
}

impl Inbound {
    /// Serves the workload `namespace`/`name` of the mesh, with its `credentials`, for peers of the `trusted` domains.
    /// Applications are reached with `dialer`.
    pub fn new(
        mesh: MeshWatch,
        namespace: &str,
        name: &str,
        credentials: Arc<dyn CredentialSource>,
        trusted: TrustDomains,
        dialer: Arc<dyn Dial>,
        config: Arc<Config>,
    ) -> Self {
        let acceptor = Acceptor::new(credentials, trusted, config.clone());
        Self(Arc::new(Inner {
            mesh,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            acceptor,
            dialer,
            config,
            baggage: BaggageCache::default(),
        }))
    }

    /// Serves one connection until it ends or the drain does. `from` is its peer's address: policies may ask for it, and
    /// errors name it.
    ///
    /// Must be called on a tokio runtime: each tunnel gets a task. Dropping the future breaks the connection.
    ///
    /// # Errors
    ///
    /// Why the handshake or the connection failed. What becomes of single tunnels is logged at `debug`.
    pub async fn serve(&self, stream: impl Stream + 'static, from: Option<SocketAddr>, drain: &Watch) -> Result<()> {
        let inner = self.0.clone();
        let tunnel = move |incoming| inner.clone().tunnel(incoming, from);
        serve(Box::new(stream), from, &self.0.acceptor, &self.0.config, drain, tunnel).await
    }
}

/// A tunnel, and the application that it leads to.
struct Opened {
    tunnel: TunnelStream,
    application: Unfinished,
    peer: Option<SpiffeId>,
    target: Authority,
}

impl Inner {
    /// Serves one tunnel until it ends.
    fn tunnel(
        self: Arc<Self>,
        incoming: Incoming,
        from: Option<SocketAddr>,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Boxed, so that its memory is free again while bytes flow, or don't.
        let opening = Box::pin(self.open(incoming, from));
        async move {
            let Some(mut opened) = opening.await else { return };
            let ended = splice(&mut opened.tunnel, &mut opened.application).await;
            let Opened { peer, target, .. } = &*opened;
            let peer = peer.as_ref().map(tracing::field::display);
            match ended {
                Ok(stats) => {
                    tracing::debug!(peer, %target, received = stats.a_to_b, sent = stats.b_to_a, "tunnel ended")
                }
                Err(error) => tracing::debug!(peer, %target, %error, "tunnel broke"),
            }
        }
    }

    /// Connects a tunnel that is asked for to its application. `None` when it was refused, given up by the client, or broke.
    async fn open(self: Arc<Self>, mut incoming: Incoming, from: Option<SocketAddr>) -> Option<Box<Opened>> {
        let (peer, target) = (incoming.peer_identity().cloned(), incoming.authority().clone());
        let shown = peer.as_ref().map(tracing::field::display);
        let (destination, workload) = match self.decide(&incoming, from) {
            Ok(decision) => decision,
            Err(refusal) => {
                tracing::info!(peer = shown, %target, %refusal, "tunnel refused");
                incoming.reject(&refusal);
                return None;
            }
        };
        let dialled = tokio::select! {
            dialled = dial(&*self.dialer, destination, self.config.dial_timeout) => dialled,
            () = incoming.cancelled() => {
                tracing::debug!(peer = shown, %target, "given up by the client");
                return None;
            }
        };
        let application = match dialled {
            Ok(application) => Unfinished::new(application),
            Err(error) => {
                tracing::info!(peer = shown, %target, %error, "application not reached");
                incoming.reject(&unreachable(&error, "application"));
                return None;
            }
        };
        tracing::debug!(peer = shown, %target, %destination, "tunnel opened");
        let answer = Metadata::default().with_baggage(self.baggage.of(&workload));
        match incoming.accept(&answer) {
            Ok(tunnel) => Some(Box::new(Opened { tunnel, application, peer, target })),
            Err(error) => {
                tracing::debug!(peer = shown, %target, %error, "tunnel broke");
                None
            }
        }
    }

    fn decide(&self, incoming: &Incoming, from: Option<SocketAddr>) -> Result<(SocketAddr, Arc<Workload>), Refusal> {
        let mesh = self.mesh.borrow().clone();
        let Some(workload) = mesh.workload_named(&self.namespace, &self.name).cloned() else {
            let details = format!("{}/{} is not in the mesh (any more)", self.namespace, self.name);
            return Err(Refusal::new(RefusalReason::DestinationNotFound).with_details(details));
        };
        let destination = route::inbound(&mesh, &workload, incoming.authority())?;
        let Some(peer) = incoming.peer_identity() else {
            return Err(Refusal::new(RefusalReason::Denied).with_details("the peer has no identity"));
        };
        let connection = ConnectionInfo { peer, source_ip: from.map(|from| from.ip()), destination };
        let verdict = authorize(mesh.policies_for(&workload), &connection);
        if !verdict.is_allowed() {
            return Err(Refusal::new(RefusalReason::Denied).with_details(verdict.to_string()));
        }
        Ok((destination, workload))
    }
}
