//! The roles together, over an in-memory network.

#![cfg(feature = "mesh-file")]

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::outbound::Carried;
use super::{Gateway, Inbound, Outbound, socks5, tcp};
use crate::authority::Authority;
use crate::balance::{Balance, Candidate, InFlight, Pick};
use crate::config::Config;
use crate::connector::{Connector, MeshWatch};
use crate::drain;
use crate::identity::{SpiffeId, TrustDomains};
use crate::mesh::{Network as MeshNetwork, Snapshot};
use crate::pool::{Pool, PoolConfig};
use crate::server::ConnectionServer;
use crate::testing::{Ca, Network, NetworkListener};
use crate::tls::Acceptor;

/// Picks the first, and knows how much is in flight.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl Counting {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn reaches(&self, count: usize) {
        let reached = async {
            while self.get() != count {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), reached).await.unwrap();
    }
}

impl Balance for Counting {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        struct Held(Counting);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let index = candidates.iter().position(|c| c.weight > 0)?;
        self.0.fetch_add(1, Ordering::SeqCst);
        Some(Pick::new(index, InFlight::new(Held(self.clone()))))
    }
}

fn mesh(name: &str) -> MeshWatch {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fixtures").join(name);
    tokio::sync::watch::channel(Snapshot::load(&file).unwrap()).1
}

/// A client in network east, and in network west a gateway and a pod with an application.
struct World {
    outbound: Outbound,
    at_client: Counting,
    at_gateway: Counting,
    application: NetworkListener,
    target: Authority,
    _drain: drain::Drain,
}

impl World {
    fn new() -> Self {
        let (ca, network, config) = (Ca::new(), Network::new(), Arc::new(Config::new()));
        let credentials = |namespace: &str, account: &str| {
            let id: SpiffeId = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").parse().unwrap();
            Arc::new(ca.issue(&id))
        };
        let trusted = TrustDomains::new("cluster.local".parse().unwrap());
        let (at_client, at_gateway) = (Counting::default(), Counting::default());
        let dialer = || Arc::new(network.clone());
        let pool = Pool::new(dialer(), config.clone(), PoolConfig::new());
        let builder = Connector::builder(mesh("mesh-east.yaml"), "default", "client");
        let builder = builder.with_balance(Arc::new(at_client.clone()));
        let connector = builder.build(&pool, credentials("default", "client")).unwrap();
        let outbound = Outbound::new(connector);
        let server = |namespace, account| {
            let acceptor = Acceptor::new(credentials(namespace, account), trusted.clone(), config.clone());
            ConnectionServer::new(acceptor, config.clone())
        };
        let (west, network_name) = (mesh("mesh-west.yaml"), MeshNetwork::new("west"));
        let gateway = Gateway::new(server("istio-gateways", "eastwest"), west, network_name)
            .with_dialer(dialer())
            .with_balance(Arc::new(at_gateway.clone()));
        let pod =
            Inbound::new(server("default", "server"), mesh("mesh-west.yaml"), "default", "b1").with_dialer(dialer());

        let (drain, watch) = drain::channel();
        let mut gateways = network.listen("10.77.0.2:15008".parse().unwrap());
        let to_gateway = watch.clone();
        tokio::spawn(async move {
            while let Some(stream) = gateways.accept().await {
                let (gateway, watch) = (gateway.clone(), to_gateway.clone());
                tokio::spawn(async move { gateway.serve(stream, None, &watch).await });
            }
        });
        let mut pods = network.listen("10.77.0.11:15008".parse().unwrap());
        tokio::spawn(async move {
            while let Some(stream) = pods.accept().await {
                let (pod, watch) = (pod.clone(), watch.clone());
                tokio::spawn(async move { pod.serve(stream, None, &watch).await });
            }
        });
        let application = network.listen("10.77.0.11:8080".parse().unwrap());
        let target = "global.default.svc.cluster.local:80".parse().unwrap();
        Self { outbound, at_client, at_gateway, application, target, _drain: drain }
    }
}

#[tokio::test]
async fn a_tunnel_is_in_flight_until_its_relay_ends() {
    let mut world = World::new();
    let (mut client, plain) = duplex(1024);
    let (outbound, target) = (world.outbound.clone(), world.target.clone());
    let serving = tokio::spawn(async move { outbound.serve(plain, &target, None).await });

    let mut server = world.application.accept().await.unwrap();
    let mut word = [0; 8];
    client.write_all(b"question").await.unwrap();
    server.read_exact(&mut word).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut word).await.unwrap(), 0);
    // Half closed is not ended. The client has chosen an endpoint and the gateway before it.
    assert_eq!(world.at_client.get(), 2);
    assert!(world.at_gateway.get() > 0);

    server.write_all(b"answered").await.unwrap();
    server.shutdown().await.unwrap();
    client.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"answered");
    serving.await.unwrap().unwrap();
    assert_eq!(world.at_client.get(), 0);
    // The gateway's tunnels are connections of the client's pool.
    drop(world.outbound);
    world.at_gateway.reaches(0).await;
}

#[tokio::test]
async fn a_tunnel_that_is_not_carried_on_is_in_flight_as_long_as_it_is_kept() {
    let world = World::new();
    let connected = world.outbound.connect(&world.target, None).await.unwrap();
    assert_eq!(world.at_client.get(), 2);
    drop(connected);
    assert_eq!(world.at_client.get(), 0);
    drop(world.outbound);
    world.at_gateway.reaches(0).await;
}

#[tokio::test]
async fn an_application_sees_its_connection_fail_when_serving_it_never_begins() {
    let world = World::new();
    let (mut application, stream) = connection().await;
    drop(world.outbound.serve(stream, &world.target, None));
    assert_eq!(application.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A SOCKS5 client's greeting and request for what the world has.
fn socks5_request() -> Vec<u8> {
    let name = b"global.default.svc.cluster.local";
    [&[5, 1, 0, 5, 1, 0, 3, name.len() as u8][..], name, &80_u16.to_be_bytes()].concat()
}

/// An application's TCP connection, from both ends.
async fn connection() -> (TcpStream, TcpStream) {
    let listener = tcp::listen(([127, 0, 0, 1], 0).into()).unwrap();
    let application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (application, listener.accept().await.unwrap().0)
}

#[rstest]
#[case::captured(false)]
#[case::socks5(true)]
#[tokio::test]
async fn a_connection_that_is_cut_while_it_is_carried_fails_and_is_no_longer_in_flight(#[case] by_socks5: bool) {
    let mut world = World::new();
    let (mut application, stream) = connection().await;
    let (outbound, target) = (world.outbound.clone(), world.target.clone());
    let serving = if by_socks5 {
        application.write_all(&socks5_request()).await.unwrap();
        tokio::spawn(async move { socks5::serve(&outbound, stream, None).await })
    } else {
        tokio::spawn(async move { outbound.serve(stream, &target, None).await })
    };
    let mut server = world.application.accept().await.unwrap();
    application.write_all(b"!").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'!');
    assert_eq!(world.at_client.get(), 2);

    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    assert_eq!(world.at_client.get(), 0);
    let mut answers = Vec::new();
    assert_eq!(application.read_to_end(&mut answers).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    drop(world.outbound);
    world.at_gateway.reaches(0).await;
}

#[tokio::test]
async fn a_socks5_client_that_is_dropped_before_its_answer_gets_none() {
    let world = World::new();
    let (mut application, stream) = connection().await;
    application.write_all(&socks5_request()).await.unwrap();
    let outbound = world.outbound.clone();
    let serving = tokio::spawn(async move { socks5::serve(&outbound, stream, None).await });
    // The endpoints are chosen, and nobody has had a turn at connecting to them.
    world.at_client.reaches(2).await;
    serving.abort();
    let mut answers = Vec::new();
    application.read_to_end(&mut answers).await.unwrap();
    assert_eq!(answers, [5, 0]);
}

/// Most of what a connection takes that waits: its task, and what that holds.
#[tokio::test]
async fn connections_are_small_where_they_wait() {
    let world = World::new();
    let stream = || duplex(1).1;
    let served = size_of_val(&world.outbound.serve(stream(), &world.target, None));
    let by_socks5 = size_of_val(&socks5::serve(&world.outbound, stream(), None));
    let held = size_of::<Carried>();
    assert!(served <= 512 && by_socks5 <= 512 && held <= 384, "{served} {by_socks5} {held}");
}

#[tokio::test]
async fn nothing_is_in_flight_after_a_failure_to_connect() {
    let mut world = World::new();
    world.application = Network::new().listen("10.77.0.11:8080".parse().unwrap());
    world.outbound.connect(&world.target, None).await.unwrap_err();
    assert_eq!(world.at_client.get(), 0);
    drop(world.outbound);
    world.at_gateway.reaches(0).await;
}
