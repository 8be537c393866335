//! Two ends of a tunnel at any depth, over any carrier.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::sync::mpsc;

use crate::client::{self, Client};
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::metadata::Metadata;
use crate::path::{Reuse, TunnelledHop};
use crate::server::{self, Incoming};
use crate::testing::Ca;
use crate::tls::{Acceptor, Connector};
use crate::tunnel::TunnelStream;
use crate::{Authority, Config, nested};

pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub(super) type BoxIo = Box<dyn Io>;

/// What carries the outermost connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Carrier {
    Pipe,
    Tcp,
    Unix,
}

impl Carrier {
    /// Two connected ends.
    pub(super) async fn pair(self) -> (BoxIo, BoxIo) {
        match self {
            Self::Pipe => {
                let (a, b) = duplex(64 << 10);
                (Box::new(a), Box::new(b))
            }
            Self::Tcp => {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
                let (near, far) = tokio::join!(near, listener.accept());
                (Box::new(near.unwrap()), Box::new(far.unwrap().0))
            }
            #[cfg(unix)]
            Self::Unix => {
                let (a, b) = tokio::net::UnixStream::pair().unwrap();
                (Box::new(a), Box::new(b))
            }
            #[cfg(not(unix))]
            Self::Unix => Box::pin(Self::Tcp.pair()).await,
        }
    }
}

pub(super) fn id(text: &str) -> SpiffeId {
    format!("spiffe://cluster.local/{text}").parse().unwrap()
}

pub(super) fn client_id() -> SpiffeId {
    id("ns/default/sa/client")
}

pub(super) fn server_id() -> SpiffeId {
    id("ns/default/sa/server")
}

pub(super) fn authority() -> Authority {
    "server.default.svc.cluster.local:80".parse().unwrap()
}

pub(super) fn trusted() -> TrustDomains {
    TrustDomains::new("cluster.local".parse().unwrap())
}

/// Two workloads that trust each other.
#[derive(Clone)]
pub(super) struct World {
    pub(super) connector: Connector,
    pub(super) acceptor: Acceptor,
    pub(super) config: Arc<Config>,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        let ca = Ca::new();
        let config = Arc::new(config);
        Self {
            connector: Connector::new(Arc::new(ca.issue(&client_id())), config.clone()),
            acceptor: Acceptor::new(Arc::new(ca.issue(&server_id())), trusted(), config.clone()),
            config,
        }
    }

    /// Connects at `depth` over `carrier`. The far end hands over each CONNECT it gets at the innermost hop.
    pub(super) async fn connect(&self, carrier: Carrier, depth: usize) -> (Client, mpsc::UnboundedReceiver<Incoming>) {
        let (near, far) = carrier.pair().await;
        let (sender, incoming) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().serve(far, depth, sender));
        (self.dial(near, depth).await, incoming)
    }

    pub(super) async fn dial(&self, io: BoxIo, depth: usize) -> Client {
        let accept = AcceptedIdentities::from(server_id());
        let stream = self.connector.connect(io, &accept).await.unwrap();
        let peer = stream.peer_identity().clone();
        let (mut client, driver) =
            client::Builder::new().config(self.config.clone()).peer(peer).handshake(stream).await.unwrap();
        tokio::spawn(driver);
        for _ in 1..depth {
            let hop = TunnelledHop { authority: authority(), accept: accept.clone(), reuse: Reuse::Shared };
            let (inner, driver) = nested::extend(&client, &hop, &self.connector, &Metadata::default()).await.unwrap();
            tokio::spawn(driver);
            client = inner;
        }
        client
    }

    pub(super) fn serve(
        self,
        io: BoxIo,
        depth: usize,
        sender: mpsc::UnboundedSender<Incoming>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let stream = self.acceptor.accept(io).await.unwrap();
            let peer = stream.peer_identity().clone();
            let builder = server::Builder::new().config(self.config.clone()).peer(peer);
            let mut server = builder.handshake(stream).await.unwrap();
            while let Some(Ok(incoming)) = server.accept().await {
                if depth > 1 {
                    let tunnel = incoming.accept(&Metadata::default()).unwrap();
                    tokio::spawn(self.clone().serve(Box::new(tunnel), depth - 1, sender.clone()));
                } else if sender.send(incoming).is_err() {
                    break;
                }
            }
        })
    }
}

/// One tunnel: the client's end and the server's.
pub(super) async fn tunnel(
    client: &Client,
    incoming: &mut mpsc::UnboundedReceiver<Incoming>,
) -> (TunnelStream, TunnelStream) {
    let (authority, metadata) = (authority(), Metadata::default());
    let accept = async { incoming.recv().await.unwrap().accept(&Metadata::default()).unwrap() };
    let (near, far) = tokio::join!(client.connect(&authority, &metadata), accept);
    (near.unwrap(), far)
}
