//! Draining a role while something runs.

use std::time::Duration;

use rstest::rstest;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::world::{FAR, FarEnd, POD, Role, World, address, pipe, refused};
use super::*;
use crate::{ErrorKind, RefusalReason, client, drain};

/// Which role is drained.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drained {
    Gateway,
    Pod,
}

async fn running(world: &World, drained: Drained) -> (FarEnd, FarEnd, Role, Role) {
    let (pod, mut apps, gateway) = Way::Far.start(world);
    let (mut client, _) = serve(&world.outbound(), FAR);
    let application = apps.dialled().await.connect();
    client.io.write_all(b"half a quest").await.unwrap();
    let gateway = gateway.unwrap();
    let (role, other) = if drained == Drained::Gateway { (gateway, pod) } else { (pod, gateway) };
    (client, application, role, other)
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_drain_lets_what_runs_finish_and_nothing_new_in(#[values(Drained::Gateway, Drained::Pod)] drained: Drained) {
    let world = World::new();
    let (mut client, mut application, role, _other) = running(&world, drained).await;
    let draining = tokio::spawn(role.drain.drain(AGES));
    quiet().await;
    let error = refused(&world.outbound(), FAR).await;
    match drained {
        Drained::Gateway => assert_eq!((error.kind(), error.hop()), (&ErrorKind::Unreachable, Some(0)), "{error}"),
        Drained::Pod => {
            assert_refused(&error, 0, RefusalReason::ConnectionRefused, 503, "the pod could not be reached")
        }
    }
    client.io.write_all(b"ion").await.unwrap();
    client.io.shutdown().await.unwrap();
    assert_eq!(application.read_to_end().await, (b"half a question".to_vec(), false));
    application.io.write_all(b"answer").await.unwrap();
    application.io.shutdown().await.unwrap();
    assert_eq!(client.read_to_end().await, (b"answer".to_vec(), false));
    let start = Instant::now();
    assert!(draining.await.unwrap().completed);
    assert_eq!(start.elapsed(), Duration::ZERO, "the drain ends with its last connection");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn what_outlasts_a_drain_breaks_and_does_not_end(#[values(Drained::Gateway, Drained::Pod)] drained: Drained) {
    let world = World::new();
    let (mut client, mut application, role, _other) = running(&world, drained).await;
    let (start, grace) = (Instant::now(), Duration::from_secs(5));
    let report = role.drain.drain(grace).await;
    assert_eq!((report.completed, report.forced), (false, 1));
    assert_eq!(start.elapsed(), grace);
    assert_eq!(client.read_to_end().await, (vec![], true), "the answer");
    assert_eq!(application.read_to_end().await, (b"half a quest".to_vec(), true), "the question");
}

#[tokio::test]
async fn a_draining_role_lets_nobody_shake_hands() {
    let world = World::new();
    let (drain, watch) = drain::channel();
    let draining = tokio::spawn(drain.drain(AGES));
    watch.graceful().await;
    let (pod, _apps) = world.inbound_role(&world.east, "near");
    let gateway = world.gateway_role(Arc::new(world.west.network.clone()));
    let (pipe, mut far) = pipe();
    gateway.serve(pipe, None, &watch).await.unwrap();
    assert_eq!(far.read_to_end().await.0, b"");
    let (pipe, mut far) = world::pipe();
    pod.serve(pipe, None, &watch).await.unwrap();
    assert_eq!(far.read_to_end().await.0, b"");
    drop(watch);
    assert!(draining.await.unwrap().completed);
}

#[tokio::test(start_paused = true)]
async fn a_draining_pod_tells_its_peers_to_open_no_more_tunnels() {
    let world = World::new();
    let (role, mut apps) = world.inbound(&world.east, "near");
    let (stream, tls) = (world.east.network.connect(address(POD)).unwrap(), connector(&world));
    let stream = tls.connect(stream, &server_id().into()).await.unwrap();
    let (client, driver) = client::handshake(stream).await.unwrap();
    let driver = tokio::spawn(driver);
    let (authority, none) = ("10.1.0.2:8080".parse().unwrap(), Metadata::default());
    let (tunnel, application) =
        tokio::join!(client.connect(&authority, &none), async { apps.dialled().await.connect() });
    let draining = tokio::spawn(role.drain.drain(AGES));
    quiet().await;
    let error = client.connect(&authority, &none).await.unwrap_err();
    assert!(error.is_go_away(), "{error}");
    assert!(client.is_closed());
    drop((tunnel.unwrap(), application));
    assert!(draining.await.unwrap().completed);
    drop(client);
    driver.await.unwrap().unwrap();
}
