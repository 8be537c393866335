//! Bytes that are not HBONE, sent to either side; and bad requests sent to the server.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use super::frames::{self, ACK, END_STREAM, HEADERS, RST_STREAM, SETTINGS};
use super::harness::{authority, client_id, server_id};
use super::peers::{Peer, acceptor, connector, pipe};
use crate::error::{ErrorKind, Layer, Side};
use crate::metadata::Metadata;
use crate::refusal::RefusalReason;
use crate::server::Incoming;
use crate::testing::Ca;
use crate::{client, server};

#[rstest]
#[case::http_1_1(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")]
#[case::http_1_1_connect(b"CONNECT 10.0.0.1:80 HTTP/1.1\r\nhost: 10.0.0.1:80\r\n\r\n")]
#[case::http_2_without_tls(frames::PREFACE)]
#[case::ssh(b"SSH-2.0-OpenSSH_9.6\r\n")]
#[case::zeros(&[0; 64])]
#[case::ones(&[0xff; 64])]
#[case::ssl_2(&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80])]
#[case::a_record_over_the_limit(&[22, 3, 1, 0xff, 0xff, 1, 0, 0, 0])]
#[case::data_before_the_handshake(&[23, 3, 3, 0, 1, 0])]
#[case::a_garbled_hello(&[22, 3, 1, 0, 8, 1, 0, 0, 4, 3, 3, 0, 0])]
#[tokio::test(start_paused = true)]
async fn what_is_no_tls_ends_the_handshake_at_once(#[case] garbage: &[u8]) {
    let ca = Ca::new();
    let (mut near, far) = pipe();
    near.write_all(garbage).await.unwrap();
    let server = acceptor(&ca, &server_id()).accept(far).await.unwrap_err();
    let (near, mut far) = pipe();
    far.write_all(garbage).await.unwrap();
    let client = connector(&ca, &client_id()).connect(near, &server_id().into()).await.unwrap_err();
    for error in [server, client] {
        assert_eq!((error.kind(), error.layer()), (&ErrorKind::Protocol, Layer::Tls), "{error}");
        assert_eq!(error.side(), Side::Remote);
    }
}

#[rstest]
#[case::nothing(b"")]
#[case::the_start_of_a_record(&[22, 3, 1])]
#[case::a_record_cut_short(&[22, 3, 1, 0, 200, 1, 0, 0])]
#[tokio::test(start_paused = true)]
async fn an_end_amid_the_handshake_is_no_protocol_error(#[case] start: &[u8]) {
    let ca = Ca::new();
    let (mut near, far) = pipe();
    near.write_all(start).await.unwrap();
    near.shutdown().await.unwrap();
    let server = acceptor(&ca, &server_id()).accept(far).await.unwrap_err();
    let (near, mut far) = pipe();
    far.write_all(start).await.unwrap();
    far.shutdown().await.unwrap();
    let client = connector(&ca, &client_id()).connect(near, &server_id().into()).await.unwrap_err();
    for error in [server, client] {
        assert_eq!((error.kind(), error.layer()), (&ErrorKind::Closed, Layer::Tls), "{error}");
    }
}

#[rstest]
#[case::nothing(b"")]
#[case::the_start_of_a_record(&[22, 3, 1])]
#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up(#[case] start: &[u8]) {
    let ca = Ca::new();
    let (mut near, far) = pipe();
    near.write_all(start).await.unwrap();
    let server = acceptor(&ca, &server_id()).accept(far).await.unwrap_err();
    let (near, mut far) = pipe();
    far.write_all(start).await.unwrap();
    let client = connector(&ca, &client_id()).connect(near, &server_id().into()).await.unwrap_err();
    assert_eq!((server.kind(), client.kind()), (&ErrorKind::Timeout, &ErrorKind::Timeout));
    assert_eq!((server.layer(), client.layer()), (Layer::Tls, Layer::Tls));
}

#[rstest]
#[case::http_1_1(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")]
#[case::tls_in_tls(&frames::tls12_client_hello())]
#[case::zeros(&[0; 64])]
#[case::ones(&[0xff; 64])]
#[case::settings_of_a_bad_length(&[frames::PREFACE, &frames::frame(SETTINGS, 0, 0, &[0; 5])].concat())]
#[case::data_on_stream_0(&[frames::PREFACE, &frames::frame(SETTINGS, 0, 0, &[]), &frames::frame(frames::DATA, 0, 0, b"x")].concat())]
#[tokio::test(start_paused = true)]
async fn what_is_no_http_2_inside_tls_is_a_protocol_error_at_the_server(#[case] garbage: &[u8]) {
    let ca = Ca::new();
    let (near, far) = pipe();
    let issued = ca.certificate().uri(&client_id().to_string()).issue();
    let acceptor = acceptor(&ca, &server_id());
    let (peer, session) = tokio::join!(Peer::with(&issued).connect(near), acceptor.accept(far));
    let mut peer = peer.unwrap();
    peer.write_all(garbage).await.unwrap();
    peer.flush().await.unwrap();
    let error = match server::Builder::new().with_peer_identity(client_id()).handshake(session.unwrap()).await {
        Ok(mut server) => server.accept().await.unwrap().unwrap_err(),
        Err(error) => error,
    };
    assert_eq!((error.kind(), error.layer(), error.side()), (&ErrorKind::Protocol, Layer::Http2, Side::Remote));
    assert_eq!(error.peer(), Some(client_id().to_string().as_str()));
}

#[rstest]
#[case::http_1_1(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")]
#[case::zeros(&[0; 64])]
#[case::ones(&[0xff; 64])]
#[case::data_on_stream_0(&[frames::frame(SETTINGS, 0, 0, &[]), frames::frame(frames::DATA, 0, 0, b"x")].concat())]
#[case::headers_on_stream_0(&[frames::frame(SETTINGS, 0, 0, &[]), frames::headers(0, 0, &[(":status", "200")])].concat())]
#[case::an_even_stream(&[frames::frame(SETTINGS, 0, 0, &[]), frames::headers(0, 2, &[(":status", "200")])].concat())]
#[tokio::test(start_paused = true)]
async fn what_is_no_http_2_inside_tls_is_a_protocol_error_at_the_client(#[case] garbage: &[u8]) {
    let ca = Ca::new();
    let (near, far) = pipe();
    let issued = ca.certificate().uri(&server_id().to_string()).issue();
    let (connector, accept) = (connector(&ca, &client_id()), server_id().into());
    let (session, peer) = tokio::join!(connector.connect(near, &accept), Peer::with(&issued).accept(far));
    let mut peer = peer.unwrap();
    peer.write_all(garbage).await.unwrap();
    peer.flush().await.unwrap();
    let (client, driver) =
        client::Builder::new().with_peer_identity(server_id()).handshake(session.unwrap()).await.unwrap();
    let driver = tokio::spawn(driver);
    let error = client.connect(&authority(), &Metadata::default()).await.unwrap_err();
    for error in [error, driver.await.unwrap().unwrap_err()] {
        assert_eq!((error.kind(), error.layer(), error.side()), (&ErrorKind::Protocol, Layer::Http2, Side::Remote));
        assert_eq!(error.peer(), Some(server_id().to_string().as_str()));
    }
}

/// A server of this crate on `io`: what it lets through.
fn serve(io: DuplexStream) -> mpsc::UnboundedReceiver<Incoming> {
    let (sender, incoming) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut server = server::handshake(io).await.unwrap();
        while let Some(request) = server.accept().await {
            let _ = sender.send(request.unwrap());
        }
    });
    incoming
}

type Requests = h2::client::SendRequest<Bytes>;

/// A plain HTTP/2 client of a server of this crate.
async fn raw_client() -> (Requests, mpsc::UnboundedReceiver<Incoming>) {
    let (near, far) = pipe();
    let incoming = serve(far);
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    (requests, incoming)
}

async fn answer(requests: &Requests, request: Request<()>) -> Result<Response<()>, h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (response, mut send) = requests.send_request(request, false)?;
    let response = response.await?;
    // A stream that was answered with 431 is closed already.
    let _ = send.send_data(Bytes::new(), true);
    Ok(response.map(|_| ()))
}

fn connect(authority: &str) -> Request<()> {
    Request::connect(authority.parse::<Uri>().unwrap()).body(()).unwrap()
}

/// Opens a tunnel and moves bytes both ways.
async fn works(requests: &Requests, incoming: &mut mpsc::UnboundedReceiver<Incoming>) {
    let mut requests = requests.clone().ready().await.unwrap();
    let (response, mut send) = requests.send_request(connect("10.0.0.1:80"), false).unwrap();
    let request = incoming.recv().await.unwrap();
    assert_eq!(request.authority().to_string(), "10.0.0.1:80");
    let mut tunnel = request.accept(&Metadata::default()).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    send.send_data(Bytes::from_static(b"ping"), true).unwrap();
    let mut got = Vec::new();
    tunnel.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"ping");
    tunnel.write_all(b"pong").await.unwrap();
    tunnel.shutdown().await.unwrap();
    assert_eq!(response.into_body().data().await.unwrap().unwrap(), "pong");
}

#[rstest]
#[case::no_port("server", "has no port")]
#[case::no_port_of_ipv6("[2001:db8::1]", "has no port")]
#[case::port_0("server:0", "port is not a number from 1 to 65535")]
#[case::user("user@server:80", "has a user part")]
#[case::user_and_password("user:pw@server:80", "has a user part")]
#[case::no_ipv4("10.0.0.999:80", "IPv4 address is not valid")]
#[case::no_label("a..b:80", "not a valid DNS name")]
#[case::no_host(":80", "not a valid DNS name")]
#[case::three_hundred_characters(&format!("{}:80", "a.".repeat(150)), "longer than any host name")]
#[case::ten_thousand_characters(&format!("{}:80", "a.".repeat(5_000)), "longer than any host name")]
#[tokio::test(start_paused = true)]
async fn a_bad_authority_is_answered_with_400_and_why(#[case] authority: &str, #[case] says: &str) {
    let (requests, mut incoming) = raw_client().await;
    let answer = answer(&requests, connect(authority)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let status = answer.headers()["proxy-status"].to_str().unwrap();
    assert!(status.starts_with("hbone; error=http_request_error; details=\"the authority"), "{status}");
    assert!(status.contains(says), "{status}");
    works(&requests, &mut incoming).await;
}

#[rstest]
#[case("CART.Shop.SVC.cluster.local:80", "cart.shop.svc.cluster.local:80")]
#[case("cart.:80", "cart:80")]
#[case("[2001:DB8:0:0::1]:80", "[2001:db8::1]:80")]
#[case("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.1]:80")]
#[tokio::test(start_paused = true)]
async fn an_authority_arrives_in_its_normal_form(#[case] authority: &str, #[case] normal: &str) {
    let (mut requests, mut incoming) = raw_client().await;
    let _sent = requests.send_request(connect(authority), false).unwrap();
    assert_eq!(incoming.recv().await.unwrap().authority().to_string(), normal);
}

#[rstest]
#[case::get(Method::GET)]
#[case::head(Method::HEAD)]
#[case::post(Method::POST)]
#[case::options(Method::OPTIONS)]
#[case::own(Method::from_bytes(b"HACK").unwrap())]
#[tokio::test(start_paused = true)]
async fn any_method_but_connect_is_answered_with_400_and_why(#[case] method: Method) {
    let (requests, mut incoming) = raw_client().await;
    let request = Request::builder().method(&method).uri("http://10.0.0.1:80/").body(()).unwrap();
    let answer = answer(&requests, request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        answer.headers()["proxy-status"],
        format!("hbone; error=http_request_error; details=\"the method is {method} and must be CONNECT\"")
    );
    works(&requests, &mut incoming).await;
}

/// What HTTP/2 itself forbids never gets as far as an answer: 400, or a reset with PROTOCOL_ERROR.
#[rstest]
#[case::no_authority(&[(":method", "CONNECT")])]
#[case::empty_authority(&[(":method", "CONNECT"), (":authority", "")])]
#[case::zone(&[(":method", "CONNECT"), (":authority", "[fe80::1%eth0]:80")])]
#[case::space(&[(":method", "CONNECT"), (":authority", "a b:80")])]
#[case::path_and_scheme(&[(":method", "CONNECT"), (":authority", "a:80"), (":scheme", "http"), (":path", "/")])]
#[case::extended_connect(&[
    (":method", "CONNECT"), (":protocol", "websocket"), (":authority", "a:80"), (":scheme", "http"), (":path", "/"),
])]
#[case::extended_connect_tcp(&[
    (":method", "CONNECT"), (":protocol", "connect-tcp"), (":authority", "a:80"), (":scheme", "https"), (":path", "/x/"),
])]
#[case::no_method(&[(":authority", "a:80")])]
#[case::two_authorities(&[(":method", "CONNECT"), (":authority", "a:80"), (":authority", "b:80")])]
#[case::connection_header(&[(":method", "CONNECT"), (":authority", "a:80"), ("connection", "close")])]
#[case::pseudo_header_last(&[("x-a", "1"), (":method", "CONNECT"), (":authority", "a:80")])]
#[tokio::test(start_paused = true)]
async fn a_malformed_connect_is_turned_down_and_the_next_one_served(#[case] fields: &[(&str, &str)]) {
    let (mut near, far) = pipe();
    let mut incoming = serve(far);
    near.write_all(frames::PREFACE).await.unwrap();
    near.write_all(&frames::frame(SETTINGS, 0, 0, &[])).await.unwrap();
    near.write_all(&frames::frame(SETTINGS, ACK, 0, &[])).await.unwrap();
    near.write_all(&frames::headers(0, 1, fields)).await.unwrap();
    loop {
        let frame = frames::read_frame(&mut near).await.unwrap();
        match (frame.kind, frame.stream) {
            // 0x8c is ":status: 400" of the static table (RFC 7541, appendix A).
            (HEADERS, 1) => break assert_eq!((frame.payload[0], frame.flags & END_STREAM), (0x8c, END_STREAM)),
            (RST_STREAM, 1) => break assert_eq!(frame.payload, [0, 0, 0, 1]),
            (_, stream) => assert_eq!(stream, 0, "{frame:?}"),
        }
    }
    near.write_all(&frames::headers(0, 3, &[(":method", "CONNECT"), (":authority", "good:80")])).await.unwrap();
    assert_eq!(incoming.recv().await.unwrap().authority().to_string(), "good:80");
}

/// Upper case and unknown pseudo-headers are as malformed, and h2 gives the whole connection up over them.
#[rstest]
#[case::upper_case_header(&[(":method", "CONNECT"), (":authority", "a:80"), ("X-A", "1")])]
#[case::unknown_pseudo_header(&[(":method", "CONNECT"), (":authority", "a:80"), (":x", "1")])]
#[tokio::test(start_paused = true)]
async fn headers_that_can_not_be_decoded_end_the_connection(#[case] fields: &[(&str, &str)]) {
    let (mut near, far) = pipe();
    near.write_all(frames::PREFACE).await.unwrap();
    near.write_all(&frames::frame(SETTINGS, 0, 0, &[])).await.unwrap();
    near.write_all(&frames::headers(0, 1, fields)).await.unwrap();
    let mut server = server::handshake(far).await.unwrap();
    let error = server.accept().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::Protocol, Layer::Http2));
    assert!(server.accept().await.is_none());
}

#[rstest]
#[case::just_over(17 << 10)]
#[case::nearly_four_times(60 << 10)]
#[tokio::test(start_paused = true)]
async fn headers_over_the_limit_are_answered_with_431(#[case] size: usize) {
    let (requests, mut incoming) = raw_client().await;
    let too_long = format!("{}:80", "a".repeat(size));
    assert_eq!(answer(&requests, connect(&too_long)).await.unwrap().status(), 431);
    let mut request = connect("a:80");
    request.headers_mut().insert("x-a", "a".repeat(size).parse().unwrap());
    assert_eq!(answer(&requests, request).await.unwrap().status(), 431);
    works(&requests, &mut incoming).await;
}

/// h2 bears four times the limit, and gives the connection up over more.
#[tokio::test(start_paused = true)]
async fn headers_of_a_mebibyte_end_the_connection() {
    let (near, far) = pipe();
    let serving = tokio::spawn(async move {
        let mut server = server::handshake(far).await.unwrap();
        let error = server.accept().await.unwrap().unwrap_err();
        assert!(server.accept().await.is_none());
        error
    });
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let metadata = Metadata::default();
    let metadata = metadata.with_header("x-a".parse().unwrap(), "a".repeat(1 << 20).parse().unwrap()).unwrap();
    let error = client.connect(&authority(), &metadata).await.unwrap_err();
    let too_much = ErrorKind::GoAway(11);
    assert_eq!((error.kind(), error.side()), (&too_much, Side::Remote));
    let error = serving.await.unwrap();
    assert_eq!((error.kind(), error.side()), (&too_much, Side::Local));
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_headers_gets_431_as_a_refusal() {
    let (near, far) = pipe();
    let mut incoming = serve(far);
    let (client, driver) = client::handshake(near).await.unwrap();
    tokio::spawn(driver);
    let value = "a".repeat(20 << 10).parse().unwrap();
    let metadata = Metadata::default().with_header("x-a".parse().unwrap(), value).unwrap();
    let error = client.connect(&authority(), &metadata).await.unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.status().as_u16(), refusal.reason()), (431, &RefusalReason::Unspecified));
    let (tunnel, metadata) = (authority(), Metadata::default());
    let accept = async { incoming.recv().await.unwrap().accept(&Metadata::default()) };
    let (near, far) = tokio::join!(client.connect(&tunnel, &metadata), accept);
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test(start_paused = true)]
async fn thousands_of_bad_requests_disturb_neither_the_connection_nor_its_tunnels() {
    let (requests, mut incoming) = raw_client().await;
    let mut ready = requests.clone().ready().await.unwrap();
    let (response, mut send) = ready.send_request(connect("10.0.0.1:80"), false).unwrap();
    let mut tunnel = incoming.recv().await.unwrap().accept(&Metadata::default()).unwrap();
    let mut near = response.await.unwrap().into_body();
    let long = "a".repeat(17 << 10);
    for n in 0..3000 {
        let (request, status) = match n % 3 {
            0 => (Request::get("http://a/").body(()).unwrap(), 400),
            1 => (connect("server"), 400),
            _ => {
                let mut request = connect("a:80");
                request.headers_mut().insert("x-a", long.parse().unwrap());
                (request, 431)
            }
        };
        assert_eq!(answer(&requests, request).await.unwrap().status(), status, "request {n}");
    }
    send.send_data(Bytes::from_static(b"still"), false).unwrap();
    let mut got = [0; 5];
    tunnel.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
    tunnel.write_all(b"here").await.unwrap();
    assert_eq!(near.data().await.unwrap().unwrap(), "here");
    works(&requests, &mut incoming).await;
}
