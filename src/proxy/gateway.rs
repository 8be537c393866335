//! Between networks: a tunnel for a service goes on to one of its pods.

use std::net::SocketAddr;
use std::sync::Arc;

use super::dial::dial;
use super::serve::{serve, unreachable};
use super::splice::{Unfinished, splice};
use crate::balance::Balance;
use crate::config::Config;
use crate::connector::MeshWatch;
use crate::drain::Watch;
use crate::error::Result;
use crate::identity::TrustDomains;
use crate::io::{Dial, Stream};
use crate::mesh::Network;
use crate::metadata::Metadata;
use crate::route::{self, Backend, Choice};
use crate::server::Incoming;
use crate::tls::{Acceptor, CredentialSource};

/// An east-west gateway: takes tunnels that name a global service of its network, picks one of the service's pods, and
/// passes the bytes on to the pod's HBONE port.
///
/// What is inside is TLS between the client and the pod. The gateway has no key for it and looks at none of it.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mesh: MeshWatch,
    network: Network,
    acceptor: Acceptor,
    dialer: Arc<dyn Dial>,
    balance: Arc<dyn Balance>,
    config: Arc<Config>,
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
        Self(Arc::new(Inner { mesh, network, acceptor, dialer, balance, config }))
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
        let peer = incoming.peer_identity().map(ToString::to_string).unwrap_or_default();
        let target = incoming.authority().to_string();
        let mesh = self.mesh.borrow().clone();
        let backend = match route::gateway(&mesh, &self.network, incoming.authority(), &Choice::new(&*self.balance)) {
            Ok(backend) => backend,
            Err(refusal) => {
                tracing::info!(%peer, %target, %refusal, "tunnel refused");
                return incoming.reject(&refusal);
            }
        };
        let dialled = tokio::select! {
            dialled = dial(&*self.dialer, backend.address, &self.config) => dialled,
            () = incoming.cancelled() => {
                tracing::debug!(%peer, %target, "given up by the client");
                return;
            }
        };
        let pod = match dialled {
            Ok(pod) => Unfinished::new(pod),
            Err(error) => {
                tracing::info!(%peer, %target, pod = %backend.workload.name, %error, "pod not reached");
                return incoming.reject(&unreachable(&error, "pod"));
            }
        };
        let ended = match incoming.accept(&Metadata::default()) {
            Ok(tunnel) => splice(tunnel, pod).await,
            Err(error) => Err(error),
        };
        let Backend { workload, in_flight, .. } = backend;
        drop(in_flight);
        let pod = &workload.name;
        match ended {
            Ok(stats) => {
                tracing::debug!(%peer, %target, %pod, received = stats.a_to_b, sent = stats.b_to_a, "tunnel ended")
            }
            Err(error) => tracing::debug!(%peer, %target, %pod, %error, "tunnel broke"),
        }
    }
}
