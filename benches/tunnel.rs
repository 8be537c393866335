//! What a tunnel costs in throughput, over loopback TCP.
//!
//! 1. Bulk through a plain mutual-TLS session (depth 0: tokio-rustls below `tls::TlsStream`, which adds a check of who the
//!    peer is and nothing to the bytes), HBONE (depth 1) and nested HBONE (depth 2), side by side. The proxies read sockets
//!    ahead; what that alone gives a plain session is a row of its own.
//! 2. One busy tunnel alone, and beside eight tunnels of the same connection whose readers have stopped.
//!
//! The rounds are interleaved, so that a noisy machine hits all alike; compare the ratios of the medians. Each measurement
//! has a runtime of its own with two threads. `cargo bench --bench tunnel -- [--mib N] [--rounds N] [--only DEPTH]`; with
//! `--test` it only shows that it runs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hbone::io::{BytesRead, BytesWrite, Plain, ReadAhead, read_bytes, write_bytes};
use hbone::metadata::Metadata;
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Connector};
use hbone::{AcceptedIdentities, Authority, Config, SpiffeId, TrustDomains, TunnelledHop, client, nested, server};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What one write hands over, as a relay does once a connection is busy.
const CHUNK: usize = 128 << 10;
/// The default window of a tunnel: a reader that has stopped lets this much through.
const WINDOW: usize = 4 << 20;
const STALLED: usize = 8;

trait Stream: BytesRead + BytesWrite + Unpin + Send {}
impl<T: BytesRead + BytesWrite + Unpin + Send> Stream for T {}

type BoxStream = Box<dyn Stream>;

/// A connection with some layers of HBONE, and the far ends of its tunnels as they are opened.
enum Link {
    Plain(Option<BoxStream>, mpsc::UnboundedReceiver<BoxStream>),
    Hbone(client::Client, mpsc::UnboundedReceiver<BoxStream>),
}

#[derive(Clone)]
struct Peers {
    connector: Connector,
    acceptor: Acceptor,
    config: Arc<Config>,
    server: SpiffeId,
    authority: Authority,
}

impl Link {
    /// The two ends of a new tunnel; at depth 0 those of the session itself.
    async fn open(&mut self, authority: &Authority) -> (BoxStream, BoxStream) {
        let (near, far): (BoxStream, _) = match self {
            Self::Plain(near, far) => (near.take().expect("one tunnel at depth 0"), far),
            Self::Hbone(client, far) => {
                (Box::new(client.connect(authority, &Metadata::default()).await.expect("a tunnel")), far)
            }
        };
        (near, far.recv().await.expect("the far end"))
    }
}

impl Peers {
    fn new() -> Self {
        let ca = Ca::new();
        let config = Arc::new(Config::new());
        let id =
            |sa: &str| format!("spiffe://cluster.local/ns/bench/sa/{sa}").parse::<SpiffeId>().expect("an identity");
        let trusted = TrustDomains::new("cluster.local".parse().expect("a trust domain"));
        Self {
            connector: Connector::new(Arc::new(ca.issue(&id("client"))), config.clone()),
            acceptor: Acceptor::new(Arc::new(ca.issue(&id("server"))), trusted, config.clone()),
            config,
            server: id("server"),
            authority: "server.bench.svc.cluster.local:80".parse().expect("an authority"),
        }
    }

    async fn link(&self, depth: usize, read_ahead: bool) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (sender, far) = mpsc::unbounded_channel();
        let peers = self.clone();
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.expect("a connection");
            tcp.set_nodelay(true).expect("no delay");
            match read_ahead {
                false => peers.serve(tcp, depth, sender).await,
                true => peers.serve(ReadAhead::new(tcp), depth, sender).await,
            }
        });
        let tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("no delay");
        let accept = AcceptedIdentities::from(self.server.clone());
        if depth == 0 {
            let near: BoxStream = match read_ahead {
                false => Box::new(Plain::new(self.connector.connect(tcp, &accept).await.expect("TLS"))),
                true => Box::new(Plain::new(self.connector.connect(ReadAhead::new(tcp), &accept).await.expect("TLS"))),
            };
            return Link::Plain(Some(near), far);
        }
        let tls = self.connector.connect(ReadAhead::new(tcp), &accept).await.expect("TLS");
        let builder = client::Builder::new().config(self.config.clone());
        let (mut client, driver) = builder.handshake(tls).await.expect("HTTP/2");
        tokio::spawn(driver);
        for _ in 1..depth {
            let hop = TunnelledHop::new(self.authority.clone(), accept.clone());
            let extended = nested::extend(&client, &hop, &self.connector, &Metadata::default()).await;
            let (inner, driver) = extended.expect("an inner hop");
            tokio::spawn(driver);
            client = inner;
        }
        Link::Hbone(client, far)
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
            if depth == 0 {
                let _ = sender.send(Box::new(Plain::new(tls)));
                return;
            }
            let builder = server::Builder::new().config(self.config.clone());
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

    /// MiB/s of one bulk transfer at `depth`, beside `stalled` tunnels of the same connection whose readers have stopped.
    async fn bulk(self, depth: usize, read_ahead: bool, stalled: usize, mib: usize) -> f64 {
        let mut link = self.link(depth, read_ahead).await;
        let mut held = Vec::new();
        for _ in 0..stalled {
            let (mut near, far) = link.open(&self.authority).await;
            let (filled, full) = oneshot::channel();
            let writer = tokio::spawn(async move {
                let chunk = Bytes::from(vec![0x5a; CHUNK]);
                for _ in 0..WINDOW / CHUNK {
                    write_bytes(&mut *near, chunk.clone()).await.expect("room");
                }
                let _ = filled.send(());
                // Waits until the end for room.
                let _ = write_bytes(&mut *near, chunk).await;
            });
            full.await.expect("a full window");
            held.push((far, writer));
        }
        let (near, far) = link.open(&self.authority).await;
        let rate = transfer(near, far, mib << 20).await;
        held.iter().for_each(|(_, writer)| writer.abort());
        rate
    }
}

/// MiB/s; the time runs from the first write to the last read.
async fn transfer(mut near: BoxStream, mut far: BoxStream, total: usize) -> f64 {
    let chunk = Bytes::from(vec![0x5a; CHUNK]);
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..total / CHUNK {
            write_bytes(&mut *near, chunk.clone()).await.expect("room");
        }
        near.shutdown().await.expect("an end");
        near
    });
    let mut received = 0;
    loop {
        match read_bytes(&mut *far).await.expect("data").len() {
            0 => break,
            n => received += n,
        }
    }
    let took = start.elapsed().as_secs_f64();
    assert_eq!(received, total / CHUNK * CHUNK);
    drop(sending.await.expect("the sender"));
    received as f64 / f64::from(1 << 20) / took
}

struct Case {
    name: &'static str,
    depth: usize,
    /// Whether the socket is read ahead; always so below HBONE.
    read_ahead: bool,
    stalled: usize,
    /// The case of the same table that the ratio is to.
    to: usize,
}

fn table(title: &str, cases: &[Case], mib: usize, rounds: usize) {
    let mut rates = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (case, rates) in cases.iter().zip(&mut rates) {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            // Spawned, since the thread that blocks is not one of the two.
            let rate = runtime.spawn(Peers::new().bulk(case.depth, case.read_ahead, case.stalled, mib));
            rates.push(runtime.block_on(rate).expect("a rate"));
        }
    }
    rates.iter_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
    let median = |case: usize| rates[case][rounds / 2];
    println!("\n{title}: {mib} MiB one way, median of {rounds} interleaved rounds");
    println!("{:<44} {:>7} {:>7} {:>15}", "", "MiB/s", "ratio", "range");
    for (i, case) in cases.iter().enumerate() {
        let range = format!("{:.0} - {:.0}", rates[i][0], rates[i][rounds - 1]);
        println!("{:<44} {:>7.0} {:>7.2} {range:>15}", case.name, median(i), median(i) / median(case.to));
    }
}

fn argument(name: &str) -> Option<usize> {
    std::env::args().skip_while(|a| a != name).nth(1).and_then(|v| v.parse().ok())
}

fn main() {
    let smoke = std::env::args().any(|a| a == "--test");
    let mib = argument("--mib").unwrap_or(if smoke { 1 } else { 512 });
    let rounds = argument("--rounds").unwrap_or(if smoke { 1 } else { 7 }).max(1);
    let depths = [
        Case { name: "depth 0: tokio-rustls, mutual TLS", depth: 0, read_ahead: false, stalled: 0, to: 0 },
        Case { name: "depth 1: HBONE", depth: 1, read_ahead: true, stalled: 0, to: 0 },
        Case { name: "depth 2: nested HBONE", depth: 2, read_ahead: true, stalled: 0, to: 0 },
        Case { name: "depth 0, the socket read ahead", depth: 0, read_ahead: true, stalled: 0, to: 0 },
    ];
    if let Some(case) = argument("--only").and_then(|depth| depths.get(depth)) {
        return table("one depth", &[Case { to: 0, ..*case }], mib, rounds);
    }
    table("depth", &depths, mib, rounds);
    let stalled = [
        Case { name: "depth 1, alone", depth: 1, read_ahead: true, stalled: 0, to: 0 },
        Case { name: "depth 1, beside 8 stalled readers", depth: 1, read_ahead: true, stalled: STALLED, to: 0 },
        Case { name: "depth 2, alone", depth: 2, read_ahead: true, stalled: 0, to: 2 },
        Case { name: "depth 2, beside 8 stalled readers", depth: 2, read_ahead: true, stalled: STALLED, to: 2 },
    ];
    table("stalled readers", &stalled, mib, rounds);
}
