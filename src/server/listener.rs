//! Tunnels from any number of connections.

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc;

use super::accept::{Accepting, accept_each};
use super::connection::{ConnectionServer, Ends};
use super::incoming::Incoming;
use super::registry::Connections;
use crate::drain::Watch;
use crate::error::Result;
use crate::io::{Accept, BoxStream};
use crate::refusal::{Refusal, RefusalReason};

/// Accepts connections, and hands out the CONNECTs that arrive on them before they are answered.
///
/// Byte streams come from any [`Accept`]: a tokio `TcpListener` (feature `proxy`), a queue, or the tunnels of another
/// listener. Each gets a task of its own for TLS and HTTP/2, so that a slow handshake delays nobody else. What goes
/// wrong with one connection is logged at `debug` and ends that connection only.
///
/// There are two ways to use it:
///
/// * [`accept`](Self::accept) hands tunnels out one after another, to be [accepted](Incoming::accept) or
///   [rejected](Incoming::reject) whenever that is decided. They belong to the caller and may outlive the listener.
/// * [`serve`](Self::serve) runs everything: an async function for each tunnel, in a task that ends with its connection
///   at the latest.
///
/// Dropping a listener breaks nothing: it accepts no more connections, sends GOAWAY on those it has, and resets tunnels
/// that it has not handed out with REFUSED_STREAM. The others continue until they end.
pub struct Listener<A> {
    accepting: Accepting<A>,
    server: ConnectionServer,
    decision: Arc<Decision>,
    drain: Option<Watch>,
    /// `None` when no new connections are accepted.
    queue: Option<mpsc::Sender<Incoming>>,
    waiting: mpsc::Receiver<Incoming>,
    backlog: usize,
}

type Decision = dyn Fn(&Incoming) -> Result<(), Refusal> + Send + Sync;

/// As many as the backlog of a socket.
const BACKLOG: usize = 1024;

impl<A: Accept> Listener<A> {
    /// Accepts connections from `accept`, to be served by `server`. All of its tunnels are handed out.
    ///
    /// Must be used on a tokio runtime.
    pub fn new(accept: A, server: ConnectionServer) -> Self {
        let accepting = Accepting::new(accept).with_observer(server.observer().cloned());
        let (queue, waiting) = mpsc::channel(BACKLOG);
        let decision = Arc::new(|_: &Incoming| Ok(()));
        Self { accepting, server, decision, drain: None, queue: Some(queue), waiting, backlog: BACKLOG }
    }

    /// Refuses tunnels before they are handed out, by the authority and by who asks. Default: none.
    ///
    /// `decide` is called for each tunnel in the task of its connection, so it must not block. What takes time is
    /// decided between [`accept`](Self::accept) and the answer.
    pub fn with_decision(mut self, decide: impl Fn(&Incoming) -> Result<(), Refusal> + Send + Sync + 'static) -> Self {
        self.decision = Arc::new(decide);
        self
    }

    /// How many tunnels may wait for [`accept`](Self::accept). Default 1,024, like the connections in a socket's
    /// backlog; at least 1. Further ones are refused with
    /// [`ConnectionLimitReached`](RefusalReason::ConnectionLimitReached). Raising it lets clients wait for longer
    /// before they go elsewhere. To be set before the first `accept`.
    pub fn with_backlog(mut self, tunnels: usize) -> Self {
        self.backlog = tunnels.clamp(1, 1 << 20);
        let (queue, waiting) = mpsc::channel(self.backlog);
        (self.queue, self.waiting) = (Some(queue), waiting);
        self
    }

    /// Ends with a drain. When that starts, no new connections are accepted, handshakes are abandoned, and GOAWAY is
    /// sent on all connections; tunnels that were on their way by then are still handed out. When its time is over, all
    /// connections are broken. Default: no drain.
    ///
    /// Each connection counts as one in the drain's [`Report`](crate::drain::Report). Connections that were accepted
    /// before this was called do not take part in it.
    pub fn with_drain(mut self, drain: Watch) -> Self {
        self.accepting = self.accepting.with_drain(&drain);
        self.drain = Some(drain);
        self
    }

    /// The connections that are live.
    pub fn connections(&self) -> &Connections {
        self.server.connections()
    }

    /// How many tunnels may wait.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// Waits for the next tunnel that is asked for. `None` when there are no more: the drain has started, or the
    /// [`Accept`] has ended, and all connections are gone. Cancel safe.
    ///
    /// New connections are accepted only while this is being awaited; those that are up go on by themselves.
    pub async fn accept(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// The poll form of [`accept`](Self::accept).
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        while let Some(queue) = &self.queue {
            match self.accepting.poll_next(cx) {
                Poll::Ready(Some((stream, address))) => {
                    let connection = Connection {
                        server: self.server.clone(),
                        decision: self.decision.clone(),
                        queue: queue.clone(),
                        drain: self.drain.clone(),
                    };
                    tokio::spawn(connection.run(Box::new(stream), address));
                }
                Poll::Ready(None) => (self.queue, self.drain) = (None, None),
                Poll::Pending => break,
            }
        }
        self.waiting.poll_recv(cx)
    }

    /// Serves everything that comes, until the drain has ended, or until the [`Accept`] and all connections have.
    ///
    /// `tunnel` is called for each tunnel, as by [`ConnectionServer::serve`]: what it returns decides, answers, and
    /// moves the bytes, in a task that ends with the connection at the latest. What is still running shortly after the
    /// drain's time is over is dropped. Dropping the future breaks all connections.
    pub async fn serve<F, T>(self, tunnel: F)
    where
        F: Fn(Incoming) -> T + Clone + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let Self { accepting, server, decision, drain, .. } = self;
        accept_each(accepting, drain, |tasks, stream, address, drain| {
            let (server, decision, tunnel) = (server.clone(), decision.clone(), tunnel.clone());
            let stream: BoxStream = Box::new(stream);
            tasks.spawn(async move {
                let ends = Ends { graceful: graceful(drain.as_ref()), forced: forced(drain.as_ref()) };
                let take = move |incoming| decided(&*decision, incoming).map(&tunnel);
                log_end(server.run(stream, address, ends, take).await, address);
            });
        })
        .await;
    }
}

/// What the task of a connection works with.
struct Connection {
    server: ConnectionServer,
    decision: Arc<Decision>,
    queue: mpsc::Sender<Incoming>,
    drain: Option<Watch>,
}

impl Connection {
    async fn run(self, stream: BoxStream, address: Option<SocketAddr>) {
        let graceful = async {
            tokio::select! {
                () = graceful(self.drain.as_ref()) => {}
                // The listener was dropped.
                () = self.queue.closed() => {}
            }
        };
        let ends = Ends { graceful, forced: forced(self.drain.as_ref()) };
        let result = self.server.run(stream, address, ends, |incoming| self.enqueue(incoming)).await;
        log_end(result, address);
    }

    /// Leaves nothing to run.
    fn enqueue(&self, incoming: Incoming) -> Option<std::future::Ready<()>> {
        match self.queue.try_send(decided(&*self.decision, incoming)?) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(incoming)) => {
                incoming.notify_backlog(self.queue.max_capacity());
                let refusal = Refusal::new(RefusalReason::ConnectionLimitReached)
                    .with_details("too many tunnels wait to be accepted");
                incoming.reject(&refusal);
            }
            // Dropping it says that it may be tried elsewhere.
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
        None
    }
}

/// The tunnel, unless it is refused.
fn decided(decision: &Decision, incoming: Incoming) -> Option<Incoming> {
    match decision(&incoming) {
        Ok(()) => Some(incoming),
        Err(refusal) => {
            let peer = incoming.peer_identity().map(tracing::field::display);
            tracing::info!(peer, target = %incoming.authority(), %refusal, "tunnel refused");
            incoming.reject(&refusal);
            None
        }
    }
}

async fn graceful(drain: Option<&Watch>) {
    match drain {
        Some(drain) => drain.graceful().await,
        None => pending().await,
    }
}

async fn forced(drain: Option<&Watch>) {
    match drain {
        Some(drain) => drain.forced().await,
        None => pending().await,
    }
}

fn log_end(result: Result<()>, address: Option<SocketAddr>) {
    if let Err(error) = result {
        let error = match address {
            Some(address) => error.with_peer(address),
            None => error,
        };
        tracing::debug!(%error, "connection ended");
    }
}

impl<A> fmt::Debug for Listener<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("connections", self.server.connections()).finish_non_exhaustive()
    }
}
