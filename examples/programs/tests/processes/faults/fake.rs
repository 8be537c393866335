//! Gateways that are not what they should be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::metadata::Metadata;
use hbone::server::{self, Incoming};
use hbone::tls::{Acceptor, TlsStream};
use hbone::{Config, Refusal, RefusalReason, TrustDomains};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::cluster::{Cluster, PODS};

/// What is wrong with a gateway.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrong {
    /// It takes connections, and reads nothing and says nothing.
    SilentAfterTcp,
    /// It reads, answers a ClientHello with the first bytes of a record, and stops.
    StallsInTls,
    /// It answers every CONNECT with 503.
    Refuses,
    /// It sends GOAWAY when this many tunnels have been opened on a connection, and forwards those.
    GoesAwayAfter(usize),
}

/// A gateway that runs until it is dropped. Then its address is free again.
pub(super) struct Fake {
    accepting: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Server {
    acceptor: Acceptor,
    wrong: Wrong,
    pods: Arc<[SocketAddr]>,
}

impl Fake {
    /// In place of the gateway of this number.
    pub(super) async fn start(cluster: &Cluster, n: usize, wrong: Wrong) -> Self {
        let identity = "spiffe://cluster.local/ns/istio/sa/gateway".parse().unwrap();
        let trusted = TrustDomains::new("cluster.local".parse().unwrap());
        let acceptor = Acceptor::new(Arc::new(cluster.ca().issue(&identity)), trusted, Arc::new(Config::new()));
        let pods = (0..PODS.len()).map(|n| cluster.pod_address(n)).collect();
        let server = Server { acceptor, wrong, pods };
        let listener = TcpListener::bind(cluster.gateway_address(n)).await.unwrap();
        let accepting = tokio::spawn(async move {
            // All connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(server.clone().serve(stream));
            }
        });
        Self { accepting }
    }

    /// Ends it, with all its connections.
    pub(super) async fn stop(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }
}

impl Server {
    async fn serve(self, mut stream: TcpStream) {
        match self.wrong {
            Wrong::SilentAfterTcp => std::future::pending().await,
            Wrong::StallsInTls => {
                let mut some = [0; 4096];
                let _ = stream.read(&mut some).await;
                // The head of a record of 122 bytes, and the first of them: a ServerHello.
                let _ = stream.write_all(&[22, 3, 3, 0, 122, 2]).await;
                while stream.read(&mut some).await.is_ok_and(|n| n > 0) {}
            }
            Wrong::Refuses | Wrong::GoesAwayAfter(_) => {
                // Clients may leave at any time.
                if let Ok(stream) = self.acceptor.accept(stream).await {
                    self.tunnels(stream).await;
                }
            }
        }
    }

    async fn tunnels(&self, stream: TlsStream<TcpStream>) {
        let Ok(mut server) = server::handshake(stream).await else { return };
        let (mut tunnels, mut opened) = (JoinSet::new(), 0);
        if matches!(self.wrong, Wrong::GoesAwayAfter(0)) {
            server.graceful_shutdown();
        }
        while let Some(Ok(incoming)) = server.accept().await {
            opened += 1;
            match self.wrong {
                Wrong::GoesAwayAfter(some) => {
                    let pod = self.pods[fastrand::usize(..self.pods.len())];
                    tunnels.spawn(forward(incoming, pod));
                    if opened == some {
                        server.graceful_shutdown();
                    }
                }
                _ => incoming.reject(&Refusal::new(RefusalReason::DestinationUnavailable)),
            }
        }
    }
}

async fn forward(incoming: Incoming, pod: SocketAddr) {
    let Ok(mut pod) = TcpStream::connect(pod).await else { return };
    let _ = pod.set_nodelay(true);
    if let Ok(mut tunnel) = incoming.accept(&Metadata::default()) {
        let _ = copy_bidirectional(&mut tunnel, &mut pod).await;
    }
}

/// Takes connections for another address, passes them on, and counts them.
pub(super) struct Counter {
    count: Arc<std::sync::atomic::AtomicUsize>,
}

impl Counter {
    pub(super) async fn start(at: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(at).await.unwrap();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await?;
                    near.set_nodelay(true)?;
                    far.set_nodelay(true)?;
                    copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        Self { count }
    }

    pub(super) fn connections(&self) -> usize {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// How long the load goes on while something is broken: one and a half seconds, or what `HBONE_FAULT_SECONDS` says.
pub(super) fn load_time() -> Duration {
    let seconds = std::env::var("HBONE_FAULT_SECONDS").ok().map(|seconds| seconds.parse().unwrap());
    Duration::from_secs_f64(seconds.unwrap_or(1.5))
}
