//! Peers that say nothing: each wait has an end, and what is merely idle lives on.

use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep, timeout};

use super::harness::{
    BoxIo, Carrier, World, authority, cause, idle, metadata, plain, serve, server_id, tunnel, write_error,
};
use super::raw::{self, Raw};
use crate::client::{self, Client};
use crate::{Config, Error, ErrorKind, Layer, nested, server};

/// All different, so that a test can tell which one has struck.
fn config() -> Config {
    Config::new()
        .with_tls_timeout(secs(3))
        .with_http2_timeout(secs(5))
        .with_connect_timeout(secs(7))
        .with_keepalive_interval(Some(secs(11)))
        .with_keepalive_timeout(secs(13))
        .with_linger_timeout(secs(2))
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn assert_timeout(error: &Error, layer: Layer) {
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::Timeout, layer), "{error:?}");
}

/// Takes what comes and says nothing.
fn swallow(mut io: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut buf = vec![0; 1 << 16];
        while io.read(&mut buf).await.is_ok_and(|n| n > 0) {}
    })
}

/// A client, and what its driver will say.
async fn start(io: impl super::harness::Io + 'static) -> (Client, tokio::task::JoinHandle<crate::Result<()>>) {
    let (client, driver) = client::Builder::new().with_config(config().into()).handshake(io).await.unwrap();
    (client, tokio::spawn(driver))
}

async fn connect(client: &Client) -> Error {
    client.connect(&authority(), &metadata()).await.unwrap_err()
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_tls_handshake_with_nobody_ends_in_time(
    #[values(true, false)] swallowed: bool,
    #[values(8, 1 << 16)] pipe: usize,
) {
    let world = World::new(config());
    let (near, far) = duplex(pipe);
    let _held: Box<dyn std::any::Any> = if swallowed { Box::new(swallow(far)) } else { Box::new(far) };
    let start = Instant::now();
    let error = world.connector.connect(near, &server_id().into()).await.unwrap_err();
    assert_timeout(&error, Layer::Tls);
    assert_eq!(start.elapsed(), secs(3));
    let (near, _far) = duplex(pipe);
    let start = Instant::now();
    let error = world.acceptor.accept(near).await.unwrap_err();
    assert_timeout(&error, Layer::Tls);
    assert_eq!(start.elapsed(), secs(3));
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_server_without_a_preface_ends_the_connection_and_those_who_wait(#[values(true, false)] swallowed: bool) {
    let (near, far) = duplex(1 << 16);
    let _held: Box<dyn std::any::Any> = if swallowed { Box::new(swallow(far)) } else { Box::new(far) };
    let begin = Instant::now();
    let (client, driver) = start(near).await;
    // More than may be opened unheard, so that some wait for room.
    let connects: Vec<_> = (0..20)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { connect(&client).await })
        })
        .collect();
    assert_timeout(&driver.await.unwrap().unwrap_err(), Layer::Http2);
    assert_eq!(begin.elapsed(), secs(5));
    for connect in connects {
        assert_timeout(&connect.await.unwrap(), Layer::Http2);
    }
    assert_eq!(begin.elapsed(), secs(5));
    assert_timeout(&connect(&client).await, Layer::Http2);
    assert_eq!(client.capacity().open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_does_not_wait_for_ever_to_send_its_preface() {
    let (near, _far) = duplex(8);
    let begin = Instant::now();
    let started = timeout(secs(60), client::Builder::new().with_config(config().into()).handshake(near)).await;
    let (client, driver) = started.expect("it hangs").unwrap();
    let (driven, connected) = tokio::join!(timeout(secs(60), driver), connect(&client));
    assert_timeout(&driven.expect("it hangs").unwrap_err(), Layer::Http2);
    assert_timeout(&connected, Layer::Http2);
    assert_eq!(begin.elapsed(), secs(5));
}

#[rstest]
#[case::nothing(b"".as_slice())]
#[case::half_a_preface(b"PRI * HTTP/2.0\r\n".as_slice())]
#[tokio::test(start_paused = true)]
async fn a_client_without_a_preface_is_given_up(#[case] said: &[u8]) {
    let (mut near, far) = duplex(1 << 16);
    near.write_all(said).await.unwrap();
    let begin = Instant::now();
    let error = server::Builder::new().with_config(config().into()).handshake(far).await.unwrap_err();
    assert_timeout(&error, Layer::Http2);
    assert_eq!(begin.elapsed(), secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_connect_without_an_answer_ends_in_time_and_frees_its_slot() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver) = start(near).await;
    let mut peer = Raw::server(Box::new(far)).await;
    peer.settings(Some(1)).await;
    let begin = Instant::now();
    let (error, stream) = tokio::join!(connect(&client), async { peer.expect(raw::HEADERS).await.stream });
    assert_timeout(&error, Layer::Connect);
    assert_eq!(begin.elapsed(), secs(7));
    assert_eq!(client.capacity().open, 0);
    assert_eq!(peer.expect(raw::RST_STREAM).await.stream, stream);
    // The answer that comes too late harms nobody.
    peer.accept(stream).await;
    let connecting = tokio::spawn(async move { client.connect(&authority(), &metadata()).await });
    let stream = peer.expect(raw::HEADERS).await.stream;
    peer.accept(stream).await;
    connecting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_finds_no_room_ends_in_time() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(config().with_max_tunnels(1), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let _held = tunnel(&client, &mut incoming).await;
    let begin = Instant::now();
    assert_timeout(&connect(&client).await, Layer::Connect);
    assert_eq!(begin.elapsed(), secs(7));
    assert_eq!(client.capacity().open, 1);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_given_up(
    #[values(true, false)] writing: bool,
    #[values(0, 5, 600, 601, 610, 615)] alive_for: u64,
) {
    let (near, far) = duplex(1 << 16);
    let (client, driver) = start(near).await;
    let mut peer = Raw::server(Box::new(far)).await;
    peer.settings(None).await;
    let connecting = tokio::spawn(async move { client.connect(&authority(), &metadata()).await });
    let stream = peer.expect(raw::HEADERS).await.stream;
    peer.accept(stream).await;
    let mut near = connecting.await.unwrap().unwrap();
    let alive = timeout(secs(alive_for), async { while peer.next().await.is_some() {} }).await;
    assert!(alive.is_err(), "given up while the peer answered");
    // Every byte that was on its way has been answered; the last was a PING, or the 200.
    let silent = tokio::spawn(async move {
        peer.answers = false;
        while peer.next().await.is_some() {}
    });
    let begin = Instant::now();
    let error = if writing { write_error(&mut near).await } else { near.read(&mut [0]).await.unwrap_err() };
    assert_timeout(cause(&error), Layer::Http2);
    assert_timeout(&driver.await.unwrap().unwrap_err(), Layer::Http2);
    let (least, most) = (secs(13), secs(2 * 11 + 13));
    assert!((least..=most).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    silent.await.unwrap();
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_given_up(
    #[values(true, false)] writing: bool,
    #[values(0, 600)] alive_for: u64,
) {
    let (near, far) = duplex(1 << 16);
    let serving = tokio::spawn(server::Builder::new().with_config(config().into()).handshake(far));
    let mut peer = Raw::client(Box::new(near)).await;
    let (mut incoming, serving) = serve(serving.await.unwrap().unwrap());
    peer.connect(1, "server:80").await;
    let mut far = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
    let alive = timeout(secs(alive_for), async { while peer.next().await.is_some() {} }).await;
    assert!(alive.is_err(), "given up while the peer answered");
    let silent = tokio::spawn(async move {
        peer.answers = false;
        while peer.next().await.is_some() {}
    });
    let error = if writing { write_error(&mut far).await } else { far.read(&mut [0]).await.unwrap_err() };
    assert_timeout(cause(&error), Layer::Http2);
    assert_timeout(&serving.await.unwrap().unwrap(), Layer::Http2);
    silent.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (near, far) = duplex(1 << 12);
    let (client, driver) = start(near).await;
    let mut peer = Raw::server(Box::new(far)).await;
    peer.settings(None).await;
    let connecting = tokio::spawn(async move { client.connect(&authority(), &metadata()).await });
    let stream = peer.expect(raw::HEADERS).await.stream;
    peer.accept(stream).await;
    let mut near = connecting.await.unwrap().unwrap();
    assert_timeout(cause(&write_error(&mut near).await), Layer::Http2);
    assert_timeout(&driver.await.unwrap().unwrap_err(), Layer::Http2);
    drop(peer);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn what_is_merely_idle_lives_on(
    #[values(1, 2, 3)] depth: usize,
    #[values(None, Some(secs(11)))] interval: Option<Duration>,
) {
    let world = World::new(config().with_keepalive_interval(interval));
    let (client, mut incoming) = world.connect(Carrier::Pipe, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    for _ in 0..3 {
        sleep(secs(3600)).await;
        near.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        far.read_exact(&mut got).await.unwrap();
        far.write_all(&got).await.unwrap();
        near.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_only_answers_pings_is_alive() {
    let (near, far) = duplex(1 << 16);
    let (_client, driver) = start(near).await;
    let mut peer = Raw::server(Box::new(far)).await;
    peer.settings(None).await;
    let mut pings = 0;
    let hour = timeout(secs(3600), async {
        loop {
            pings += usize::from(peer.expect(raw::PING).await.flags == 0);
        }
    });
    assert!(hour.await.is_err());
    assert!(!driver.is_finished());
    // One for each interval without a byte.
    assert!((3600 / 11 - 2..=3600 / 11).contains(&pings), "{pings}");
}

#[derive(Clone, Copy, Debug)]
enum Stall {
    AtOnce,
    WithinTls,
    AfterTls,
}

#[rstest]
#[case(Stall::AtOnce, Layer::Tls, 3)]
#[case(Stall::WithinTls, Layer::Tls, 3)]
#[case(Stall::AfterTls, Layer::Http2, 5)]
#[tokio::test(start_paused = true)]
async fn a_gateway_that_stalls_costs_the_nested_connection_and_no_more(
    #[case] stall: Stall,
    #[case] layer: Layer,
    #[case] after: u64,
) {
    let world = World::new(config());
    let (outer, mut outer_incoming) = world.connect(Carrier::Pipe, 1).await;
    let there = world.clone();
    tokio::spawn(async move {
        let mut tunnel = outer_incoming.recv().await.unwrap().accept(&metadata()).unwrap();
        match stall {
            // Nor does a second attempt help, which is made in case the gateway has lost what came before its 200.
            Stall::AtOnce => {
                tokio::spawn(swallow(tunnel));
                tunnel = outer_incoming.recv().await.unwrap().accept(&metadata()).unwrap();
            }
            Stall::WithinTls => {
                // The first flight goes on, and so does some of the answer.
                let (mut gateway, backend) = duplex(1 << 16);
                tokio::spawn(async move { there.acceptor.accept(backend).await.map(drop) });
                let mut hello = vec![0; 1 << 16];
                let n = tunnel.read(&mut hello).await.unwrap();
                gateway.write_all(&hello[..n]).await.unwrap();
                let mut answer = [0; 500];
                gateway.read_exact(&mut answer).await.unwrap();
                tunnel.write_all(&answer).await.unwrap();
                swallow(tunnel).await.unwrap();
                return;
            }
            Stall::AfterTls => return swallow(there.acceptor.accept(tunnel).await.unwrap()).await.unwrap(),
        }
        swallow(tunnel).await.unwrap();
    });
    let begin = Instant::now();
    let error = match nested::extend(&outer, &world.hop(), &world.connector, &metadata()).await {
        Err(error) => error,
        Ok((client, driver)) => {
            let driver = tokio::spawn(driver);
            let error = connect(&client).await;
            assert_timeout(&driver.await.unwrap().unwrap_err(), Layer::Http2);
            error
        }
    };
    assert_timeout(&error, layer);
    assert_eq!(error.hop(), Some(1));
    assert_eq!(begin.elapsed(), secs(after));
    idle().await;
    assert_eq!(outer.capacity().open, 0);
    assert!(!outer.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_driver_ends_although_its_peer_never_closes() {
    let (near, far) = duplex(1 << 16);
    let (client, driver) = start(near).await;
    let mut peer = Raw::server(Box::new(far)).await;
    peer.settings(None).await;
    idle().await;
    let begin = Instant::now();
    drop(client);
    driver.await.unwrap().unwrap();
    assert_eq!(begin.elapsed(), secs(2), "the linger timeout");
    assert!(matches!(peer.expect(raw::GOAWAY).await.payload[4..], [0, 0, 0, 0]));
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_client_never_closes_ends_all_the_same() {
    let (near, far): (BoxIo, BoxIo) = Carrier::Pipe.pair().await;
    let serving = tokio::spawn(server::Builder::new().with_config(config().into()).handshake(far));
    let peer = Raw::client(near).await;
    let mut server = serving.await.unwrap().unwrap();
    server.graceful_shutdown();
    let begin = Instant::now();
    let end = server.accept().await;
    // Nobody has answered the PING that follows the first GOAWAY.
    assert_timeout(&end.unwrap().unwrap_err(), Layer::Http2);
    assert!(begin.elapsed() <= secs(2 * 11 + 13), "{:?}", begin.elapsed());
    drop(peer);
}
