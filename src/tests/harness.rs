//! Two ends of a tunnel at any depth, over any carrier.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional, duplex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::client::{self, Client};
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::server::{self, Incoming, Server};
use crate::testing::Ca;
use crate::tls::{Acceptor, Connector};
use crate::tunnel::TunnelStream;
use crate::{Authority, Config, Error, ErrorKind, Result, nested};

pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub(crate) type BoxIo = Box<dyn Io>;

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
                let (near, far) = (near.unwrap(), far.unwrap().0);
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                (Box::new(near), Box::new(far))
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

    /// Two ends that are cut apart when the task is aborted.
    pub(super) async fn cuttable_pair(self) -> (BoxIo, BoxIo, JoinHandle<()>) {
        let (near, mut near_wire) = self.pair().await;
        let (mut far_wire, far) = self.pair().await;
        let wire = tokio::spawn(async move {
            let _ = copy_bidirectional(&mut near_wire, &mut far_wire).await;
        });
        (near, far, wire)
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
        self.connect_over(near, far, depth).await
    }

    pub(super) async fn connect_over(
        &self,
        near: BoxIo,
        far: BoxIo,
        depth: usize,
    ) -> (Client, mpsc::UnboundedReceiver<Incoming>) {
        let (sender, incoming) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().serve(far, depth, sender));
        (self.dial(near, depth).await, incoming)
    }

    pub(super) fn hop(&self) -> TunnelledHop {
        TunnelledHop::new(authority(), server_id().into())
    }

    pub(super) async fn dial(&self, io: BoxIo, depth: usize) -> Client {
        let accept = AcceptedIdentities::from(server_id());
        let stream = self.connector.connect(io, &accept).await.unwrap();
        let peer = stream.peer_identity().clone();
        let (mut client, driver) = client::Builder::new()
            .with_config(self.config.clone())
            .with_peer_identity(peer)
            .handshake(stream)
            .await
            .unwrap();
        tokio::spawn(driver);
        for _ in 1..depth {
            let hop = self.hop();
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
            let builder = server::Builder::new().with_config(self.config.clone()).with_peer_identity(peer);
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

/// The two ends of a connection without TLS: HTTP/2 itself on `near` and `far`.
pub(super) async fn plain(
    config: Config,
    near: impl Io + 'static,
    far: impl Io + 'static,
) -> (Client, JoinHandle<Result<()>>, Server<impl Io + 'static>) {
    let config = Arc::new(config);
    let serving = server::Builder::new().with_config(config.clone()).handshake(far);
    let (client, driver) = client::Builder::new().with_config(config).handshake(near).await.unwrap();
    let driver = tokio::spawn(driver);
    (client, driver, serving.await.unwrap())
}

/// Serves one connection: hands over what comes, until it ends.
pub(super) fn serve<IO: Io + 'static>(
    mut server: Server<IO>,
) -> (mpsc::UnboundedReceiver<Incoming>, JoinHandle<Option<Error>>) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        loop {
            match server.accept().await {
                Some(Ok(incoming)) => drop(sender.send(incoming)),
                Some(Err(e)) => return Some(e),
                None => return None,
            }
        }
    });
    (incoming, serving)
}

pub(super) fn metadata() -> Metadata {
    Metadata::default()
}

/// What a tunnel says through an [`io::Error`].
pub(super) fn cause(error: &io::Error) -> &Error {
    Error::from_io(error).unwrap()
}

pub(super) fn kind(error: &io::Error) -> ErrorKind {
    cause(error).kind().clone()
}

/// Writes until that fails.
pub(super) async fn write_error(tunnel: &mut TunnelStream) -> io::Error {
    loop {
        match tunnel.write(&[0; 1000]).await {
            Ok(n) => assert_ne!(n, 0),
            Err(e) => return e,
        }
    }
}

/// Lets everybody else go on until `condition` holds, which it must after a while.
pub(super) async fn settled(condition: impl Fn() -> bool) {
    for _ in 0..1_000_000 {
        if condition() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came to be");
}

/// With the clock paused: returns when no task has anything left to do.
pub(super) async fn idle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}
