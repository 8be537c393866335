//! Peers that die, stall and refuse while many callers connect: nobody fails, and how long it took is told by a paused
//! clock.
//!
//! Two gateways of west, three pods behind them, all settings as they are by default. That an example's processes do
//! the same is tested beside the examples.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rstest::rstest;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, copy_bidirectional, duplex,
};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::super::harness::{server_id, trusted};
use super::world::{FAR, World, address, gateway_id};
use crate::balance::LeastRequests;
use crate::connector::ConnectorConfig;
use crate::io::{BoxStream, Dial, DialFuture, DialRequest, Stream};
use crate::mesh::Snapshot;
use crate::metadata::Metadata;
use crate::proxy::{Gateway, Inbound, Outbound};
use crate::server::{self, Incoming};
use crate::tls::Acceptor;
use crate::{Refusal, RefusalReason, drain, testing};

const CALLERS: u64 = 32;
const ROUNDS: usize = 10;
const PODS: [&str; 3] = ["a", "b", "c"];
const GATEWAYS: [&str; 2] = ["gateway-0", "gateway-1"];

fn world() -> World {
    let world = World::new();
    world.east.mesh.send_replace(east());
    world.west.mesh.send_replace(west());
    world
}

fn east() -> Snapshot {
    let mut text = "workloads:\n- {uid: east/client, name: client, namespace: default, serviceAccount: client, network: east, protocol: HBONE, workloadIps: [10.1.0.1]}\n".to_owned();
    for (n, name) in GATEWAYS.iter().enumerate() {
        text += &format!(
            "- {{uid: {name}, name: {name}, namespace: istio, serviceAccount: gateway, network: west, protocol: HBONE, workloadIps: [10.9.0.{n}], services: {{istio/gateway.istio.svc: {{15008: 15008}}}}}}\n"
        );
    }
    text += "- {uid: west/all, name: all, namespace: default, network: west, protocol: HBONE, capacity: 3, networkGateway: {destination: istio/gateway.istio.svc, hboneMtlsPort: 15008}, services: {default/global.default.svc.cluster.local: {}}}\n";
    text += "services:\n- {name: gateway, namespace: istio, hostname: gateway.istio.svc, ports: {15008: 15008}}\n";
    text += "- {name: global, namespace: default, hostname: global.default.svc.cluster.local, ports: {80: 8080}, subjectAltNames: [\"spiffe://cluster.local/ns/default/sa/server\"]}\n";
    Snapshot::parse("east", &text).unwrap()
}

fn west() -> Snapshot {
    let mut text = "workloads:\n".to_owned();
    for (n, name) in PODS.iter().enumerate() {
        text += &format!(
            "- {{uid: {name}, name: {name}, namespace: default, serviceAccount: server, network: west, protocol: HBONE, workloadIps: [10.1.0.{n}], services: {{default/global.default.svc.cluster.local: {{80: 9090}}}}}}\n"
        );
    }
    text += "services:\n- {name: global, namespace: default, hostname: global.default.svc.cluster.local, ports: {80: 8080}}\n";
    Snapshot::parse("west", &text).unwrap()
}

/// Somebody who serves at an address.
struct Serving(JoinHandle<()>);

impl Serving {
    fn start<F, S>(network: &testing::Network, at: &str, serve: F) -> Self
    where
        F: Fn(DuplexStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let mut listener = network.listen(address(at));
        Self(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(stream) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        }))
    }

    /// Ends it at once, with all of its connections.
    async fn kill(self) {
        self.0.abort();
        let _ = self.0.await;
    }
}

fn start_gateway(world: &World, n: usize, frozen: &Arc<AtomicBool>) -> Serving {
    let dialer = Arc::new(Freezing { network: world.west.network.clone(), frozen: frozen.clone() });
    let gateway: Gateway = world.gateway_by(dialer, Arc::new(LeastRequests::new()));
    Serving::start(&world.east.network, &format!("10.9.0.{n}:15008"), move |stream| {
        let gateway = gateway.clone();
        async move { drop(gateway.serve(stream, None, &drain::channel().1).await) }
    })
}

fn start_pod(world: &World, n: usize) -> Serving {
    let inbound = Inbound::new(world.server(&server_id()), world.west.mesh.subscribe(), "default", PODS[n])
        .with_dialer(Arc::new(Application(PODS[n])));
    Serving::start(&world.west.network, &format!("10.1.0.{n}:15008"), move |stream| {
        let inbound = inbound.clone();
        async move { drop(inbound.serve(stream, None, &drain::channel().1).await) }
    })
}

fn start_pods(world: &World) -> Vec<Serving> {
    (0..PODS.len()).map(|n| start_pod(world, n)).collect()
}

/// Answers with its name, after five milliseconds.
#[derive(Debug)]
struct Application(&'static str);

impl Dial for Application {
    fn dial<'a>(&'a self, _request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let (near, mut far) = duplex(64);
        let name = self.0;
        tokio::spawn(async move {
            sleep(Duration::from_millis(5)).await;
            far.write_all(name.as_bytes()).await
        });
        Box::pin(std::future::ready(Ok(Box::new(near) as BoxStream)))
    }
}

/// A network in which the connections to the first pod stand still at times.
#[derive(Debug)]
struct Freezing {
    network: testing::Network,
    frozen: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Freezable {
    io: DuplexStream,
    frozen: Arc<AtomicBool>,
}

impl Dial for Freezing {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let to = request.socket_addr().unwrap();
        let stream = self.network.connect(to).map(|io| match to == address("10.1.0.0:15008") {
            true => Box::new(Freezable { io, frozen: self.frozen.clone() }) as BoxStream,
            false => Box::new(io),
        });
        Box::pin(std::future::ready(stream))
    }
}

impl Freezable {
    fn is_frozen(&self, cx: &Context<'_>) -> bool {
        let frozen = self.frozen.load(Ordering::Relaxed);
        if frozen {
            let waker = cx.waker().clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(100)).await;
                waker.wake();
            });
        }
        frozen
    }
}

impl Stream for Freezable {}

impl AsyncRead for Freezable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_frozen(cx) { Poll::Pending } else { Pin::new(&mut self.io).poll_read(cx, buf) }
    }
}

impl AsyncWrite for Freezable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_frozen(cx) { Poll::Pending } else { Pin::new(&mut self.io).poll_write(cx, buf) }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What is wrong with a gateway.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wrong {
    Silent,
    StallsInTls,
    Refuses,
    GoesAwayAfter(usize),
}

fn start_wrong_gateway(world: &World, n: usize, wrong: Wrong) -> Serving {
    let acceptor = Acceptor::new(Arc::new(world.ca.issue(&gateway_id())), trusted(), world.config.clone());
    let west = world.west.network.clone();
    Serving::start(&world.east.network, &format!("10.9.0.{n}:15008"), move |mut stream| {
        let (acceptor, west) = (acceptor.clone(), west.clone());
        async move {
            match wrong {
                Wrong::Silent => std::future::pending().await,
                Wrong::StallsInTls => {
                    stream.write_all(&[22, 3, 3, 0, 122, 2]).await.unwrap();
                    while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {}
                }
                Wrong::Refuses | Wrong::GoesAwayAfter(_) => tunnels(&acceptor, stream, &west, wrong).await,
            }
        }
    })
}

async fn tunnels(acceptor: &Acceptor, stream: DuplexStream, west: &testing::Network, wrong: Wrong) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let Ok(mut server) = server::handshake(stream).await else { return };
    let (mut tunnels, mut opened) = (JoinSet::new(), 0);
    if wrong == Wrong::GoesAwayAfter(0) {
        server.graceful_shutdown();
    }
    while let Some(Ok(incoming)) = server.accept().await {
        opened += 1;
        match wrong {
            Wrong::GoesAwayAfter(some) => {
                tunnels.spawn(forward(incoming, west.clone()));
                if opened == some {
                    server.graceful_shutdown();
                }
            }
            _ => incoming.reject(&Refusal::new(RefusalReason::DestinationUnavailable)),
        }
    }
}

async fn forward(incoming: Incoming, west: testing::Network) {
    let pod = SocketAddr::from(([10, 1, 0, fastrand::u8(..3)], 15008));
    if let (Ok(mut pod), Ok(mut tunnel)) = (west.connect(pod), incoming.accept(&Metadata::default())) {
        let _ = copy_bidirectional(&mut tunnel, &mut pod).await;
    }
}

/// What became of one connection that got its 200.
#[derive(Debug)]
struct Opened {
    connect: Duration,
    gateway: String,
    answer: io::Result<String>,
}

/// Many callers, one connection after the other. Each must get its 200.
async fn load(outbound: &Outbound) -> Vec<Opened> {
    let mut callers = JoinSet::new();
    for n in 0..CALLERS {
        let outbound = outbound.clone();
        callers.spawn(async move {
            sleep(Duration::from_millis(n % 10)).await;
            let mut opened = Vec::new();
            for _ in 0..ROUNDS {
                opened.push(one(&outbound).await);
                sleep(Duration::from_millis(5)).await;
            }
            opened
        });
    }
    callers.join_all().await.into_iter().flatten().collect()
}

async fn one(outbound: &Outbound) -> Opened {
    let start = Instant::now();
    let connected = outbound.connect(&FAR.parse().unwrap(), None).await;
    let mut connected = connected.unwrap_or_else(|error| panic!("after {:?}: {error}", start.elapsed()));
    let connect = start.elapsed();
    let gateway = connected.route.gateway.as_ref().unwrap().name.to_string();
    let mut answer = String::new();
    let answer = connected.tunnel.read_to_string(&mut answer).await.map(|_| answer);
    Opened { connect, gateway, answer }
}

/// The load, with something that happens in the midst of it.
async fn load_and(outbound: &Outbound, event: impl Future<Output = ()>) -> Vec<Opened> {
    let event = async {
        sleep(Duration::from_millis(50)).await;
        event.await;
    };
    tokio::join!(load(outbound), event).0
}

/// No connection took longer than this many seconds to its 200, and at most `cut` were cut after it.
fn assert_fine(opened: &[Opened], seconds: f64, cut: usize) {
    let slowest = opened.iter().map(|opened| opened.connect).max().unwrap();
    let were_cut = opened.iter().filter(|opened| opened.answer.is_err()).count();
    println!("{} connections, {were_cut} cut, slowest {slowest:?}", opened.len());
    assert_eq!(opened.len(), CALLERS as usize * ROUNDS);
    assert!(slowest <= Duration::from_secs_f64(seconds), "{slowest:?}");
    assert!(were_cut <= cut, "{were_cut} were cut");
}

fn pods(opened: &[Opened]) -> BTreeSet<&str> {
    opened.iter().filter_map(|opened| opened.answer.as_deref().ok()).collect()
}

fn gateways(opened: &[Opened]) -> BTreeSet<&str> {
    opened.iter().map(|opened| &*opened.gateway).collect()
}

/// Everything is up, and connections lead everywhere.
async fn all_up(world: &World) -> (Outbound, Vec<Serving>, Vec<Serving>, Arc<AtomicBool>) {
    all_up_with(world, ConnectorConfig::new()).await
}

async fn all_up_with(
    world: &World,
    settings: ConnectorConfig,
) -> (Outbound, Vec<Serving>, Vec<Serving>, Arc<AtomicBool>) {
    let frozen = Arc::new(AtomicBool::new(false));
    let gateways = (0..GATEWAYS.len()).map(|n| start_gateway(world, n, &frozen)).collect();
    let outbound = Outbound::new(world.connector_with(&world.pool(), settings));
    let pods = start_pods(world);
    everywhere(&outbound).await;
    (outbound, gateways, pods, frozen)
}

/// Connections lead to all pods and through all gateways, and none takes any time.
async fn everywhere(outbound: &Outbound) {
    let opened = load(outbound).await;
    assert_fine(&opened, 0.0, 0);
    assert_eq!((pods(&opened), gateways(&opened)), (PODS.into(), GATEWAYS.into()));
}

/// Longer than anybody is left out for.
const LATER: Duration = Duration::from_secs(120);

#[tokio::test(start_paused = true)]
async fn a_pod_of_three_is_killed_and_returns() {
    let world = world();
    let (outbound, _gateways, mut running, _) = all_up(&world).await;
    let opened = load_and(&outbound, running.remove(0).kill()).await;
    assert_fine(&opened, 0.0, CALLERS as usize);
    let opened = load(&outbound).await;
    assert_fine(&opened, 0.0, 0);
    assert_eq!(pods(&opened), ["b", "c"].into());
    let _again = start_pod(&world, 0);
    sleep(LATER).await;
    load(&outbound).await;
    everywhere(&outbound).await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_of_two_is_killed_and_returns() {
    let world = world();
    let (outbound, mut running, _pods, frozen) = all_up(&world).await;
    let opened = load_and(&outbound, running.remove(0).kill()).await;
    assert_fine(&opened, 0.0, CALLERS as usize);
    let opened = load(&outbound).await;
    assert_fine(&opened, 0.0, 0);
    assert_eq!(gateways(&opened), ["gateway-1"].into());
    let _again = start_gateway(&world, 0, &frozen);
    sleep(LATER).await;
    load(&outbound).await;
    everywhere(&outbound).await;
}

#[rstest]
#[case::by_default(3.0)]
#[case::of_impatient_callers(0.3)]
#[tokio::test(start_paused = true)]
async fn a_pod_of_three_stands_still_for_twenty_seconds(#[case] attempt_timeout: f64) {
    let world = world();
    let settings = ConnectorConfig::new().with_attempt_timeout(Duration::from_secs_f64(attempt_timeout));
    let (outbound, _gateways, _pods, frozen) = all_up_with(&world, settings).await;
    let stand_still = async {
        frozen.store(true, Ordering::Relaxed);
        sleep(Duration::from_secs(20)).await;
        frozen.store(false, Ordering::Relaxed);
    };
    let opened = load_and(&outbound, stand_still).await;
    assert_fine(&opened, 2.0 * attempt_timeout, 0);
    sleep(LATER).await;
    load(&outbound).await;
    everywhere(&outbound).await;
}

/// No tunnel is open on the connections to it, so that they look as good as the others each time.
#[rstest]
#[case::by_default(3.0)]
#[case::impatient(0.3)]
#[tokio::test(start_paused = true)]
async fn callers_one_by_one_do_not_meet_a_pod_that_stands_still_for_long(#[case] attempt_timeout: f64) {
    let world = world();
    let settings = ConnectorConfig::new().with_attempt_timeout(Duration::from_secs_f64(attempt_timeout));
    let (outbound, _gateways, _pods, frozen) = all_up_with(&world, settings).await;
    frozen.store(true, Ordering::Relaxed);
    let (start, mut slow) = (Instant::now(), 0);
    for _ in 0..60 {
        let opened = one(&outbound).await;
        assert!(opened.connect <= Duration::from_secs_f64(2.0 * attempt_timeout), "{:?}", opened.connect);
        assert_ne!(opened.answer.unwrap(), "a");
        slow += usize::from(opened.connect > Duration::ZERO);
    }
    println!("{slow} were slow, all took {:?}", start.elapsed());
    assert!(slow <= 8, "{slow} met it");
}

#[rstest]
#[case::silent(Wrong::Silent, 3.0)]
#[case::stalls(Wrong::StallsInTls, 3.0)]
#[case::refuses(Wrong::Refuses, 0.0)]
#[case::goes_away_at_once(Wrong::GoesAwayAfter(0), 0.0)]
#[case::goes_away_after_three(Wrong::GoesAwayAfter(3), 0.0)]
#[tokio::test(start_paused = true)]
async fn a_gateway_of_two_is_wrong_and_is_healed(#[case] wrong: Wrong, #[case] seconds: f64) {
    let world = world();
    let frozen = Arc::new(AtomicBool::new(false));
    let _good = start_gateway(&world, 0, &frozen);
    let (_pods, bad, outbound) = (start_pods(&world), start_wrong_gateway(&world, 1, wrong), world.outbound());
    let opened = load(&outbound).await;
    assert_fine(&opened, seconds, 0);
    assert_eq!(pods(&opened), PODS.into());
    bad.kill().await;
    let _healed = start_gateway(&world, 1, &frozen);
    sleep(LATER).await;
    load(&outbound).await;
    everywhere(&outbound).await;
}
