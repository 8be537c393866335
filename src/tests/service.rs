//! HTTP servers on tunnels.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::harness::{World, authority, client_id, idle, metadata};
use crate::client::Client;
use crate::drain::{self, Drain};
use crate::io::{Accept, Accepted};
use crate::metadata::Metadata;
use crate::server::ConnectionServer;
use crate::service::{Listener, Peer, serve};
use crate::testing::Network;
use crate::{Config, ErrorKind, Refusal, RefusalReason, TunnelStream};

/// Longer than anything that is waited for here, on a paused clock.
const AGES: Duration = Duration::from_secs(3600);

fn address() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

/// A server in a network, and a client's means to come to it.
struct Site {
    world: World,
    network: Network,
}

impl Site {
    fn new() -> Self {
        Self { world: World::new(Config::new()), network: Network::new() }
    }

    fn listener(&self) -> Listener<impl Accept + use<>> {
        self.listener_on(self.network.listen(address()))
    }

    fn listener_on<A: Accept>(&self, accept: A) -> Listener<A> {
        Listener::new(accept, ConnectionServer::new(self.world.acceptor.clone(), self.world.config.clone()))
    }

    fn raw(&self) -> DuplexStream {
        self.network.connect(address()).unwrap()
    }

    async fn client(&self) -> Client {
        self.world.dial(Box::new(self.raw()), 1).await
    }
}

#[derive(Clone, Copy, Debug)]
enum Version {
    Http1,
    Http2,
}

/// A request's body is unimportant, and so is the stream once it is answered.
async fn get(tunnel: TunnelStream, version: Version) -> hyper::Result<Response<Incoming>> {
    let io = TokioIo::new(tunnel);
    let request = Request::get("http://whatever/").body(Empty::<Bytes>::new()).unwrap();
    match version {
        Version::Http1 => {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await
        }
        Version::Http2 => {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    }
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn open(client: &Client) -> TunnelStream {
    client.connect(&authority(), &metadata()).await.unwrap()
}

/// A service that leaves each request to the test.
#[derive(Clone)]
struct Manual(mpsc::UnboundedSender<Asked>);

struct Asked {
    peer: Peer,
    version: http::Version,
    answer: tokio::sync::oneshot::Sender<String>,
}

fn manual() -> (Manual, mpsc::UnboundedReceiver<Asked>) {
    let (sender, asked) = mpsc::unbounded_channel();
    (Manual(sender), asked)
}

impl tower_service::Service<Request<Incoming>> for Manual {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let peer = request.extensions().get::<Peer>().unwrap().clone();
        let _ = self.0.send(Asked { peer, version: request.version(), answer });
        Box::pin(async move { Ok(Response::new(answered.await.unwrap_or_default().into())) })
    }
}

/// A server whose requests the test answers.
struct Running {
    site: Site,
    drain: Drain,
    asked: mpsc::UnboundedReceiver<Asked>,
    serving: JoinHandle<()>,
}

fn running() -> Running {
    let site = Site::new();
    let (drain, watch) = drain::channel();
    let (service, asked) = manual();
    let serving = tokio::spawn(serve(site.listener(), service, watch));
    Running { site, drain, asked, serving }
}

#[rstest]
#[tokio::test]
async fn a_request_says_who_sent_it_and_where_its_tunnel_leads(
    #[values(Version::Http1, Version::Http2)] version: Version,
) {
    let mut server = running();
    let client = server.site.client().await;
    let network = metadata().with_forwarded_network("east").unwrap();
    let tunnel = client.connect(&authority(), &network).await.unwrap();
    let response = tokio::spawn(get(tunnel, version));
    let asked = server.asked.recv().await.unwrap();
    assert_eq!((asked.peer.identity(), asked.peer.authority()), (&client_id(), &authority()));
    assert_eq!(asked.peer.metadata().forwarded_network(), Some("east"));
    let expected = match version {
        Version::Http1 => http::Version::HTTP_11,
        Version::Http2 => http::Version::HTTP_2,
    };
    assert_eq!(asked.version, expected);
    asked.answer.send("hello".to_owned()).unwrap();
    assert_eq!(text(response.await.unwrap().unwrap()).await, "hello");
}

#[tokio::test]
async fn tunnels_come_from_all_connections_with_their_addresses() {
    struct Addressed(VecDeque<(DuplexStream, SocketAddr)>);
    impl Accept for Addressed {
        type Io = DuplexStream;
        fn poll_accept(&mut self, _: &mut Context<'_>) -> Poll<Option<Accepted<DuplexStream>>> {
            Poll::Ready(self.0.pop_front().map(|(stream, from)| Ok((stream, Some(from)))))
        }
    }
    let (site, mut clients, mut streams) = (Site::new(), Vec::new(), VecDeque::new());
    let from = |port| SocketAddr::from(([10, 0, 0, 9], port));
    for port in [1, 2] {
        let (near, far) = tokio::io::duplex(64 << 10);
        clients.push(near);
        streams.push_back((far, from(port)));
    }
    let mut listener = site.listener_on(Addressed(streams));
    let tunnels = tokio::spawn(async move {
        let (first, second) = (listener.accept().await.unwrap(), listener.accept().await.unwrap());
        let mut found = [first.1.address(), second.1.address()];
        found.sort();
        drop((first, second));
        (found, listener.accept().await.is_none())
    });
    for stream in clients {
        let client = site.world.dial(Box::new(stream), 1).await;
        drop(open(&client).await);
    }
    assert_eq!(tunnels.await.unwrap(), ([Some(from(1)), Some(from(2))], true));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_or_fails_holds_up_nobody() {
    let mut server = running();
    let start = Instant::now();
    let _stalled = server.site.raw();
    let mut broken = server.site.raw();
    broken.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let tunnel = open(&server.site.client().await).await;
    let response = tokio::spawn(get(tunnel, Version::Http1));
    server.asked.recv().await.unwrap().answer.send("hello".to_owned()).unwrap();
    assert_eq!(text(response.await.unwrap().unwrap()).await, "hello");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    broken.read_to_end(&mut Vec::new()).await.unwrap();
    assert!(!server.serving.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_failed_accept_is_not_the_last() {
    /// Fails for a second.
    struct Flaky(mpsc::Receiver<DuplexStream>, Instant, usize);
    impl Accept for Flaky {
        type Io = DuplexStream;
        fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<DuplexStream>>> {
            self.2 += 1;
            assert!(self.2 < 100, "a busy loop");
            if self.1.elapsed() < Duration::from_secs(1) {
                return Poll::Ready(Some(Err(io::Error::other("no file descriptors"))));
            }
            self.0.poll_accept(cx)
        }
    }
    let site = Site::new();
    let (connections, queue) = mpsc::channel(1);
    let mut listener = site.listener_on(Flaky(queue, Instant::now(), 0));
    let (near, far) = tokio::io::duplex(64 << 10);
    connections.send(far).await.unwrap();
    let accepted = tokio::spawn(async move { listener.next().await.unwrap().1 });
    let tunnel = open(&site.world.dial(Box::new(near), 1).await).await;
    assert_eq!(accepted.await.unwrap().identity(), &client_id());
    drop(tunnel);
}

#[tokio::test]
async fn a_tunnel_that_the_server_does_not_want_is_refused() {
    let site = Site::new();
    let wanted = authority();
    let answer = Metadata::default().with_forwarded_network("west").unwrap();
    let mut listener = site.listener().with_answer(answer).with_decision(move |incoming| {
        if *incoming.authority() == wanted && incoming.peer_identity() == Some(&client_id()) {
            return Ok(());
        }
        Err(Refusal::new(RefusalReason::DestinationProhibited))
    });
    let accepted = tokio::spawn(async move { listener.accept().await.unwrap().1 });
    let client = site.client().await;
    let error = client.connect(&"other.example:80".parse().unwrap(), &metadata()).await.unwrap_err();
    let refusal = error.refusal().unwrap();
    assert_eq!((refusal.reason(), refusal.status()), (&RefusalReason::DestinationProhibited, StatusCode::BAD_REQUEST));
    let tunnel = open(&client).await;
    assert_eq!(tunnel.metadata().forwarded_network(), Some("west"));
    assert_eq!(accepted.await.unwrap().authority(), &authority());
}

#[tokio::test]
async fn tunnels_that_nobody_takes_are_refused_when_there_are_too_many() {
    let config = Config::new().with_max_tunnels(2000).with_initial_tunnels(2000);
    let site = Site { world: World::new(config), network: Network::new() };
    let mut listener = site.listener();
    // Takes the connection, and no tunnel.
    let accepting = tokio::spawn(async move {
        let first = listener.accept().await;
        (listener, first)
    });
    let client = site.client().await;
    let first = open(&client).await;
    let (mut listener, _first) = accepting.await.unwrap();
    let (authority, none) = (authority(), metadata());
    let mut asked: Vec<_> = (0..1025).map(|_| Box::pin(client.connect(&authority, &none))).collect();
    let refused = futures_util::future::select_all(asked.iter_mut()).await.0.unwrap_err();
    assert_eq!(refused.refusal().unwrap().reason(), &RefusalReason::ConnectionLimitReached);
    let (next, _) = tokio::join!(listener.accept(), futures_util::future::select_all(asked.iter_mut().take(1024)));
    assert!(next.is_some());
    drop(first);
}

#[tokio::test]
async fn a_listener_on_a_listener_takes_the_inner_tunnels() {
    let site = Site::new();
    let mut inner = site.listener_on(site.listener());
    let accepted = tokio::spawn(async move { inner.accept().await.unwrap() });
    let client = site.world.dial(Box::new(site.raw()), 2).await;
    let mut near = open(&client).await;
    let (mut far, peer) = accepted.await.unwrap();
    assert_eq!((client.hop(), peer.identity()), (1, &client_id()));
    near.write_all(b"deep").await.unwrap();
    let mut got = [0; 4];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"deep");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_drain_lets_a_running_request_finish_and_nothing_new_in(
    #[values(Version::Http1, Version::Http2)] version: Version,
) {
    let Running { site, drain, mut asked, serving } = running();
    let client = site.client().await;
    let response = tokio::spawn(get(open(&client).await, version));
    let request = asked.recv().await.unwrap();
    let start = Instant::now();
    let draining = tokio::spawn(drain.drain(AGES));
    idle().await;
    let error = client.connect(&authority(), &metadata()).await.unwrap_err();
    assert!(error.is_go_away(), "{error}");
    assert_eq!(site.network.connect(address()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    assert!(!draining.is_finished() && !serving.is_finished());
    request.answer.send("done".to_owned()).unwrap();
    assert_eq!(text(response.await.unwrap().unwrap()).await, "done");
    assert!(draining.await.unwrap().completed);
    serving.await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[rstest]
#[case::its_first_request(false, true)]
#[case::a_next_one(true, false)]
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_open_when_a_drain_starts_gets_its_first_request_answered(
    #[case] used: bool,
    #[case] answered: bool,
) {
    let Running { site, drain, mut asked, serving } = running();
    tokio::spawn(async move {
        while let Some(request) = asked.recv().await {
            request.answer.send("hello".to_owned()).unwrap();
        }
    });
    let client = site.client().await;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(open(&client).await)).await.unwrap();
    tokio::spawn(connection);
    let request = || Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    if used {
        text(sender.send_request(request()).await.unwrap()).await;
    }
    let draining = tokio::spawn(drain.drain(AGES));
    idle().await;
    assert_eq!(sender.send_request(request()).await.is_ok(), answered);
    drop(sender);
    assert!(draining.await.unwrap().completed);
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_nobody_uses_does_not_hold_up_a_drain() {
    let Running { site, drain, serving, .. } = running();
    let _tunnel = open(&site.client().await).await;
    assert!(drain.drain(Duration::from_secs(10)).await.completed);
    serving.await.unwrap();
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn what_outlasts_a_drain_is_cut(#[values(Version::Http1, Version::Http2)] version: Version) {
    let Running { site, drain, mut asked, serving } = running();
    let response = tokio::spawn(get(open(&site.client().await).await, version));
    let mut request = asked.recv().await.unwrap();
    let (start, grace) = (Instant::now(), Duration::from_secs(5));
    let report = drain.drain(grace).await;
    assert_eq!((report.completed, report.forced), (false, 1));
    assert_eq!(start.elapsed(), grace);
    serving.await.unwrap();
    assert!(response.await.unwrap().is_err());
    request.answer.closed().await;
}

/// Its body is neither read nor sent, so that HTTP/1 does not look at the tunnel.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_blind_to_its_tunnel_ends_with_the_drain() {
    let Running { site, drain, mut asked, serving } = running();
    let mut tunnel = open(&site.client().await).await;
    tunnel.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").await.unwrap();
    let mut request = asked.recv().await.unwrap();
    let draining = tokio::spawn(drain.drain(Duration::from_secs(5)));
    timeout(AGES, request.answer.closed()).await.unwrap();
    assert_eq!(draining.await.unwrap().forced, 1);
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_no_handshake() {
    let Running { site, drain, serving, .. } = running();
    let mut stalled = site.raw();
    idle().await;
    let start = Instant::now();
    assert!(drain.drain(AGES).await.completed);
    assert_eq!((start.elapsed(), stalled.read(&mut [0]).await.unwrap()), (Duration::ZERO, 0));
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_cuts_tunnels_that_were_handed_out() {
    let site = Site::new();
    let (drain, watch) = drain::channel();
    let mut listener = site.listener().with_drain(watch);
    let accepting = tokio::spawn(async move { (listener.accept().await.unwrap(), listener) });
    let mut near = open(&site.client().await).await;
    let ((mut far, _), mut listener) = accepting.await.unwrap();
    let draining = tokio::spawn(drain.drain(Duration::from_secs(5)));
    assert!(timeout(AGES, listener.accept()).await.unwrap().is_none());
    assert_eq!(draining.await.unwrap().forced, 1);
    near.read(&mut [0]).await.unwrap_err();
    far.read(&mut [0]).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_listener_breaks_nothing_and_takes_nothing() {
    let site = Site::new();
    let mut listener = site.listener();
    let accepting = tokio::spawn(async move { (listener.accept().await.unwrap(), listener) });
    let client = site.client().await;
    let mut near = open(&client).await;
    let ((mut far, _), listener) = accepting.await.unwrap();
    let (authority, none) = (authority(), metadata());
    let asking = client.connect(&authority, &none);
    tokio::pin!(asking);
    tokio::select! {
        biased;
        _ = &mut asking => panic!("nobody takes it"),
        () = idle() => {}
    }
    drop(listener);
    assert_eq!(asking.await.unwrap_err().kind(), &ErrorKind::Reset(h2::Reason::REFUSED_STREAM.into()));
    idle().await;
    assert!(client.is_closed());
    near.write_all(b"still there").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = String::new();
    far.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "still there");
    drop(Arc::new(site));
}
