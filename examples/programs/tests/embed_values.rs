//! Refusals, metadata and errors as a program outside of this crate may shape them.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hbone::metadata::{BAGGAGE, FORWARDED, Metadata, TRACEPARENT};
use hbone::{Authority, Config, Error, ErrorKind, Layer, Refusal, RefusalReason, Side, client, server};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

fn authority() -> Authority {
    "pod.test:80".parse().unwrap()
}

/// A client of a server that answers each CONNECT like this.
async fn client(answer: impl Fn(server::Incoming) + Send + 'static) -> client::Client {
    let (near, far) = duplex(64 << 10);
    tokio::spawn(async move {
        let mut server = server::handshake(far).await.unwrap();
        while let Some(Ok(incoming)) = server.accept().await {
            answer(incoming);
        }
    });
    started(near).await
}

async fn started(io: DuplexStream) -> client::Client {
    let (client, driver) = client::handshake(io).await.unwrap();
    tokio::spawn(driver);
    client
}

async fn refused(client: &client::Client) -> Refusal {
    let error = client.connect(&authority(), &Metadata::default()).await.unwrap_err();
    error.refusal().unwrap().clone()
}

#[rstest]
#[case(429, &[("retry-after", "3"), ("x-quota", "100"), ("x-quota", "per minute")], "slow down")]
#[case(302, &[("location", "https://example.org/")], "")]
#[case(511, &[], "log in first")]
#[case(999, &[], "")]
#[tokio::test(start_paused = true)]
async fn a_refusal_has_any_status_headers_and_body(
    #[case] status: u16,
    #[case] headers: &'static [(&str, &str)],
    #[case] body: &'static str,
) {
    let mut sent = Refusal::new(RefusalReason::Denied)
        .with_details("no more today")
        .with_status(status.try_into().unwrap())
        .unwrap()
        .with_body(body)
        .unwrap();
    for (name, value) in headers {
        sent = sent.with_header(name.parse().unwrap(), value.parse().unwrap()).unwrap();
    }
    let expected = sent.clone();
    let client = client(move |incoming| incoming.reject(&sent)).await;
    for _ in 0..3 {
        let received = refused(&client).await;
        assert_eq!(received.headers(), expected.headers());
        assert_eq!(received.body(), expected.body());
        assert_eq!((received.status().as_u16(), received.reason()), (status, &RefusalReason::Denied));
        assert_eq!(received.details(), Some("no more today"));
        assert_eq!(received.retry_after(), (status == 429).then_some(Duration::from_secs(3)));
    }
    assert_eq!(client.capacity().open, 0);
}

/// A server of HTTP/2 whose refusals have this body, and then no end.
async fn endless(body: Bytes) -> client::Client {
    let (near, far) = duplex(64 << 10);
    tokio::spawn(async move {
        let mut server = h2::server::handshake(far).await.unwrap();
        let mut kept = Vec::new();
        while let Some(Ok((request, mut respond))) = server.accept().await {
            let mut response = http::Response::new(());
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(body.clone(), false).unwrap();
            kept.push((request, respond, send));
        }
    });
    started(near).await
}

#[tokio::test(start_paused = true)]
async fn a_body_without_an_end_is_waited_for_a_second_at_most() {
    let client = endless(Bytes::from_static(b"overloaded, ")).await;
    let before = Instant::now();
    assert_eq!(refused(&client).await.body(), "overloaded, ");
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    sleep(2 * Config::new().linger_timeout()).await;
    assert_eq!(client.capacity().open, 0);
}

#[tokio::test(start_paused = true)]
async fn of_a_long_body_the_beginning_is_kept() {
    let client = endless(Bytes::from(vec![b'x'; 40 << 10])).await;
    let before = Instant::now();
    assert_eq!(refused(&client).await.body().len(), 16 << 10);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_a_proxy_does_not_understand_it_passes_on() {
    let lines = [
        ("baggage", "k8s.cluster.name=c1,tenant=acme;prop=1"),
        ("forwarded", "for=\"10.0.0.5:1\";proto=http;by=gw"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"),
        ("x-mine", "1"),
        ("x-mine", "2"),
    ];
    let lines = lines.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let headers: http::HeaderMap = lines.into_iter().collect();
    // A proxy that answers with what it was told.
    let client = client(|incoming| {
        let metadata = incoming.metadata().clone();
        std::mem::forget(incoming.accept(&metadata));
    })
    .await;
    let tunnel = client.connect(&authority(), &Metadata::from_headers(&headers)).await.unwrap();
    let mut written = http::HeaderMap::new();
    tunnel.metadata().write_to(&mut written);
    assert_eq!(written, headers);
    assert_eq!(tunnel.metadata().baggage().unwrap().member("tenant").as_deref(), Some("acme"));
}

#[rstest]
#[case(BAGGAGE, "k8s.cluster.name=c1,tenant=acme")]
#[case(FORWARDED, "for=unknown;proto=http")]
#[case(TRACEPARENT, "garbage")]
#[tokio::test(start_paused = true)]
async fn a_header_can_be_sent_ready_made(#[case] name: http::HeaderName, #[case] value: &'static str) {
    let client = client(|incoming| {
        let metadata = incoming.metadata().clone();
        std::mem::forget(incoming.accept(&metadata));
    })
    .await;
    let value = http::HeaderValue::from_static(value);
    let metadata = Metadata::default().with_header(name.clone(), value.clone()).unwrap();
    let tunnel = client.connect(&authority(), &metadata).await.unwrap();
    let mut written = http::HeaderMap::new();
    tunnel.metadata().write_to(&mut written);
    assert_eq!(written.get(&name), Some(&value));
}

/// A byte stream of its own, whose failures say what they are.
fn failure() -> io::Error {
    let error = Error::new(ErrorKind::Other, Layer::Dial, Side::Remote, "opening a satellite link")
        .with_source("no satellite in sight")
        .with_peer("sat-7")
        .with_advice("wait for the next pass");
    error.into()
}

#[tokio::test]
async fn a_wrapper_makes_errors_and_extends_them() {
    let error = failure();
    let error = Error::from_io(&error).unwrap().clone().with_context("for tenant acme");
    assert_eq!(
        error.to_string(),
        "dial: for tenant acme: opening a satellite link (peer sat-7): no satellite in sight; wait for the next pass"
    );
    assert_eq!((error.kind(), error.layer(), error.side()), (&ErrorKind::Other, Layer::Dial, Side::Remote));
    assert_eq!(size_of::<Error>(), size_of::<usize>());
}

#[test]
fn each_setting_can_be_read_back() {
    let second = Duration::from_secs;
    let config = Config::new()
        .with_stream_window(1 << 20)
        .with_max_stream_window(2 << 20)
        .with_max_tunnels(7)
        .with_initial_tunnels(3)
        .with_max_frame_size(32 << 10)
        .with_max_header_list_size(8 << 10)
        .with_send_buffer(128 << 10)
        .with_small_frame_budget(1 << 20)
        .with_early_data(false)
        .with_keepalive_interval(None)
        .with_keepalive_timeout(second(1))
        .with_dial_timeout(second(2))
        .with_tls_timeout(second(3))
        .with_http2_timeout(second(4))
        .with_connect_timeout(second(5))
        .with_linger_timeout(second(6));
    let config = Arc::new(config);
    assert_eq!((config.stream_window(), config.max_stream_window()), (1 << 20, 2 << 20));
    assert_eq!((config.max_connection_window(), config.max_total_window()), (128 << 20, 384 << 20));
    assert_eq!((config.max_tunnels(), config.initial_tunnels()), (7, 3));
    assert_eq!((config.max_frame_size(), config.max_header_list_size()), (32 << 10, 8 << 10));
    assert_eq!((config.send_buffer(), config.small_frame_budget()), (128 << 10, 1 << 20));
    assert_eq!((config.early_data(), config.keepalive_interval()), (false, None));
    let timeouts = [
        config.keepalive_timeout(),
        config.dial_timeout(),
        config.tls_timeout(),
        config.http2_timeout(),
        config.connect_timeout(),
        config.linger_timeout(),
    ];
    assert_eq!(timeouts, [1, 2, 3, 4, 5, 6].map(second));
}

#[tokio::test(start_paused = true)]
async fn an_accepted_tunnel_carries_bytes_after_a_refused_one() {
    let client = client({
        let refusal = Refusal::new(RefusalReason::ConnectionLimitReached).with_body("later").unwrap();
        move |incoming| match incoming.authority().port() {
            80 => incoming.reject(&refusal),
            _ => {
                let mut tunnel = incoming.accept(&Metadata::default()).unwrap();
                tokio::spawn(async move {
                    let mut byte = [0];
                    tunnel.read_exact(&mut byte).await?;
                    tunnel.write_all(&byte).await?;
                    tunnel.shutdown().await
                });
            }
        }
    })
    .await;
    assert_eq!(refused(&client).await.body(), "later");
    let mut tunnel = client.connect(&"pod.test:81".parse().unwrap(), &Metadata::default()).await.unwrap();
    tunnel.write_all(b"x").await.unwrap();
    tunnel.flush().await.unwrap();
    let mut answer = Vec::new();
    tunnel.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"x");
}
