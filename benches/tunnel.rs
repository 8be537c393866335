//! What a tunnel costs in throughput: bulk through a plain mutual-TLS session (depth 0), HBONE (depth 1) and nested HBONE
//! (depth 2), over loopback TCP, side by side in one run.
//!
//! Each depth runs on a runtime of its own with two threads. The rounds of the depths are interleaved, so that a noisy
//! machine hits all of them alike, and the ratios of the medians are what to compare.
//!
//! `cargo bench --bench tunnel -- [--mib N] [--rounds N]`; with `--test` (as `cargo test --benches` passes it) it only shows
//! that it runs.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hbone::io::{BytesRead, BytesWrite, Plain, ReadAhead, read_bytes, write_bytes};
use hbone::metadata::Metadata;
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Connector};
use hbone::{
    AcceptedIdentities, Authority, Config, Reuse, SpiffeId, TrustDomains, TunnelledHop, client, nested, server,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What one write hands over, as a relay does once a connection is busy.
const CHUNK: usize = 256 << 10;

trait Stream: BytesRead + BytesWrite + Unpin + Send {}
impl<T: BytesRead + BytesWrite + Unpin + Send> Stream for T {}

type BoxStream = Box<dyn Stream>;

#[derive(Clone)]
struct Peers {
    connector: Connector,
    acceptor: Acceptor,
    config: Arc<Config>,
    server: SpiffeId,
    authority: Authority,
}

impl Peers {
    fn new() -> Self {
        let ca = Ca::new();
        let config = Arc::new(
            Config::new()
                .with_max_frame_size(argument("--frame", 64 << 10) as u32)
                .with_send_buffer(argument("--sendbuf", 512 << 10))
                .with_stream_window(argument("--window", 4 << 20) as u32),
        );
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

    /// Two ends of a byte stream with `depth` layers of HBONE.
    async fn connect(&self, depth: usize) -> (BoxStream, BoxStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (sender, mut far) = mpsc::unbounded_channel();
        let peers = self.clone();
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.expect("a connection");
            tcp.set_nodelay(true).expect("no delay");
            match depth {
                0 => peers.serve(tcp, 0, sender).await,
                depth => peers.serve(ReadAhead::new(tcp), depth, sender).await,
            }
        });
        let tcp = TcpStream::connect(address).await.expect("a connection");
        tcp.set_nodelay(true).expect("no delay");
        // As the proxies do; the plain session stays what tokio-rustls makes of it.
        let near = match depth {
            0 => self.dial(tcp, 0).await,
            depth => self.dial(ReadAhead::new(tcp), depth).await,
        };
        (near, far.recv().await.expect("the far end"))
    }

    async fn dial<IO>(&self, tcp: IO, depth: usize) -> BoxStream
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let accept = AcceptedIdentities::from(self.server.clone());
        let tls = self.connector.connect(tcp, &accept).await.expect("TLS");
        if depth == 0 {
            return Box::new(Plain::new(tls));
        }
        let builder = client::Builder::new().config(self.config.clone());
        let (mut client, driver) = builder.handshake(tls).await.expect("HTTP/2");
        tokio::spawn(driver);
        for _ in 1..depth {
            let hop = TunnelledHop { authority: self.authority.clone(), accept: accept.clone(), reuse: Reuse::Shared };
            let (inner, driver) =
                nested::extend(&client, &hop, &self.connector, &Metadata::default()).await.expect("an inner hop");
            tokio::spawn(driver);
            client = inner;
        }
        Box::new(client.connect(&self.authority, &Metadata::default()).await.expect("a tunnel"))
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

    /// Bytes per second of one bulk transfer; the time runs from the first write to the last read.
    async fn bulk(&self, depth: usize, mib: usize) -> f64 {
        let (mut near, mut far) = self.connect(depth).await;
        let total = mib << 20;
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
        let took = start.elapsed();
        assert_eq!(received, total / CHUNK * CHUNK);
        drop(sending.await.expect("the sender"));
        received as f64 / took.max(Duration::from_micros(1)).as_secs_f64()
    }
}

fn argument(name: &str, default: usize) -> usize {
    let mut args = std::env::args().skip_while(|a| a != name).skip(1);
    args.next().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    let smoke = std::env::args().any(|a| a == "--test");
    let (mib, rounds) = if smoke { (1, 1) } else { (argument("--mib", 512), argument("--rounds", 7)) };
    const DEPTHS: [&str; 3] = ["0: tokio-rustls, mutual TLS", "1: HBONE", "2: nested HBONE"];
    let mut rates = [const { Vec::new() }; DEPTHS.len()];
    for _ in 0..rounds {
        for (depth, rates) in rates.iter_mut().enumerate() {
            if argument("--only", depth) != depth {
                rates.push(1.0);
                continue;
            }
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            // Spawned, since the thread that blocks is not one of the two.
            let rate = runtime.spawn(async move { Peers::new().bulk(depth, mib).await });
            rates.push(runtime.block_on(rate).expect("a rate"));
        }
    }
    println!("{mib} MiB one way over loopback TCP, median of {rounds} interleaved rounds");
    println!("{:<30} {:>12} {:>10} {:>24}", "depth", "MiB/s", "ratio", "range MiB/s");
    let mib_per_s = |rate: f64| rate / f64::from(1 << 20);
    let medians: Vec<f64> = rates
        .iter_mut()
        .map(|rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        })
        .collect();
    for ((name, rates), median) in DEPTHS.iter().zip(&rates).zip(&medians) {
        let range = format!("{:.0} - {:.0}", mib_per_s(rates[0]), mib_per_s(rates[rates.len() - 1]));
        println!("{name:<30} {:>12.0} {:>10.2} {range:>24}", mib_per_s(*median), median / medians[0]);
    }
}
