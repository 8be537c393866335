//! Peers that echo, forward, stall or go away, and a client's pool.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::super::{Lease, Pool, PoolConfig, PoolStats, Source};
use crate::identity::{AcceptedIdentities, SpiffeId, TrustDomains};
use crate::io::{BoxStream, Dial, DialFuture, DialRequest};
use crate::metadata::{BackendToken, Metadata};
use crate::path::{DirectHop, Path, Reuse, TunnelledHop};
use crate::server::{self, Incoming};
use crate::testing::{Ca, Network};
use crate::tests::harness::BoxIo;
use crate::tls::{Acceptor, CredentialSource, Credentials};
use crate::tunnel::TunnelStream;
use crate::{Authority, Config, Error, Result};

pub(super) fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}").parse().unwrap()
}

pub(super) fn address(n: u8) -> SocketAddr {
    ([10, 0, 0, n], 15008).into()
}

pub(super) fn authority() -> Authority {
    "server.default.svc.cluster.local:80".parse().unwrap()
}

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn trusted() -> TrustDomains {
    TrustDomains::new("cluster.local".parse().unwrap())
}

/// A path to the peer at an address.
pub(super) fn direct(n: u8, reuse: Reuse) -> Path {
    Path::direct(DirectHop::new(address(n).into(), AcceptedIdentities::from(id("server"))).with_reuse(reuse))
}

/// A path through the peer at an address.
pub(super) fn through(n: u8, reuse: Reuse) -> Path {
    direct(n, Reuse::Shared).then(TunnelledHop::new(authority(), id("server").into()).with_reuse(reuse))
}

pub(super) struct World {
    pub(super) ca: Ca,
    pub(super) net: Net,
    pub(super) config: Arc<Config>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Config::new())
    }

    pub(super) fn with(config: Config) -> Self {
        Self { ca: Ca::new(), net: Net::default(), config: Arc::new(config) }
    }

    pub(super) fn pool(&self, settings: PoolConfig) -> (Pool, Source) {
        let pool = Pool::new(Arc::new(self.net.clone()), self.config.clone(), settings);
        let source = pool.source(self.credentials("client"), Metadata::default()).unwrap();
        (pool, source)
    }

    pub(super) fn credentials(&self, name: &str) -> Arc<dyn CredentialSource> {
        Arc::new(self.ca.issue(&id(name)))
    }

    pub(super) fn peer(&self, does: Does) -> Peer {
        self.peer_with(does, Config::new())
    }

    pub(super) fn peer_with(&self, does: Does, config: Config) -> Peer {
        let config = Arc::new(config);
        let acceptor = Acceptor::new(self.credentials("server"), trusted(), config.clone());
        Peer(Arc::new(Inner {
            acceptor,
            config,
            does,
            handshakes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            commands: Mutex::default(),
            ended: Mutex::default(),
        }))
    }

    /// A peer that echoes at an address.
    pub(super) fn echo(&self, n: u8) -> Peer {
        let peer = self.peer(Does::Echo(Box::default()));
        peer.listen(&self.net.network, address(n));
        peer
    }

    /// One that leads each tunnel to one of `pods`, by chance.
    pub(super) fn gateway(&self, n: u8, pods: Vec<Peer>, seed: u64) -> Peer {
        let peer = self.peer(Does::Forward(pods, Mutex::new(fastrand::Rng::with_seed(seed))));
        peer.listen(&self.net.network, address(n));
        peer
    }
}

/// The network, as the pool dials it.
#[derive(Clone, Debug, Default)]
pub(super) struct Net {
    pub(super) network: Network,
    state: Arc<Mutex<NetState>>,
}

#[derive(Debug, Default)]
struct NetState {
    dials: usize,
    manner: Manner,
    held: Vec<tokio::io::DuplexStream>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Manner {
    #[default]
    Connects,
    /// SYNs are lost.
    Swallows,
    /// Connections are accepted, and nothing is said.
    Stalls,
}

impl Net {
    pub(super) fn dials(&self) -> usize {
        self.state.lock().unwrap().dials
    }

    pub(super) fn set(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }
}

impl Dial for Net {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let mut state = self.state.lock().unwrap();
        state.dials += 1;
        match state.manner {
            Manner::Connects => self.network.dial(request),
            Manner::Swallows => Box::pin(std::future::pending()),
            Manner::Stalls => {
                let (near, far) = tokio::io::duplex(64 << 10);
                state.held.push(far);
                Box::pin(std::future::ready(Ok(Box::new(near) as BoxStream)))
            }
        }
    }
}

/// What a peer does with tunnels.
#[derive(Debug)]
pub(super) enum Does {
    /// Accepts with this, and echoes.
    Echo(Box<Metadata>),
    /// Leads each to one of these by chance.
    Forward(Vec<Peer>, Mutex<fastrand::Rng>),
    /// Likewise, but to one that the client does not know if there is any, and says which one it is.
    Tell(Vec<Peer>, Mutex<fastrand::Rng>),
    /// Says nothing after TLS.
    Mute,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Command {
    GoAway,
    /// Breaks the connection.
    Break,
    /// Does nothing any more.
    Freeze,
}

#[derive(Clone, Debug)]
pub(super) struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    acceptor: Acceptor,
    config: Arc<Config>,
    does: Does,
    handshakes: AtomicUsize,
    connections: AtomicUsize,
    served: AtomicUsize,
    commands: Mutex<Vec<mpsc::UnboundedSender<Command>>>,
    /// Told when a connection has ended in order.
    ended: Mutex<Option<mpsc::UnboundedSender<&'static str>>>,
}

impl Peer {
    pub(super) fn listen(&self, network: &Network, at: SocketAddr) {
        let (mut listener, peer) = (network.listen(at), self.clone());
        tokio::spawn(async move {
            while let Some(stream) = listener.accept().await {
                tokio::spawn(peer.clone().serve(Box::new(stream)));
            }
        });
    }

    /// How many sessions there have been.
    pub(super) fn handshakes(&self) -> usize {
        self.0.handshakes.load(Ordering::SeqCst)
    }

    /// How many there are.
    pub(super) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// How many tunnels there have been.
    pub(super) fn served(&self) -> usize {
        self.0.served.load(Ordering::SeqCst)
    }

    pub(super) fn command(&self, command: Command) {
        self.0.commands.lock().unwrap().retain(|commands| commands.send(command).is_ok());
    }

    pub(super) fn tell_ends(&self, to: mpsc::UnboundedSender<&'static str>) {
        *self.0.ended.lock().unwrap() = Some(to);
    }

    pub(super) fn serve(self, io: BoxIo) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let Ok(stream) = self.0.acceptor.accept(io).await else { return };
            self.0.handshakes.fetch_add(1, Ordering::SeqCst);
            if let Does::Mute = self.0.does {
                let mut stream = stream;
                while stream.read(&mut [0; 1000]).await.is_ok_and(|n| n > 0) {}
                return;
            }
            let builder = server::Builder::new().with_config(self.0.config.clone());
            let Ok(mut server) = builder.handshake(stream).await else { return };
            let (sender, mut commands) = mpsc::unbounded_channel();
            self.0.commands.lock().unwrap().push(sender);
            self.0.connections.fetch_add(1, Ordering::SeqCst);
            loop {
                tokio::select! {
                    incoming = server.accept() => match incoming {
                        Some(Ok(incoming)) => self.tunnel(incoming),
                        Some(Err(_)) | None => break,
                    },
                    Some(command) = commands.recv() => match command {
                        Command::GoAway => server.graceful_shutdown(),
                        Command::Break => break,
                        Command::Freeze => std::future::pending().await,
                    },
                }
            }
            self.0.connections.fetch_sub(1, Ordering::SeqCst);
            if let Some(ended) = &*self.0.ended.lock().unwrap() {
                let _ = ended.send(if let Does::Forward(..) = self.0.does { "outer" } else { "inner" });
            }
        })
    }

    fn tunnel(&self, incoming: Incoming) {
        match &self.0.does {
            Does::Echo(answer) => {
                let Ok(tunnel) = incoming.accept(answer) else { return };
                self.0.served.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(tunnel);
                    tokio::io::copy(&mut from, &mut to).await?;
                    to.shutdown().await
                });
            }
            Does::Forward(pods, rng) => {
                let Ok(tunnel) = incoming.accept(&Metadata::default()) else { return };
                self.0.served.fetch_add(1, Ordering::SeqCst);
                let pod = rng.lock().unwrap().usize(..pods.len());
                tokio::spawn(pods[pod].clone().serve(Box::new(tunnel)));
            }
            Does::Tell(pods, rng) => {
                let token = |pod: usize| BackendToken::from(pod as u64);
                let known = incoming.metadata().known_backends();
                let unknown: Vec<_> = (0..pods.len()).filter(|pod| !known.contains(&token(*pod))).collect();
                let pod = rng.lock().unwrap().choice(unknown).unwrap_or(0);
                let Ok(tunnel) = incoming.accept(&Metadata::default().with_backend(token(pod))) else { return };
                self.0.served.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(pods[pod].clone().serve(Box::new(tunnel)));
            }
            Does::Mute => {}
        }
    }
}

/// Gets a place and opens a tunnel.
pub(super) async fn connect(pool: &Pool, source: &Source, path: &Path) -> Result<TunnelStream> {
    open(pool.checkout(source, path).await?).await
}

pub(super) async fn open(lease: Lease) -> Result<TunnelStream> {
    lease.connect(&authority(), &Metadata::default()).await.map_err(Error::from)
}

pub(super) async fn echoes(tunnel: &mut TunnelStream) {
    let mut got = [0; 8];
    tunnel.write_all(b"question").await.unwrap();
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"question");
}

/// Ends it in order.
pub(super) async fn finish(mut tunnel: TunnelStream) {
    tunnel.shutdown().await.unwrap();
    tunnel.read_to_end(&mut Vec::new()).await.unwrap();
}

/// With the clock paused: returns when no task has anything left to do.
pub(super) async fn quiet() {
    tokio::time::sleep(millis(1)).await;
}

pub(super) fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Nobody waits, and nothing is open.
pub(super) fn assert_unused(stats: PoolStats) {
    assert_eq!((stats.dials, stats.waiting, stats.tunnels), (0, 0, 0), "{stats:?}");
}

/// Credentials that can be replaced.
#[derive(Debug)]
pub(super) struct Rotating(pub(super) Mutex<Credentials>);

impl CredentialSource for Rotating {
    fn credentials(&self) -> io::Result<Credentials> {
        Ok(self.0.lock().unwrap().clone())
    }
}
