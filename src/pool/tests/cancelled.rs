//! Callers that go away.

use rstest::rstest;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::super::PoolConfig;
use super::world::{Command, World, assert_unused, connect, direct, echoes, quiet, secs, tasks, through};
use crate::path::Reuse;

/// At most this many turns of the runtime pass before a caller goes: about as many as a tunnel takes on a connection
/// that is there, and as a cold nested connection takes.
const TURNS: [usize; 2] = [6, 60];

#[rstest]
#[case::single(false, Reuse::Shared)]
#[case::single_alone(false, Reuse::Never)]
#[case::nested(true, Reuse::Shared)]
#[case::nested_spread(true, Reuse::Spread(3))]
#[tokio::test(start_paused = true)]
async fn callers_that_go_away_at_any_point_leave_nothing_behind(#[case] nested: bool, #[case] reuse: Reuse) {
    // Without reuse, each costs handshakes.
    let callers = if reuse == Reuse::Never { 500 } else { 3200 };
    let world = World::new();
    let pods = [2, 3, 4].map(|n| world.echo(n));
    let gateway = if nested { world.gateway(1, pods.to_vec(), 5) } else { world.echo(1) };
    let (pool, source) = world.pool(PoolConfig::new());
    let path = if nested { through(1, reuse) } else { direct(1, reuse) };
    quiet().await;
    let tasks_before = tasks();
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut gone, mut served) = (0, 0);
    for n in 0..callers {
        let (pool, source, path) = (pool.clone(), source.clone(), path.clone());
        let caller = tokio::spawn(async move {
            // One that goes away under a caller is what the connector is for.
            connect(&pool, &source, &path).await.map_err(|e| assert!(e.is_go_away(), "{e}"))
        });
        let turns = TURNS[rng.usize(..2)];
        for _ in 0..rng.usize(..turns) {
            yield_now().await;
        }
        if caller.is_finished() {
            served += 1;
        } else {
            gone += 1;
        }
        caller.abort();
        match n % 50 {
            // So that it has to dial again now and then, at both hops.
            17 => gateway.command(Command::GoAway),
            34 => pods.iter().for_each(|pod| pod.command(Command::GoAway)),
            _ => {}
        }
    }
    assert!(gone > callers / 50 && served > callers / 50, "{gone} gone, {served} served");
    sleep(secs(5)).await;
    assert_unused(pool.stats());
    for _ in 0..20 {
        echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
    }
    // An inner connection may be idle for as long as its outer one after it.
    sleep(secs(1400)).await;
    let stats = pool.stats();
    assert_unused(stats);
    assert_eq!((stats.keys, stats.connections), (0, 0), "{stats:?}");
    assert_eq!(tasks(), tasks_before);
}

#[tokio::test(start_paused = true)]
async fn the_dial_of_one_who_has_gone_is_there_for_the_next() {
    let world = World::new();
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    {
        let mut caller = tokio_test::task::spawn(connect(&pool, &source, &path));
        assert!(caller.poll().is_pending());
    }
    assert_eq!((pool.stats().waiting, pool.stats().dials), (0, 1));
    quiet().await;
    connect(&pool, &source, &path).await.unwrap();
    assert_eq!(peer.handshakes(), 1);
}
