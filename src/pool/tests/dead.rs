//! Peers that can't be reached, or say nothing.

use rstest::rstest;
use tokio::time::{Instant, sleep};

use super::super::PoolConfig;
use super::world::{
    Does, Manner, World, address, assert_unused, connect, direct, echoes, millis, quiet, secs, tasks, through,
};
use crate::path::Reuse;
use crate::{Config, ErrorKind, Layer};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Refuses,
    Swallows,
    Stalls,
    IsMute,
}

impl Death {
    fn strike(self, world: &World) {
        match self {
            Self::Refuses => {}
            Self::Swallows => world.net.set(Manner::Swallows),
            Self::Stalls => world.net.set(Manner::Stalls),
            Self::IsMute => world.peer(Does::Mute).listen(&world.net.network, address(1)),
        }
    }
}

#[rstest]
#[case(Death::Refuses, ErrorKind::Unreachable, Layer::Dial, 0)]
#[case(Death::Swallows, ErrorKind::Timeout, Layer::Dial, 10)]
#[case(Death::Stalls, ErrorKind::Timeout, Layer::Tls, 10)]
#[case(Death::IsMute, ErrorKind::Timeout, Layer::Http2, 10)]
#[tokio::test(start_paused = true)]
async fn five_hundred_callers_of_a_dead_peer_hear_of_it_in_time_and_by_one_dial(
    #[case] death: Death,
    #[case] kind: ErrorKind,
    #[case] layer: Layer,
    #[case] seconds: u64,
    #[values(false, true)] nested: bool,
) {
    let world = World::with(Config::new().with_max_tunnels(500));
    death.strike(&world);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = if nested { through(1, Reuse::Spread(3)) } else { direct(1, Reuse::Shared) };
    let tasks_before = tasks();
    let begin = Instant::now();
    let callers: Vec<_> = (0..500)
        .map(|_| {
            let (pool, source, path) = (pool.clone(), source.clone(), path.clone());
            tokio::spawn(async move { connect(&pool, &source, &path).await.unwrap_err() })
        })
        .collect();
    for caller in callers {
        let error = caller.await.unwrap();
        assert_eq!((error.kind(), error.hop()), (&kind, Some(0)), "{error:?}");
        // Where both hops are late at the same moment, either may tell.
        if !nested {
            assert_eq!(error.layer(), layer, "{error:?}");
        }
    }
    assert_eq!(begin.elapsed().as_secs(), seconds);
    assert_eq!(world.net.dials(), 1);
    quiet().await;
    assert_unused(pool.stats());
    assert_eq!(pool.stats().connections, 0);
    sleep(secs(60)).await;
    assert_eq!(pool.stats().keys, 0, "all is forgotten");
    if death != Death::IsMute {
        assert_eq!(tasks(), tasks_before);
    }
}

#[rstest]
#[case::at_the_limit_of_a_connection(100, 1)]
#[case::above_it(500, 5)]
#[tokio::test(start_paused = true)]
async fn as_many_dials_are_under_way_as_connections_are_wanted(#[case] callers: usize, #[case] dials: usize) {
    let world = World::new();
    world.net.set(Manner::Swallows);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    let calls = (0..callers).map(|_| connect(&pool, &source, &path));
    let results = futures_util::future::join_all(calls).await;
    assert!(results.iter().all(Result::is_err));
    assert_eq!(world.net.dials(), dials);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_others_hear_at_once_then_it_is_tried_again_and_recovers() {
    let world = World::new();
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    for (n, wait) in [100, 200, 400, 800, 1600, 3000, 3000].into_iter().enumerate() {
        connect(&pool, &source, &path).await.unwrap_err();
        sleep(millis(wait - 10)).await;
        let begin = Instant::now();
        let error = connect(&pool, &source, &path).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Unreachable, millis(0)));
        assert_eq!(world.net.dials(), n + 1);
        sleep(millis(10)).await;
    }
    let _peer = world.echo(1);
    echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_comes_to_life_within_the_back_off_is_found_after_it() {
    let world = World::new();
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    connect(&pool, &source, &path).await.unwrap_err();
    let _peer = world.echo(1);
    connect(&pool, &source, &path).await.unwrap_err();
    sleep(millis(100)).await;
    connect(&pool, &source, &path).await.unwrap();
}

#[rstest]
#[case(Death::Swallows, Layer::Dial, 0)]
#[case(Death::Stalls, Layer::Tls, 0)]
#[tokio::test(start_paused = true)]
async fn who_runs_out_of_time_says_where_at_any_depth(#[case] death: Death, #[case] layer: Layer, #[case] hop: usize) {
    let config = Config::new().with_dial_timeout(secs(60)).with_tls_timeout(secs(60));
    let world = World::with(config);
    death.strike(&world);
    let (pool, source) = world.pool(PoolConfig::new().with_open_timeout(secs(5)));
    let begin = Instant::now();
    let error = connect(&pool, &source, &through(1, Reuse::Shared)).await.unwrap_err();
    assert_eq!(begin.elapsed(), secs(5));
    assert_eq!((error.kind(), error.hop()), (&ErrorKind::Timeout, Some(hop)), "{error:?}");
    // A caller that waits for another dial may be the first to run out of time.
    assert!([layer, Layer::Dial].contains(&error.layer()), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mute_pod_behind_a_gateway_is_named_as_the_inner_hop() {
    let world = World::new();
    let gateway = world.gateway(1, vec![world.peer(Does::Mute)], 1);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = through(1, Reuse::Spread(2));
    let calls = (0..50).map(|_| connect(&pool, &source, &path));
    for result in futures_util::future::join_all(calls).await {
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.layer(), error.hop()), (&ErrorKind::Timeout, Layer::Http2, Some(1)));
    }
    assert_eq!(gateway.served(), 1, "one dial");
    quiet().await;
    assert_unused(pool.stats());
}
