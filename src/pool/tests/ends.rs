//! What ends a connection: no new tunnels on it, running ones finish, another one takes over where that is allowed.

use std::sync::{Arc, Mutex};

use rstest::rstest;
use tokio::time::sleep;

use super::super::PoolConfig;
use super::world::{
    Command, Rotating, World, address, assert_unused, connect, direct, echoes, finish, id, quiet, secs, tasks, through,
    trusted,
};
use crate::metadata::Metadata;
use crate::path::Reuse;
use crate::tests::harness::BoxIo;
use crate::tls::Acceptor;
use crate::{Config, ErrorKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    GoAway,
    Rotated,
    SourceDropped,
    Age,
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn running_tunnels_finish_and_new_ones_go_on_another_connection(
    #[values(End::GoAway, End::Rotated, End::SourceDropped, End::Age)] end: End,
    #[values(false, true)] nested: bool,
) {
    let world = World::new();
    let pod = world.echo(2);
    let outer = if nested { world.gateway(1, vec![pod.clone()], 1) } else { world.echo(1) };
    let (pool, _) = world.pool(PoolConfig::new());
    let credentials = Arc::new(Rotating(Mutex::new(world.ca.issue(&id("client")))));
    let source = pool.source(credentials.clone(), Metadata::default()).unwrap();
    let path = if nested { through(1, Reuse::Shared) } else { direct(1, Reuse::Shared) };
    quiet().await;
    let tasks_before = tasks();

    let mut first = connect(&pool, &source, &path).await.unwrap();
    echoes(&mut first).await;
    let mut source = Some(source);
    match end {
        End::GoAway => outer.command(Command::GoAway),
        End::Rotated => *credentials.0.lock().unwrap() = world.ca.issue(&id("client")),
        End::SourceDropped => drop(source.take()),
        End::Age => sleep(secs(670)).await,
    }
    quiet().await;
    echoes(&mut first).await;
    if let Some(source) = &source {
        let mut second = connect(&pool, source, &path).await.unwrap();
        echoes(&mut second).await;
        assert_eq!(outer.handshakes(), 2, "a new connection");
        if nested {
            assert_eq!(pod.handshakes(), 2, "at both hops");
        }
        finish(second).await;
    }
    echoes(&mut first).await;
    finish(first).await;
    sleep(secs(5)).await;
    // Age alone does not end what runs inside: an inner connection that is younger may still be there.
    if !(nested && end == End::Age) {
        assert_eq!(outer.connections(), usize::from(source.is_some()), "the old one is closed");
    }
    sleep(secs(700)).await;
    assert_unused(pool.stats());
    assert_eq!((pool.stats().connections, pool.stats().keys), (0, 0));
    assert_eq!(tasks(), tasks_before);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_replaced() {
    let config = Config::new().with_keepalive_interval(Some(secs(1))).with_keepalive_timeout(secs(1));
    let world = World::with(config);
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    let _held = connect(&pool, &source, &path).await.unwrap();
    peer.command(Command::Freeze);
    // An interval with the peer's SETTINGS in it, one without anything, and the time for an answer.
    sleep(secs(5)).await;
    echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
    assert_eq!(peer.handshakes(), 2);
    assert_eq!(pool.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_has_waited_in_vain_takes_a_silent_connection_out_of_use() {
    let world = World::new();
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    let _held = connect(&pool, &source, &path).await.unwrap();
    peer.command(Command::Freeze);
    quiet().await;
    tokio::time::timeout(secs(3), connect(&pool, &source, &path)).await.unwrap_err();
    echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
    assert_eq!(peer.handshakes(), 2);
}

#[tokio::test(start_paused = true)]
async fn enhance_your_calm_takes_a_connection_out_of_use() {
    let world = World::new();
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), Arc::default());
    let mut listener = world.net.network.listen(address(1));
    tokio::spawn(async move {
        let mut held = Vec::new();
        for connection in 0.. {
            let io: BoxIo = Box::new(listener.accept().await.unwrap());
            let stream = acceptor.accept(io).await.unwrap();
            let mut server = h2::server::handshake(stream).await.unwrap();
            tokio::spawn(async move {
                for tunnel in 0.. {
                    let Some(Ok((request, mut respond))) = server.accept().await else { return };
                    if connection == 0 && tunnel == 1 {
                        respond.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
                        continue;
                    }
                    let to = respond.send_response(http::Response::new(()), false).unwrap();
                    held.push((request, to));
                }
            });
            held = Vec::new();
        }
    });
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    let _first = connect(&pool, &source, &path).await.unwrap();
    let error = connect(&pool, &source, &path).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Reset(11));
    let _third = connect(&pool, &source, &path).await.unwrap();
    assert_eq!((world.net.dials(), pool.stats().connections), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_five_minutes() {
    let world = World::new();
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    finish(connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap()).await;
    sleep(secs(299)).await;
    assert_eq!(peer.connections(), 1);
    sleep(secs(5)).await;
    assert_eq!((peer.connections(), pool.stats().connections, pool.stats().keys), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn where_reuse_is_never_each_tunnel_has_its_connection_which_ends_with_it() {
    let world = World::new();
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Never);
    let mut held = Vec::new();
    for n in 1..=5 {
        held.push(connect(&pool, &source, &path).await.unwrap());
        assert_eq!(peer.handshakes(), n);
    }
    finish(held.pop().unwrap()).await;
    sleep(secs(3)).await;
    assert_eq!((peer.connections(), pool.stats().connections), (4, 4));
    drop(held);
    sleep(secs(3)).await;
    assert_eq!((peer.connections(), pool.stats().connections, pool.stats().keys), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_goes_while_its_nested_dial_waits_leaves_nothing() {
    for turns in 0..80 {
        let world = World::new();
        let _gateway = world.gateway(1, vec![world.echo(2)], 1);
        let (pool, source) = world.pool(PoolConfig::new());
        let path = through(1, Reuse::Shared);
        {
            let mut caller = tokio_test::task::spawn(connect(&pool, &source, &path));
            assert!(caller.poll().is_pending());
        }
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        drop(source);
        sleep(secs(30)).await;
        let stats = pool.stats();
        assert_unused(stats);
        assert_eq!((stats.connections, stats.keys), (0, 0), "after {turns} turns: {stats:?}");
    }
}
