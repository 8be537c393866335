//! How many tunnels a connection carries, and how many connections there are.

use rstest::rstest;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::super::PoolConfig;
use super::world::{World, address, connect, direct, echoes, finish, open, quiet, secs, through, trusted};
use crate::path::Reuse;
use crate::tests::harness::BoxIo;
use crate::tests::raw::{self, Raw};
use crate::tls::Acceptor;
use crate::{Config, Error, ErrorKind, Side};

#[tokio::test(start_paused = true)]
async fn a_full_connection_serves_again_when_tunnels_end_in_the_order_of_asking() {
    let world = World::with(Config::new().with_max_tunnels(2));
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new().with_connections_per_path(1));
    let path = direct(1, Reuse::Shared);
    let first = connect(&pool, &source, &path).await.unwrap();
    let second = connect(&pool, &source, &path).await.unwrap();
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..3 {
        let (pool, source, path, sender) = (pool.clone(), source.clone(), path.clone(), sender.clone());
        tokio::spawn(async move {
            let tunnel = connect(&pool, &source, &path).await.unwrap();
            sender.send(n).unwrap();
            finish(tunnel).await;
        });
        quiet().await;
    }
    assert_eq!(pool.stats().waiting, 3);
    assert!(order.try_recv().is_err());
    finish(first).await;
    for n in 0..3 {
        assert_eq!(order.recv().await, Some(n));
    }
    finish(second).await;
    assert_eq!(peer.handshakes(), 1);
}

#[rstest]
#[case::by_the_own_limit(2, 100)]
#[case::by_the_peers(100, 2)]
#[tokio::test(start_paused = true)]
async fn another_connection_is_opened_when_all_are_full(#[case] own: u32, #[case] peers: u32) {
    let world = World::with(Config::new().with_max_tunnels(own));
    let peer = world.peer_with(super::world::Does::Echo(Default::default()), Config::new().with_max_tunnels(peers));
    peer.listen(&world.net.network, address(1));
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    let mut held = Vec::new();
    for n in 0..8 {
        held.push(connect(&pool, &source, &path).await.unwrap());
        quiet().await;
        assert_eq!(peer.handshakes(), n / 2 + 1);
    }
    for tunnel in &mut held {
        echoes(tunnel).await;
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_limit_of_all_an_idle_connection_makes_room_and_else_one_waits() {
    let world = World::new();
    let peers: Vec<_> = (1..=4).map(|n| world.echo(n)).collect();
    let (pool, source) = world.pool(PoolConfig::new().with_connections(2).with_checkout_timeout(secs(100)));
    let idle = connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap();
    let held = connect(&pool, &source, &direct(2, Reuse::Shared)).await.unwrap();
    finish(idle).await;
    let third = connect(&pool, &source, &direct(3, Reuse::Shared)).await.unwrap();
    assert_eq!((peers[0].connections(), pool.stats().connections), (0, 2));
    let waiting = tokio::spawn({
        let (pool, source) = (pool.clone(), source.clone());
        async move { connect(&pool, &source, &direct(4, Reuse::Shared)).await.unwrap() }
    });
    sleep(secs(60)).await;
    assert!(!waiting.is_finished());
    finish(held).await;
    echoes(&mut waiting.await.unwrap()).await;
    assert_eq!((peers[1].connections(), pool.stats().connections), (0, 2));
    drop(third);
}

#[tokio::test(start_paused = true)]
async fn sources_share_no_connections() {
    let world = World::new();
    let peer = world.echo(1);
    let (pool, source) = world.pool(PoolConfig::new());
    let other = pool.source(world.credentials("client"), Default::default()).unwrap();
    let path = direct(1, Reuse::Shared);
    for source in [&source, &other, &source.clone(), &other] {
        connect(&pool, source, &path).await.unwrap();
    }
    assert_eq!(peer.handshakes(), 2);
}

/// A peer whose SETTINGS the test sends. It answers each CONNECT.
async fn by_hand(world: &World, limit: u32) -> (tokio::sync::mpsc::UnboundedSender<u32>, oneshot::Receiver<()>) {
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), Default::default());
    let mut listener = world.net.network.listen(address(1));
    let (sender, mut limits) = tokio::sync::mpsc::unbounded_channel();
    let (second, more) = oneshot::channel();
    tokio::spawn(async move {
        let io: BoxIo = Box::new(listener.accept().await.unwrap());
        let mut peer = Raw::server(Box::new(acceptor.accept(io).await.unwrap())).await;
        peer.settings(Some(limit)).await;
        tokio::spawn(async move {
            let _other = listener.accept().await;
            let _ = second.send(());
            std::future::pending::<()>().await;
        });
        loop {
            // Cut short between frames only: on a paused clock a frame comes whole.
            match timeout(secs(1), peer.next()).await {
                Ok(Some(frame)) if frame.kind == raw::HEADERS => peer.accept(frame.stream).await,
                Ok(Some(frame)) if frame.kind == raw::DATA => {
                    peer.send(raw::DATA, raw::END_STREAM, frame.stream, &[]).await;
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    if let Ok(limit) = limits.try_recv() {
                        peer.settings(Some(limit)).await;
                    }
                }
            }
        }
    });
    (sender, more)
}

#[tokio::test(start_paused = true)]
async fn the_peers_limit_counts_as_it_changes() {
    let world = World::with(Config::new().with_keepalive_interval(None));
    let (limit, _more) = by_hand(&world, 2).await;
    let (pool, source) = world.pool(PoolConfig::new().with_connections_per_path(1));
    let path = direct(1, Reuse::Shared);
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(connect(&pool, &source, &path).await.unwrap());
        sleep(secs(2)).await;
    }
    timeout(secs(5), connect(&pool, &source, &path)).await.map(drop).unwrap_err();
    limit.send(4).unwrap();
    for _ in 0..2 {
        held.push(timeout(secs(5), connect(&pool, &source, &path)).await.unwrap().unwrap());
    }
    limit.send(1).unwrap();
    sleep(secs(3)).await;
    held.truncate(1);
    sleep(secs(5)).await;
    timeout(secs(5), connect(&pool, &source, &path)).await.map(drop).unwrap_err();
    drop(held);
    sleep(secs(5)).await;
    timeout(secs(5), connect(&pool, &source, &path)).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_allows_just_the_first_few_gets_another_connection() {
    let world = World::with(Config::new().with_initial_tunnels(3));
    let (_limit, more) = by_hand(&world, 3).await;
    let (pool, source) = world.pool(PoolConfig::new());
    let path = direct(1, Reuse::Shared);
    for _ in 0..8 {
        let (pool, source, path) = (pool.clone(), source.clone(), path.clone());
        tokio::spawn(async move {
            let _held = connect(&pool, &source, &path).await?;
            std::future::pending::<Result<(), Error>>().await
        });
    }
    timeout(secs(5), more).await.expect("no second connection").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_finds_no_room_is_told_so_after_its_checkout_timeout() {
    let world = World::new();
    let _peers = [world.echo(1), world.echo(2)];
    let settings = PoolConfig::new().with_connections(2).with_checkout_timeout(secs(5));
    let (pool, source) = world.pool(settings);
    let _held = [
        connect(&pool, &source, &direct(1, Reuse::Never)).await.unwrap(),
        connect(&pool, &source, &direct(1, Reuse::Never)).await.unwrap(),
    ];
    let began = Instant::now();
    let error = connect(&pool, &source, &direct(2, Reuse::Shared)).await.unwrap_err();
    assert_eq!((error.kind(), error.side(), began.elapsed()), (&ErrorKind::Timeout, Side::Local, secs(5)));
    assert_eq!(
        error.to_string(),
        "hop 0, dial: waiting for room in the pool for another connection (peer 10.0.0.2:15008): timed out; \
         allow the pool more connections"
    );
    assert_eq!(pool.stats().waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_nested_connection_holds_a_permit_of_its_outer_one_until_it_is_closed() {
    let world = World::with(Config::new().with_max_tunnels(1));
    let _gateway = world.gateway(1, vec![world.echo(2)], 1);
    let settings = PoolConfig::new().with_connections_per_path(1).with_idle_timeout(secs(100));
    let settings = settings.with_checkout_timeout(secs(100));
    let (pool, source) = world.pool(settings);
    let inner = connect(&pool, &source, &through(1, Reuse::Shared)).await.unwrap();
    assert_eq!((pool.stats().connections, pool.stats().tunnels), (2, 1));
    finish(inner).await;
    let lease = timeout(secs(99), pool.checkout(&source, &direct(1, Reuse::Shared))).await;
    assert!(lease.is_err(), "the inner connection is still there");
    let lease = timeout(secs(10), pool.checkout(&source, &direct(1, Reuse::Shared))).await.unwrap().unwrap();
    drop(open(lease).await.unwrap());
}
