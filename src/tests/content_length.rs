//! `content-length` on a CONNECT and on its 200. RFC 9110, section 9.3.6, has both sides ignore it. h2 0.4 counts the
//! tunnel's bytes against it and can't be told not to: these tests hold what that costs, and fail once h2 lets us do
//! better.

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::harness::{authority, kind, metadata, serve};
use super::raw::{self, Raw};
use crate::{ErrorKind, client, server};

/// `content-length: 0`, neither compressed nor indexed.
const CONTENT_LENGTH: [u8; 4] = [0x0f, 0x0d, 1, b'0'];
const PROTOCOL_ERROR: [u8; 4] = [0, 0, 0, 1];

#[tokio::test]
async fn with_a_200_it_costs_that_tunnel_and_no_other() {
    let (near, far) = duplex(1 << 16);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let peer = tokio::spawn(async move {
        let mut peer = Raw::server(Box::new(far)).await;
        peer.settings(None).await;
        let stream = peer.expect(raw::HEADERS).await.stream;
        peer.send(raw::HEADERS, raw::END_HEADERS, stream, &[&[0x88][..], &CONTENT_LENGTH].concat()).await;
        peer.send(raw::DATA, 0, stream, b"answer").await;
        let reset = peer.expect(raw::RST_STREAM).await;
        let next = peer.expect(raw::HEADERS).await.stream;
        peer.accept(next).await;
        peer.send(raw::DATA, 0, next, b"answer").await;
        (reset, peer)
    });
    let mut tunnel = client.connect(&authority(), &metadata()).await.unwrap();
    assert_eq!(kind(&tunnel.read(&mut [0]).await.unwrap_err()), ErrorKind::Reset(1));
    let mut other = client.connect(&authority(), &metadata()).await.unwrap();
    let mut answer = [0; 6];
    other.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    assert_eq!(peer.await.unwrap().0.payload, PROTOCOL_ERROR);
}

#[rstest]
#[tokio::test]
async fn with_a_connect_it_costs_that_tunnel_and_no_other(#[values(true, false)] speaks: bool) {
    let (near, far) = duplex(1 << 16);
    let serving = tokio::spawn(server::handshake(far));
    let mut peer = Raw::client(Box::new(near)).await;
    let (mut incoming, _serving) = serve(serving.await.unwrap().unwrap());
    peer.connect_with(1, "server:80", &CONTENT_LENGTH).await;
    let mut tunnel = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
    if speaks {
        peer.send(raw::DATA, 0, 1, b"question").await;
        assert_eq!(peer.expect(raw::RST_STREAM).await.payload, PROTOCOL_ERROR);
    } else {
        // The other direction does not suffer.
        tunnel.write_all(b"greeting").await.unwrap();
        assert_eq!(peer.expect(raw::DATA).await.payload, b"greeting");
    }
    peer.connect(3, "server:80").await;
    let mut other = incoming.recv().await.unwrap().accept(&metadata()).unwrap();
    peer.send(raw::DATA, 0, 3, b"question").await;
    let mut question = [0; 8];
    other.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"question");
}
