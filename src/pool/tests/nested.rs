//! Connections inside others: how they and the whole pool end.

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::PoolConfig;
use super::world::{World, assert_unused, connect, direct, echoes, finish, quiet, secs, tasks, through};
use crate::ErrorKind;
use crate::path::Reuse;

#[tokio::test(start_paused = true)]
async fn closing_ends_inner_connections_before_outer_ones_and_counts_what_finished() {
    let world = World::new();
    let pod = world.echo(2);
    let gateway = world.gateway(1, vec![pod.clone()], 1);
    let (sender, mut ends) = mpsc::unbounded_channel();
    pod.tell_ends(sender.clone());
    gateway.tell_ends(sender);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = through(1, Reuse::Shared);
    let mut tunnels = Vec::new();
    for _ in 0..3 {
        tunnels.push(connect(&pool, &source, &path).await.unwrap());
    }
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close(secs(30)).await }
    });
    quiet().await;
    let error = connect(&pool, &source, &path).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Closed);
    for mut tunnel in tunnels {
        echoes(&mut tunnel).await;
        sleep(secs(5)).await;
        finish(tunnel).await;
    }
    let report = closing.await.unwrap();
    assert_eq!((report.finished, report.cut), (3, 0));
    quiet().await;
    assert_eq!((ends.recv().await, ends.recv().await), (Some("inner"), Some("outer")));
    assert_unused(pool.stats());
    assert_eq!((pool.stats().connections, pool.stats().keys), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_open_after_the_grace_is_cut_and_counted() {
    let world = World::new();
    let _gateway = world.gateway(1, vec![world.echo(2)], 1);
    let _near = world.echo(3);
    quiet().await;
    let tasks_before = tasks();
    let (pool, source) = world.pool(PoolConfig::new());
    let inner = through(1, Reuse::Shared);
    let ends_in_time = connect(&pool, &source, &inner).await.unwrap();
    let cut_inside = connect(&pool, &source, &inner).await.unwrap();
    let cut_outside = connect(&pool, &source, &direct(3, Reuse::Shared)).await.unwrap();
    let begin = Instant::now();
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close(secs(10)).await }
    });
    sleep(secs(1)).await;
    finish(ends_in_time).await;
    let report = closing.await.unwrap();
    assert_eq!((report.finished, report.cut), (1, 2));
    assert_eq!(begin.elapsed(), secs(10));
    drop((cut_inside, cut_outside));
    sleep(secs(5)).await;
    assert_unused(pool.stats());
    assert_eq!(pool.stats().connections, 0);
    assert_eq!(tasks(), tasks_before);
}

#[tokio::test(start_paused = true)]
async fn closing_fails_who_waits_and_ends_their_dials() {
    let world = World::new();
    world.net.set(super::world::Manner::Swallows);
    let (pool, source) = world.pool(PoolConfig::new());
    let tasks_before = tasks();
    let calls: Vec<_> = [direct(1, Reuse::Shared), through(1, Reuse::Shared), through(1, Reuse::Spread(2))]
        .into_iter()
        .map(|path| {
            let (pool, source) = (pool.clone(), source.clone());
            tokio::spawn(async move { connect(&pool, &source, &path).await.unwrap_err() })
        })
        .collect();
    sleep(secs(1)).await;
    assert_eq!((pool.stats().waiting, pool.stats().dials), (5, 3));
    let begin = Instant::now();
    let report = pool.close(secs(10)).await;
    assert_eq!((report.finished, report.cut, begin.elapsed()), (0, 0, secs(0)));
    for call in calls {
        assert_eq!(call.await.unwrap().kind(), &ErrorKind::Closed);
    }
    quiet().await;
    assert_eq!(pool.stats().keys, 0);
    assert_eq!(tasks(), tasks_before);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_ends_when_its_tunnels_do() {
    let world = World::new();
    let gateway = world.gateway(1, vec![world.echo(2)], 1);
    quiet().await;
    let tasks_before = tasks();
    let (pool, source) = world.pool(PoolConfig::new());
    let mut tunnel = connect(&pool, &source, &through(1, Reuse::Shared)).await.unwrap();
    let idle = connect(&pool, &source, &direct(1, Reuse::Never)).await.unwrap();
    drop(idle);
    drop((pool, source));
    sleep(secs(5)).await;
    echoes(&mut tunnel).await;
    finish(tunnel).await;
    sleep(secs(5)).await;
    assert_eq!(gateway.connections(), 0);
    assert_eq!(tasks(), tasks_before);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_fails_who_waits() {
    let world = World::new();
    world.net.set(super::world::Manner::Swallows);
    let (pool, source) = world.pool(PoolConfig::new());
    let tasks_before = tasks();
    let path = through(1, Reuse::Shared);
    let lease = {
        let checkout = pool.checkout(&source, &path);
        let mut waiting = tokio_test::task::spawn(checkout);
        assert!(waiting.poll().is_pending());
        quiet().await;
        drop(waiting);
        pool.stats().dials
    };
    assert_eq!(lease, 2);
    drop((pool, source));
    quiet().await;
    assert_eq!(tasks(), tasks_before, "its dials end with it");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_goes_takes_all_inside_along_and_the_next_come_up_anew() {
    let world = World::new();
    let pods = [2, 3].map(|n| world.echo(n));
    let gateway = world.gateway(1, pods.to_vec(), 3);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = through(1, Reuse::Spread(2));
    for round in 1..=5 {
        for _ in 0..20 {
            finish(connect(&pool, &source, &path).await.unwrap()).await;
        }
        assert_eq!(gateway.handshakes(), round);
        gateway.command(super::world::Command::Break);
        sleep(secs(5)).await;
        assert_eq!(pool.stats().connections, 0, "round {round}: {:?}", pool.stats());
    }
}
