//! What an observer of a pool is told.

use std::sync::{Arc, Mutex};

use super::super::{Pool, PoolConfig};
use super::world::{Command, World, assert_unused, authority, direct, finish, secs, through};
use crate::metadata::Metadata;
use crate::observe::{Connection, Event, Limit, Observer};
use crate::path::Reuse;

/// The events, in short, and the bytes of closed connections.
#[derive(Debug, Default)]
struct Log(Mutex<Vec<String>>);

fn hop(connection: &Connection<'_>) -> usize {
    connection.hop.unwrap()
}

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        let line = match event {
            Event::ConnectionOpening(connection) => {
                assert_eq!(connection.carrier.is_some(), hop(connection) > 0);
                format!("{} opening", hop(connection))
            }
            Event::ConnectionOpened(opened) => {
                assert!(opened.handshake.tls.is_some());
                assert!(opened.connection.peer_identity.is_some() && opened.connection.local_identity.is_some());
                format!("{} opened", hop(&opened.connection))
            }
            Event::ConnectionFailed(failed) => {
                format!("{} failed: {:?}", hop(&failed.connection), failed.error.unwrap().kind())
            }
            Event::ConnectionDraining(draining) => format!("{} draining", hop(&draining.connection)),
            Event::ConnectionClosed(closed) => {
                assert!(closed.bytes > 0);
                format!("{} closed after {}", hop(&closed.connection), closed.tunnels)
            }
            Event::CheckedOut(checked_out) => {
                format!("checkout at depth {}, reused: {}", checked_out.path.depth(), checked_out.is_reused)
            }
            Event::LimitReached(reached) => format!("{:?} {}", reached.limit, reached.value),
            Event::TunnelOpened(opened) => format!("{} tunnel opened", hop(&opened.tunnel.connection)),
            Event::TunnelEnded(ended) => format!("{} tunnel ended", hop(&ended.tunnel.connection)),
            other => panic!("{other:?}"),
        };
        self.0.lock().unwrap().push(line);
    }
}

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn connect(pool: &Pool, source: &super::super::Source, path: &crate::path::Path) -> crate::tunnel::TunnelStream {
    pool.connect(source, path, &authority(), &Metadata::default()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn connections_tunnels_and_checkouts_are_told_at_each_hop() {
    let world = World::new();
    let gateway = world.gateway(1, vec![world.echo(2)], 1);
    let log = Arc::new(Log::default());
    let (pool, source) = world.pool(PoolConfig::new().with_observer(log.clone()));
    let path = through(1, Reuse::Shared);
    let tunnel = connect(&pool, &source, &path).await;
    let expected = [
        "0 opening",
        "0 opened",
        "checkout at depth 1, reused: false",
        "1 opening",
        "0 tunnel opened",
        "1 opened",
        "checkout at depth 2, reused: false",
        "1 tunnel opened",
    ];
    assert_eq!(log.take(), expected);
    finish(tunnel).await;
    finish(connect(&pool, &source, &path).await).await;
    let again = ["1 tunnel ended", "checkout at depth 2, reused: true", "1 tunnel opened", "1 tunnel ended"];
    assert_eq!(log.take(), again);
    gateway.command(Command::GoAway);
    tokio::time::sleep(secs(5)).await;
    let mut ends = log.take();
    ends.sort_unstable();
    assert_eq!(ends, ["0 closed after 1", "0 draining", "0 tunnel ended", "1 closed after 2"]);
    assert_unused(pool.stats());
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_fails_and_limits_that_make_callers_wait_are_told() {
    let world = World::with(crate::Config::new().with_max_tunnels(1));
    let _peer = world.echo(1);
    let log = Arc::new(Log::default());
    let settings = PoolConfig::new().with_connections_per_path(1).with_connections(2).with_checkout_timeout(secs(1));
    let (pool, source) = world.pool(settings.with_observer(log.clone()));
    pool.checkout(&source, &direct(9, Reuse::Shared)).await.unwrap_err();
    assert_eq!(log.take(), ["0 opening", "0 failed: Unreachable"]);
    let _held = connect(&pool, &source, &direct(1, Reuse::Shared)).await;
    log.take();
    pool.checkout(&source, &direct(1, Reuse::Shared)).await.unwrap_err();
    assert_eq!(log.take(), [format!("{:?} 1", Limit::Tunnels)]);
    let _other = connect(&pool, &source, &direct(1, Reuse::Never)).await;
    log.take();
    pool.checkout(&source, &direct(1, Reuse::Never)).await.unwrap_err();
    assert_eq!(log.take(), [format!("{:?} 2", Limit::Connections)]);
}
