//! What a server may answer to our client, and what the client's errors then say in full.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::frames;
use super::harness::{Carrier, World, authority, client_id, server_id};
use super::peers::{acceptor, connector, handshake, pipe};
use crate::client::{self, Client};
use crate::error::{Error, ErrorKind};
use crate::identity::AcceptedIdentities;
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::refusal::{Refusal, RefusalReason};
use crate::testing::Ca;
use crate::{Config, nested};

type Respond = h2::server::SendResponse<Bytes>;

/// A client of this crate on a plain HTTP/2 server that answers each request as `respond` does, and never speaks first.
async fn raw_server(mut respond: impl FnMut(Respond) + Send + 'static) -> (Client, JoinHandle<crate::Result<()>>) {
    let (near, far) = pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(far).await.unwrap();
        while let Some(request) = server.accept().await {
            respond(request.unwrap().1);
        }
    });
    let (client, driver) = client::Builder::new().with_peer_identity(server_id()).handshake(near).await.unwrap();
    (client, tokio::spawn(driver))
}

fn status(code: u16) -> Response<()> {
    Response::builder().status(code).body(()).unwrap()
}

async fn refused(client: &Client) -> Error {
    client.connect(&authority(), &Metadata::default()).await.unwrap_err()
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn any_success_opens_the_tunnel(#[values(200, 201, 202, 203, 204, 205, 206, 226, 299)] code: u16) {
    let (client, _driver) = raw_server(move |mut respond| {
        let mut send = respond.send_response(status(code), false).unwrap();
        send.send_data(Bytes::from_static(b"hello"), true).unwrap();
    })
    .await;
    let mut tunnel = client.connect(&authority(), &Metadata::default()).await.unwrap();
    let mut got = Vec::new();
    tunnel.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"hello");
}

/// The server has sent its END_STREAM and then resets the stream: with NO_ERROR it only wants to hear no more (RFC
/// 9113, section 8.1), which other servers do for each tunnel that they finish first.
#[rstest]
#[case::no_error(h2::Reason::NO_ERROR, true)]
#[case::cancel(h2::Reason::CANCEL, false)]
#[tokio::test(start_paused = true)]
async fn a_peer_that_wants_to_hear_no_more_has_ended_in_order(#[case] code: h2::Reason, #[case] in_order: bool) {
    let (near, mut far) = pipe();
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    far.write_all(&frames::frame(frames::SETTINGS, 0, 0, &[])).await.unwrap();
    let answer = [
        frames::headers(0, 1, &[(":status", "200")]),
        frames::frame(frames::DATA, frames::END_STREAM, 1, b"all"),
        frames::frame(frames::RST_STREAM, 0, 1, &u32::from(code).to_be_bytes()),
    ]
    .concat();
    let (target, metadata) = (authority(), Metadata::default());
    let (tunnel, _) = tokio::join!(client.connect(&target, &metadata), answer_when_asked(&mut far, 1, &answer));
    let mut tunnel = tunnel.unwrap();
    let mut got = [0; 3];
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"all");
    let error = tunnel.write_all(b"more").await.unwrap_err();
    assert_eq!(Error::from_io(&error).unwrap().kind(), &ErrorKind::Reset(code.into()), "what is lost is told");
    assert_eq!(tunnel.shutdown().await.is_ok(), in_order);
}

#[rstest]
#[case::one(&[103])]
#[case::several(&[100, 102, 103, 103, 199])]
#[tokio::test(start_paused = true)]
async fn informational_answers_are_passed_over(#[case] codes: &'static [u16], #[values(200, 503)] last: u16) {
    let (client, _driver) = raw_server(move |mut respond| {
        for code in codes {
            respond.send_informational(status(*code)).unwrap();
        }
        respond.send_response(status(last), true).unwrap();
    })
    .await;
    match client.connect(&authority(), &Metadata::default()).await {
        Ok(mut tunnel) => {
            assert_eq!(last, 200);
            assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
        }
        Err(error) => assert_eq!(error.refusal().unwrap().status().as_u16(), last),
    }
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn any_other_status_is_a_refusal_and_costs_no_reset(
    #[values(300, 302, 304, 400, 401, 403, 404, 405, 407, 429, 431, 500, 502, 503, 504, 599, 600, 999)] code: u16,
    #[values(true, false)] with_body: bool,
) {
    let (sender, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let (near, far) = pipe();
    tokio::spawn(async move {
        let mut server = h2::server::handshake(far).await.unwrap();
        while let Some(request) = server.accept().await {
            let (request, mut respond) = request.unwrap();
            let mut send = respond.send_response(status(code), !with_body).unwrap();
            if with_body {
                send.send_data(Bytes::from_static(b"<html>no</html>"), true).unwrap();
            }
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut body = request.into_body();
                let end = body.data().await.map(|data| data.map(|d| d.len()));
                sender.send(end).unwrap();
            });
        }
    });
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    for _ in 0..3 {
        let refusal = refused(&client).await.refusal().unwrap().clone();
        assert_eq!((refusal.status().as_u16(), refusal.reason()), (code, &RefusalReason::Unspecified));
        match ended.recv().await.unwrap() {
            None | Some(Ok(0)) => {}
            other => panic!("the stream must end in order: {other:?}"),
        }
    }
    assert_eq!(client.capacity().open, 0, "and the slot is free");
}

#[rstest]
#[case::none(&[], RefusalReason::Unspecified, None)]
#[case::ours(&["hbone; error=destination_not_found; details=\"no service x\""], RefusalReason::DestinationNotFound, Some("no service x"))]
#[case::envoys(&["envoy; error=connection_refused; details=\"upstream\""], RefusalReason::ConnectionRefused, Some("upstream"))]
#[case::unknown(&["x; error=tls_alert_received"], RefusalReason::Other("tls_alert_received".into()), None)]
#[case::several_members(&["far; error=dns_error; details=\"a, b\", near; error=http_request_denied"], RefusalReason::Denied, None)]
#[case::several_lines(&["far; error=dns_error", "near; error=proxy_loop_detected"], RefusalReason::LoopDetected, None)]
#[case::the_nearest_says_nothing(&["far; error=dns_error, near"], RefusalReason::Unspecified, None)]
#[case::garbage(&[",;=\"\\,;;==,\""], RefusalReason::Unspecified, None)]
#[case::no_text(&["\u{ff}\u{fe}"], RefusalReason::Unspecified, None)]
#[case::an_unclosed_quote(&["x; details=\"a; error=dns_error"], RefusalReason::Unspecified, None)]
#[tokio::test(start_paused = true)]
async fn the_reason_is_read_from_proxy_status(
    #[case] lines: &'static [&'static str],
    #[case] reason: RefusalReason,
    #[case] details: Option<&str>,
) {
    let (client, _driver) = raw_server(move |mut respond| {
        let mut response = status(404);
        for line in lines {
            response.headers_mut().append("proxy-status", HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        respond.send_response(response, true).unwrap();
    })
    .await;
    let error = refused(&client).await;
    assert_eq!(error.refusal(), Some(&Refusal::received(StatusCode::NOT_FOUND, reason, details.map(str::to_owned))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_bad_headers_fails_that_tunnel_only() {
    let (near, mut far) = pipe();
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    far.write_all(&frames::frame(frames::SETTINGS, 0, 0, &[])).await.unwrap();
    let bad: [&[(&str, &str)]; 4] = [
        &[],
        &[("connection", "close"), (":status", "200")],
        &[(":status", "200"), (":status", "200")],
        &[("x-a", "1"), (":status", "200")],
    ];
    for (n, fields) in (0u32..).zip(bad) {
        let (target, metadata) = (authority(), Metadata::default());
        let answer = frames::headers(0, 2 * n + 1, fields);
        let (result, written) =
            tokio::join!(client.connect(&target, &metadata), answer_when_asked(&mut far, 2 * n + 1, &answer));
        written.unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Reset(1), "{fields:?}: {error}");
    }
    let answer = frames::headers(0, 9, &[(":status", "200")]);
    let (target, metadata) = (authority(), Metadata::default());
    let (result, _) = tokio::join!(client.connect(&target, &metadata), answer_when_asked(&mut far, 9, &answer));
    assert!(result.is_ok());
}

/// Waits for the HEADERS of a stream and answers them.
async fn answer_when_asked(far: &mut tokio::io::DuplexStream, stream: u32, answer: &[u8]) -> std::io::Result<()> {
    // The preface is in front of the first frame.
    if stream == 1 {
        far.read_exact(&mut [0; frames::PREFACE.len()]).await?;
    }
    loop {
        let frame = frames::read_frame(far).await.unwrap();
        if (frame.kind, frame.stream) == (frames::HEADERS, stream) {
            return far.write_all(answer).await;
        }
    }
}

/// An operator reads these lines: layer, action, peer, reason, advice.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Refused,
    RefusedAtInnerHop,
    OtherIdentity,
    OtherIdentityAtInnerHop,
    NoTls,
    NoHttp2,
    SilentServer,
    SilentHandshake,
    Closed,
    ResetByServer,
    GoneAway,
}

#[rstest]
#[case(
    Failure::Refused,
    "hop 0, CONNECT: opening a tunnel to server.default.svc.cluster.local:80 \
     (peer spiffe://cluster.local/ns/default/sa/server): refused with 503, connection_refused (nobody listens)"
)]
#[case(
    Failure::RefusedAtInnerHop,
    "hop 1, CONNECT: opening a tunnel to server.default.svc.cluster.local:80 \
     (peer spiffe://cluster.local/ns/default/sa/server): refused with 401, http_request_denied"
)]
#[case(
    Failure::OtherIdentity,
    "TLS: handshake: the peer's certificate belongs to spiffe://cluster.local/ns/default/sa/server, and accepted is \
     spiffe://cluster.local/ns/default/sa/client; check that the address belongs to the intended workload, and the \
     service's subject alternative names"
)]
#[case(
    Failure::OtherIdentityAtInnerHop,
    "hop 1, TLS: handshake (peer server.default.svc.cluster.local:80): the peer's certificate belongs to \
     spiffe://cluster.local/ns/default/sa/server, and accepted is spiffe://cluster.local/ns/default/sa/client; check that \
     the address belongs to the intended workload, and the service's subject alternative names"
)]
#[case(
    Failure::NoTls,
    "TLS: handshake: received corrupt message of type InvalidContentType; check that the peer speaks HBONE: TLS 1.3 with \
     ALPN h2"
)]
#[case(
    Failure::NoHttp2,
    "hop 0, HTTP/2: opening a tunnel (peer spiffe://cluster.local/ns/default/sa/server): frame \
     with invalid size"
)]
#[case(
    Failure::SilentServer,
    "hop 0, CONNECT: opening a tunnel to server.default.svc.cluster.local:80 \
     (peer spiffe://cluster.local/ns/default/sa/server): timed out; check the health of the peer and of what lies behind it"
)]
#[case(
    Failure::SilentHandshake,
    "TLS: handshake: timed out; the peer accepts connections and then stalls: check that it speaks HBONE"
)]
#[case(Failure::Closed, "hop 0, HTTP/2: moving bytes (peer spiffe://cluster.local/ns/default/sa/server): broken pipe")]
#[case(
    Failure::ResetByServer,
    "hop 0, CONNECT: opening a tunnel (peer spiffe://cluster.local/ns/default/sa/server): reset by the peer with refused \
     stream before processing any application logic"
)]
#[case(
    Failure::GoneAway,
    "hop 0, HTTP/2: opening a tunnel (peer spiffe://cluster.local/ns/default/sa/server): shut down by the peer with \
     GOAWAY, detected excessive load generating behavior"
)]
#[tokio::test(start_paused = true)]
async fn an_error_says_where_what_with_whom_why_and_what_to_do(#[case] failure: Failure, #[case] line: &str) {
    assert_eq!(fail(failure).await.to_string(), line);
}

async fn fail(failure: Failure) -> Error {
    let other = AcceptedIdentities::from(client_id());
    let ca = Ca::new();
    match failure {
        Failure::Refused => {
            let refusal = Refusal::new(RefusalReason::ConnectionRefused).with_details("nobody listens");
            refused_at(1, refusal).await
        }
        Failure::RefusedAtInnerHop => refused_at(2, Refusal::new(RefusalReason::Denied)).await,
        Failure::OtherIdentity => {
            handshake(&connector(&ca, &client_id()), &other, &acceptor(&ca, &server_id())).await.0.unwrap_err()
        }
        Failure::OtherIdentityAtInnerHop => {
            let world = World::new(Config::new());
            let (near, far) = Carrier::Pipe.pair().await;
            tokio::spawn(serve_leniently(world.clone(), far));
            let client = world.dial(near, 1).await;
            let hop = TunnelledHop::new(authority(), other);
            nested::extend(&client, &hop, &world.connector, &Metadata::default()).await.unwrap_err()
        }
        Failure::NoTls => {
            let (near, mut far) = pipe();
            far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            connector(&ca, &client_id()).connect(near, &other).await.unwrap_err()
        }
        Failure::SilentHandshake => {
            let (near, _far) = pipe();
            connector(&ca, &client_id()).connect(near, &other).await.unwrap_err()
        }
        Failure::NoHttp2 => {
            let (near, mut far) = pipe();
            let (client, driver) =
                client::Builder::new().with_peer_identity(server_id()).handshake(near).await.unwrap();
            tokio::spawn(driver);
            far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            refused(&client).await
        }
        Failure::SilentServer => {
            let (client, _driver) = raw_server(std::mem::forget).await;
            refused(&client).await
        }
        Failure::Closed => {
            let (near, far) = pipe();
            let (client, driver) =
                client::Builder::new().with_peer_identity(server_id()).handshake(near).await.unwrap();
            tokio::spawn(driver);
            drop(far);
            refused(&client).await
        }
        Failure::ResetByServer => {
            let (client, _driver) = raw_server(|mut respond| respond.send_reset(h2::Reason::REFUSED_STREAM)).await;
            refused(&client).await
        }
        Failure::GoneAway => {
            let (near, far) = pipe();
            tokio::spawn(async move {
                let mut server = h2::server::handshake(far).await.unwrap();
                server.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                while server.accept().await.is_some() {}
            });
            let (client, driver) =
                client::Builder::new().with_peer_identity(server_id()).handshake(near).await.unwrap();
            tokio::spawn(driver);
            refused(&client).await
        }
    }
}

async fn refused_at(depth: usize, refusal: Refusal) -> Error {
    let (client, mut incoming) = World::new(Config::new()).connect(Carrier::Pipe, depth).await;
    let (target, metadata) = (authority(), Metadata::default());
    let reject = async { incoming.recv().await.unwrap().reject(&refusal) };
    tokio::join!(client.connect(&target, &metadata), reject).0.unwrap_err()
}

/// As [`World::serve`] at depth 2, but an inner handshake may fail.
async fn serve_leniently(world: World, io: super::harness::BoxIo) {
    let stream = world.acceptor.accept(io).await.unwrap();
    let mut server = crate::server::handshake(stream).await.unwrap();
    while let Some(Ok(incoming)) = server.accept().await {
        let (tunnel, acceptor) = (incoming.accept(&Metadata::default()).unwrap(), world.acceptor.clone());
        tokio::spawn(async move { acceptor.accept(tunnel).await.map(drop) });
    }
}
