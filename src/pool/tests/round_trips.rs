//! How many round trips it takes until a tunnel is open, on a simulated path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rstest::rstest;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::super::{Pool, PoolConfig, Source};
use super::world::{Does, Peer, World, authority, connect, direct, echoes, finish, millis, through, trusted};
use crate::conn::{Description, Frame, OpenTunnel, Shared};
use crate::io::{BoxStream, Dial, DialFuture, DialRequest};
use crate::metadata::Metadata;
use crate::observe::ConnectionRole;
use crate::path::Reuse;
use crate::refusal::{Refusal, RefusalReason};
use crate::testing::{Link, LinkEnd};
use crate::tls::Acceptor;
use crate::tunnel::TunnelStream;
use crate::{Config, ErrorKind, server};

const ROUND_TRIP: Duration = millis(100);

/// Opening a byte stream takes a round trip, as with TCP.
#[derive(Debug)]
struct FarAway(mpsc::UnboundedSender<LinkEnd>);

impl Dial for FarAway {
    fn dial<'a>(&'a self, _: &'a DialRequest<'a>) -> DialFuture<'a> {
        Box::pin(async {
            let (near, far) = Link::new(ROUND_TRIP).connection();
            sleep(ROUND_TRIP).await;
            self.0.send(far).unwrap();
            Ok(Box::new(near) as BoxStream)
        })
    }
}

/// What a gateway does with bytes before its 200.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Early {
    Resets(h2::Reason),
    Answers(u16),
    GoesAway,
    Loses,
}

/// A gateway that does not take them.
#[derive(Clone)]
struct Strict {
    acceptor: Acceptor,
    pod: Peer,
    early: Early,
    /// CONNECTs, and how many of them came with bytes.
    asked: Arc<(AtomicUsize, AtomicUsize)>,
}

impl Strict {
    async fn serve(self, io: LinkEnd) {
        let stream = self.acceptor.accept(io).await.unwrap();
        let mut connection = h2::server::Builder::new().handshake::<_, Frame>(stream).await.unwrap();
        let (sender, mut go_away) = mpsc::channel::<()>(1);
        loop {
            let (request, respond) = tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok(request)) => request,
                    _ => return,
                },
                _ = go_away.recv() => {
                    connection.abrupt_shutdown(h2::Reason::PROTOCOL_ERROR);
                    continue;
                }
            };
            tokio::spawn(self.clone().answer(request.into_body(), respond, sender.clone()));
        }
    }

    async fn answer(
        self,
        mut recv: h2::RecvStream,
        mut respond: h2::server::SendResponse<Frame>,
        go_away: mpsc::Sender<()>,
    ) {
        self.asked.0.fetch_add(1, Ordering::SeqCst);
        let early = tokio::time::timeout(millis(1), recv.data()).await.is_ok();
        let mut response = http::Response::new(());
        if early {
            self.asked.1.fetch_add(1, Ordering::SeqCst);
            match self.early {
                Early::Resets(reason) => return respond.send_reset(reason),
                Early::Answers(status) => {
                    *response.status_mut() = status.try_into().unwrap();
                    return drop(respond.send_response(response, true));
                }
                Early::GoesAway => return go_away.send(()).await.unwrap(),
                Early::Loses => {}
            }
        }
        let send = respond.send_response(response, false).unwrap();
        let shared = Shared::new(&Config::new(), Description::new(ConnectionRole::Server));
        let tunnel = OpenTunnel::answered(shared.clone(), authority(), send.stream_id().into(), respond);
        let tunnel = TunnelStream::answered(recv, send, shared, tunnel, Box::default());
        self.pod.serve(Box::new(tunnel)).await;
    }
}

/// A pool that dials over the path, and those who come out at its other end.
fn far_away(world: &World) -> (Pool, Source, mpsc::UnboundedReceiver<LinkEnd>) {
    let (sender, far) = mpsc::unbounded_channel();
    let pool = Pool::new(Arc::new(FarAway(sender)), world.config.clone(), PoolConfig::new());
    let source = pool.source(world.credentials("client"), Metadata::default()).unwrap();
    (pool, source, far)
}

fn serve<F: Future<Output = ()> + Send + 'static>(
    mut far: mpsc::UnboundedReceiver<LinkEnd>,
    serve: impl Fn(LinkEnd) -> F + Send + 'static,
) {
    tokio::spawn(async move {
        while let Some(end) = far.recv().await {
            tokio::spawn(serve(end));
        }
    });
}

/// How long it takes until a tunnel is open, in round trips.
async fn opening(pool: &Pool, source: &Source, path: &crate::path::Path) -> f64 {
    let begin = Instant::now();
    let mut tunnel = connect(pool, source, path).await.unwrap();
    let took = begin.elapsed().as_millis() as f64 / ROUND_TRIP.as_millis() as f64;
    echoes(&mut tunnel).await;
    finish(tunnel).await;
    took
}

#[rstest]
#[case::early(true, [4.0, 2.0])]
#[case::turned_off(false, [5.0, 3.0])]
#[tokio::test(start_paused = true)]
async fn a_tunnel_is_open_after_as_few_round_trips_as_can_be(#[case] early: bool, #[case] nested: [f64; 2]) {
    let world = World::with(Config::new().with_early_data(early));
    let pod = world.peer(Does::Echo(Box::default()));
    let gateway = world.peer(Does::Forward(vec![pod.clone()], std::sync::Mutex::new(fastrand::Rng::with_seed(1))));
    let (pool, source, far) = far_away(&world);
    serve(far, move |end| gateway.clone().serve(Box::new(end)));
    let own = through(1, Reuse::Never);
    let from_nothing = opening(&pool, &source, &own).await;
    let outer_is_warm = opening(&pool, &source, &own).await;
    assert_eq!([from_nothing, outer_is_warm], nested);
    let shared = through(1, Reuse::Shared);
    assert_eq!(opening(&pool, &source, &shared).await, nested[1]);
    assert_eq!(opening(&pool, &source, &shared).await, 1.0, "the inner connection is warm");
    let spread = through(1, Reuse::Spread(1));
    assert_eq!(opening(&pool, &source, &spread).await, nested[1]);
    assert_eq!(opening(&pool, &source, &spread).await, 1.0, "the inner connection is warm");
    let (pool, source, far) = far_away(&world);
    serve(far, move |end| pod.clone().serve(Box::new(end)));
    assert_eq!(opening(&pool, &source, &direct(1, Reuse::Shared)).await, 3.0, "one hop, from nothing");
    assert_eq!(opening(&pool, &source, &direct(1, Reuse::Shared)).await, 1.0);
}

#[rstest]
#[case::resets(Early::Resets(h2::Reason::PROTOCOL_ERROR), 6.0)]
#[case::cancels(Early::Resets(h2::Reason::CANCEL), 6.0)]
#[case::answers_400(Early::Answers(400), 6.0)]
#[case::answers_425(Early::Answers(425), 6.0)]
// A connection of its own for the second attempt.
#[case::goes_away(Early::GoesAway, 8.0)]
// And a second until that is noticed.
#[case::loses(Early::Loses, 16.0)]
#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_no_early_data_is_found_out_once_and_remembered(#[case] early: Early, #[case] first: f64) {
    let world = World::new();
    let pod = world.peer(Does::Echo(Box::default()));
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let strict = Strict { acceptor, pod, early, asked: Arc::default() };
    let asked = strict.asked.clone();
    let (pool, source, far) = far_away(&world);
    serve(far, move |end| strict.clone().serve(end));
    let path = through(1, Reuse::Never);
    let took = opening(&pool, &source, &path).await;
    assert!((first..first + 0.1).contains(&took), "{took}");
    let took = opening(&pool, &source, &path).await;
    assert!((3.0..3.1).contains(&took), "{took}");
    // Also by the next connection to it, of another source.
    let other = pool.source(world.credentials("client"), Metadata::default()).unwrap();
    let took = opening(&pool, &other, &path).await;
    assert!((5.0..5.1).contains(&took), "{took}");
    assert_eq!((asked.0.load(Ordering::SeqCst), asked.1.load(Ordering::SeqCst)), (4, 1));
    // Not for ever.
    sleep(Duration::from_secs(700)).await;
    opening(&pool, &source, &path).await;
    assert_eq!(asked.1.load(Ordering::SeqCst), 2);
}

#[rstest]
#[case::refused(Early::Answers(503), |kind: &ErrorKind| matches!(kind, ErrorKind::Refused(r) if r.status() == 503))]
#[case::calm(Early::Resets(h2::Reason::ENHANCE_YOUR_CALM), |kind: &ErrorKind| *kind == ErrorKind::Reset(11))]
#[case::connect_error(Early::Resets(h2::Reason::CONNECT_ERROR), |kind: &ErrorKind| *kind == ErrorKind::Reset(10))]
#[tokio::test(start_paused = true)]
async fn what_has_nothing_to_do_with_early_data_is_returned_at_once(
    #[case] early: Early,
    #[case] expected: fn(&ErrorKind) -> bool,
) {
    let world = World::new();
    let pod = world.peer(Does::Echo(Box::default()));
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let strict = Strict { acceptor, pod, early, asked: Arc::default() };
    let asked = strict.asked.clone();
    let (pool, source, far) = far_away(&world);
    serve(far, move |end| strict.clone().serve(end));
    let error = connect(&pool, &source, &through(1, Reuse::Never)).await.unwrap_err();
    assert!(expected(error.kind()), "{error}");
    assert_eq!((error.layer(), error.hop()), (crate::Layer::Connect, Some(0)), "{error}");
    assert_eq!((asked.0.load(Ordering::SeqCst), asked.1.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_the_gateway_has_not_looked_at_is_sent_again_a_few_times() {
    let world = World::new();
    let pod = world.peer(Does::Echo(Box::default()));
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let early = Early::Resets(h2::Reason::REFUSED_STREAM);
    let strict = Strict { acceptor, pod, early, asked: Arc::default() };
    let asked = strict.asked.clone();
    let (pool, source, far) = far_away(&world);
    serve(far, move |end| strict.clone().serve(end));
    let error = connect(&pool, &source, &through(1, Reuse::Never)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Reset(7), "{error}");
    assert_eq!((error.layer(), error.hop()), (crate::Layer::Connect, Some(0)), "{error}");
    assert_eq!((asked.0.load(Ordering::SeqCst), asked.1.load(Ordering::SeqCst)), (9, 9));
}

/// The gateway's own server: bytes before its answer wait for it, whatever the answer is.
#[tokio::test(start_paused = true)]
async fn the_crates_own_server_takes_early_data_and_its_refusal_arrives_all_the_same() {
    let world = World::new();
    let pod = world.peer(Does::Echo(Box::default()));
    let acceptor = Acceptor::new(world.credentials("server"), trusted(), world.config.clone());
    let (pool, source, far) = far_away(&world);
    let refused = Arc::new(AtomicUsize::new(0));
    let turn = refused.clone();
    serve(far, move |end| {
        let (acceptor, pod, refused) = (acceptor.clone(), pod.clone(), refused.clone());
        async move {
            let mut server = server::handshake(acceptor.accept(end).await.unwrap()).await.unwrap();
            while let Some(Ok(incoming)) = server.accept().await {
                let (pod, refused) = (pod.clone(), refused.clone());
                tokio::spawn(async move {
                    // Connecting to the pod takes its time.
                    sleep(millis(300)).await;
                    if refused.fetch_add(1, Ordering::SeqCst) < 2 {
                        return incoming.reject(&Refusal::new(RefusalReason::ConnectionRefused));
                    }
                    pod.serve(Box::new(incoming.accept(&Metadata::default()).unwrap())).await;
                });
            }
        }
    });
    let path = through(1, Reuse::Never);
    for _ in 0..2 {
        let error = connect(&pool, &source, &path).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused(refusal) if refusal.status() == 503), "{error}");
        assert_eq!(error.hop(), Some(0));
        // The pool waits before it dials again after a failure.
        sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(opening(&pool, &source, &path).await, 2.0 + 3.0);
    assert_eq!(turn.load(Ordering::SeqCst), 3, "none was tried twice");
}
