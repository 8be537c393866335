//! A gateway and several pods behind it, some of which are dead.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rstest::rstest;
use tokio::io::{DuplexStream, duplex};
use tokio::time::{Instant, advance, sleep};

use super::world::{FAR, GATEWAY, World, address, exchange, gateway_id};
use super::{assert_refused, connect, connector, quiet};
use crate::balance::LeastRequests;
use crate::balance::health::OutlierConfig;
use crate::client::{self, Client};
use crate::io::{BoxStream, Dial, DialFuture, DialRequest};
use crate::mesh::Snapshot;
use crate::metadata::{BackendToken, Metadata};
use crate::{Config, Error, RefusalReason, Result, TunnelStream};

/// West with this many pods of the service: `far`, which the world can serve, and others.
fn world(pods: usize) -> World {
    let world = World::new();
    world.west.mesh.send_replace(west(pods));
    world
}

fn west(pods: usize) -> Snapshot {
    let mut text = String::from("workloads:\n");
    for (n, name) in ["far", "b", "c", "d"].iter().take(pods).enumerate() {
        text += &format!(
            "- {{uid: west/{name}, name: {name}, namespace: default, serviceAccount: server, network: west, protocol: HBONE, workloadIps: [10.1.0.{}], services: {{default/global.default.svc.cluster.local: {{80: 9090}}}}}}\n",
            n + 2
        );
    }
    text += "services:\n- {name: global, namespace: default, hostname: global.default.svc.cluster.local, ports: {80: 8080}}\n";
    Snapshot::parse("west", &text).unwrap()
}

/// The addresses of the first pods.
fn pod(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, n + 2], 15008))
}

/// Pods that take every connection, except for those that don't. Clones are the same.
#[derive(Clone, Debug, Default)]
struct Pods(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    refusing: HashSet<SocketAddr>,
    stalling: HashSet<SocketAddr>,
    dialled: Vec<SocketAddr>,
    connections: Vec<DuplexStream>,
}

impl Pods {
    fn refuse(&self, pods: impl IntoIterator<Item = u8>) {
        self.0.lock().unwrap().refusing = pods.into_iter().map(pod).collect();
    }

    fn stall(&self, pods: impl IntoIterator<Item = u8>) {
        self.0.lock().unwrap().stalling = pods.into_iter().map(pod).collect();
    }

    /// Who was dialed since this was asked the last time.
    fn dialled(&self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.0.lock().unwrap().dialled)
    }
}

impl Dial for Pods {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        let address = request.socket_addr().unwrap();
        let mut state = self.0.lock().unwrap();
        state.dialled.push(address);
        if state.stalling.contains(&address) {
            return Box::pin(std::future::pending());
        }
        if state.refusing.contains(&address) {
            return Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())));
        }
        let (near, far) = duplex(1024);
        state.connections.push(far);
        Box::pin(std::future::ready(Ok(Box::new(near) as BoxStream)))
    }
}

/// A connection to the gateway.
async fn to_gateway(world: &World) -> Client {
    let stream = world.east.network.connect(address(GATEWAY)).unwrap();
    let stream = connector(world).connect(stream, &gateway_id().into()).await.unwrap();
    let (client, driver) = client::handshake(stream).await.unwrap();
    tokio::spawn(driver);
    client
}

async fn open(client: &Client, known: &[BackendToken]) -> Result<TunnelStream> {
    client.connect(&FAR.parse().unwrap(), &Metadata::default().with_known_backends(known.iter().cloned())).await
}

async fn token(client: &Client, known: &[BackendToken]) -> BackendToken {
    open(client, known).await.unwrap().metadata().backend().unwrap().clone()
}

#[tokio::test]
async fn a_dead_pod_of_two_costs_the_client_nothing() {
    let world = world(2);
    let _roles = world.far();
    for _ in 0..20 {
        assert_eq!(exchange(connect(&world.outbound(), FAR).await.tunnel, "hello").await, "hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_answer_costs_two_seconds_and_only_until_it_is_ejected() {
    let (world, pods) = (world(2), Pods::default());
    pods.stall([0]);
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let client = to_gateway(&world).await;
    let (start, mut stalled) = (Instant::now(), 0);
    for _ in 0..100 {
        drop(open(&client, &[]).await.unwrap());
        let dialled = pods.dialled();
        assert_eq!(dialled.last(), Some(&pod(1)), "{dialled:?}");
        stalled += dialled.len() - 1;
    }
    assert_eq!((stalled, start.elapsed().as_secs()), (5, 10));
}

#[rstest]
#[case::the_only_one(1, 20, &[10], RefusalReason::ConnectionTimeout)]
#[case::two(2, 20, &[2, 10], RefusalReason::ConnectionTimeout)]
#[case::three(3, 20, &[2, 2, 10], RefusalReason::ConnectionTimeout)]
#[case::more_than_are_tried(4, 20, &[2, 2, 10], RefusalReason::ConnectionTimeout)]
#[case::in_less_time(3, 5, &[2, 2, 1], RefusalReason::ConnectionTimeout)]
#[case::in_no_time(3, 1, &[1], RefusalReason::ConnectionTimeout)]
#[tokio::test(start_paused = true)]
async fn pods_that_do_not_answer_are_a_refusal_in_time(
    #[case] pods: usize,
    #[case] connect_timeout: u64,
    #[case] expected: &[u64],
    #[case] reason: RefusalReason,
) {
    let mut world = world(pods);
    world.config = Arc::new(Config::new().with_connect_timeout(Duration::from_secs(connect_timeout)));
    let pods = Pods::default();
    pods.stall(0..4);
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let (client, start) = (to_gateway(&world).await, Instant::now());
    let error = open(&client, &[]).await.unwrap_err();
    assert_refused(&error, 0, reason, 503, "the pod could not be reached");
    assert_eq!(start.elapsed().as_secs(), expected.iter().sum::<u64>());
    let dialled = pods.dialled();
    assert_eq!(dialled.len(), expected.len());
    assert_eq!(dialled.iter().collect::<BTreeSet<_>>().len(), dialled.len(), "one after the other: {dialled:?}");
}

#[rstest]
#[case::fewer_attempts(2, 2000, 2, 12)]
#[case::one_attempt(1, 2000, 1, 10)]
#[case::none_is_one(0, 2000, 1, 10)]
#[case::less_time_for_each(4, 500, 4, 11)]
#[case::no_more_than_dialling_may_take(2, 60_000, 2, 20)]
#[tokio::test(start_paused = true)]
async fn attempts_and_their_time_can_be_set(
    #[case] attempts: usize,
    #[case] milliseconds: u64,
    #[case] dials: usize,
    #[case] seconds: u64,
) {
    let mut world = world(4);
    world.config = Arc::new(Config::new().with_connect_timeout(Duration::from_secs(60)));
    let pods = Pods::default();
    pods.stall(0..4);
    let gateway = world.gateway_role(Arc::new(pods.clone()));
    let gateway = gateway.with_attempts(attempts).with_attempt_timeout(Duration::from_millis(milliseconds));
    let _gateway = world.serve_gateway(gateway);
    let (client, start) = (to_gateway(&world).await, Instant::now());
    // Longer than the client waits by default.
    let request = tokio::spawn(async move { open(&client, &[]).await });
    while start.elapsed().as_secs() < seconds {
        assert!(!request.is_finished());
        advance(Duration::from_millis(500)).await;
        quiet().await;
    }
    request.await.unwrap().unwrap_err();
    assert_eq!(pods.dialled().len(), dials);
}

#[tokio::test]
async fn the_answer_says_which_pod_it_is_and_each_gateway_in_its_own_words() {
    let (world, pods) = (world(3), Pods::default());
    let role = world.gateway_role(Arc::new(pods.clone()));
    let gateways = [role.clone(), role, world.gateway_role(Arc::new(pods.clone()))];
    let mut tokens = Vec::new();
    for gateway in gateways {
        let _gateway = world.serve_gateway(gateway);
        let client = to_gateway(&world).await;
        let mut pairs = BTreeSet::new();
        for _ in 0..60 {
            let token = token(&client, &[]).await;
            pairs.insert((pods.dialled()[0], token));
        }
        let distinct: BTreeSet<_> = pairs.iter().map(|(_, token)| token.clone()).collect();
        assert_eq!((pairs.len(), distinct.len()), (3, 3), "{pairs:?}");
        tokens.push(distinct);
    }
    assert_eq!(tokens[0], tokens[1], "clones are one gateway");
    assert!(tokens[0].is_disjoint(&tokens[2]));
}

#[tokio::test]
async fn pods_that_the_client_knows_are_avoided_as_long_as_there_are_others() {
    let (world, pods) = (world(3), Pods::default());
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let client = to_gateway(&world).await;
    for _ in 0..20 {
        let mut known = vec!["another-gateways".parse().unwrap()];
        for _ in 0..3 {
            known.push(token(&client, &known).await);
        }
        assert_eq!(known.iter().collect::<BTreeSet<_>>().len(), 4, "{known:?}");
        assert!(known.contains(&token(&client, &known).await), "with all of them known, one is used again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_known_pod_that_works_is_better_than_an_unknown_one_that_does_not() {
    let (world, pods) = (world(2), Pods::default());
    pods.refuse([0]);
    let outliers = OutlierConfig::new().with_consecutive_failures(1).with_max_ejection_percent(100);
    let _gateway = world.serve_gateway(world.gateway_role(Arc::new(pods.clone())).with_outliers(outliers));
    let client = to_gateway(&world).await;
    let known = loop {
        let known = token(&client, &[]).await;
        if pods.dialled().len() == 2 {
            break known;
        }
    };
    assert_eq!(token(&client, std::slice::from_ref(&known)).await, known);
    assert_eq!(pods.dialled(), [pod(1)], "it has not tried the dead one first");
}

#[tokio::test(start_paused = true)]
async fn an_ejected_pod_comes_back_after_its_time() {
    let (world, pods) = (world(2), Pods::default());
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let client = to_gateway(&world).await;
    let dialled = async |times: usize| {
        for _ in 0..times {
            drop(open(&client, &[]).await.unwrap());
        }
        pods.dialled().into_iter().filter(|address| *address == pod(0)).count()
    };
    pods.refuse([0]);
    assert_eq!(dialled(100).await, 5);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(dialled(100).await, 1, "a probe");
    pods.refuse([]);
    sleep(Duration::from_secs(59)).await;
    assert_eq!(dialled(100).await, 0, "it is out for longer the second time");
    sleep(Duration::from_secs(2)).await;
    assert!(dialled(100).await > 10);
}

#[tokio::test]
async fn with_all_pods_ejected_all_are_tried() {
    let (world, pods) = (world(2), Pods::default());
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let client = to_gateway(&world).await;
    pods.refuse(0..2);
    let refused = |error: &Error| assert_refused(error, 0, RefusalReason::ConnectionRefused, 503, "not be reached");
    for _ in 0..20 {
        refused(&open(&client, &[]).await.unwrap_err());
        assert_eq!(pods.dialled().into_iter().collect::<BTreeSet<_>>(), [pod(0), pod(1)].into());
    }
    pods.refuse([1]);
    open(&client, &[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn clients_that_give_up_say_nothing_about_a_pod() {
    let (world, pods) = (world(2), Pods::default());
    pods.stall(0..2);
    let _gateway = world.gateway_over(Arc::new(pods.clone()));
    let client = to_gateway(&world).await;
    for _ in 0..40 {
        let client = client.clone();
        let giving_up = tokio::spawn(async move { open(&client, &[]).await });
        quiet().await;
        giving_up.abort();
        quiet().await;
    }
    assert_eq!(pods.dialled().len(), 40, "a dial ends with its client");
    pods.stall([]);
    for _ in 0..40 {
        drop(open(&client, &[]).await.unwrap());
    }
    assert_eq!(pods.dialled().into_iter().collect::<BTreeSet<_>>(), [pod(0), pod(1)].into());
}

#[tokio::test]
async fn by_least_requests_open_tunnels_are_even() {
    let (world, pods) = (world(2), Pods::default());
    let _gateway = world.serve_gateway(world.gateway_by(Arc::new(pods.clone()), Arc::new(LeastRequests::new())));
    let client = to_gateway(&world).await;
    let mut held = Vec::new();
    for n in 1..=5 {
        held.push(open(&client, &[]).await.unwrap());
        held.push(open(&client, &[]).await.unwrap());
        let dialled = pods.0.lock().unwrap().dialled.clone();
        assert_eq!(dialled.iter().filter(|address| **address == pod(0)).count(), n);
    }
}
