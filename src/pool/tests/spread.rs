//! Many tunnels over few connections to many backends.

use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex};

use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::super::PoolConfig;
use super::world::{Does, Peer, World, address, assert_unused, connect, echoes, finish, millis, through};
use crate::metadata::{Baggage, Metadata, WorkloadType};
use crate::path::Reuse;

/// What tells a client which backend it has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    ByTheGateway,
    ByThePod,
    Never,
}

struct Spread {
    world: World,
    pods: Vec<Peer>,
    _gateway: Peer,
}

impl Spread {
    fn new(backends: usize, told: Told, seed: u64) -> Self {
        let world = World::new();
        let pod = |n: usize| {
            let name = format!("pod-{n}");
            let baggage = Baggage::default().with_namespace("default").with_workload(WorkloadType::Pod, name);
            let answer = Metadata::default().with_baggage(baggage);
            world.peer(Does::Echo(Box::new(if told == Told::ByThePod { answer } else { Metadata::default() })))
        };
        let pods: Vec<_> = (0..backends).map(pod).collect();
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        let gateway = match told {
            Told::ByTheGateway => world.peer(Does::Tell(pods.clone(), rng)),
            _ => world.peer(Does::Forward(pods.clone(), rng)),
        };
        gateway.listen(&world.net.network, address(1));
        Self { world, pods, _gateway: gateway }
    }

    /// Opens this many short connections, 16 at a time.
    async fn load(&self, connections: usize) {
        let (pool, source) = self.world.pool(PoolConfig::new());
        let path = through(1, Reuse::Spread(self.pods.len() as u32));
        let (pool, left) = (Arc::new(pool), Arc::new(AtomicIsize::new(connections as isize)));
        let mut tasks = JoinSet::new();
        for _ in 0..16 {
            let (pool, source, path, left) = (pool.clone(), source.clone(), path.clone(), left.clone());
            tasks.spawn(async move {
                while left.fetch_sub(1, Ordering::SeqCst) > 0 {
                    let mut tunnel = connect(&pool, &source, &path).await.unwrap();
                    echoes(&mut tunnel).await;
                    finish(tunnel).await;
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        while pool.stats().tunnels + pool.stats().dials > 0 {
            sleep(millis(1)).await;
        }
        assert_unused(pool.stats());
    }

    fn handshakes(&self) -> usize {
        self.pods.iter().map(Peer::handshakes).sum()
    }

    /// How far the share of any backend is from a fair one, in percent.
    fn unfairness(&self) -> usize {
        let served: Vec<_> = self.pods.iter().map(Peer::served).collect();
        let fair = served.iter().sum::<usize>() / served.len();
        served.iter().map(|n| n.abs_diff(fair) * 100 / fair).max().unwrap()
    }
}

#[rstest]
#[case::a_gateway_that_tells(Told::ByTheGateway, 6, 10)]
#[case::pods_that_tell(Told::ByThePod, 12, 20)]
#[tokio::test]
async fn three_thousand_connections_are_spread_over_three_backends_for_few_handshakes(
    #[case] told: Told,
    #[case] handshakes: usize,
    #[case] percent: usize,
) {
    let spread = Spread::new(3, told, 1);
    spread.load(3_000).await;
    let (cost, unfairness) = (spread.handshakes(), spread.unfairness());
    assert!(cost <= handshakes, "{cost} handshakes");
    assert!(unfairness <= percent, "{unfairness} %");
}

/// Nobody can be fair then; but everybody is served, and the handshakes stay few.
#[tokio::test]
async fn where_nobody_tells_twice_as_many_connections_are_kept() {
    let spread = Spread::new(3, Told::Never, 1);
    spread.load(3_000).await;
    assert_eq!(spread.handshakes(), 6);
    assert!(spread.pods.iter().all(|pod| pod.served() > 0), "{:?}", spread.pods);
}

#[tokio::test]
async fn thirty_backends_cost_as_many_handshakes() {
    let spread = Spread::new(30, Told::ByTheGateway, 1);
    spread.load(3_000).await;
    assert!((30..=60).contains(&spread.handshakes()), "{}", spread.handshakes());
}

/// Takes half a minute in a debug build.
#[tokio::test]
#[ignore = "slow: 30,000 connections"]
async fn thirty_thousand_connections_are_spread_over_thirty_backends() {
    let spread = Spread::new(30, Told::ByTheGateway, 1);
    spread.load(30_000).await;
    let (cost, unfairness) = (spread.handshakes(), spread.unfairness());
    println!("{cost} handshakes, {unfairness} %");
    assert!(cost <= 60 && unfairness <= 15, "{cost} handshakes, {unfairness} %");
}
