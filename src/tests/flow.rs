//! Tunnels whose readers have stopped stall nobody else, and lose nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::task::JoinHandle;
use tokio_test::task;

use super::harness::{Carrier, World, authority, cause, idle, kind, metadata, plain, serve, tunnel, write_error};
use crate::tunnel::TunnelStream;
use crate::{Config, ErrorKind, ResetReason, Side, client};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Moves `total` bytes of a pattern and checks them.
async fn carry(mut from: TunnelStream, mut to: TunnelStream, total: usize) {
    let chunk = Arc::new(pattern(251 * 400));
    let sent = chunk.clone();
    let sending = tokio::spawn(async move {
        for start in (0..total).step_by(sent.len()) {
            from.write_all(&sent[..sent.len().min(total - start)]).await.unwrap();
        }
        from.shutdown().await.unwrap();
        from
    });
    let (mut got, mut buf) = (0, vec![0; 70_000]);
    loop {
        let n = to.read(&mut buf).await.unwrap();
        if n == 0 {
            break;
        }
        let at = got % 251;
        // Two pieces at most: the pattern's period divides the chunk's length, and the buffer is smaller.
        assert!(buf[..n] == chunk[at..at + n], "after {got} bytes");
        got += n;
    }
    assert_eq!(got, total);
    to.shutdown().await.unwrap();
    drop(sending.await.unwrap());
}

#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_tiny_writes_to_a_paused_reader_harm_nobody(
    #[values(1, 2)] depth: usize,
    #[values(64 << 10, 4 << 20)] stream_window: u32,
) {
    const TINY: usize = 100_000;
    let config = Config::new().with_stream_window(stream_window);
    let (client, mut incoming) = World::new(config).connect(Carrier::Pipe, depth).await;
    let (mut tiny, mut paused) = tunnel(&client, &mut incoming).await;
    let (bulk, bulk_end) = tunnel(&client, &mut incoming).await;
    let written = tokio::spawn(async move {
        for byte in pattern(TINY) {
            tiny.write_all(&[byte]).await.unwrap();
        }
        tiny.shutdown().await.unwrap();
        tiny
    });
    carry(bulk, bulk_end, 16 << 20).await;
    let mut got = Vec::new();
    paused.read_to_end(&mut got).await.unwrap();
    assert!(got == pattern(TINY), "{} of {TINY} bytes, or others", got.len());
    paused.shutdown().await.unwrap();
    let mut tiny = written.await.unwrap();
    assert_eq!(tiny.read(&mut [0]).await.unwrap(), 0);
}

/// Writes all it can and counts it. Returns only with an error.
fn stall(mut tunnel: TunnelStream) -> (Arc<AtomicUsize>, JoinHandle<std::io::Error>) {
    let written = Arc::new(AtomicUsize::new(0));
    let counter = written.clone();
    let writing = tokio::spawn(async move {
        loop {
            match tunnel.write(&[0; 10_000]).await {
                Ok(n) => counter.fetch_add(n, Ordering::Relaxed),
                Err(e) => return e,
            };
        }
    });
    (written, writing)
}

#[rstest]
#[case::eight_of_nine(8, 32 << 20)]
#[case::all_but_one_of_a_hundred(99, 4 << 20)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_leave_the_whole_connection_to_the_others(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
    #[values(true, false)] upwards: bool,
    #[case] stalled: u32,
    #[case] total: usize,
) {
    const WINDOW: usize = 64 << 10;
    const SEND_BUFFER: usize = 32 << 10;
    // Not one tunnel more than there are, so that the connection's window is not wider than it must be.
    let config = Config::new().with_stream_window(WINDOW as u32).with_max_stream_window(WINDOW as u32);
    let config = config.with_max_tunnels(stalled + 1).with_send_buffer(SEND_BUFFER);
    let (client, mut incoming) = World::new(config).connect(carrier, depth).await;
    let mut stalls = Vec::new();
    for _ in 0..stalled {
        let (near, far) = tunnel(&client, &mut incoming).await;
        let (from, to) = if upwards { (near, far) } else { (far, near) };
        stalls.push((stall(from), to));
    }
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (from, to) = if upwards { (near, far) } else { (far, near) };
    carry(from, to, total).await;
    for ((written, writing), mut to) in stalls {
        assert!(!writing.is_finished());
        let written = written.load(Ordering::Relaxed);
        assert!((WINDOW..=WINDOW + SEND_BUFFER).contains(&written), "{written}");
        to.read_exact(&mut vec![0; 2 * WINDOW]).await.unwrap();
        to.reset(ResetReason::ConnectError);
        assert_eq!(kind(&writing.await.unwrap()), ErrorKind::Reset(10));
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_write_given_up_blocks_neither_its_own_tunnel_nor_others(#[values(1, 2)] depth: usize) {
    const WINDOW: usize = 64 << 10;
    let config = Config::new().with_stream_window(WINDOW as u32).with_max_tunnels(2).with_send_buffer(32 << 10);
    let (client, mut incoming) = World::new(config).connect(Carrier::Pipe, depth).await;
    let (mut one, mut one_end) = tunnel(&client, &mut incoming).await;
    let (other, other_end) = tunnel(&client, &mut incoming).await;
    let mut written = 0;
    while let Poll::Ready(n) = poll_write(&mut one, 1_000_000) {
        written += n;
        idle().await;
    }
    assert!(written >= WINDOW);
    carry(other, other_end, 1 << 20).await;
    one_end.read_exact(&mut vec![0; written]).await.unwrap();
    let (other, other_end) = tunnel(&client, &mut incoming).await;
    carry(other, other_end, 1 << 20).await;
    carry(one, one_end, 1 << 20).await;
}

/// Polls once and gives up.
fn poll_write(tunnel: &mut TunnelStream, len: usize) -> Poll<usize> {
    let data = vec![0; len];
    let mut write = task::spawn(async { tunnel.write(&data).await.unwrap() });
    write.poll()
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_write_given_up_does_not_keep_the_window_of_a_peer_that_has_little(#[values(true, false)] in_vain: bool) {
    let (near, far) = duplex(1 << 20);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    // 64 KiB for a stream, and no more for the whole connection.
    let mut server = h2::server::handshake(far).await.unwrap();
    let (sender, mut tunnels) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let send = respond.send_response(http::Response::new(()), false).unwrap();
            sender.send((request.into_body(), send)).ok().unwrap();
        }
    });
    let mut given_up = client.connect(&authority(), &metadata()).await.unwrap();
    let (mut recv, _send) = tunnels.recv().await.unwrap();
    let mut other = client.connect(&authority(), &metadata()).await.unwrap();
    let (mut other_recv, _other_send) = tunnels.recv().await.unwrap();
    let mut written = 0;
    while let Poll::Ready(n) = poll_write(&mut given_up, 1_000_000) {
        written += n;
        idle().await;
        if !in_vain {
            // It took a part, and nobody comes back with the rest.
            break;
        }
    }
    // What is in the send buffer goes out as the peer reads; then the window is the given-up write's to take.
    while written > 0 {
        let data = recv.data().await.unwrap().unwrap();
        recv.flow_control().release_capacity(data.len()).unwrap();
        written -= data.len();
    }
    idle().await;
    assert!(matches!(poll_write(&mut other, 10), Poll::Ready(10)));
    assert_eq!(other_recv.data().await.unwrap().unwrap().len(), 10);
    assert!(matches!(poll_write(&mut given_up, 10), Poll::Ready(10)));
    assert_eq!(recv.data().await.unwrap().unwrap().len(), 10);
}

#[rstest]
#[tokio::test]
async fn a_blocked_writer_learns_why_its_peer_reset(
    #[values(Carrier::Pipe, Carrier::Tcp, Carrier::Unix)] carrier: Carrier,
    #[values(1, 2)] depth: usize,
    #[values(true, false)] upwards: bool,
) {
    let config = Config::new().with_stream_window(16 << 10).with_send_buffer(16 << 10);
    let (client, mut incoming) = World::new(config).connect(carrier, depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let (mut from, mut to) = if upwards { (near, far) } else { (far, near) };
    while poll_write(&mut from, 10_000).is_ready() {
        tokio::task::yield_now().await;
    }
    let writing = tokio::spawn(async move { (from.write(b"x").await, from) });
    tokio::task::yield_now().await;
    assert!(!writing.is_finished());
    to.reset(ResetReason::Internal);
    let (error, mut from) = writing.await.unwrap();
    let error = error.unwrap_err();
    assert_eq!((kind(&error), cause(&error).side()), (ErrorKind::Reset(2), Side::Remote));
    assert_eq!(kind(&write_error(&mut from).await), ErrorKind::Reset(2), "and again");
}

#[tokio::test]
async fn no_write_takes_nothing() {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new().with_stream_window(5000), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    assert_eq!(near.write(b"").await.unwrap(), 0);
    let reading = tokio::spawn(async move {
        let mut buf = [0; 777];
        loop {
            match far.read(&mut buf).await.unwrap() {
                0 => return far.shutdown().await.unwrap(),
                n => assert!(n <= 777),
            }
        }
    });
    let mut data = bytes::Bytes::from(pattern(200_000));
    while !data.is_empty() {
        let before = data.len();
        std::future::poll_fn(|cx| crate::io::BytesWrite::poll_write_bytes(Pin::new(&mut near), cx, &mut data))
            .await
            .unwrap();
        assert!(data.len() < before);
    }
    for len in [1, 2, 999, 100_000] {
        let slices = vec![0; len];
        let taken = near.write_vectored(&[std::io::IoSlice::new(&[]), std::io::IoSlice::new(&slices)]).await.unwrap();
        assert!((1..=len).contains(&taken));
    }
    assert!(near.is_write_vectored());
    near.shutdown().await.unwrap();
    reading.await.unwrap();
}
