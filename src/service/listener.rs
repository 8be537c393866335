//! Tunnels from any number of connections, one after another.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream as Sequence;

use super::Peer;
use crate::drain::Watch;
use crate::error::Result;
use crate::io::{Accept, Accepted};
use crate::metadata::Metadata;
use crate::refusal::Refusal;
use crate::server::{self, ConnectionServer, Connections, Incoming};
use crate::tunnel::TunnelStream;

/// A [`server::Listener`] that answers: it hands out open tunnels, as a TCP listener hands out sockets.
///
/// A tunnel gets its 200 when it is handed out, so that what runs behind is there already. To dial first, or to take
/// time to decide, use the [`server::Listener`].
///
/// It is a [`Stream`](futures_util::Stream) of its tunnels as well, and an [`Accept`]: a listener on a listener is the
/// inner end of nested tunnels.
pub struct Listener<A> {
    inner: server::Listener<A>,
    answer: Metadata,
}

impl<A: Accept> Listener<A> {
    /// Accepts connections from `accept`, to be served by `server`, and tunnels to any authority.
    ///
    /// Must be used on a tokio runtime.
    pub fn new(accept: A, server: ConnectionServer) -> Self {
        Self { inner: server::Listener::new(accept, server), answer: Metadata::default() }
    }

    /// Decides which tunnels are let in: by the authority, and by who asks. Default: all, since the peer is in one of
    /// the trust domains of the acceptor.
    ///
    /// A server that stands for one workload should turn other authorities down
    /// ([`DestinationProhibited`](crate::RefusalReason::DestinationProhibited)): a client that comes here with one is
    /// lost. `decide` is called for each tunnel in the task of its connection, so it must not block.
    pub fn with_decision(mut self, decide: impl Fn(&Incoming) -> Result<(), Refusal> + Send + Sync + 'static) -> Self {
        self.inner = self.inner.with_decision(decide);
        self
    }

    /// What the 200 says of this side. Default: nothing.
    pub fn with_answer(mut self, answer: Metadata) -> Self {
        self.answer = answer;
        self
    }

    /// [`server::Listener::with_backlog`].
    pub fn with_backlog(mut self, tunnels: usize) -> Self {
        self.inner = self.inner.with_backlog(tunnels);
        self
    }

    /// Ends with a drain, as by [`server::Listener::with_drain`]: [`accept`](Self::accept) returns the tunnels that
    /// were on their way, and then `None` when the last connection has ended.
    pub fn with_drain(mut self, drain: Watch) -> Self {
        self.inner = self.inner.with_drain(drain);
        self
    }

    /// The connections that are live.
    pub fn connections(&self) -> &Connections {
        self.inner.connections()
    }

    /// Waits for the next tunnel and opens it. `None` when there are no more: the drain has started, or the [`Accept`]
    /// has ended, and all connections are gone. Cancel safe.
    ///
    /// New connections are accepted only while this is being awaited; those that are up go on by themselves.
    pub async fn accept(&mut self) -> Option<(TunnelStream, Peer)> {
        poll_fn(|cx| self.poll_accept_tunnel(cx)).await
    }

    /// Has each tunnel served in a task that ends with its connection at the latest. `None` is one whose client has
    /// gone.
    pub(super) async fn serve<F, T>(self, drain: Watch, tunnel: F)
    where
        F: Fn(Option<(TunnelStream, Peer)>) -> T + Clone + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let Self { inner, answer } = self.with_drain(drain);
        inner.serve(move |incoming| tunnel(open(incoming, &answer))).await;
    }

    fn poll_accept_tunnel(&mut self, cx: &mut Context<'_>) -> Poll<Option<(TunnelStream, Peer)>> {
        loop {
            let Some(incoming) = ready!(self.inner.poll_accept(cx)) else { return Poll::Ready(None) };
            if let Some(opened) = open(incoming, &self.answer) {
                return Poll::Ready(Some(opened));
            }
        }
    }
}

/// Answers 200, unless the peer is gone.
fn open(incoming: Incoming, answer: &Metadata) -> Option<(TunnelStream, Peer)> {
    // TLS is not done without one.
    let identity = incoming.peer_identity()?.clone();
    let (authority, metadata) = (incoming.authority().clone(), incoming.metadata().clone());
    let peer = Peer::new(identity, authority, metadata, incoming.peer_address());
    match incoming.accept(answer) {
        Ok(tunnel) => Some((tunnel, peer)),
        Err(error) => {
            tracing::debug!(peer = %peer.identity(), target = %peer.authority(), %error, "canceled by the client");
            None
        }
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
        f.debug_tuple("Listener").field(&self.inner).finish()
    }
}
