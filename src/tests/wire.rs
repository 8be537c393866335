//! What ending costs on the wire. Envoy closes a connection after 1,000 resets, so an orderly end must cost none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use rstest::rstest;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};

use super::harness::{BoxIo, World, authority, metadata, plain, serve, settled, tunnel};
use super::raw::RST_STREAM;
use crate::{Config, ErrorKind, Refusal, RefusalReason, ResetReason, nested};

/// Counts frames by their headers.
#[derive(Default)]
struct Scanner {
    head: Vec<u8>,
    skip: usize,
}

impl Scanner {
    /// How many frames of a kind begin in `data`.
    fn count(&mut self, mut data: &[u8], kind: u8) -> usize {
        let mut found = 0;
        while !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = &data[skipped..];
            let taken = if self.skip == 0 { (9 - self.head.len()).min(data.len()) } else { 0 };
            self.head.extend(&data[..taken]);
            data = &data[taken..];
            if self.head.len() == 9 {
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                found += usize::from(self.head[3] == kind);
                self.head.clear();
            }
        }
        found
    }
}

/// Counts the RST_STREAMs of both directions of a client's byte stream.
struct Tap {
    io: BoxIo,
    incoming: Scanner,
    outgoing: Scanner,
    resets: Arc<AtomicUsize>,
}

impl Tap {
    fn new(io: BoxIo) -> (Self, Arc<AtomicUsize>) {
        let resets = Arc::new(AtomicUsize::new(0));
        let outgoing = Scanner { skip: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len(), ..Scanner::default() };
        (Self { io, incoming: Scanner::default(), outgoing, resets: resets.clone() }, resets)
    }
}

impl AsyncRead for Tap {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.io).poll_read(cx, buf);
        let found = self.incoming.count(&buf.filled()[before..], RST_STREAM);
        self.resets.fetch_add(found, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = result {
            let found = self.outgoing.count(&buf[..n], RST_STREAM);
            self.resets.fetch_add(found, Ordering::Relaxed);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    ClientFirst,
    ServerFirst,
    /// The client does not wait for the server's end, and lets go with the answer unread.
    ClientLetsGo,
    /// The server does not wait for the client's end.
    ServerLetsGo,
    BothLetGo,
    Refused,
    /// Not orderly: shows that the tap counts.
    Reset,
}

#[rstest]
#[case(Ending::ClientFirst, 0)]
#[case(Ending::ServerFirst, 0)]
#[case(Ending::ClientLetsGo, 0)]
#[case(Ending::ServerLetsGo, 0)]
#[case(Ending::BothLetGo, 0)]
#[case(Ending::Refused, 0)]
#[case(Ending::Reset, 200)]
#[tokio::test]
async fn two_hundred_tunnels_that_end_in_order_cost_no_reset(#[case] ending: Ending, #[case] expected: usize) {
    let (near, far) = duplex(1 << 16);
    let (tap, resets) = Tap::new(Box::new(near));
    let (client, driver, server) = plain(Config::new(), tap, far).await;
    let (mut incoming, serving) = serve(server);
    for _ in 0..200 {
        if let Ending::Refused = ending {
            let (authority, metadata) = (authority(), metadata());
            let refuse = async {
                let refusal = Refusal::new(RefusalReason::Denied).with_details("a test");
                incoming.recv().await.unwrap().reject(&refusal);
            };
            let (refused, ()) = tokio::join!(client.connect(&authority, &metadata), refuse);
            let error = refused.unwrap_err();
            assert_eq!(error.refusal().map(Refusal::reason), Some(&RefusalReason::Denied));
            continue;
        }
        let (mut near, mut far) = tunnel(&client, &mut incoming).await;
        near.write_all(b"question").await.unwrap();
        far.read_exact(&mut [0; 8]).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        let mut rest = Vec::new();
        match ending {
            Ending::ClientFirst => {
                near.shutdown().await.unwrap();
                far.read_to_end(&mut rest).await.unwrap();
                far.shutdown().await.unwrap();
                near.read_to_end(&mut rest).await.unwrap();
            }
            Ending::ServerFirst => {
                far.shutdown().await.unwrap();
                near.read_to_end(&mut rest).await.unwrap();
                near.shutdown().await.unwrap();
                far.read_to_end(&mut rest).await.unwrap();
            }
            Ending::ClientLetsGo => {
                near.shutdown().await.unwrap();
                drop(near);
                far.read_to_end(&mut rest).await.unwrap();
                far.shutdown().await.unwrap();
            }
            Ending::ServerLetsGo => {
                far.shutdown().await.unwrap();
                drop(far);
                near.read_to_end(&mut rest).await.unwrap();
                near.shutdown().await.unwrap();
            }
            Ending::BothLetGo => {
                near.shutdown().await.unwrap();
                far.shutdown().await.unwrap();
            }
            Ending::Reset => {
                near.reset(ResetReason::Cancel);
                far.read_exact(&mut [0; 1]).await.unwrap_err();
            }
            Ending::Refused => unreachable!(),
        }
    }
    settled(|| client.capacity().open == 0).await;
    drop(client);
    driver.await.unwrap().unwrap();
    assert!(serving.await.unwrap().is_none());
    assert_eq!(resets.load(Ordering::Relaxed), expected);
}

#[rstest]
#[tokio::test]
async fn fifty_nested_connections_cost_no_reset_on_the_outer_one(#[values(true, false)] used: bool) {
    let (near, far) = duplex(1 << 16);
    let (tap, resets) = Tap::new(Box::new(near));
    let world = World::new(Config::new());
    let (client, driver, server) = plain(Config::new(), tap, far).await;
    let (mut incoming, serving) = serve(server);
    for _ in 0..50 {
        let world_there = world.clone();
        let inner_end = async {
            let outer = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
            let stream = world_there.acceptor.accept(outer).await.unwrap();
            serve(crate::server::handshake(stream).await.unwrap())
        };
        let (hop, metadata) = (world.hop(), metadata());
        let extending = async {
            let (inner, driver) = nested::extend(&client, &hop, &world.connector, &metadata).await.unwrap();
            (inner, tokio::spawn(driver))
        };
        let ((inner, inner_driver), (mut inner_incoming, inner_serving)) = tokio::join!(extending, inner_end);
        if used {
            let (mut near, mut far) = tunnel(&inner, &mut inner_incoming).await;
            near.write_all(b"question").await.unwrap();
            near.shutdown().await.unwrap();
            far.read_to_end(&mut Vec::new()).await.unwrap();
            far.shutdown().await.unwrap();
            near.read_to_end(&mut Vec::new()).await.unwrap();
        }
        drop(inner);
        inner_driver.await.unwrap().unwrap();
        assert!(inner_serving.await.unwrap().is_none());
        settled(|| client.capacity().open == 0).await;
    }
    drop(client);
    driver.await.unwrap().unwrap();
    assert!(serving.await.unwrap().is_none());
    assert_eq!(resets.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_request_that_is_no_connect_is_refused_without_a_reset() {
    let (near, far) = duplex(1 << 16);
    let (tap, resets) = Tap::new(Box::new(near));
    let server = tokio::spawn(crate::server::handshake(far));
    let (mut requests, connection) = h2::client::handshake(tap).await.unwrap();
    let driver = tokio::spawn(connection);
    let (_incoming, serving) = serve(server.await.unwrap().unwrap());
    for _ in 0..200 {
        let request = http::Request::get("http://server/").body(()).unwrap();
        let (response, mut send) = requests.send_request(request, false).unwrap();
        let (head, mut body) = response.await.unwrap().into_parts();
        assert_eq!(head.status, http::StatusCode::BAD_REQUEST);
        assert!(body.data().await.is_none());
        send.send_data(bytes::Bytes::new(), true).unwrap();
        requests = requests.ready().await.unwrap();
    }
    drop(requests);
    driver.await.unwrap().unwrap();
    assert!(serving.await.unwrap().is_none());
    assert_eq!(resets.load(Ordering::Relaxed), 0);
}

#[rstest]
#[case(Refusal::new(RefusalReason::Denied))]
#[case(Refusal::new(RefusalReason::ConnectionTimeout).with_details("10.0.0.1:80"))]
#[tokio::test]
async fn a_refusal_arrives_whole(#[case] refusal: Refusal) {
    let (near, far) = duplex(1 << 16);
    let (client, _driver, server) = plain(Config::new(), near, far).await;
    let (mut incoming, _serving) = serve(server);
    let (authority, metadata) = (authority(), metadata());
    let refuse = async { incoming.recv().await.unwrap().reject(&refusal) };
    let (refused, ()) = tokio::join!(client.connect(&authority, &metadata), refuse);
    assert_eq!(refused.unwrap_err().kind(), &ErrorKind::Refused(refusal));
}
