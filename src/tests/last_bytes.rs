//! What was received before a failure is delivered before the failure, in each direction, at each depth.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use rstest::rstest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::time::Instant;

use super::harness::{Carrier, World, authority, kind, metadata, plain, serve, tunnel, write_error};
use super::raw::{self, Raw};
use crate::io::{BytesAdapter, BytesWrite, RelayEnd, RelayOperation, relay};
use crate::tunnel::{ResetReason, TunnelStream};
use crate::{Config, Error, ErrorKind, Side, client};

/// A socket that was reset: writing fails, and what came before the reset is still to be read.
struct Reset {
    received: Bytes,
    /// Linux tells of a reset once: who has failed to write reads an end.
    reads_like_an_end: bool,
    has_failed: bool,
}

impl Reset {
    fn new(received: usize, reads_like_an_end: bool) -> Self {
        Self { received: vec![7; received].into(), reads_like_an_end, has_failed: false }
    }
}

impl AsyncRead for Reset {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = self.received.len().min(buf.remaining()).min(1000);
        buf.put_slice(&self.received.split_to(n));
        match n {
            0 if !self.reads_like_an_end || !self.has_failed => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Reset {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.has_failed = true;
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

/// Everything up to the failure, which there must be.
async fn read_to_failure(stream: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, io::Error) {
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece).await {
            Ok(0) => panic!("an orderly end after {} bytes", got.len()),
            Ok(n) => got.extend(&piece[..n]),
            Err(e) => return (got, e),
        }
    }
}

/// Uploads until that fails, and reads all the while.
async fn upload(near: TunnelStream) -> (Vec<u8>, io::Error) {
    let (mut recv, mut send) = near.into_split();
    let writing = tokio::spawn(async move {
        while send.write_all(&[0; 10_000]).await.is_ok() {}
        send
    });
    let read = read_to_failure(&mut recv).await;
    drop(writing.await.unwrap());
    read
}

#[rstest]
#[tokio::test]
async fn an_application_that_answers_an_upload_early_and_resets_is_heard_first(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2, 3)] depth: usize,
    #[values(200, 300_000)] size: usize,
    #[values(true, false)] reads_like_an_end: bool,
) {
    let (client, mut incoming) = World::new(Config::new()).connect(carrier, depth).await;
    let (near, mut far) = tunnel(&client, &mut incoming).await;
    tokio::spawn(async move {
        let application = Reset::new(size, reads_like_an_end);
        // It has sent its answer and fails before anything is written to it, or only then.
        let error = relay(&mut far, &mut BytesAdapter::new(application)).await.unwrap_err();
        assert_eq!(error.end(), RelayEnd::B);
        far.reset(ResetReason::ConnectError);
    });
    let (got, error) = upload(near).await;
    assert_eq!((got.len(), kind(&error)), (size, ErrorKind::Reset(10)));
}

#[rstest]
#[tokio::test]
async fn what_is_on_its_way_is_sent_before_a_reset(#[values(1, 2)] depth: usize) {
    let config = Config::new().with_stream_window(1 << 16);
    let (client, mut incoming) = World::new(config).connect(Carrier::Pipe, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    // More than the peer's window: some of it waits for the peer to read.
    let size = 200_000;
    let writing = tokio::spawn(async move {
        far.write_all(&vec![7; size]).await.unwrap();
        poll_fn(|cx| Pin::new(&mut far).poll_sent(cx)).await;
        far.reset(ResetReason::ConnectError);
    });
    let (got, error) = read_to_failure(&mut near).await;
    assert_eq!((got.len(), kind(&error)), (size, ErrorKind::Reset(10)));
    writing.await.unwrap();
}

#[rstest]
#[tokio::test]
async fn what_a_tunnel_received_before_its_reset_reaches_a_slow_application(
    #[values(1, 2)] depth: usize,
    #[values(true, false)] uploads: bool,
) {
    const SIZE: usize = 100_000;
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    far.write_all(&[7; SIZE]).await.unwrap();
    poll_fn(|cx| Pin::new(&mut far).poll_sent(cx)).await;
    far.reset(ResetReason::ConnectError);
    let (application, stream) = duplex(16);
    let (mut reading, mut writing) = tokio::io::split(application);
    let uploading = tokio::spawn(async move { while uploads && writing.write_all(&[1; 100]).await.is_ok() {} });
    let relayed = tokio::spawn(async move { relay(&mut near, &mut BytesAdapter::new(stream)).await.unwrap_err() });
    let mut got = Vec::new();
    reading.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), SIZE);
    let error = relayed.await.unwrap();
    assert_eq!((error.end(), error.stats().a_to_b), (RelayEnd::A, SIZE as u64));
    assert_eq!(Error::from_io(error.io_error()).unwrap().kind(), &ErrorKind::Reset(10));
    uploading.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_takes_nothing_holds_a_failed_one_for_two_seconds() {
    let (mut application, stream) = duplex(16);
    application.write_all(b"for a dead one").await.unwrap();
    let start = Instant::now();
    let failed = Reset::new(1000, false);
    let error = relay(&mut BytesAdapter::new(failed), &mut BytesAdapter::new(stream)).await.unwrap_err();
    assert_eq!((error.end(), error.operation(), error.stats().a_to_b), (RelayEnd::A, RelayOperation::Write, 16));
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

/// Neither has a task, a socket and memory for as long as its application has nothing to say.
#[rstest]
#[tokio::test]
async fn a_tunnel_that_fails_after_the_peers_end_is_noticed_although_the_application_is_silent(
    #[values(1, 2)] depth: usize,
    #[values(Some(ResetReason::Cancel), None)] reset: Option<ResetReason>,
) {
    let (near, far, wire) = Carrier::Pipe.cuttable_pair().await;
    let (client, mut incoming) = World::new(Config::new()).connect_over(near, far, depth).await;
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    let (mut application, stream) = duplex(1 << 10);
    let relayed = tokio::spawn(async move { relay(&mut far, &mut BytesAdapter::new(stream)).await });
    near.shutdown().await.unwrap();
    assert_eq!(application.read(&mut [0]).await.unwrap(), 0);
    match reset {
        Some(reason) => near.reset(reason),
        None => wire.abort(),
    }
    assert_eq!(relayed.await.unwrap().unwrap_err().end(), RelayEnd::A);
}

#[rstest]
#[tokio::test]
async fn what_a_connection_received_before_writing_to_it_failed_is_read(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
) {
    const SIZE: usize = 40_000;
    let (near, far) = carrier.pair().await;
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let peer = tokio::spawn(async move {
        let (mut peer, stream) = Raw::taking(far).await;
        // Its socket has unread bytes: the kernel says that it was reset.
        peer.expect(raw::DATA).await;
        for _ in 0..4 {
            peer.send(raw::DATA, 0, stream, &[7; SIZE / 4]).await;
        }
    });
    let mut near = client.connect(&authority(), &metadata()).await.unwrap();
    near.write_all(&[0; 50_000]).await.unwrap();
    peer.await.unwrap();
    let failed = write_error(&mut near).await;
    let (got, error) = read_to_failure(&mut near).await;
    assert_eq!((got.len(), kind(&error), kind(&failed)), (SIZE, ErrorKind::Closed, ErrorKind::Closed));
}

#[rstest]
#[tokio::test]
async fn headers_on_an_open_tunnel_are_an_error_of_the_stream(#[values(true, false)] at_server: bool) {
    let (near, far) = duplex(1 << 16);
    let trailers = [0x00, 1, b'x', 1, b'1'];
    let (mut tunnel, mut peer, stream) = if at_server {
        let serving = tokio::spawn(crate::server::handshake(far));
        let mut peer = Raw::client(Box::new(near)).await;
        let (mut incoming, _) = serve(serving.await.unwrap().unwrap());
        peer.connect(1, "server:80").await;
        (incoming.recv().await.unwrap().accept(&metadata()).unwrap(), peer, 1)
    } else {
        let (client, driver) = client::handshake(near).await.unwrap();
        tokio::spawn(driver);
        let taking = tokio::spawn(Raw::taking(Box::new(far)));
        let tunnel = client.connect(&authority(), &metadata()).await.unwrap();
        let (peer, stream) = taking.await.unwrap();
        (tunnel, peer, stream)
    };
    peer.send(raw::DATA, 0, stream, b"half of").await;
    peer.send(raw::HEADERS, raw::END_STREAM | raw::END_HEADERS, stream, &trailers).await;
    let (got, error) = read_to_failure(&mut tunnel).await;
    assert_eq!((&got[..], kind(&error)), (&b"half of"[..], ErrorKind::Protocol));
    assert_eq!(Error::from_io(&error).unwrap().side(), Side::Remote);
    drop(tunnel);
    assert_eq!(peer.expect(raw::RST_STREAM).await.payload, [0, 0, 0, 1], "PROTOCOL_ERROR");
}

#[tokio::test(start_paused = true)]
async fn a_reset_does_not_wait_for_a_peer_that_reads_nothing() {
    let (near, far) = duplex(1 << 20);
    let (client, _driver, server) = plain(Config::new().with_stream_window(1 << 16), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.write_all(b"for a dead one").await.unwrap();
    let failing = Reset::new(200_000, false);
    let start = Instant::now();
    let error = relay(&mut far, &mut BytesAdapter::new(failing)).await.unwrap_err();
    assert_eq!((error.end(), start.elapsed()), (RelayEnd::B, Duration::from_secs(2)));
    far.reset(ResetReason::ConnectError);
    assert_eq!(kind(&read_to_failure(&mut near).await.1), ErrorKind::Reset(10));
}
