//! How many tunnels a connection takes, and what becomes of those who wait or give up.

use std::collections::VecDeque;
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_test::task;

use super::harness::{Carrier, World, authority, idle, metadata, plain, serve, settled, tunnel};
use super::raw::{self, Raw};
use crate::client::{self, Client};
use crate::tunnel::TunnelStream;
use crate::{Config, ErrorKind, Result};

type Opening = tokio::task::JoinHandle<Result<TunnelStream>>;

fn open(client: &Client) -> Opening {
    let client = client.clone();
    tokio::spawn(async move { client.connect(&authority(), &metadata()).await })
}

async fn works(near: &mut TunnelStream, far: &mut TunnelStream) {
    near.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[derive(Clone, Copy, Debug)]
enum End {
    Orderly,
    ClientDrops,
    ServerDrops,
}

#[rstest]
#[tokio::test]
async fn a_third_tunnel_waits_where_the_server_allows_two(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(End::Orderly, End::ClientDrops, End::ServerDrops)] end: End,
) {
    let (near, far) = carrier.pair().await;
    let server_config = Config::new().with_max_tunnels(2);
    let serving = crate::server::Builder::new().with_config(server_config.into()).handshake(far);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let (mut incoming, _serving) = serve(serving.await.unwrap());
    let (mut first, mut first_end) = tunnel(&client, &mut incoming).await;
    let (mut second, mut second_end) = tunnel(&client, &mut incoming).await;
    let load = client.capacity();
    assert_eq!((load.open, load.limit), (2, 2));
    let third = open(&client);
    works(&mut second, &mut second_end).await;
    assert!(incoming.try_recv().is_err());
    assert!(!third.is_finished());
    match end {
        End::Orderly => {
            first.shutdown().await.unwrap();
            first_end.read_to_end(&mut Vec::new()).await.unwrap();
            works(&mut second, &mut second_end).await;
            assert!(!third.is_finished(), "half of the first is still open");
            first_end.shutdown().await.unwrap();
            first.read_to_end(&mut Vec::new()).await.unwrap();
            drop(first);
        }
        End::ClientDrops => drop(first),
        End::ServerDrops => {
            drop(first_end);
            first.read(&mut [0]).await.unwrap_err();
            drop(first);
        }
    }
    let mut third_end = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
    let mut third = third.await.unwrap().unwrap();
    works(&mut third, &mut third_end).await;
    works(&mut second, &mut second_end).await;
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_are_served_in_order_whoever_comes_late() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new().with_max_tunnels(1), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let authorities: Vec<crate::Authority> = (1..=20).map(|port| format!("server:{port}").parse().unwrap()).collect();
    let mut waiting = VecDeque::new();
    let mut held = tunnel(&client, &mut incoming).await;
    for authority in &authorities {
        let client = client.clone();
        let authority = authority.clone();
        waiting.push_back(tokio::spawn(async move { client.connect(&authority, &metadata()).await }));
        idle().await;
    }
    for authority in &authorities {
        // The slot is free, the one who waits has not run yet, and somebody else asks.
        drop(held);
        let _ = task::spawn(client.connect(&"late:1".parse().unwrap(), &metadata())).poll();
        let far = incoming.recv().await.unwrap();
        assert_eq!(far.authority(), authority);
        let far = far.accept(&metadata()).unwrap();
        held = (waiting.pop_front().unwrap().await.unwrap().unwrap(), far);
    }
}

/// The streams that have been opened by the time nobody has anything left to do.
async fn opened(peer: &mut Raw) -> Vec<u32> {
    let mut streams = Vec::new();
    while let Ok(frame) = tokio::time::timeout(Duration::from_millis(1), peer.next()).await {
        let frame = frame.unwrap();
        if frame.kind == raw::HEADERS {
            streams.push(frame.stream);
        }
    }
    streams
}

#[tokio::test(start_paused = true)]
async fn the_peers_limit_is_followed_wherever_it_goes() {
    let (near, far) = duplex(1 << 16);
    let (client, driver) =
        client::Builder::new().with_config(Config::new().with_initial_tunnels(3).into()).handshake(near).await.unwrap();
    tokio::spawn(driver);
    let mut connects: VecDeque<Opening> = (0..40).map(|_| open(&client)).collect();
    let mut peer = Raw::server(Box::new(far)).await;
    let mut streams = VecDeque::from(opened(&mut peer).await);
    assert_eq!(streams.len(), 3, "before the peer has said anything");
    peer.settings(Some(5)).await;
    streams.extend(opened(&mut peer).await);
    assert_eq!(streams.len(), 5, "when it has");
    assert_eq!(client.capacity().limit, 5);
    peer.settings(Some(2)).await;
    for left in [4, 3, 2] {
        end_one(&mut peer, &mut connects, &mut streams).await;
        assert_eq!(opened(&mut peer).await, [0; 0], "more are open than allowed");
        assert_eq!((streams.len(), client.capacity().open), (left, left));
    }
    end_one(&mut peer, &mut connects, &mut streams).await;
    streams.extend(opened(&mut peer).await);
    assert_eq!(streams.len(), 2, "one has taken the place of another");
    peer.settings(Some(7)).await;
    streams.extend(opened(&mut peer).await);
    assert_eq!(streams.len(), 7, "raised again");
    peer.settings(None).await;
    assert_eq!(opened(&mut peer).await, [0; 0], "SETTINGS that leave it out change nothing");
    peer.settings(Some(0)).await;
    while !streams.is_empty() {
        end_one(&mut peer, &mut connects, &mut streams).await;
        assert_eq!(opened(&mut peer).await, [0; 0]);
    }
    peer.settings(Some(1000)).await;
    assert_eq!(opened(&mut peer).await.len(), 40 - 11);
    assert_eq!(client.capacity().limit, 100, "our limit");
}

/// Serves the oldest connect, and ends its tunnel in order.
async fn end_one(peer: &mut Raw, connects: &mut VecDeque<Opening>, streams: &mut VecDeque<u32>) {
    let stream = streams.pop_front().unwrap();
    peer.accept(stream).await;
    let mut near = connects.pop_front().unwrap().await.unwrap().unwrap();
    peer.send(raw::DATA, raw::END_STREAM, stream, b"").await;
    near.read_to_end(&mut Vec::new()).await.unwrap();
    near.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_names_no_limit_gets_the_own_one() {
    let (near, far) = duplex(1 << 16);
    let (client, driver) =
        client::Builder::new().with_config(Config::new().with_max_tunnels(20).into()).handshake(near).await.unwrap();
    tokio::spawn(driver);
    let _connects: Vec<Opening> = (0..40).map(|_| open(&client)).collect();
    let mut peer = Raw::server(Box::new(far)).await;
    assert_eq!(opened(&mut peer).await.len(), 10);
    peer.settings(None).await;
    assert_eq!(opened(&mut peer).await.len(), 10);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn connects_given_up_at_any_point_leave_nothing_behind(
    #[values(1, 2)] depth: usize,
    #[values(1, 2, 3)] seed: u64,
    #[values(2, 100)] limit: u32,
) {
    let world = World::new(Config::new().with_max_tunnels(limit));
    let (client, mut incoming) = world.connect(Carrier::Pipe, depth).await;
    let (mut witness, mut witness_end) = tunnel(&client, &mut incoming).await;
    let answers = tokio::spawn(async move {
        let mut rng = fastrand::Rng::with_seed(seed);
        while let Some(incoming) = incoming.recv().await {
            // A slow server, which may find that its peer has given up meanwhile.
            let delay = Duration::from_millis(rng.u64(0..20));
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                if let Ok(mut tunnel) = incoming.accept(&metadata()) {
                    let _ = tunnel.read(&mut [0; 10]).await;
                    let _ = tunnel.write_all(b"hello").await;
                    let _ = tunnel.shutdown().await;
                }
            });
        }
    });
    let mut rng = fastrand::Rng::with_seed(seed + 100);
    let (authority, metadata) = (authority(), metadata());
    let mut connects = VecDeque::new();
    for _ in 0..1000 {
        connects.push_back((rng.u32(1..6), task::spawn(client.connect(&authority, &metadata))));
        if rng.u32(0..4) == 0 {
            tokio::time::sleep(Duration::from_millis(rng.u64(1..3))).await;
        } else {
            tokio::task::yield_now().await;
        }
        connects.retain_mut(|(polls, connect)| {
            *polls -= 1;
            connect.poll().is_pending() && *polls > 0
        });
    }
    drop(connects);
    idle().await;
    assert_eq!(client.capacity().open, 1, "the witness");
    works(&mut witness, &mut witness_end).await;
    for _ in 0..10 {
        let mut near = client.connect(&authority, &metadata).await.unwrap();
        near.write_all(b"x").await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = String::new();
        near.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
    }
    drop(witness);
    idle().await;
    assert_eq!(client.capacity().open, 0);
    answers.abort();
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_burst_of_connects_given_up_costs_no_other_tunnel(#[values(1, 2)] depth: usize) {
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, depth).await;
    let (mut witness, mut witness_end) = tunnel(&client, &mut incoming).await;
    for _ in 0..20 {
        // As many as there is room for, and on the wire as one piece: the server has not looked at the first of them
        // when the last is cancelled.
        let (authority, metadata) = (authority(), metadata());
        let mut connects: Vec<_> = (0..99).map(|_| task::spawn(client.connect(&authority, &metadata))).collect();
        for connect in &mut connects {
            assert!(connect.poll().is_pending());
        }
        tokio::task::yield_now().await;
        drop(connects);
        idle().await;
        assert_eq!(client.capacity().open, 1);
        works(&mut witness, &mut witness_end).await;
        while incoming.try_recv().is_ok() {}
    }
}

#[derive(Clone, Copy, Debug)]
enum Death {
    Cut,
    DriverDropped,
    ServerDropped,
}

#[rstest]
#[tokio::test]
async fn all_who_wait_learn_that_the_connection_has_died(
    #[values(Death::Cut, Death::DriverDropped, Death::ServerDropped)] death: Death,
) {
    let (near, far, wire) = Carrier::Pipe.cuttable_pair().await;
    let (client, driver, server) = plain(Config::new().with_max_tunnels(3), near, far).await;
    let (mut incoming, serving) = serve(server);
    let (mut near, _far) = tunnel(&client, &mut incoming).await;
    let connects: Vec<Opening> = (0..20).map(|_| open(&client)).collect();
    let in_flight = [incoming.recv().await.unwrap(), incoming.recv().await.unwrap()];
    settled(|| client.capacity().open == 3).await;
    match death {
        Death::Cut => wire.abort(),
        Death::DriverDropped => driver.abort(),
        Death::ServerDropped => serving.abort(),
    }
    for connect in connects {
        assert_eq!(connect.await.unwrap().unwrap_err().kind(), &ErrorKind::Closed);
    }
    near.read(&mut [0]).await.unwrap_err();
    drop((near, in_flight));
    assert_eq!(client.capacity().open, 0);
    assert!(client.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_busy_while_many_connects_were_given_up_keeps_the_connection() {
    let (near, far) = duplex(1 << 16);
    let serving = tokio::spawn(crate::server::handshake(far));
    let mut peer = Raw::client(Box::new(near)).await;
    let mut server = serving.await.unwrap().unwrap();
    peer.connect(1, "server:80").await;
    let mut witness = server.accept().await.unwrap().unwrap().accept(&metadata()).unwrap();
    // Nobody polls the server now; its client opens and cancels as many as it may have at a time, and then as many
    // again.
    for stream in 0..198 {
        peer.connect(3 + 2 * stream, "server:80").await;
        peer.send(raw::RST_STREAM, 0, 3 + 2 * stream, &8u32.to_be_bytes()).await;
    }
    peer.send(raw::DATA, raw::END_STREAM, 1, b"still here").await;
    let (_incoming, _serving) = serve(server);
    let mut got = String::new();
    witness.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "still here");
}
