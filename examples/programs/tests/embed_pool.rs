//! The pool as another proxy embeds it: by its public interface alone, with its default features.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hbone::io::{Dial, DialFuture, DialRequest};
use hbone::metadata::Metadata;
use hbone::pool::{Pool, PoolConfig, Source};
use hbone::testing::{Ca, Issued, Network};
use hbone::tls::{Acceptor, CredentialSource, Credentials, ReloadingCredentials};
use hbone::{Authority, Config, DialTarget, DirectHop, Path, SpiffeId, TrustDomains, TunnelStream, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

const POD: &str = "10.0.0.2:15008";

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

fn to_pod() -> (Path, Authority) {
    (Path::direct(DirectHop::new(POD.parse().unwrap(), id("cart").into())), "cart.shop:80".parse().unwrap())
}

/// An echo pod on a network, and how many connections it has had. It goes away after so many tunnels on each.
fn pod(ca: &Ca, network: &Network, tunnels: Option<usize>) -> Arc<AtomicUsize> {
    let trusted = TrustDomains::new("cluster.local".parse().unwrap());
    let acceptor = Acceptor::new(Arc::new(ca.issue(&id("cart"))), trusted, Arc::new(Config::new()));
    let mut listener = network.listen(POD.parse().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Some(stream) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut server = server::handshake(acceptor.accept(stream).await?).await?;
                let mut served = 0;
                while let Some(Ok(incoming)) = server.accept().await {
                    tokio::spawn(echo(incoming.accept(&Metadata::default())?));
                    served += 1;
                    if Some(served) == tunnels {
                        server.graceful_shutdown();
                    }
                }
                Ok::<_, hbone::Error>(())
            });
        }
    });
    connections
}

async fn echo(tunnel: TunnelStream) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(tunnel);
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

fn pool(dialer: Arc<dyn Dial>, credentials: Arc<dyn CredentialSource>, settings: PoolConfig) -> (Pool, Source) {
    let pool = Pool::new(dialer, Arc::new(Config::new()), settings);
    let source = pool.source(credentials, Metadata::default()).unwrap();
    (pool, source)
}

async fn connect(pool: &Pool, source: &Source) -> hbone::Result<TunnelStream> {
    let (path, authority) = to_pod();
    Ok(pool.connect(source, &path, &authority, &Metadata::default()).await?)
}

async fn echoes(mut tunnel: TunnelStream) {
    let mut got = [0; 5];
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_tunnel_is_lost_to_a_peer_that_says_goaway_after_each_third() {
    let (ca, network) = (Ca::new(), Network::new());
    pod(&ca, &network, Some(3));
    let (pool, source) = pool(Arc::new(network), Arc::new(ca.issue(&id("web"))), PoolConfig::new());
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (pool, source) = (pool.clone(), source.clone());
        callers.spawn(async move {
            for _ in 0..50 {
                connect(&pool, &source).await.unwrap();
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

#[test]
fn a_pool_outlives_the_runtime_of_its_first_caller() {
    let (ca, network) = (Ca::new(), Network::new());
    let credentials = Arc::new(ca.issue(&id("web")));
    let settings = PoolConfig::new().with_open_timeout(Duration::from_secs(1));
    let (pool, source) = pool(Arc::new(network.clone()), credentials, settings);
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            pod(&ca, &network, None);
            echoes(connect(&pool, &source).await.unwrap()).await;
        });
    }
}

/// Has a bug, until it is repaired.
#[derive(Debug)]
struct Buggy(Network, AtomicBool);

impl Dial for Buggy {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        assert!(self.1.load(Ordering::SeqCst), "a bug in the dialer");
        self.0.dial(request)
    }
}

#[tokio::test]
async fn a_dialer_that_panics_is_an_error_for_who_waits_and_nothing_else() {
    let (ca, network) = (Ca::new(), Network::new());
    pod(&ca, &network, None);
    let dialer = Arc::new(Buggy(network, AtomicBool::new(false)));
    let back_off = Duration::from_millis(1);
    let settings = PoolConfig::new().with_back_off(back_off, back_off);
    let (pool, source) = pool(dialer.clone(), Arc::new(ca.issue(&id("web"))), settings);
    let error = connect(&pool, &source).await.unwrap_err();
    assert!(error.to_string().contains("panicked: a bug in the dialer"), "{error}");
    dialer.1.store(true, Ordering::SeqCst);
    tokio::time::sleep(back_off).await;
    echoes(connect(&pool, &source).await.unwrap()).await;
}

/// Loads the same certificate anew each time, as from files.
#[derive(Debug)]
struct Loaded(Issued);

impl CredentialSource for Loaded {
    fn credentials(&self) -> io::Result<Credentials> {
        self.0.credentials().map_err(Into::into)
    }
}

#[tokio::test]
async fn the_same_certificate_loaded_anew_shares_connections() {
    let (ca, network) = (Ca::new(), Network::new());
    let connections = pod(&ca, &network, None);
    let credentials = Loaded(ca.certificate().uri(&id("web").to_string()).issue());
    let (pool, source) = pool(Arc::new(network), Arc::new(credentials), PoolConfig::new());
    for _ in 0..20 {
        echoes(connect(&pool, &source).await.unwrap()).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_certificate_that_comes_later_is_waited_for() {
    let (ca, network) = (Ca::new(), Network::new());
    pod(&ca, &network, None);
    let credentials = ReloadingCredentials::new();
    let (pool, source) = pool(Arc::new(network), Arc::new(credentials.clone()), PoolConfig::new());
    let waiting = tokio::spawn(async move { connect(&pool, &source).await });
    tokio::task::yield_now().await;
    credentials.update(Ok(ca.issue(&id("web")))).unwrap();
    echoes(timeout(Duration::from_secs(9), waiting).await.unwrap().unwrap().unwrap()).await;
}

/// Resolves names, and notes for whom.
#[derive(Debug)]
struct Resolver(Network, std::sync::Mutex<Vec<String>>);

impl Dial for Resolver {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let accepts = request.hop.is_some_and(|hop| hop.accept.contains(&id("cart")));
        let note =
            format!("{} for {:?}, accepts cart: {accepts}", request.target, request.source.map(ToString::to_string));
        self.1.lock().unwrap().push(note);
        Box::pin(async move {
            let address: SocketAddr = POD.parse().unwrap();
            Ok(Box::new(self.0.connect(address)?) as hbone::io::BoxStream)
        })
    }
}

#[tokio::test]
async fn a_dialer_knows_for_whom_and_may_be_given_a_name_or_a_unix_socket() {
    let (ca, network) = (Ca::new(), Network::new());
    pod(&ca, &network, None);
    let dialer = Arc::new(Resolver(network, Default::default()));
    let (pool, source) = pool(dialer.clone(), Arc::new(ca.issue(&id("web"))), PoolConfig::new());
    for target in ["cart.shop:15008".parse().unwrap(), DialTarget::unix("/run/cart.sock")] {
        let path = Path::direct(DirectHop::new(target, id("cart").into()));
        let tunnel = pool.connect(&source, &path, &to_pod().1, &Metadata::default()).await;
        echoes(tunnel.unwrap()).await;
    }
    let source = r#"for Some("spiffe://cluster.local/ns/shop/sa/web"), accepts cart: true"#;
    let expected = ["cart.shop:15008", "unix:/run/cart.sock"].map(|target| format!("{target} {source}"));
    assert_eq!(*dialer.1.lock().unwrap(), expected);
}
