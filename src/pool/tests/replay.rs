//! CONNECTs that the end of a connection undoes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rstest::rstest;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::{Pool, PoolConfig, Source};
use super::world::{World, address, assert_unused, authority, direct, echoes, millis, secs, through, trusted};
use crate::metadata::Metadata;
use crate::path::{Path, Reuse};
use crate::refusal::{Refusal, RefusalReason};
use crate::server::Incoming;
use crate::tests::harness::BoxIo;
use crate::tls::Acceptor;
use crate::tunnel::TunnelStream;
use crate::{Error, ErrorKind, Result, server};

/// What a peer does to its clients.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Goes away after some tunnels on a connection.
    GoAway,
    /// Breaks the connection after some tunnels, and leaves the CONNECTs that have come since without an answer.
    Breaks,
    /// Refuses every fourth CONNECT unseen, by chance.
    Refuses,
}

/// A peer that does so after as many tunnels.
fn restless(world: &World, end: End, tunnels: usize, then: fn(TunnelStream)) -> Arc<AtomicUsize> {
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let mut listener = world.net.network.listen(address(1));
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Some(stream) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(acceptor.clone(), Box::new(stream), end, tunnels, then));
        }
    });
    connections
}

async fn serve(acceptor: Acceptor, io: BoxIo, end: End, tunnels: usize, then: fn(TunnelStream)) -> Result<()> {
    let mut unanswered = Vec::new();
    let mut server = server::handshake(acceptor.accept(io).await?).await?;
    let mut served = 0;
    while let Some(incoming) = server.accept().await {
        let incoming: Incoming = incoming?;
        match end {
            End::Refuses if fastrand::u8(..4) == 0 => {
                drop(incoming);
                continue;
            }
            End::Breaks if served == tunnels => {
                unanswered.push(incoming);
                // The answers before leave.
                while let Ok(Some(incoming)) = timeout(millis(1), server.accept()).await {
                    unanswered.push(incoming?);
                }
                return Ok(());
            }
            End::GoAway | End::Breaks | End::Refuses => {}
        }
        served += 1;
        if served == tunnels && matches!(end, End::GoAway) {
            server.graceful_shutdown();
        }
        then(incoming.accept(&Metadata::default())?);
    }
    Ok(())
}

fn echo(tunnel: TunnelStream) {
    tokio::spawn(async move {
        let (mut from, mut to) = tokio::io::split(tunnel);
        tokio::io::copy(&mut from, &mut to).await
    });
}

async fn connect(pool: &Pool, source: &Source, path: &Path) -> Result<TunnelStream> {
    Ok(pool.connect(source, path, &authority(), &Metadata::default()).await?)
}

#[rstest]
#[case::goaway(End::GoAway, 8)]
// With more callers than it serves in a row, the same ones would come too late each time.
#[case::breaks(End::Breaks, 3)]
#[case::refuses(End::Refuses, 8)]
#[tokio::test(start_paused = true)]
async fn nobody_loses_a_tunnel_to_a_peer_that_goes_away_all_the_time(#[case] end: End, #[case] callers: usize) {
    let world = World::new();
    let _connections = restless(&world, end, 3, echo);
    let (pool, source) = world.pool(PoolConfig::new());
    let mut calling = JoinSet::new();
    for _ in 0..callers {
        let (pool, source) = (pool.clone(), source.clone());
        calling.spawn(async move {
            for _ in 0..50 {
                connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap();
            }
        });
    }
    while let Some(caller) = calling.join_next().await {
        caller.unwrap();
    }
    assert_unused(pool.stats());
}

#[tokio::test(start_paused = true)]
async fn nested_tunnels_survive_an_outer_peer_that_goes_away_all_the_time() {
    fn to_pod(tunnel: TunnelStream) {
        POD.with(|pod| tokio::spawn(pod.borrow().clone().unwrap().serve(Box::new(tunnel))));
    }
    thread_local!(static POD: std::cell::RefCell<Option<super::world::Peer>> = const { std::cell::RefCell::new(None) });
    let world = World::new();
    POD.set(Some(world.echo(2)));
    let _connections = restless(&world, End::GoAway, 2, to_pod);
    let (pool, source) = world.pool(PoolConfig::new());
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (pool, source) = (pool.clone(), source.clone());
        callers.spawn(async move {
            for _ in 0..20 {
                echoes(&mut connect(&pool, &source, &through(1, Reuse::Never)).await.unwrap()).await;
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_unused(pool.stats());
}

#[tokio::test(start_paused = true)]
async fn attempts_at_a_peer_that_answers_nobody_are_counted() {
    let world = World::new();
    let connections = restless(&world, End::Breaks, 0, echo);
    let (pool, source) = world.pool(PoolConfig::new().with_connect_attempts(4));
    let error = connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Closed);
    assert_eq!(connections.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn all_attempts_share_the_connect_timeout() {
    let world = World::new();
    restless(&world, End::GoAway, 1, std::mem::forget);
    let mut silent = world.net.network.listen(address(2));
    let held = tokio::spawn(async move { silent.accept().await });
    let settings = PoolConfig::new().with_connect_timeout(secs(3)).with_open_timeout(secs(60));
    let (pool, source) = world.pool(settings);
    let began = Instant::now();
    let error = connect(&pool, &source, &direct(2, Reuse::Shared)).await.unwrap_err();
    assert_eq!((error.kind(), error.hop(), began.elapsed()), (&ErrorKind::Timeout, Some(0), secs(3)));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_an_answer_and_not_asked_for_again() {
    let world = World::new();
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let mut listener = world.net.network.listen(address(1));
    let asked = tokio::spawn(async move {
        let mut server = server::handshake(acceptor.accept(listener.accept().await.unwrap()).await?).await?;
        let mut asked = 0;
        while let Ok(Some(incoming)) = timeout(secs(60), server.accept()).await {
            incoming?.reject(&Refusal::new(RefusalReason::ConnectionRefused));
            asked += 1;
        }
        Ok::<_, Error>(asked)
    });
    let (pool, source) = world.pool(PoolConfig::new());
    let error = connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert_eq!(asked.await.unwrap().unwrap(), 1);
}
