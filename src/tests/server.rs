//! Servers of many connections: the listener, the registry and the events.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::harness::{World, authority, client_id, idle, metadata, server_id};
use crate::client::Client;
use crate::io::{Accept, Accepted};
use crate::metadata::Metadata;
use crate::observe::{Connection, Event, Observer, Tunnel, TunnelEnd};
use crate::server::{ConnectionServer, Incoming, Listener, LiveConnection};
use crate::{Config, ErrorKind, Layer, Refusal, RefusalReason, TunnelStream, drain};

/// Longer than anything that is waited for here, on a paused clock.
const AGES: Duration = Duration::from_secs(3600);

fn address() -> SocketAddr {
    "10.0.0.9:40000".parse().unwrap()
}

/// Byte streams from [`address`].
struct Queue(mpsc::UnboundedReceiver<io::Result<DuplexStream>>);

impl Accept for Queue {
    type Io = DuplexStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<DuplexStream>>> {
        self.0.poll_recv(cx).map(|accepted| accepted.map(|stream| Ok((stream?, Some(address())))))
    }
}

/// A server, and the means to connect to it.
struct Site {
    world: World,
    server: ConnectionServer,
    streams: mpsc::UnboundedSender<io::Result<DuplexStream>>,
}

impl Site {
    fn new() -> (Self, Listener<Queue>) {
        Self::observed(None)
    }

    fn observed(observer: Option<Arc<dyn Observer>>) -> (Self, Listener<Queue>) {
        let world = World::new(Config::new());
        let mut server = ConnectionServer::new(world.acceptor.clone(), world.config.clone());
        if let Some(observer) = observer {
            server = server.with_observer(observer);
        }
        let (streams, queue) = mpsc::unbounded_channel();
        let listener = Listener::new(Queue(queue), server.clone());
        (Self { world, server, streams }, listener)
    }

    fn raw(&self) -> DuplexStream {
        let (near, far) = duplex(64 << 10);
        self.streams.send(Ok(far)).unwrap();
        near
    }

    async fn client(&self) -> Client {
        self.world.dial(Box::new(self.raw()), 1).await
    }

    fn only(&self) -> LiveConnection {
        let mut live = self.server.connections().iter();
        let only = live.next().unwrap();
        assert!(live.next().is_none());
        only
    }
}

/// Answers each tunnel, and sends everything back.
async fn echo(incoming: Incoming) {
    if let Ok(tunnel) = incoming.accept(&Metadata::default()) {
        let (mut read, mut write) = tokio::io::split(tunnel);
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
    }
}

async fn open(client: &Client) -> TunnelStream {
    client.connect(&authority(), &metadata()).await.unwrap()
}

async fn works(tunnel: &mut TunnelStream) -> bool {
    let mut got = [0; 4];
    tunnel.write_all(b"ping").await.is_ok() && tunnel.read_exact(&mut got).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn the_registry_says_who_is_connected_and_what_for() {
    let (site, listener) = Site::new();
    tokio::spawn(listener.serve(echo));
    let connections = site.server.connections();
    assert!(connections.is_empty());
    let client = site.client().await;
    let mut tunnels = [open(&client).await, open(&client).await];
    assert!(works(&mut tunnels[1]).await);
    tokio::time::advance(Duration::from_secs(7)).await;

    let live = site.only();
    assert_eq!((connections.len(), connections.tunnels(), connections.handshakes()), (1, 2, 0));
    assert_eq!((live.peer_identity(), live.address()), (Some(&client_id()), Some(address())));
    assert_eq!(live.peer_certificate().identity(), &client_id());
    assert_eq!(live.certificate_serials().next(), Some(live.peer_certificate().serial()));
    assert!(live.age() >= Duration::from_secs(7) && live.bytes() > 0);
    let open: Vec<_> = live.tunnels();
    assert_eq!(open.iter().map(|tunnel| tunnel.id().stream).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(open.iter().map(|tunnel| (tunnel.received(), tunnel.sent())).collect::<Vec<_>>(), [(0, 0), (4, 4)]);
    assert!(open.iter().all(|tunnel| tunnel.authority() == &authority() && tunnel.age() >= Duration::from_secs(7)));
    assert_eq!(connections.get(live.id()).unwrap().tunnel(open[1].id()).unwrap().sent(), 4);

    let [first, second] = tunnels;
    drop((open, first));
    idle().await;
    assert_eq!((live.tunnel_count(), live.tunnels_asked()), (1, 2));
    drop((second, client));
    idle().await;
    assert!(connections.is_empty() && live.is_closed());
    assert_eq!((connections.get(live.id()).is_none(), live.tunnel_count()), (true, 0));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_is_counted_until_it_is_over() {
    let (site, listener) = Site::new();
    tokio::spawn(listener.serve(echo));
    let stalled = site.raw();
    idle().await;
    assert_eq!((site.server.connections().handshakes(), site.server.connections().len()), (1, 0));
    drop(stalled);
    idle().await;
    assert_eq!(site.server.connections().handshakes(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_cut_breaks_and_the_others_do_not() {
    let (site, listener) = Site::new();
    tokio::spawn(listener.serve(echo));
    let (cut, kept) = (site.client().await, site.client().await);
    let (mut lost, mut other) = (open(&cut).await, open(&kept).await);
    let of = |count| site.server.connections().iter().find(|live| live.tunnels_asked() == count).unwrap();
    let _second = open(&cut).await;
    of(2).cut();
    lost.read(&mut [0]).await.unwrap_err();
    idle().await;
    assert!(cut.is_closed());
    assert_eq!(site.server.connections().len(), 1);
    assert!(works(&mut other).await);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_drained_ends_with_its_last_tunnel() {
    let (site, listener) = Site::new();
    tokio::spawn(listener.serve(echo));
    let client = site.client().await;
    let mut tunnel = open(&client).await;
    site.only().drain();
    idle().await;
    assert!(client.connect(&authority(), &metadata()).await.unwrap_err().is_go_away());
    assert!(works(&mut tunnel).await && site.only().is_draining());
    drop(tunnel);
    idle().await;
    assert!(site.server.connections().is_empty());
    open(&site.client().await).await;
}

/// Whatever it is waiting for at this end.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    Reading,
    Writing,
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_tunnel_that_is_cut_fails_at_both_ends_and_the_others_do_not(
    #[values(Waiting::Reading, Waiting::Writing)] waiting: Waiting,
) {
    let (site, mut listener) = Site::new();
    let accepting = tokio::spawn(async move {
        let accepted = [listener.accept().await.unwrap(), listener.accept().await.unwrap()];
        (accepted.map(|incoming| incoming.accept(&Metadata::default()).unwrap()), listener)
    });
    let client = site.client().await;
    let (near, other) = tokio::join!(open(&client), open(&client));
    let (mut near, mut other) = (near, other);
    let ([mut far, mut far_other], _listener) = accepting.await.unwrap();
    let id = far.id();
    let failed = tokio::spawn(async move {
        match waiting {
            Waiting::Reading => drop(far.read(&mut [0]).await.unwrap_err()),
            Waiting::Writing => {
                let data = vec![0; 64 << 10];
                while far.write_all(&data).await.is_ok() {}
            }
        }
    });
    idle().await;
    site.only().tunnel(id).unwrap().cut();
    timeout(AGES, failed).await.unwrap().unwrap();
    let mut got = Vec::new();
    let error = near.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(crate::Error::from_io(&error).unwrap().kind(), &ErrorKind::Reset(h2::Reason::CANCEL.into()));
    other.write_all(b"x").await.unwrap();
    assert_eq!(far_other.read_u8().await.unwrap(), b'x');
    assert_eq!(site.only().tunnel_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_decided_on_before_it_is_answered() {
    let (site, mut listener) = Site::new();
    let (dialed, dialing) = tokio::sync::oneshot::channel::<bool>();
    tokio::spawn(async move {
        let incoming = listener.accept().await.unwrap();
        assert_eq!((incoming.peer_identity(), incoming.peer_address()), (Some(&client_id()), Some(address())));
        match dialing.await {
            Ok(true) => drop(incoming.accept(&Metadata::default())),
            _ => incoming.reject(&Refusal::new(RefusalReason::ConnectionRefused)),
        }
        pending::<()>().await;
    });
    let client = site.client().await;
    let connecting = tokio::spawn(async move { client.connect(&authority(), &metadata()).await });
    idle().await;
    assert!(!connecting.is_finished(), "answered before it was decided");
    dialed.send(false).unwrap();
    let error = connecting.await.unwrap().unwrap_err();
    assert_eq!(error.refusal().unwrap().reason(), &RefusalReason::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn what_is_served_finishes_in_a_drain_and_nothing_new_comes_in() {
    let (site, listener) = Site::new();
    let (drain, watch) = drain::channel();
    let serving = tokio::spawn(listener.with_drain(watch).serve(echo));
    let client = site.client().await;
    let mut tunnel = open(&client).await;
    let _stalled = site.raw();
    idle().await;
    let draining = tokio::spawn(drain.drain(AGES));
    idle().await;
    assert!(site.streams.is_closed());
    assert!(client.connect(&authority(), &metadata()).await.unwrap_err().is_go_away());
    assert!(works(&mut tunnel).await && !serving.is_finished());
    drop((tunnel, client));
    let start = Instant::now();
    assert!(draining.await.unwrap().completed);
    serving.await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// What serves a tunnel tells when it is gone.
struct Gone(mpsc::UnboundedSender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(start_paused = true)]
async fn what_outlasts_a_drain_is_dropped_and_counted() {
    let (site, listener) = Site::new();
    let (drain, watch) = drain::channel();
    let (gone, mut went) = mpsc::unbounded_channel();
    let serving = tokio::spawn(listener.with_drain(watch).serve(move |incoming| {
        let gone = Gone(gone.clone());
        async move {
            let _tunnel = incoming.accept(&Metadata::default());
            pending::<()>().await;
            drop(gone);
        }
    }));
    let mut tunnel = open(&site.client().await).await;
    let (start, grace) = (Instant::now(), Duration::from_secs(5));
    let report = drain.drain(grace).await;
    assert_eq!((report.completed, report.forced, report.left), (false, 1, 0));
    assert_eq!(start.elapsed(), grace);
    serving.await.unwrap();
    went.recv().await.unwrap();
    tunnel.read(&mut [0]).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn tunnels_end_with_their_connection() {
    let (site, listener) = Site::new();
    let (gone, mut went) = mpsc::unbounded_channel();
    tokio::spawn(listener.serve(move |incoming| {
        let gone = Gone(gone.clone());
        async move {
            let _tunnel = incoming.accept(&Metadata::default());
            pending::<()>().await;
            drop(gone);
        }
    }));
    let _tunnel = open(&site.client().await).await;
    site.only().cut();
    went.recv().await.unwrap();
}

/// Records events in words.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn known(connection: &Connection<'_>) {
    assert_eq!(connection.address, Some(address()));
    assert_eq!(connection.local_identity, Some(&server_id()));
    assert_eq!(connection.peer_identity, Some(&client_id()));
}

fn tunnel(tunnel: &Tunnel<'_>) -> String {
    known(&tunnel.connection);
    assert_eq!((tunnel.authority, tunnel.id.connection), (&authority(), tunnel.connection.id));
    format!("tunnel {}", tunnel.id.stream)
}

impl Observer for Notes {
    fn event(&self, event: &Event<'_>) {
        let note = match event {
            Event::ConnectionOpening(connection) => {
                assert_eq!((connection.address, connection.peer_identity), (Some(address()), None));
                "opening".to_owned()
            }
            Event::ConnectionOpened(opened) => {
                known(&opened.connection);
                assert!(opened.handshake.tls.is_some() && opened.handshake.http2.is_some());
                "opened".to_owned()
            }
            Event::ConnectionFailed(failed) => format!("failed: {:?}", failed.error.map(|error| error.layer())),
            Event::ConnectionDraining(draining) => format!("draining by {}", draining.by),
            Event::ConnectionClosed(closed) => {
                known(&closed.connection);
                assert!(closed.bytes > 0);
                format!("closed after {} tunnels: {:?}", closed.tunnels, closed.error.map(|error| error.kind().clone()))
            }
            Event::TunnelOpened(opened) => {
                assert_eq!(opened.metadata, &metadata());
                format!("{} opened", tunnel(&opened.tunnel))
            }
            Event::TunnelRefused(refused) => format!("{} refused: {}", tunnel(&refused.tunnel), refused.refusal),
            Event::TunnelFailed(failed) => format!("{} failed: {:?}", tunnel(&failed.tunnel), failed.error),
            Event::TunnelEnded(ended) => {
                let end = match ended.end {
                    TunnelEnd::Failed(error) => format!("{:?}", error.kind()),
                    end => format!("{end:?}"),
                };
                let first = ended.first_byte.map(|first| first.as_secs());
                let (received, sent, secs) = (ended.received, ended.sent, ended.duration.as_secs());
                format!("{} ended: {end}, {received} in, {sent} out, first {first:?}, {secs} s", tunnel(&ended.tunnel))
            }
            Event::LimitReached(reached) => format!("{:?} of {}", reached.limit, reached.value),
            Event::AcceptFailed(error) => format!("accept failed: {error}"),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(note);
    }
}

fn observed() -> (Site, Listener<Queue>, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let (site, listener) = Site::observed(Some(notes.clone()));
    (site, listener, notes)
}

#[tokio::test(start_paused = true)]
async fn events_describe_a_connection_and_its_tunnels() {
    let (site, listener, notes) = observed();
    tokio::spawn(listener.serve(echo));
    let client = site.client().await;
    let mut tunnel = open(&client).await;
    idle().await;
    assert_eq!(notes.take(), ["opening", "opened", "tunnel 1 opened"]);
    tokio::time::advance(Duration::from_secs(3)).await;
    tunnel.write_all(b"hello").await.unwrap();
    tunnel.read_exact(&mut [0; 5]).await.unwrap();
    tokio::time::advance(Duration::from_secs(4)).await;
    tunnel.shutdown().await.unwrap();
    tunnel.read_to_end(&mut Vec::new()).await.unwrap();
    idle().await;
    assert_eq!(notes.take(), ["tunnel 1 ended: Finished, 5 in, 5 out, first Some(3), 7 s"]);
    drop((tunnel, client));
    idle().await;
    assert_eq!(notes.take(), ["closed after 1 tunnels: None"]);
}

/// How a tunnel ends before its time.
#[derive(Clone, Copy, Debug)]
enum End {
    ResetByTheClient,
    LetGoHere,
    Cut,
    ConnectionLost,
}

#[rstest]
#[case(End::ResetByTheClient, "Reset(8)")]
#[case(End::LetGoHere, "Abandoned")]
#[case(End::Cut, "Cut")]
#[case(End::ConnectionLost, "Closed")]
#[tokio::test(start_paused = true)]
async fn an_event_says_how_a_tunnel_ended(#[case] end: End, #[case] expected: &str) {
    let (site, listener, notes) = observed();
    let (stop, stopped) = tokio::sync::watch::channel(());
    tokio::spawn(listener.serve(move |incoming| {
        let mut stopped = stopped.clone();
        async move {
            tokio::select! {
                () = echo(incoming) => {}
                _ = stopped.changed() => {}
            }
        }
    }));
    let raw = site.raw();
    let (wire, client_end) = duplex(64 << 10);
    let cable = tokio::spawn(async move {
        let (mut raw, mut wire) = (raw, wire);
        let _ = tokio::io::copy_bidirectional(&mut raw, &mut wire).await;
    });
    let client = site.world.dial(Box::new(client_end), 1).await;
    let tunnel = open(&client).await;
    idle().await;
    notes.take();
    match end {
        End::ResetByTheClient => drop(tunnel),
        End::LetGoHere => stop.send(()).unwrap(),
        End::Cut => site.only().tunnels()[0].cut(),
        End::ConnectionLost => cable.abort(),
    }
    idle().await;
    let notes = notes.take();
    assert!(notes.contains(&format!("tunnel 1 ended: {expected}, 0 in, 0 out, first None, 0 s")), "{notes:?}");
}

#[tokio::test(start_paused = true)]
async fn events_describe_tunnels_that_are_not_opened() {
    let (site, listener, notes) = observed();
    let listener = listener.with_backlog(1);
    assert_eq!(listener.backlog(), 1);
    let mut listener = listener.with_decision(|incoming| match incoming.metadata().forwarded_network() {
        Some("foreign") => Err(Refusal::new(RefusalReason::Denied)),
        _ => Ok(()),
    });
    let accepting = tokio::spawn(async move { (listener.accept().await.unwrap(), listener) });
    let client = site.client().await;
    let foreign = Metadata::default().with_forwarded_network("foreign").unwrap();
    client.connect(&authority(), &foreign).await.unwrap_err();
    assert_eq!(notes.take(), ["opening", "opened", "tunnel 1 refused: 401, http_request_denied"]);
    let connect = || {
        let client = client.clone();
        tokio::spawn(async move { client.connect(&authority(), &metadata()).await })
    };
    let first = connect();
    let (incoming, listener) = accepting.await.unwrap();
    let (second, third) = (connect(), connect());
    third.await.unwrap().unwrap_err();
    let refused = "503, connection_limit_reached (too many tunnels wait to be accepted)";
    assert_eq!(notes.take(), ["Backlog of 1".to_owned(), format!("tunnel 7 refused: {refused}")]);
    drop(incoming);
    first.await.unwrap().unwrap_err();
    assert_eq!(notes.take(), ["tunnel 3 failed: None"]);
    drop(listener);
    second.await.unwrap().unwrap_err();
    idle().await;
    assert_eq!(notes.take(), ["tunnel 5 failed: None", "draining by this side", "closed after 4 tunnels: None"]);
}

#[tokio::test(start_paused = true)]
async fn events_say_what_could_not_be_accepted_and_which_layer_failed() {
    let (site, listener, notes) = observed();
    let (drain, watch) = drain::channel();
    tokio::spawn(listener.with_drain(watch).serve(echo));
    site.streams.send(Err(io::Error::other("no file descriptors"))).unwrap();
    let mut plain = site.raw();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    plain.read_to_end(&mut Vec::new()).await.unwrap();
    drop(plain);
    idle().await;
    let tls = format!("failed: {:?}", Some(Layer::Tls));
    assert_eq!(notes.take(), ["accept failed: no file descriptors".to_owned(), "opening".to_owned(), tls]);
    // Half a record; and one that has said nothing by then, of which nobody is told.
    let (mut stalled, _silent) = (site.raw(), site.raw());
    stalled.write_all(&[22, 3, 1]).await.unwrap();
    idle().await;
    drain.drain(AGES).await;
    assert_eq!(notes.take(), ["opening", "failed: None"]);
}
