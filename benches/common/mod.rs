//! Both ends of a connection in one process, with some layers of HBONE on it.

pub(crate) mod raw_tls;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use hbone::io::{BytesAdapter, BytesRead, BytesWrite, ReadAhead};
use hbone::metadata::Metadata;
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Connector};
use hbone::{AcceptedIdentities, Authority, Config, SpiffeId, TrustDomains, TunnelledHop, client, nested, server};
use raw_tls::Pem;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) trait Stream: BytesRead + BytesWrite + Unpin + Send {}
impl<T: BytesRead + BytesWrite + Unpin + Send> Stream for T {}

pub(crate) type BoxStream = Box<dyn Stream>;

/// The two ends of a tunnel.
pub(crate) type Ends = (BoxStream, BoxStream);

/// How many layers of HBONE there are on a connection over loopback TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// A session of tokio-rustls without HTTP/2. Each tunnel is one of its own.
    RawTls,
    /// All tunnels in one connection, so many layers deep: from 1 on.
    Hbone(usize),
}

/// A connection, and the far ends of its tunnels as they are opened.
pub(crate) struct Link {
    peers: Peers,
    address: SocketAddr,
    /// `None` without HBONE.
    client: Option<client::Client>,
    far: mpsc::UnboundedReceiver<BoxStream>,
}

/// Two peers that trust each other.
#[derive(Clone)]
pub(crate) struct Peers {
    connector: Connector,
    acceptor: Acceptor,
    raw: (TlsConnector, TlsAcceptor),
    config: Arc<Config>,
    server: SpiffeId,
    authority: Authority,
}

impl Peers {
    pub(crate) fn new() -> Self {
        let ca = Ca::new();
        let config = Arc::new(Config::new());
        let id = |sa: &str| format!("spiffe://cluster.local/ns/bench/sa/{sa}");
        let issue = |sa: &str| ca.certificate().uri(&id(sa)).issue();
        let (client, server) = (issue("client"), issue("server"));
        let trusted = TrustDomains::new("cluster.local".parse().expect("a trust domain"));
        let raw = (
            Pem::from(&client).connector().expect("a client's configuration"),
            Pem::from(&server).acceptor().expect("a server's configuration"),
        );
        let credentials = |issued: hbone::testing::Issued| Arc::new(issued.credentials().expect("credentials"));
        Self {
            connector: Connector::new(credentials(client), config.clone()),
            acceptor: Acceptor::new(credentials(server), trusted, config.clone()),
            raw,
            config,
            server: id("server").parse().expect("an identity"),
            authority: "server.bench.svc.cluster.local:80".parse().expect("an authority"),
        }
    }

    pub(crate) async fn link(&self, depth: Depth) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (sender, far) = mpsc::unbounded_channel();
        tokio::spawn(self.clone().listen(listener, depth, sender));
        let mut link = Link { peers: self.clone(), address, client: None, far };
        if let Depth::Hbone(depth) = depth {
            link.client = Some(self.connect(address, depth).await);
        }
        link
    }

    async fn connect(&self, address: SocketAddr, depth: usize) -> client::Client {
        let accept = AcceptedIdentities::from(self.server.clone());
        let tls = self.connector.connect(ReadAhead::new(dial(address).await), &accept).await.expect("TLS");
        let builder = client::Builder::new().with_config(self.config.clone());
        let (mut client, driver) = builder.handshake(tls).await.expect("HTTP/2");
        tokio::spawn(driver);
        for _ in 1..depth {
            let hop = TunnelledHop::new(self.authority.clone(), accept.clone());
            let extended = nested::extend(&client, &hop, &self.connector, &Metadata::default()).await;
            let (inner, driver) = extended.expect("an inner hop");
            tokio::spawn(driver);
            client = inner;
        }
        client
    }

    async fn listen(self, listener: TcpListener, depth: Depth, sender: mpsc::UnboundedSender<BoxStream>) {
        while let Ok((tcp, _)) = listener.accept().await {
            tcp.set_nodelay(true).expect("no delay");
            let (peers, sender) = (self.clone(), sender.clone());
            tokio::spawn(async move {
                if let Depth::Hbone(depth) = depth {
                    return peers.serve(ReadAhead::new(tcp), depth, sender).await;
                }
                let far = BytesAdapter::new(peers.raw.1.accept(tcp).await.expect("TLS"));
                let _ = sender.send(Box::new(far));
            });
        }
    }

    fn serve<IO>(
        self,
        io: IO,
        depth: usize,
        sender: mpsc::UnboundedSender<BoxStream>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Box::pin(async move {
            let tls = self.acceptor.accept(io).await.expect("TLS");
            let builder = server::Builder::new().with_config(self.config.clone());
            let mut server = builder.handshake(tls).await.expect("HTTP/2");
            while let Some(Ok(incoming)) = server.accept().await {
                let tunnel = incoming.accept(&Metadata::default()).expect("a tunnel");
                if depth == 1 {
                    let _ = sender.send(Box::new(tunnel));
                } else {
                    tokio::spawn(self.clone().serve(tunnel, depth - 1, sender.clone()));
                }
            }
        })
    }
}

impl Link {
    /// A new tunnel; without HBONE a new session.
    pub(crate) async fn open(&mut self) -> Ends {
        let near: BoxStream = match &self.client {
            Some(client) => {
                Box::new(client.connect(&self.peers.authority, &Metadata::default()).await.expect("a tunnel"))
            }
            None => {
                let tcp = dial(self.address).await;
                let session = self.peers.raw.0.connect(raw_tls::name(), tcp).await.expect("TLS");
                Box::new(BytesAdapter::new(session))
            }
        };
        (near, self.far.recv().await.expect("the far end"))
    }
}

async fn dial(address: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect(address).await.expect("a connection");
    tcp.set_nodelay(true).expect("no delay");
    tcp
}
