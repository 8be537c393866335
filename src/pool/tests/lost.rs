//! Whatever ends a dial without a word, nobody waits without an end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rstest::rstest;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};

use super::super::{Pool, PoolConfig, Source};
use super::world::{Manner, World, assert_unused, authority, connect, direct, echoes, millis, quiet, secs, through};
use crate::io::{Dial, DialFuture, DialRequest};
use crate::metadata::Metadata;
use crate::path::{Path, Reuse};
use crate::tls::{CredentialSource, Credentials};
use crate::tunnel::TunnelStream;
use crate::{ErrorKind, Layer, Result, Side};

/// Panics as long as it is broken.
#[derive(Debug)]
struct Breakable<T> {
    broken: AtomicBool,
    inner: T,
}

impl<T> Breakable<T> {
    fn new(inner: T) -> Arc<Self> {
        Arc::new(Self { broken: false.into(), inner })
    }

    fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    fn get(&self) -> &T {
        assert!(!self.broken.load(Ordering::SeqCst), "out of order");
        &self.inner
    }
}

impl<T: Dial> Dial for Breakable<T> {
    fn dial<'a>(&'a self, request: &'a DialRequest<'a>) -> DialFuture<'a> {
        self.get().dial(request)
    }
}

impl CredentialSource for Breakable<Credentials> {
    fn credentials(&self) -> io::Result<Credentials> {
        // The pool's own look at the certificate, before it waits for anything, is the caller's panic.
        match tokio::task::try_id() {
            Some(_) => Ok(self.get().clone()),
            None => Ok(self.inner.clone()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Dialer,
    Credentials,
}

#[rstest]
#[case::dialer(Part::Dialer)]
#[case::credentials(Part::Credentials)]
#[tokio::test(start_paused = true)]
async fn a_panic_of_an_embedders_code_is_an_error_for_all_waiters_and_passes(#[case] part: Part) {
    let world = World::new();
    let _pod = world.echo(2);
    let _gateway = world.gateway(1, vec![world.echo(3)], 1);
    let dialer = Breakable::new(world.net.clone());
    let credentials = Breakable::new(world.ca.issue(&super::world::id("client")));
    let pool = Pool::new(dialer.clone(), world.config.clone(), PoolConfig::new());
    let source = pool.source(credentials.clone(), Metadata::default()).unwrap();
    let set_broken = |broken| match part {
        Part::Dialer => dialer.set_broken(broken),
        Part::Credentials => credentials.set_broken(broken),
    };
    for path in [direct(2, Reuse::Shared), through(1, Reuse::Shared)] {
        set_broken(true);
        let waiters = [connect(&pool, &source, &path), connect(&pool, &source, &path)];
        let began = Instant::now();
        for result in futures_util::future::join_all(waiters).await {
            let error = result.unwrap_err();
            assert_eq!((error.kind(), error.layer(), error.side()), (&ErrorKind::Local, Layer::Dial, Side::Local));
            assert!(error.to_string().contains("panicked: out of order"), "{error}");
        }
        assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
        assert_unused(pool.stats());
        set_broken(false);
        sleep(secs(1)).await;
        echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// A world whose peer listens on whichever runtime this is called on.
fn pool(world: &World) -> (Pool, Source, Path) {
    let (pool, source) = world.pool(PoolConfig::new());
    (pool, source, direct(1, Reuse::Shared))
}

async fn connects(world: &World, (pool, source, path): &(Pool, Source, Path)) -> Result<()> {
    let _peer = world.echo(1);
    echoes(&mut connect(pool, source, path).await?).await;
    Ok(())
}

#[test]
fn a_pool_outlives_the_runtimes_of_its_callers() {
    let world = World::new();
    let pool = pool(&world);
    for _ in 0..3 {
        let runtime = runtime();
        runtime.block_on(async {
            let began = Instant::now();
            connects(&world, &pool).await.unwrap();
            assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
        });
    }
    assert_unused(pool.0.stats());
}

#[test]
fn a_dial_that_its_runtime_takes_along_is_started_again_where_others_wait_for_it() {
    let world = World::new();
    let pool = pool(&world);
    let (first, second) = (runtime(), runtime());
    world.net.set(Manner::Stalls);
    first.block_on(async {
        let (pool, source, path) = pool.clone();
        tokio::spawn(async move { connect(&pool, &source, &path).await });
        quiet().await;
    });
    assert_eq!((pool.0.stats().dials, pool.0.stats().waiting), (1, 1));
    second.block_on(async {
        let waiting = tokio::spawn({
            let (pool, source, path) = pool.clone();
            async move { connect(&pool, &source, &path).await }
        });
        let _peer = world.echo(1);
        quiet().await;
        assert_eq!((pool.0.stats().dials, pool.0.stats().waiting), (1, 2), "it joins the dial");
        world.net.set(Manner::Connects);
        first.shutdown_background();
        let mut tunnel = timeout(millis(500), waiting).await.unwrap().unwrap().unwrap();
        echoes(&mut tunnel).await;
    });
    drop(second);
    assert_unused(pool.0.stats());
}

#[test]
fn connections_still_age_and_idle_out_when_the_runtime_of_the_timers_is_gone() {
    let world = World::new();
    let pool = pool(&world);
    let (first, second) = (runtime(), runtime());
    first.block_on(connects(&world, &pool)).unwrap();
    second.block_on(async {
        // The timers run on the first one.
        first.shutdown_background();
        connects(&world, &pool).await.unwrap();
        assert_eq!(pool.0.stats().connections, 1);
        sleep(secs(301)).await;
        assert_eq!((pool.0.stats().connections, pool.0.stats().keys), (0, 0));
    });
}

#[test]
fn a_permit_that_is_returned_without_any_runtime_loses_nothing() {
    let world = World::new();
    let pool = pool(&world);
    let tunnel: TunnelStream = runtime().block_on(async {
        let _peer = world.echo(1);
        let (pool, source, path) = &pool;
        pool.connect(source, path, &authority(), &Metadata::default()).await.unwrap()
    });
    // The runtime is gone, and with it the connection.
    drop(tunnel);
    assert_unused(pool.0.stats());
    runtime().block_on(connects(&world, &pool)).unwrap();
}
