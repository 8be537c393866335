//! Two clusters without sockets: `east` with a client, `west` behind a gateway. Their pods use the same addresses.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, oneshot, watch};

use super::super::harness::{client_id, id, server_id, trusted};
use crate::balance::{Balance, WeightedRandom};
use crate::connector::{Connector, ConnectorConfig};
use crate::drain::{self, Drain, Watch};
use crate::identity::SpiffeId;
use crate::io::{BoxStream, Dial, DialFuture, DialRequest, Stream};
use crate::mesh::{Network, Snapshot};
use crate::metadata::Metadata;
use crate::pool::{Pool, PoolConfig};
use crate::proxy::{Gateway, Inbound, Outbound};
use crate::server::{self, ConnectionServer, Incoming};
use crate::testing;
use crate::tls::Acceptor;
use crate::{Config, Error, Path, Result, TunnelStream};

/// What cluster east is told: its own pods, and of west a stand-in for each service. `ghost` is not there, `private` is
/// not global there, and `global` has no port 82 there.
pub(super) const EAST: &str = r#"
workloads:
- {uid: east/client, name: client, namespace: default, serviceAccount: client, network: east, clusterId: east, protocol: HBONE, workloadIps: [10.1.0.1]}
- {uid: east/near, name: near, namespace: default, serviceAccount: server, network: east, clusterId: east, protocol: HBONE, workloadType: POD, workloadIps: [10.1.0.2], services: {default/near.default.svc.cluster.local: {80: 8080}}}
- {uid: east/plain, name: plain, namespace: default, serviceAccount: server, network: east, clusterId: east, protocol: NONE, workloadIps: [10.1.0.3], services: {default/plain.default.svc.cluster.local: {80: 8080}}}
- {uid: west/gateway, name: gateway, namespace: istio, serviceAccount: gateway, network: west, clusterId: west, protocol: HBONE, workloadIps: [10.9.0.1]}
- uid: west/all
  name: all
  namespace: default
  network: west
  protocol: HBONE
  networkGateway: {destination: west/10.9.0.1, hboneMtlsPort: 15008}
  services:
    default/global.default.svc.cluster.local: {}
    default/guarded.default.svc.cluster.local: {}
    default/ghost.default.svc.cluster.local: {}
    default/private.default.svc.cluster.local: {}
services:
- {name: near, namespace: default, hostname: near.default.svc.cluster.local, vips: [east/10.96.0.1, "east/fd00::1"], ports: {80: 8080}}
- {name: plain, namespace: default, hostname: plain.default.svc.cluster.local, vips: [east/10.96.0.2], ports: {80: 8080}}
- {name: global, namespace: default, hostname: global.default.svc.cluster.local, vips: [east/10.96.0.3], ports: {80: 8080, 82: 8082}, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/server"]}
- {name: guarded, namespace: default, hostname: guarded.default.svc.cluster.local, ports: {80: 8080}, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/server"]}
- {name: ghost, namespace: default, hostname: ghost.default.svc.cluster.local, ports: {80: 8080}, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/server"]}
- {name: private, namespace: default, hostname: private.default.svc.cluster.local, ports: {80: 8080}, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/server"]}
"#;

pub(super) const WEST: &str = r#"
workloads:
- {uid: west/far, name: far, namespace: default, serviceAccount: server, network: west, clusterId: west, protocol: HBONE, workloadType: POD, workloadIps: [10.1.0.2], services: {default/global.default.svc.cluster.local: {80: 9090}, default/private.default.svc.cluster.local: {80: 9090}}}
- {uid: west/guarded, name: guarded, namespace: default, serviceAccount: server, network: west, clusterId: west, protocol: HBONE, workloadIps: [10.1.0.3], services: {default/guarded.default.svc.cluster.local: {80: 9090}}, authorizationPolicies: [default/not-the-client]}
services:
- {name: global, namespace: default, hostname: global.default.svc.cluster.local, ports: {80: 8080}, scope: GLOBAL}
- {name: guarded, namespace: default, hostname: guarded.default.svc.cluster.local, ports: {80: 8080}, scope: GLOBAL}
- {name: private, namespace: default, hostname: private.default.svc.cluster.local, ports: {80: 8080}, scope: LOCAL}
policies:
- name: not-the-client
  namespace: default
  scope: WORKLOAD_SELECTOR
  action: DENY
  rules: [[[{principals: [{Exact: cluster.local/ns/default/sa/client}]}]]]
"#;

pub(super) const NEAR: &str = "near.default.svc.cluster.local:80";
pub(super) const FAR: &str = "global.default.svc.cluster.local:80";
pub(super) const GATEWAY: &str = "10.9.0.1:15008";
pub(super) const POD: &str = "10.1.0.2:15008";

pub(super) fn gateway_id() -> SpiffeId {
    id("ns/istio/sa/gateway")
}

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) struct Cluster {
    pub(super) network: testing::Network,
    pub(super) mesh: watch::Sender<Snapshot>,
}

pub(super) struct World {
    pub(super) ca: testing::Ca,
    pub(super) config: Arc<Config>,
    pub(super) east: Cluster,
    pub(super) west: Cluster,
}

impl World {
    pub(super) fn new() -> Self {
        let cluster = |name, text| Cluster {
            network: testing::Network::new(),
            mesh: watch::channel(Snapshot::parse(name, text).unwrap()).0,
        };
        Self {
            ca: testing::Ca::new(),
            config: Arc::new(Config::new()),
            east: cluster("east", EAST),
            west: cluster("west", WEST),
        }
    }

    pub(super) fn pool(&self) -> Pool {
        Pool::new(Arc::new(self.east.network.clone()), self.config.clone(), PoolConfig::new())
    }

    /// Opens a tunnel as the client, wherever that may lead.
    pub(super) async fn open(&self, path: &Path, authority: &str) -> Result<TunnelStream> {
        let pool = self.pool();
        let source = pool.source(Arc::new(self.ca.issue(&client_id())), Metadata::default())?;
        let lease = pool.checkout(&source, path).await?;
        Ok(lease.connect(&authority.parse().unwrap(), &Metadata::default()).await?)
    }

    /// The client's proxy.
    pub(super) fn outbound(&self) -> Outbound {
        self.outbound_over(&self.pool())
    }

    /// Likewise, with a pool to look at.
    pub(super) fn outbound_over(&self, pool: &Pool) -> Outbound {
        Outbound::new(self.connector_over(pool))
    }

    /// What the client's proxy connects with.
    pub(super) fn connector_over(&self, pool: &Pool) -> Connector {
        self.connector_with(pool, ConnectorConfig::new())
    }

    pub(super) fn connector_with(&self, pool: &Pool, settings: ConnectorConfig) -> Connector {
        let mesh = self.east.mesh.subscribe();
        let builder = Connector::builder(mesh, "default", "client").with_config(settings);
        builder.build(pool, Arc::new(self.ca.issue(&client_id()))).unwrap()
    }

    /// The gateway of west, which the network of east reaches too.
    pub(super) fn gateway(&self) -> Role {
        self.gateway_over(Arc::new(self.west.network.clone()))
    }

    /// Likewise, with the dials to the pods left to the test.
    pub(super) fn gateway_alone(&self) -> (Role, Apps) {
        let (dialer, dials) = mpsc::unbounded_channel();
        (self.gateway_over(Arc::new(AppDialer(dialer))), Apps(dials))
    }

    pub(super) fn gateway_over(&self, dialer: Arc<dyn Dial>) -> Role {
        self.serve_gateway(self.gateway_role(dialer))
    }

    /// Serves at the address of the gateway of west.
    pub(super) fn serve_gateway(&self, gateway: Gateway) -> Role {
        let listener = self.east.network.listen(address(GATEWAY));
        Role::start(listener, move |stream, drain| {
            let gateway = gateway.clone();
            async move { gateway.serve(stream, Some(address("10.1.0.1:40000")), &drain).await }
        })
    }

    pub(super) fn gateway_role(&self, dialer: Arc<dyn Dial>) -> Gateway {
        self.gateway_by(dialer, Arc::new(WeightedRandom::new()))
    }

    pub(super) fn gateway_by(&self, dialer: Arc<dyn Dial>, balance: Arc<dyn Balance>) -> Gateway {
        Gateway::new(self.server(&gateway_id()), self.west.mesh.subscribe(), Network::new("west"))
            .with_dialer(dialer)
            .with_balance(balance)
    }

    /// What serves the connections of a role with this identity.
    pub(super) fn server(&self, identity: &SpiffeId) -> ConnectionServer {
        let acceptor = Acceptor::new(Arc::new(self.ca.issue(identity)), trusted(), self.config.clone());
        ConnectionServer::new(acceptor, self.config.clone())
    }

    /// The proxy of a pod, and the dials to its application.
    pub(super) fn inbound(&self, cluster: &Cluster, pod: &str) -> (Role, Apps) {
        let (role, dials) = self.inbound_role(cluster, pod);
        let ip = cluster.mesh.borrow().workload_named("default", pod).unwrap().addresses[0];
        let role = Role::start(cluster.network.listen((ip, 15008).into()), move |stream, drain| {
            let role = role.clone();
            async move { role.serve(stream, Some(address("10.9.0.1:40000")), &drain).await }
        });
        (role, dials)
    }

    pub(super) fn inbound_role(&self, cluster: &Cluster, pod: &str) -> (Inbound, Apps) {
        let (dialer, dials) = mpsc::unbounded_channel();
        let inbound = Inbound::new(self.server(&server_id()), cluster.mesh.subscribe(), "default", pod)
            .with_dialer(Arc::new(AppDialer(dialer)));
        (inbound, Apps(dials))
    }

    /// The gateway, and the pod `far` with an application that echoes.
    pub(super) fn far(&self) -> (Role, Role) {
        let (pod, apps) = self.inbound(&self.west, "far");
        apps.echo();
        (self.gateway(), pod)
    }

    /// The pod `near` with an application that echoes.
    pub(super) fn near(&self) -> Role {
        let (pod, apps) = self.inbound(&self.east, "near");
        apps.echo();
        pod
    }

    /// Somebody at an address who hands over each CONNECT.
    pub(super) fn bare(
        &self,
        network: &testing::Network,
        at: &str,
        identity: &SpiffeId,
    ) -> mpsc::UnboundedReceiver<Incoming> {
        let acceptor = Acceptor::new(Arc::new(self.ca.issue(identity)), trusted(), self.config.clone());
        let mut listener = network.listen(address(at));
        let (sender, incoming) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                let stream = acceptor.accept(stream).await.unwrap();
                let peer = stream.peer_identity().clone();
                let mut server = server::Builder::new().with_peer_identity(peer).handshake(stream).await.unwrap();
                let sender = sender.clone();
                tokio::spawn(async move {
                    while let Some(Ok(incoming)) = server.accept().await {
                        let _ = sender.send(incoming);
                    }
                });
            }
        });
        incoming
    }
}

/// A running role.
pub(super) struct Role {
    pub(super) drain: Drain,
    /// How each connection ended.
    pub(super) ended: mpsc::UnboundedReceiver<Result<()>>,
}

impl Role {
    fn start<F, S>(mut listener: testing::NetworkListener, serve: F) -> Self
    where
        F: Fn(DuplexStream, Watch) -> S + Send + 'static,
        S: Future<Output = Result<()>> + Send + 'static,
    {
        let (drain, watch) = drain::channel();
        let (sender, ended) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    stream = listener.accept() => stream,
                    () = watch.graceful() => break,
                };
                let Some(stream) = stream else { break };
                let (connection, sender) = (serve(stream, watch.clone()), sender.clone());
                tokio::spawn(async move {
                    let _ = sender.send(connection.await);
                });
            }
        });
        Self { drain, ended }
    }
}

/// Leaves each dial to the test.
#[derive(Debug)]
struct AppDialer(mpsc::UnboundedSender<AppDial>);

impl Dial for AppDialer {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let address = request.socket_addr().unwrap();
        let (answer, answered) = oneshot::channel();
        let _ = self.0.send(AppDial { address, answer });
        Box::pin(async move {
            match answered.await {
                Ok(stream) => Ok(Box::new(stream?) as BoxStream),
                Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

/// A dial to an application, not answered yet. Dropping it refuses the connection.
#[derive(Debug)]
pub(super) struct AppDial {
    pub(super) address: SocketAddr,
    pub(super) answer: oneshot::Sender<io::Result<Pipe>>,
}

impl AppDial {
    /// Connects, and returns the application's end.
    pub(super) fn connect(self) -> FarEnd {
        let (near, far) = pipe();
        self.answer.send(Ok(near)).unwrap();
        far
    }
}

/// The dials to a pod's applications.
pub(super) struct Apps(mpsc::UnboundedReceiver<AppDial>);

impl Apps {
    pub(super) async fn dialled(&mut self) -> AppDial {
        self.0.recv().await.unwrap()
    }

    pub(super) fn is_untouched(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes all connections and echoes.
    fn echo(mut self) {
        tokio::spawn(async move {
            while let Some(dial) = self.0.recv().await {
                let (mut from, mut to) = tokio::io::split(dial.connect().io);
                tokio::spawn(async move {
                    tokio::io::copy(&mut from, &mut to).await?;
                    to.shutdown().await
                });
            }
        });
    }
}

/// A pipe that knows a reset from an end, in both directions.
#[derive(Debug)]
pub(super) struct Pipe {
    io: DuplexStream,
    ends: Arc<Ends>,
}

/// The end of a [`Pipe`] that the test holds.
#[derive(Debug)]
pub(super) struct FarEnd {
    pub(super) io: DuplexStream,
    ends: Arc<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    failed: AtomicBool,
    reset: AtomicBool,
}

pub(super) fn pipe() -> (Pipe, FarEnd) {
    let (near, far) = duplex(64 << 10);
    let ends = Arc::new(Ends::default());
    (Pipe { io: near, ends: ends.clone() }, FarEnd { io: far, ends })
}

impl FarEnd {
    /// Whether the role that held the pipe has called it a failure.
    pub(super) fn has_failed(&self) -> bool {
        self.ends.failed.load(Ordering::SeqCst)
    }

    /// Ends it as TCP does with a reset.
    pub(super) fn reset(self) {
        self.ends.reset.store(true, Ordering::SeqCst);
    }

    /// Reads until the role lets go, and says whether that was a failure.
    pub(super) async fn read_to_end(&mut self) -> (Vec<u8>, bool) {
        let mut got = Vec::new();
        self.io.read_to_end(&mut got).await.unwrap();
        (got, self.has_failed())
    }
}

impl Stream for Pipe {
    fn fail(&mut self) {
        self.ends.failed.store(true, Ordering::SeqCst);
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if buf.filled().len() == before && self.ends.reset.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The error of a connection that should not come about.
pub(super) async fn refused(outbound: &Outbound, target: &str) -> Error {
    outbound.connect(&target.parse().unwrap(), None).await.map(|_| ()).unwrap_err()
}

/// Sends, finishes, and reads to the end.
pub(super) async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> String {
    io.write_all(text.as_bytes()).await.unwrap();
    io.shutdown().await.unwrap();
    let mut got = String::new();
    io.read_to_string(&mut got).await.unwrap();
    got
}
