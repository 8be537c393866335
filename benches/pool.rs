//! What the pool costs and saves.
//!
//! 1. A checkout with a connection at hand, with 1, 1,000 and 100,000 keys known, alone and by 64 tasks at a time; one
//!    that has to open a connection, and one that has to open two.
//! 2. New connections per second through the roles, within a cluster and across two, 16 at a time, in memory and over
//!    TCP on loopback: in rounds that are interleaved, so that a noisy machine hits both alike.
//! 3. The memory of 100,000 keys without a connection.
//!
//! Everything runs in one process, and where nothing else is said over an in-memory network. `cargo bench --bench pool
//! -- [--rounds N] [--only near|far]`, of which the last measures that one rate in memory alone, for profiles; with
//! `--test` it only shows that it runs.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hbone::connector::Connector;
use hbone::drain::{self, Watch};
use hbone::io::{BoxStream, Dial};
use hbone::mesh::{Network as MeshNetwork, Snapshot};
use hbone::metadata::Metadata;
use hbone::pool::{Pool, PoolConfig, Source};
use hbone::proxy::tcp::{self, TcpDialer};
use hbone::proxy::{Gateway, Inbound};
use hbone::server::ConnectionServer;
use hbone::testing::{Ca, Network};
use hbone::tls::Acceptor;
use hbone::{Authority, Config, DirectHop, Path, SpiffeId, TrustDomains, TunnelledHop};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::Instant;

const KEYS: [usize; 3] = [1, 1_000, 100_000];
const TASKS: usize = 64;
const AT_A_TIME: usize = 16;

const NEAR: &str = "near.shop:80";
const FAR: &str = "far.shop:80";
const GATEWAY: &str = "127.81.9.1:15008";

/// Three pods behind each service; `far` is in the other network.
const MESH: &str = "
workloads:
- {uid: client, name: client, namespace: shop, serviceAccount: client, network: east, protocol: HBONE, workloadIps: [127.81.1.1]}
- {uid: n1, name: n1, namespace: shop, serviceAccount: server, network: east, protocol: HBONE, workloadIps: [127.81.1.11], services: {shop/near.shop: {}}}
- {uid: n2, name: n2, namespace: shop, serviceAccount: server, network: east, protocol: HBONE, workloadIps: [127.81.1.12], services: {shop/near.shop: {}}}
- {uid: n3, name: n3, namespace: shop, serviceAccount: server, network: east, protocol: HBONE, workloadIps: [127.81.1.13], services: {shop/near.shop: {}}}
- {uid: gateway, name: gateway, namespace: istio, serviceAccount: gateway, network: west, protocol: HBONE, workloadIps: [127.81.9.1]}
- {uid: all, name: all, namespace: shop, network: west, protocol: HBONE, capacity: 3, networkGateway: {destination: west/127.81.9.1, hboneMtlsPort: 15008}, services: {shop/far.shop: {}}}
services:
- {name: near, namespace: shop, hostname: near.shop, ports: {80: 8080}}
- {name: far, namespace: shop, hostname: far.shop, ports: {80: 8080}, subjectAltNames: [\"spiffe://cluster.local/ns/shop/sa/server\"]}
";

const WEST: &str = "
workloads:
- {uid: f1, name: f1, namespace: shop, serviceAccount: server, network: west, protocol: HBONE, workloadIps: [127.81.2.11], services: {shop/far.shop: {}}}
- {uid: f2, name: f2, namespace: shop, serviceAccount: server, network: west, protocol: HBONE, workloadIps: [127.81.2.12], services: {shop/far.shop: {}}}
- {uid: f3, name: f3, namespace: shop, serviceAccount: server, network: west, protocol: HBONE, workloadIps: [127.81.2.13], services: {shop/far.shop: {}}}
services:
- {name: far, namespace: shop, hostname: far.shop, ports: {80: 8080}, scope: GLOBAL}
";

/// What is under the mesh.
#[derive(Clone)]
enum Net {
    Memory(Network),
    Tcp,
}

/// A client, and two clusters with all that serves in them. Networks of clusters are apart in the mesh only.
struct World {
    connector: Connector,
    pool: Pool,
    source: Source,
    server: SpiffeId,
    near: Path,
    far: Path,
    _drain: drain::Drain,
}

fn id(account: &str) -> SpiffeId {
    let namespace = if account == "gateway" { "istio" } else { "shop" };
    SpiffeId::new("cluster.local".parse().expect("a trust domain"), namespace, account).expect("an identity")
}

fn snapshot(text: &str) -> tokio::sync::watch::Receiver<Snapshot> {
    tokio::sync::watch::channel(Snapshot::parse("mesh", text).expect("a mesh")).1
}

impl World {
    fn start() -> Self {
        Self::start_on(Net::Memory(Network::new()))
    }

    fn start_on(net: Net) -> Self {
        let (ca, config) = (Ca::new(), Arc::new(Config::new()));
        let dialer = net.dialer();
        let trusted = TrustDomains::new("cluster.local".parse().expect("a trust domain"));
        let acceptor = |credentials| Acceptor::new(credentials, trusted.clone(), config.clone());
        let (drain, watch) = drain::channel();
        let (east, west) = (snapshot(MESH), snapshot(WEST));
        for (mesh, pods) in [(&east, ["n1", "n2", "n3"]), (&west, ["f1", "f2", "f3"])] {
            for pod in pods {
                let ip = mesh.borrow().workload_named("shop", pod).expect("a pod").addresses[0];
                let credentials = Arc::new(ca.issue(&id("server")));
                let dialer = dialer.clone();
                let server = ConnectionServer::new(acceptor(credentials), config.clone());
                let pod = Inbound::new(server, mesh.clone(), "shop", pod).with_dialer(dialer);
                net.serve((ip, 15008).into(), watch.clone(), move |stream: BoxStream, watch| {
                    let pod = pod.clone();
                    async move { drop(pod.serve(stream, None, &watch).await) }
                });
                net.application(ip);
            }
        }
        let server = ConnectionServer::new(acceptor(Arc::new(ca.issue(&id("gateway")))), config.clone());
        let gateway = Gateway::new(server, west, MeshNetwork::new("west")).with_dialer(dialer.clone());
        net.serve(GATEWAY.parse().expect("an address"), watch, move |stream: BoxStream, watch| {
            let gateway = gateway.clone();
            async move { drop(gateway.serve(stream, None, &watch).await) }
        });
        let settings = PoolConfig::new().with_back_off(Duration::from_secs(3600), Duration::from_secs(3600));
        let pool = Pool::new(dialer, config, settings);
        let credentials = Arc::new(ca.issue(&id("client")));
        let source = pool.source(credentials.clone(), Metadata::default()).expect("a source");
        let connector = Connector::builder(east, "shop", "client").build(&pool, credentials);
        let near = direct("127.81.1.11:15008".parse().expect("an address"), "server");
        let inner = TunnelledHop::new(FAR.parse().expect("an authority"), id("server").into());
        let far = direct(GATEWAY.parse().expect("an address"), "gateway").then(inner);
        Self {
            connector: connector.expect("a connector"),
            pool,
            source,
            server: id("server"),
            near,
            far,
            _drain: drain,
        }
    }

    async fn checkout(&self, path: &Path) {
        drop(self.pool.checkout(&self.source, path).await.expect("a lease"));
    }

    /// Makes the pool know this many keys, all but those in use without a connection.
    async fn know(&self, keys: usize) {
        let known = self.pool.stats().keys;
        for n in known..keys {
            // Nobody listens there.
            let port = 1024 + (n % 60_000) as u16;
            let address = SocketAddr::from(([10, 200, (n / 60_000) as u8, 1], port));
            // As routes do: the identity is that of the mesh's snapshot.
            let path = Path::direct(DirectHop::new(address.into(), self.server.clone().into()));
            self.pool.checkout(&self.source, &path).await.expect_err("nobody is there");
        }
    }
}

fn direct(address: SocketAddr, account: &str) -> Path {
    Path::direct(DirectHop::new(address.into(), id(account).into()))
}

impl Net {
    fn dialer(&self) -> Arc<dyn Dial> {
        match self {
            Self::Memory(network) => Arc::new(network.clone()),
            Self::Tcp => Arc::new(TcpDialer::new()),
        }
    }

    /// Gives each connection to an address to `each`, in a task of its own.
    fn listen<F, T>(&self, address: SocketAddr, each: F)
    where
        F: Fn(BoxStream) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        match self {
            Self::Memory(network) => {
                let mut listener = network.listen(address);
                tokio::spawn(async move {
                    while let Some(stream) = listener.accept().await {
                        tokio::spawn(each(Box::new(stream)));
                    }
                });
            }
            Self::Tcp => {
                let listener = tcp::listen(address).expect("a listener");
                tokio::spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        stream.set_nodelay(true).expect("an option");
                        tokio::spawn(each(Box::new(stream)));
                    }
                });
            }
        }
    }

    fn serve<F, T>(&self, address: SocketAddr, watch: Watch, serve: F)
    where
        F: Fn(BoxStream, Watch) -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        self.listen(address, move |stream| serve(stream, watch.clone()));
    }

    /// Answers one byte with one byte.
    fn application(&self, ip: IpAddr) {
        self.listen((ip, 8080).into(), |mut stream| async move {
            let answering = async {
                let byte = stream.read_u8().await?;
                stream.write_u8(byte).await?;
                stream.shutdown().await
            };
            answering.await.expect("an answer");
        });
    }
}

async fn nanoseconds_each<T: Future<Output = ()>>(times: usize, what: impl Fn() -> T) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        what().await;
    }
    start.elapsed().as_nanos() as f64 / times as f64
}

/// All tasks' work over the time it took.
async fn contended(world: &Arc<World>, times: usize) -> f64 {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let world = world.clone();
        tasks.spawn(async move {
            for _ in 0..times {
                world.checkout(&world.near).await;
                tokio::task::yield_now().await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    start.elapsed().as_nanos() as f64 / (TASKS * times) as f64
}

/// New connections per second.
async fn rate(world: &Arc<World>, target: &str, connections: usize) -> f64 {
    let target: Authority = target.parse().expect("an authority");
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..AT_A_TIME {
        let (world, target) = (world.clone(), target.clone());
        tasks.spawn(async move {
            for _ in 0..connections / AT_A_TIME {
                let mut connected = world.connector.connect(&target, None).await.expect("a tunnel");
                connected.tunnel.write_u8(7).await.expect("a byte out");
                assert_eq!(connected.tunnel.read_u8().await.expect("a byte in"), 7);
                connected.tunnel.shutdown().await.expect("an end");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("connections");
    }
    connections as f64 / start.elapsed().as_secs_f64()
}

/// What of this process is in memory.
#[cfg(target_os = "linux")]
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

#[cfg(not(target_os = "linux"))]
fn resident() -> Option<usize> {
    None
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One rate alone.
async fn run_only(target: &str, rounds: usize) {
    let world = Arc::new(World::start());
    for _ in 0..rounds {
        println!("{target:<44} {:>12.0}", rate(&world, target, 16_000).await);
    }
}

async fn run(rounds: usize, scale: usize) {
    println!("{:<44} {:>12}", "checkout and give back", "ns");
    let world = Arc::new(World::start());
    for keys in KEYS {
        let keys = if scale > 1 { keys.min(1_000) } else { keys };
        world.checkout(&world.near).await;
        let before = resident();
        let known = world.pool.stats().keys;
        world.know(keys).await;
        let after = resident();
        let hot = nanoseconds_each(400_000 / scale, || world.checkout(&world.near)).await;
        println!("{:<44} {hot:>12.0}", format!("hot, {keys} keys"));
        let all = contended(&world, 10_000 / scale).await;
        println!("{:<44} {all:>12.0}", format!("hot, {keys} keys, {TASKS} tasks"));
        if let (Some(before), Some(after)) = (before, after)
            && keys - known > 10_000
        {
            let bytes = after.saturating_sub(before);
            let each = bytes / (keys - known);
            println!("{:<44} {:>8.1} MiB, {each} bytes each", "keys without a connection", bytes as f64 / 1_048_576.0);
        }
    }
    drop(world);
    for (name, nested) in [("cold, one hop", false), ("cold, two hops", true)] {
        let mut times = Vec::new();
        for _ in 0..200 / scale.min(100) {
            let world = World::start();
            let path = if nested { &world.far } else { &world.near };
            times.push(nanoseconds_each(1, || world.checkout(path)).await);
        }
        println!("{name:<44} {:>12.0}", median(times));
    }

    println!("\n{:<44} {:>12}", format!("connections, {AT_A_TIME} at a time"), "per second");
    compare("in memory", Net::Memory(Network::new()), rounds, 16_000 / scale).await;
    // All of 127.0.0.0/8 is this machine's on Linux only.
    if cfg!(target_os = "linux") {
        compare("over TCP", Net::Tcp, rounds, 8_000 / scale).await;
    }
}

/// Within a cluster and across clusters.
async fn compare(name: &str, net: Net, rounds: usize, connections: usize) {
    let world = Arc::new(World::start_on(net));
    let (mut near, mut far) = (Vec::new(), Vec::new());
    // The first connections open what the others share.
    rate(&world, NEAR, 160).await;
    rate(&world, FAR, 160).await;
    for _ in 0..rounds {
        near.push(rate(&world, NEAR, connections).await);
        far.push(rate(&world, FAR, connections).await);
    }
    let ratios = near.iter().zip(&far).map(|(near, far)| far / near).collect();
    println!("{:<44} {:>12.0}", format!("{name}, within a cluster"), median(near));
    println!("{:<44} {:>12.0}", format!("{name}, across clusters"), median(far));
    println!("{:<44} {:>12.2}", format!("{name}, ratio, median of the rounds"), median(ratios));
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut rounds, mut scale, mut only) = (5, 1, None);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rounds" => rounds = args.next().and_then(|n| n.parse().ok()).expect("--rounds takes a number"),
            "--only" => match args.next().as_deref() {
                Some("near") => only = Some(NEAR),
                Some("far") => only = Some(FAR),
                _ => panic!("--only takes near or far"),
            },
            "--test" => (rounds, scale) = (1, 100),
            _ => {}
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    match only {
        Some(target) => runtime.block_on(run_only(target, rounds)),
        None => runtime.block_on(run(rounds, scale)),
    }
}
