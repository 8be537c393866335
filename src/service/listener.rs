//! Tunnels from any number of connections, one after another.

use std::fmt;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream as Sequence;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use super::Peer;
use crate::config::Config;
use crate::drain::Watch;
use crate::error::Result;
use crate::io::{Accept, Accepted, ReadAhead, Stream};
use crate::metadata::Metadata;
use crate::refusal::{Refusal, RefusalReason};
use crate::server::{Builder, Incoming, Server};
use crate::tls::{Acceptor, TlsStream};
use crate::tunnel::TunnelStream;

/// How many tunnels may wait for [`Listener::accept`], like the connections in a socket's backlog.
const BACKLOG: usize = 1024;
/// After a failed accept, mostly for lack of file descriptors, some have to be closed before the next can succeed.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Takes HBONE connections and hands out the tunnels in them, as a TCP listener hands out sockets.
///
/// Connections come from any [`Accept`]: a tokio `TcpListener` (feature `proxy`), a queue, or another `Listener`, which makes
/// this the inner end of nested tunnels. Each gets a task of its own for TLS and HTTP/2, so that a slow handshake delays
/// nobody else. What goes wrong with one connection is logged at `debug` and ends that connection only.
///
/// New connections are taken only while [`accept`](Listener::accept) is being awaited; those that are up go on by themselves.
/// A tunnel gets its 200 when it is handed out. Up to 1,024 wait for that, further ones are refused with
/// [`ConnectionLimitReached`](RefusalReason::ConnectionLimitReached).
///
/// Dropping a listener closes the door and breaks nothing: no more connections are taken, the peers are told to open no more
/// tunnels, those that were not handed out are reset with REFUSED_STREAM, and the others run until they end.
///
/// It is a [`Stream`](futures_util::Stream) of its tunnels as well.
pub struct Listener<A> {
    /// `None` when no more connections are taken.
    source: Option<Source<A>>,
    back_off: Option<Pin<Box<Sleep>>>,
    waiting: mpsc::Receiver<Waiting>,
    answer: Metadata,
}

/// Where connections come from, and what each is given.
struct Source<A> {
    accept: A,
    connection: Connection,
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What the task of a connection works with.
#[derive(Clone)]
struct Connection {
    acceptor: Acceptor,
    config: Arc<Config>,
    decision: Arc<Decision>,
    waiting: mpsc::Sender<Waiting>,
    drain: Option<Watch>,
}

type Decision = dyn Fn(&Incoming) -> Result<(), Refusal> + Send + Sync;

/// A tunnel that was asked for, and the address of its connection.
type Waiting = (Incoming, Option<SocketAddr>);

impl<A: Accept> Listener<A> {
    /// Takes connections from `accept`, with the certificate and for the peers of `acceptor`, and tunnels to any authority.
    ///
    /// Must be used on a tokio runtime.
    pub fn new(accept: A, acceptor: Acceptor, config: Arc<Config>) -> Self {
        let (sender, waiting) = mpsc::channel(BACKLOG);
        let connection = Connection { acceptor, config, decision: Arc::new(|_| Ok(())), waiting: sender, drain: None };
        let source = Some(Source { accept, connection, draining: None });
        Self { source, back_off: None, waiting, answer: Metadata::default() }
    }

    /// Decides which tunnels are let in: by the authority, and by who asks. Default: all, since the peer is in one of the
    /// trust domains of the acceptor.
    ///
    /// A server that stands for one workload should turn other authorities down
    /// ([`DestinationProhibited`](RefusalReason::DestinationProhibited)): a client that comes here with one is lost. `decide`
    /// is called for each tunnel in the task of its connection, so it must not block.
    pub fn with_decision(mut self, decide: impl Fn(&Incoming) -> Result<(), Refusal> + Send + Sync + 'static) -> Self {
        if let Some(source) = &mut self.source {
            source.connection.decision = Arc::new(decide);
        }
        self
    }

    /// What the 200 says of this side. Default: nothing.
    pub fn with_answer(mut self, answer: Metadata) -> Self {
        self.answer = answer;
        self
    }

    /// Ends with a drain. When it starts, no more connections are taken, handshakes are given up, and peers are told to open no
    /// more tunnels; [`accept`](Listener::accept) returns those that were on their way, and then `None` when the last
    /// connection has ended. By force, all connections are broken. Default: no drain.
    ///
    /// Each connection counts as one in the drain's [`Report`](crate::drain::Report). Connections that were taken before this
    /// was called know nothing of it.
    pub fn with_drain(mut self, drain: Watch) -> Self {
        if let Some(source) = &mut self.source {
            let watch = drain.uncounted();
            source.draining = Some(Box::pin(async move { watch.graceful().await }));
            source.connection.drain = Some(drain);
        }
        self
    }

    /// Waits for the next tunnel and opens it. `None` when there are no more: the drain has started, or the [`Accept`] has
    /// ended, and all connections are gone. Cancel safe.
    pub async fn accept(&mut self) -> Option<(TunnelStream, Peer)> {
        poll_fn(|cx| self.poll_accept_tunnel(cx)).await
    }

    fn poll_accept_tunnel(&mut self, cx: &mut Context<'_>) -> Poll<Option<(TunnelStream, Peer)>> {
        self.poll_connections(cx);
        loop {
            let Some((incoming, address)) = ready!(self.waiting.poll_recv(cx)) else { return Poll::Ready(None) };
            if let Some(opened) = open(incoming, address, &self.answer) {
                return Poll::Ready(Some(opened));
            }
        }
    }

    /// Takes what connections there are.
    fn poll_connections(&mut self, cx: &mut Context<'_>) {
        loop {
            let Some(source) = &mut self.source else { return };
            if source.draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
                self.source = None;
                return;
            }
            if let Some(back_off) = &mut self.back_off {
                if back_off.as_mut().poll(cx).is_pending() {
                    return;
                }
                self.back_off = None;
            }
            match source.accept.poll_accept(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.source = None,
                Poll::Ready(Some(Ok((stream, from)))) => {
                    tokio::spawn(source.connection.clone().serve(stream, from));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%error, "accepting a connection failed, going on");
                    self.back_off = Some(Box::pin(sleep(ACCEPT_BACK_OFF)));
                }
            }
        }
    }
}

/// Answers 200, unless the peer is gone.
fn open(incoming: Incoming, address: Option<SocketAddr>, answer: &Metadata) -> Option<(TunnelStream, Peer)> {
    // TLS is not done without one.
    let identity = incoming.peer_identity()?.clone();
    let peer = Peer::new(identity, incoming.authority().clone(), incoming.metadata().clone(), address);
    match incoming.accept(answer) {
        Ok(tunnel) => Some((tunnel, peer)),
        Err(error) => {
            tracing::debug!(peer = %peer.identity(), target = %peer.authority(), %error, "given up by the client");
            None
        }
    }
}

impl Connection {
    async fn serve<IO: Stream + 'static>(self, stream: IO, from: Option<SocketAddr>) {
        let ended = tokio::select! {
            ended = self.connection(stream, from) => ended,
            () = forced(&self.drain) => Ok(()),
        };
        if let Err(error) = ended {
            let error = match from {
                Some(from) => error.with_peer(from),
                None => error,
            };
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn connection<IO: Stream + 'static>(&self, stream: IO, from: Option<SocketAddr>) -> Result<()> {
        // A connection that is not up yet has nothing to finish.
        let mut server = tokio::select! {
            server = self.handshake(stream) => server?,
            () = self.graceful() => return Ok(()),
        };
        let mut draining = false;
        loop {
            tokio::select! {
                incoming = server.accept() => match incoming {
                    Some(incoming) => self.decide(incoming?, from),
                    None => return Ok(()),
                },
                () = self.graceful(), if !draining => {
                    draining = true;
                    server.graceful_shutdown();
                }
            }
        }
    }

    async fn handshake<IO: Stream + 'static>(&self, stream: IO) -> Result<Server<TlsStream<ReadAhead<IO>>>> {
        let stream = self.acceptor.accept(ReadAhead::new(stream)).await?;
        let peer = stream.peer_identity().clone();
        Builder::new().config(self.config.clone()).peer(peer).handshake(stream).await
    }

    /// Waits until the drain starts, or the listener is dropped.
    async fn graceful(&self) {
        let drain = async {
            match &self.drain {
                Some(drain) => drain.graceful().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = drain => {}
            () = self.waiting.closed() => {}
        }
    }

    fn decide(&self, incoming: Incoming, from: Option<SocketAddr>) {
        if let Err(refusal) = (self.decision)(&incoming) {
            let peer = incoming.peer_identity().map(ToString::to_string).unwrap_or_default();
            tracing::info!(%peer, target = %incoming.authority(), %refusal, "tunnel refused");
            return incoming.reject(&refusal);
        }
        match self.waiting.try_send((incoming, from)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full((incoming, _))) => {
                let refusal = Refusal::new(RefusalReason::ConnectionLimitReached)
                    .with_details("too many tunnels wait to be taken");
                incoming.reject(&refusal);
            }
            // Dropping it says that it may be tried elsewhere.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }
}

async fn forced(drain: &Option<Watch>) {
    match drain {
        Some(drain) => drain.forced().await,
        None => std::future::pending().await,
    }
}

impl<A: Accept + Unpin> Sequence for Listener<A> {
    type Item = (TunnelStream, Peer);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_accept_tunnel(cx)
    }
}

/// Tunnels inside tunnels: the inner ones of all the outer ones.
impl<A: Accept> Accept for Listener<A> {
    type Io = TunnelStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted<TunnelStream>>> {
        self.poll_accept_tunnel(cx).map(|opened| opened.map(|(tunnel, peer)| Ok((tunnel, peer.address()))))
    }
}

impl<A> fmt::Debug for Listener<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("listening", &self.source.is_some()).finish_non_exhaustive()
    }
}
