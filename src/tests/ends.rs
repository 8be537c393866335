//! How tunnels end: half-close in any order, drops and resets in either direction.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::harness::{
    Carrier, World, authority, cause, idle, kind, metadata, plain, serve, settled, tunnel, write_error,
};
use super::raw::{self, Raw};
use crate::io::{BytesRead, BytesWrite, read_bytes, write_bytes};
use crate::tunnel::TunnelStream;
use crate::{Config, ErrorKind, Layer, ResetReason, Side, client};

const CANCEL: ErrorKind = ErrorKind::Reset(8);

async fn say(tunnel: &mut TunnelStream, text: &str) {
    tunnel.write_all(text.as_bytes()).await.unwrap();
}

async fn hear(tunnel: &mut TunnelStream, text: &str) {
    let mut got = vec![0; text.len()];
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(got, text.as_bytes());
}

async fn hear_to_the_end(tunnel: &mut TunnelStream, text: &str) {
    let mut got = String::new();
    tunnel.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, text);
}

#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Server,
    Both,
}

#[rstest]
#[tokio::test]
async fn each_direction_ends_by_itself_and_in_any_order(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
    #[values(First::Client, First::Server, First::Both)] first: First,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (mut one, mut other) = if matches!(first, First::Server) { (far, near) } else { (near, far) };
    say(&mut one, "question").await;
    say(&mut other, "greeting").await;
    hear(&mut one, "greeting").await;
    hear(&mut other, "question").await;
    say(&mut one, "the end").await;
    one.shutdown().await.unwrap();
    if matches!(first, First::Both) {
        say(&mut other, "my end").await;
        other.shutdown().await.unwrap();
        hear_to_the_end(&mut other, "the end").await;
        hear_to_the_end(&mut one, "my end").await;
    } else {
        hear_to_the_end(&mut other, "the end").await;
        for _ in 0..3 {
            say(&mut other, "afterwards").await;
            hear(&mut one, "afterwards").await;
        }
        say(&mut other, "my end").await;
        other.shutdown().await.unwrap();
        hear_to_the_end(&mut one, "my end").await;
    }
    drop((one, other));
    settled(|| client.capacity().open == 0).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    say(&mut near, "still here").await;
    hear(&mut far, "still here").await;
}

#[rstest]
#[tokio::test]
async fn after_a_drop_reads_fail_with_cancel_and_writes_with_a_broken_pipe(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
    #[values(true, false)] client_drops: bool,
    #[values(true, false)] writing: bool,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (gone, mut left) = if client_drops { (near, far) } else { (far, near) };
    drop(gone);
    let error = if writing { write_error(&mut left).await } else { left.read(&mut [0]).await.unwrap_err() };
    assert_eq!(kind(&error), CANCEL);
    assert_eq!((cause(&error).layer(), cause(&error).side()), (Layer::Tunnel, Side::Remote));
    let expected = if writing { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
    assert_eq!(error.kind(), expected);
    // The connection does not suffer.
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    say(&mut near, "still here").await;
    hear(&mut far, "still here").await;
}

#[rstest]
#[tokio::test]
async fn a_reset_carries_its_reason(
    #[values(1, 2)] depth: usize,
    #[values(true, false)] client_resets: bool,
    #[values(
        (ResetReason::Cancel, 8),
        (ResetReason::ConnectError, 10),
        (ResetReason::Refused, 7),
        (ResetReason::Internal, 2)
    )]
    (reason, code): (ResetReason, u32),
) {
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (mut one, mut other) = if client_resets { (near, far) } else { (far, near) };
    one.reset(reason);
    let error = other.read(&mut [0]).await.unwrap_err();
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Reset(code), Side::Remote));
    let error = write_error(&mut other).await;
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Reset(code), Side::Remote));
    let error = one.read(&mut [0]).await.unwrap_err();
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Reset(code), Side::Local));
    let error = write_error(&mut one).await;
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Reset(code), Side::Local));
}

#[rstest]
#[tokio::test]
async fn a_reset_wakes_who_waits(#[values(1, 2)] depth: usize, #[values(true, false)] writing: bool) {
    let config = Config::new().with_stream_window(1 << 16);
    let (client, mut incoming) = World::new(config).connect(Carrier::Pipe, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    let waiting = tokio::spawn(async move {
        if writing { write_error(&mut near).await } else { near.read(&mut [0]).await.unwrap_err() }
    });
    far.read_exact(&mut vec![0; if writing { 1 << 17 } else { 0 }]).await.unwrap();
    far.reset(ResetReason::ConnectError);
    assert_eq!(kind(&waiting.await.unwrap()), ErrorKind::Reset(10));
}

#[rstest]
#[case::no_bytes(0)]
#[case::a_word(8)]
#[case::frames_beyond_the_window(100_000)]
#[tokio::test]
async fn the_last_frame_has_the_end(#[case] size: usize) {
    let (near, far) = duplex(1 << 20);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let peer = tokio::spawn(async move {
        let (mut peer, stream) = Raw::taking(Box::new(far)).await;
        let mut got = 0;
        loop {
            let frame = peer.expect(raw::DATA).await;
            got += frame.payload.len();
            if frame.flags & raw::END_STREAM != 0 {
                return (got, frame.payload.len(), stream, peer);
            }
            let more = u32::try_from(frame.payload.len()).unwrap().to_be_bytes();
            peer.send(raw::WINDOW_UPDATE, 0, 0, &more).await;
            peer.send(raw::WINDOW_UPDATE, 0, stream, &more).await;
        }
    });
    let mut near = client.connect(&authority(), &metadata()).await.unwrap();
    let mut data = Bytes::from(vec![1; size]);
    poll_fn(|cx| Pin::new(&mut near).poll_write_last(cx, &mut data)).await.unwrap();
    assert_eq!(kind(&write_error(&mut near).await), ErrorKind::WriteAfterShutdown);
    let (got, last, stream, mut peer) = peer.await.unwrap();
    assert_eq!((got, last > 0), (size, size > 0));

    assert!(!near.is_at_end());
    peer.send(raw::DATA, raw::END_STREAM, stream, b"all there is").await;
    assert_eq!(read_bytes(&mut near).await.unwrap(), "all there is");
    assert!(near.is_at_end(), "it is known before it is read");
    assert!(read_bytes(&mut near).await.unwrap().is_empty());
    assert!(near.is_at_end());
}

#[rstest]
#[tokio::test]
async fn a_reset_without_an_error_reads_as_the_end_only_after_the_end(
    #[values(true, false)] ended: bool,
    #[values(true, false)] read_before: bool,
) {
    let (near, far) = duplex(1 << 16);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let peer = tokio::spawn(async move {
        let (mut peer, stream) = Raw::taking(Box::new(far)).await;
        peer.send(raw::DATA, if ended { raw::END_STREAM } else { 0 }, stream, b"all there is").await;
        if read_before {
            peer.expect(raw::DATA).await;
        }
        peer.send(raw::RST_STREAM, 0, stream, &[0; 4]).await;
        while peer.next().await.is_some() {}
    });
    let mut near = client.connect(&authority(), &metadata()).await.unwrap();
    hear(&mut near, "all there is").await;
    if read_before {
        say(&mut near, "it is read").await;
    }
    let end = near.read(&mut [0]).await;
    if ended {
        assert_eq!(end.unwrap(), 0);
        assert!(near.is_at_end());
    } else {
        assert_eq!(kind(&end.unwrap_err()), ErrorKind::Reset(0), "it may have been cut off");
    }
    let error = write_error(&mut near).await;
    assert_eq!((kind(&error), error.kind()), (ErrorKind::Reset(0), io::ErrorKind::BrokenPipe));
    drop((near, client));
    peer.await.unwrap();
}

#[rstest]
#[tokio::test]
async fn an_incoming_dropped_unanswered_may_be_tried_again(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (authority, metadata) = (authority(), metadata());
    let turn_away = async { drop(incoming.recv().await.unwrap()) };
    let (refused, ()) = tokio::join!(client.connect(&authority, &metadata), turn_away);
    let error = refused.unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::Reset(7), Layer::Connect));
    assert_eq!(client.capacity().open, 0);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    say(&mut near, "again").await;
    hear(&mut far, "again").await;
}

#[rstest]
#[tokio::test]
async fn nothing_is_written_after_a_shutdown(#[values(true, false)] at_client: bool) {
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, 1).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (mut one, mut other) = if at_client { (near, far) } else { (far, near) };
    one.shutdown().await.unwrap();
    for error in [
        one.write(b"x").await.unwrap_err(),
        one.write_vectored(&[io::IoSlice::new(b""), io::IoSlice::new(b"x")]).await.unwrap_err(),
        write_bytes(&mut one, Bytes::from_static(b"x")).await.unwrap_err(),
    ] {
        assert_eq!((kind(&error), error.kind()), (ErrorKind::WriteAfterShutdown, io::ErrorKind::BrokenPipe));
        assert_eq!(cause(&error).side(), Side::Local);
    }
    one.flush().await.unwrap();
    one.shutdown().await.unwrap();
    hear_to_the_end(&mut other, "").await;
    say(&mut other, "heard").await;
    hear(&mut one, "heard").await;
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_finished_and_dropped_tunnel_waits_for_its_peer_and_then_is_reset(#[values(true, false)] peer_ends: bool) {
    let config = Config::new().with_linger_timeout(Duration::from_secs(2));
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(config, near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    say(&mut near, "fire and forget").await;
    near.shutdown().await.unwrap();
    drop(near);
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(client.capacity().open, 1);
    hear_to_the_end(&mut far, "fire and forget").await;
    if peer_ends {
        far.shutdown().await.unwrap();
        idle().await;
    } else {
        say(&mut far, "nobody reads this").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(kind(&write_error(&mut far).await), CANCEL);
    }
    assert_eq!(client.capacity().open, 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_floods_a_dropped_tunnel_is_told_to_stop() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.shutdown().await.unwrap();
    drop(near);
    let start = tokio::time::Instant::now();
    let mut written = 0;
    let error = loop {
        match far.write(&[0; 10_000]).await {
            Ok(n) => written += n,
            Err(e) => break e,
        }
    };
    assert_eq!(kind(&error), CANCEL);
    assert_eq!(start.elapsed(), Duration::ZERO, "it did not take the timeout");
    assert!((256 << 10..2 << 20).contains(&written), "{written}");
    idle().await;
    assert_eq!(client.capacity().open, 0);
}

#[rstest]
#[tokio::test]
async fn the_halves_of_a_tunnel_count_as_one_until_both_are_gone(#[values(true, false)] send_first: bool) {
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, 1).await;
    let (near, mut far) = tunnel(&client, &mut incoming).await;
    let (mut recv, mut send) = near.into_split();
    if send_first {
        send.write_all(b"one way").await.unwrap();
        send.shutdown().await.unwrap();
        drop(send);
        hear_to_the_end(&mut far, "one way").await;
        assert_eq!(client.capacity().open, 1);
        say(&mut far, "and the other").await;
        far.shutdown().await.unwrap();
        let mut got = String::new();
        recv.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "and the other");
        drop(recv);
    } else {
        drop(recv);
        say(&mut far, "nobody reads this").await;
        send.write_all(b"one way").await.unwrap();
        hear(&mut far, "one way").await;
        assert_eq!(client.capacity().open, 1);
        drop(send);
        assert_eq!(kind(&far.read(&mut [0]).await.unwrap_err()), CANCEL);
    }
    assert_eq!(client.capacity().open, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_an_orderly_end_arrives_however_slow_the_reader() {
    const LEN: usize = 60_000;
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new().with_stream_window(1 << 16), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.write_all(&vec![7; LEN]).await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    // Longer than the linger timeout: the tunnel is reset by now.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.capacity().open, 0);
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), LEN);
    assert_eq!(kind(&write_error(&mut far).await), CANCEL);
}
