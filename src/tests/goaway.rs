//! How connections end: in order, by GOAWAY, and cut; what their tunnels and those who wait are told.

use std::sync::Arc;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::harness::{
    Carrier, Io, World, authority, cause, idle, kind, metadata, plain, serve, settled, tunnel, write_error,
};
use super::raw::{self, Raw};
use crate::client::Client;
use crate::server::{Incoming, Server};
use crate::tunnel::TunnelStream;
use crate::{Config, Error, ErrorKind, Layer, Side, client, nested, server};

/// As [`serve`], until told to shut down, and on from there.
fn serve_until_told<IO: Io + 'static>(
    mut server: Server<IO>,
) -> (mpsc::UnboundedReceiver<Incoming>, Arc<Notify>, JoinHandle<()>) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let tell = Arc::new(Notify::new());
    let told = tell.clone();
    let serving = tokio::spawn(async move {
        loop {
            tokio::select! {
                incoming = server.accept() => match incoming {
                    Some(incoming) => drop(sender.send(incoming.unwrap())),
                    None => return,
                },
                () = told.notified() => server.graceful_shutdown(),
            }
        }
    });
    (incoming, tell, serving)
}

async fn echoes(near: &mut TunnelStream, far: &mut TunnelStream) {
    let mut got = [0; 8];
    near.write_all(b"question").await.unwrap();
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"question");
    far.write_all(b"response").await.unwrap();
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"response");
}

async fn yields(turns: usize) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

async fn finish(mut near: TunnelStream, mut far: TunnelStream) {
    near.shutdown().await.unwrap();
    far.read_to_end(&mut Vec::new()).await.unwrap();
    far.shutdown().await.unwrap();
    near.read_to_end(&mut Vec::new()).await.unwrap();
}

async fn connect(client: &Client) -> crate::Result<TunnelStream> {
    client.connect(&authority(), &metadata()).await
}

#[rstest]
#[tokio::test]
async fn a_graceful_shutdown_lets_running_tunnels_finish_and_no_new_ones_in(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    let (near, far) = carrier.pair().await;
    let (client, driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, tell, serving) = serve_until_told(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    tell.notify_one();
    settled(|| client.is_closed()).await;
    assert!(connect(&client).await.unwrap_err().is_go_away());
    echoes(&mut near, &mut far).await;
    finish(near, far).await;
    serving.await.unwrap();
    driver.await.unwrap().unwrap();
    assert!(connect(&client).await.unwrap_err().is_go_away(), "and that stays the reason");
    assert_eq!(client.capacity().open, 0);
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_tunnel_opened_while_the_server_shuts_down_is_served_or_may_be_tried_again(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8, 9)] turns: usize,
    #[values(true, false)] shutdown_first: bool,
) {
    let (near, far) = duplex(1 << 16);
    let (client, driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, tell, serving) = serve_until_told(server);
    idle().await;
    let opening = |client: Client| tokio::spawn(async move { connect(&client).await });
    let opened = if shutdown_first {
        tell.notify_one();
        yields(turns).await;
        opening(client.clone())
    } else {
        let opened = opening(client.clone());
        yields(turns).await;
        tell.notify_one();
        opened
    };
    idle().await;
    if let Ok(incoming) = incoming.try_recv() {
        let mut far = incoming.accept(&metadata()).unwrap();
        let mut near = opened.await.unwrap().unwrap();
        echoes(&mut near, &mut far).await;
        finish(near, far).await;
    } else {
        assert!(opened.is_finished(), "neither served nor refused");
        let error = opened.await.unwrap().unwrap_err();
        assert!(error.is_go_away() || *error.kind() == ErrorKind::Reset(7), "{error:?}");
    }
    serving.await.unwrap();
    driver.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_room_learn_of_a_graceful_shutdown() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new().with_max_tunnels(1), near, far).await;
    let (mut incoming, tell, _serving) = serve_until_told(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { connect(&client).await }
    });
    idle().await;
    assert!(!waiting.is_finished());
    tell.notify_one();
    idle().await;
    assert!(waiting.is_finished(), "it could go elsewhere at once");
    assert!(waiting.await.unwrap().unwrap_err().is_go_away());
    echoes(&mut near, &mut far).await;
    finish(near, far).await;
}

#[rstest]
#[tokio::test]
async fn a_servers_go_away_with_an_error_reaches_tunnels_and_connects(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(2, 11)] code: u32,
    #[values(0, 1 << 30)] last_stream: u32,
) {
    let (near, far) = carrier.pair().await;
    let (client, driver) = client::handshake(near).await.unwrap();
    let driver = tokio::spawn(driver);
    let peer = tokio::spawn(async move {
        let mut peer = Raw::server(far).await;
        peer.settings(None).await;
        for _ in 0..2 {
            let stream = peer.expect(raw::HEADERS).await.stream;
            peer.accept(stream).await;
        }
        peer.expect(raw::HEADERS).await;
        peer.go_away(last_stream, code).await;
    });
    let mut reader = connect(&client).await.unwrap();
    let mut writer = connect(&client).await.unwrap();
    let in_flight = connect(&client).await.unwrap_err();
    let expected = ErrorKind::GoAway(code);
    assert_eq!((in_flight.kind(), in_flight.side()), (&expected, Side::Remote));
    let read = reader.read(&mut [0]).await.unwrap_err();
    assert_eq!((kind(&read), cause(&read).side()), (expected.clone(), Side::Remote));
    let written = write_error(&mut writer).await;
    assert_eq!((kind(&written), cause(&written).side()), (expected.clone(), Side::Remote));
    assert_eq!(driver.await.unwrap().unwrap_err().kind(), &expected);
    assert_eq!(connect(&client).await.unwrap_err().kind(), &expected);
    peer.await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_clients_go_away_with_an_error_reaches_the_servers_tunnels(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(2, 11)] code: u32,
) {
    let (near, far) = carrier.pair().await;
    let serving = tokio::spawn(server::handshake(far));
    let mut peer = Raw::client(near).await;
    let (mut incoming, serving) = serve(serving.await.unwrap().unwrap());
    let mut tunnels = Vec::new();
    for stream in [1, 3] {
        peer.connect(stream, "server:80").await;
        tunnels.push(incoming.recv().await.unwrap().accept(&metadata()).unwrap());
    }
    peer.go_away(0, code).await;
    peer.finish().await;
    let peer = tokio::spawn(async move { while peer.next().await.is_some() {} });
    let expected = ErrorKind::GoAway(code);
    let read = tunnels[0].read(&mut [0]).await.unwrap_err();
    assert_eq!((kind(&read), cause(&read).side()), (expected.clone(), Side::Remote));
    let written = write_error(&mut tunnels[1]).await;
    assert_eq!((kind(&written), cause(&written).side()), (expected.clone(), Side::Remote));
    assert_eq!(serving.await.unwrap().unwrap().kind(), &expected);
    peer.await.unwrap();
}

#[rstest]
#[tokio::test]
async fn a_go_away_is_heard_although_writing_fails_first(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    let (near, far) = carrier.pair().await;
    let (client, driver) = client::handshake(near).await.unwrap();
    let driver = tokio::spawn(driver);
    let mut peer = Raw::server(far).await;
    peer.settings(None).await;
    let connecting = tokio::spawn(async move { connect(&client).await });
    let stream = peer.expect(raw::HEADERS).await.stream;
    peer.accept(stream).await;
    let mut tunnel = connecting.await.unwrap().unwrap();
    // More than fits the carrier on its way to a peer that takes none of it, says why, and goes.
    let window = (1u32 << 30).to_be_bytes();
    peer.send(raw::WINDOW_UPDATE, 0, 0, &window).await;
    peer.send(raw::WINDOW_UPDATE, 0, stream, &window).await;
    let writing = tokio::spawn(async move { write_error(&mut tunnel).await });
    peer.expect(raw::DATA).await;
    yields(10_000).await;
    assert!(!writing.is_finished());
    // Has to be answered before anything else is read, and can't be.
    peer.send(raw::PING, 0, 0, &[7; 8]).await;
    yields(100).await;
    peer.go_away(stream, 11).await;
    drop(peer);
    assert_eq!(kind(&writing.await.unwrap()), ErrorKind::GoAway(11));
    assert_eq!(driver.await.unwrap().unwrap_err().kind(), &ErrorKind::GoAway(11));
}

#[rstest]
#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_and_is_the_peers_fault(#[values(true, false)] writing: bool) {
    let (near, far) = duplex(1 << 16);
    let serving = tokio::spawn(server::handshake(far));
    let mut peer = Raw::client(Box::new(near)).await;
    let (mut incoming, serving) = serve(serving.await.unwrap().unwrap());
    peer.connect(1, "server:80").await;
    let mut tunnel = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
    // DATA on stream 0.
    peer.send(raw::DATA, 0, 0, b"x").await;
    let error = if writing { write_error(&mut tunnel).await } else { tunnel.read(&mut [0]).await.unwrap_err() };
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Protocol, Side::Remote));
    drop(peer);
    assert!(serving.await.unwrap().is_some());
}

#[rstest]
#[tokio::test]
async fn a_cut_connection_closes_all_tunnels_at_both_ends(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2, 3)] depth: usize,
    #[values(true, false)] writing: bool,
) {
    let (near, far, wire) = carrier.cuttable_pair().await;
    let (client, mut incoming) = World::new(Config::new()).connect_over(near, far, depth).await;
    let mut ends = Vec::new();
    for _ in 0..3 {
        let (near, far) = tunnel(&client, &mut incoming).await;
        ends.extend([near, far]);
    }
    let in_flight = tokio::spawn({
        let client = client.clone();
        async move { connect(&client).await }
    });
    let unanswered = incoming.recv().await.unwrap();
    wire.abort();
    for end in &mut ends {
        let error = if writing { write_error(end).await } else { end.read(&mut [0]).await.unwrap_err() };
        assert_eq!((kind(&error), cause(&error).layer()), (ErrorKind::Closed, Layer::Http2), "{error:?}");
    }
    assert_eq!(in_flight.await.unwrap().unwrap_err().kind(), &ErrorKind::Closed);
    assert_eq!(unanswered.accept(&metadata()).unwrap_err().kind(), &ErrorKind::Closed);
    assert_eq!(connect(&client).await.unwrap_err().kind(), &ErrorKind::Closed);
    assert!(client.is_closed());
    drop(ends);
    assert_eq!(client.capacity().open, 0);
}

#[rstest]
#[tokio::test]
async fn tunnels_finished_and_dropped_leave_no_slot_behind_when_the_connection_is_gone(
    #[values(true, false)] dropped_before: bool,
) {
    let (near, far, wire) = Carrier::Pipe.cuttable_pair().await;
    let (client, driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, far) = tunnel(&client, &mut incoming).await;
    near.shutdown().await.unwrap();
    if dropped_before {
        drop(near);
        wire.abort();
        let _ = driver.await.unwrap();
    } else {
        wire.abort();
        let _ = driver.await.unwrap();
        drop(near);
    }
    assert_eq!(client.capacity().open, 0);
    drop(far);
}

#[rstest]
#[tokio::test]
async fn an_inner_connection_ends_by_itself_and_frees_its_place_on_the_outer_one(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    let world = World::new(Config::new());
    let (outer, mut outer_incoming) = world.connect(carrier, 1).await;
    let inner_end = async {
        let tunnel = outer_incoming.recv().await.unwrap().accept(&metadata()).unwrap();
        serve(server::handshake(world.acceptor.accept(tunnel).await.unwrap()).await.unwrap())
    };
    let (hop, metadata) = (world.hop(), metadata());
    let extending = async {
        let (inner, driver) = nested::extend(&outer, &hop, &world.connector, &metadata).await.unwrap();
        (inner, tokio::spawn(driver))
    };
    let ((inner, driver), (mut incoming, serving)) = tokio::join!(extending, inner_end);
    let (mut near, mut far) = tunnel(&inner, &mut incoming).await;
    assert_eq!((outer.capacity().open, inner.capacity().open), (1, 1));
    drop(inner);
    echoes(&mut near, &mut far).await;
    assert!(!driver.is_finished(), "a tunnel keeps its connection");
    finish(near, far).await;
    driver.await.unwrap().unwrap();
    assert!(serving.await.unwrap().is_none());
    settled(|| outer.capacity().open == 0).await;
}

#[rstest]
#[tokio::test]
async fn the_last_bytes_arrive_although_every_handle_is_gone(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
) {
    const LEN: usize = 300_000;
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.write_all(&vec![7; LEN]).await.unwrap();
    near.shutdown().await.unwrap();
    drop((near, client));
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert!(got.len() == LEN && got.iter().all(|b| *b == 7));
}

#[tokio::test]
async fn a_driver_that_is_dropped_breaks_its_tunnels() {
    let (near, far) = duplex(1 << 16);
    let (client, driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    driver.abort();
    let ends: [&mut TunnelStream; 2] = [&mut near, &mut far];
    for end in ends {
        let error: Error = cause(&end.read(&mut [0]).await.unwrap_err()).clone();
        assert_eq!(error.kind(), &ErrorKind::Closed);
    }
    assert_eq!(connect(&client).await.unwrap_err().kind(), &ErrorKind::Closed);
}
