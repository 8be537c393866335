//! HTTP/2 on one byte stream, as a server.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Method;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::authority::{Authority, AuthorityError};
use crate::config::Config;
use crate::conn::{Description, Frame, Maintenance, Shared, Transport, WriteBatch, driver_result, server_builder};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::Turns;
use crate::observe::{ConnectionId, ConnectionRole, Observer};
use crate::refusal::{Refusal, RefusalReason};

use super::incoming::{Incoming, refuse};

/// The server's end of one connection. It moves frames only while [`Server::accept`] is being awaited, so keep awaiting
/// it until it returns `None`, and serve the tunnels elsewhere. Dropping it breaks the connection.
pub struct Server<IO> {
    connection: h2::server::Connection<Transport<IO>, Frame>,
    batch: WriteBatch<IO>,
    maintenance: Maintenance,
    shared: Arc<Shared>,
    turns: Turns,
    ended: bool,
}

/// Starts HTTP/2 as a server over any byte stream, with the default [`Config`], and waits for the client's preface.
///
/// # Errors
///
/// [`ErrorKind::Timeout`] when no preface comes, [`ErrorKind::Protocol`] when something else does,
/// [`ErrorKind::Closed`].
pub async fn handshake<IO>(io: IO) -> Result<Server<IO>>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    Builder::new().handshake(io).await
}

/// [`handshake`] with settings.
#[derive(Clone, Debug)]
pub struct Builder {
    config: Arc<Config>,
    about: Description,
}

impl Default for Builder {
    fn default() -> Self {
        Self { config: Arc::default(), about: Description::new(ConnectionRole::Server) }
    }
}

impl Builder {
    /// The default [`Config`], and no identity.
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn described(config: Arc<Config>, about: Description) -> Self {
        Self { config, about }
    }

    /// Limits and timeouts.
    pub fn with_config(mut self, config: Arc<Config>) -> Self {
        self.config = config;
        self
    }

    /// Who the peer is, as [`TlsStream::peer_identity`](crate::tls::TlsStream::peer_identity) tells: each [`Incoming`]
    /// carries it.
    pub fn with_peer_identity(mut self, identity: SpiffeId) -> Self {
        self.about.peer_identity = Some(identity);
        self
    }

    /// The address that the byte stream came from, for events and for [`Incoming::peer_address`].
    pub fn with_peer_address(mut self, address: SocketAddr) -> Self {
        self.about.address = Some(address);
        self
    }

    /// Observes the tunnels. Default: no observer.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.about.observer = Some(observer);
        self
    }

    /// Starts HTTP/2; see [`handshake`].
    ///
    /// # Errors
    ///
    /// As [`handshake`].
    pub async fn handshake<IO>(self, io: IO) -> Result<Server<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.handshake_as(ConnectionId::random(), io).await
    }

    /// [`handshake`](Self::handshake), for a connection that has its id already.
    pub(super) async fn handshake_as<IO>(mut self, id: ConnectionId, io: IO) -> Result<Server<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        const DOING: &str = "waiting for the peer's HTTP/2 preface";
        self.about.id = id;
        let Self { config, about } = self;
        let shared = Shared::new(&config, about);
        let transport = Transport::new(io, shared.clone(), config.linger_timeout, Side::Remote);
        let batch = transport.write_batch();
        let mut connection = match timeout(config.http2_timeout, server_builder(&config).handshake(transport)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(e)) => return Err(shared.explain(e, Layer::Http2, DOING)),
            Err(_) => {
                return Err(shared.describe(Error::new(ErrorKind::Timeout, Layer::Http2, Side::Remote, DOING)));
            }
        };
        let maintenance = Maintenance::new(&config, connection.ping_pong());
        let turns = shared.turns();
        Ok(Server { connection, batch, maintenance, shared, turns, ended: false })
    }
}

impl<IO> Server<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Waits for the next tunnel that the peer asks for, and moves all frames meanwhile. `None` when the connection has
    /// ended in order; after an error, too.
    ///
    /// A request that is not a CONNECT with a valid authority is answered with 400 and not returned. Cancel safe.
    ///
    /// # Errors
    ///
    /// Why the connection failed, once. Every tunnel of it has got the same.
    pub async fn accept(&mut self) -> Option<Result<Incoming>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// The poll form of [`Server::accept`].
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming>>> {
        ready!(self.turns.poll_begin(cx));
        let before = self.shared.moved();
        let accepted = self.poll_frames(cx);
        self.turns.end(self.shared.moved() - before);
        accepted
    }

    /// Moves all frames that can be moved now, up to the next request.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Poll::Ready(error) = self.maintenance.poll(cx, &self.shared) {
                self.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
            self.maintenance.resize(cx, &self.shared, &mut self.connection);
            self.batch.begin();
            match self.connection.poll_accept(cx) {
                Poll::Pending => {
                    self.maintenance.resize(cx, &self.shared, &mut self.connection);
                    self.batch.send(cx);
                    return Poll::Pending;
                }
                Poll::Ready(None) => {
                    self.ended = true;
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(e))) => {
                    self.ended = true;
                    return Poll::Ready(driver_result(&self.shared, Err(e)).err().map(Err));
                }
                Poll::Ready(Some(Ok((request, respond)))) => {
                    if let Some(incoming) = self.incoming(request, respond) {
                        return Poll::Ready(Some(Ok(incoming)));
                    }
                }
            }
        }
    }

    /// Tells the peer to open no more tunnels here. Those it has opened by then are still to be accepted: go on with
    /// [`Server::accept`] until it returns `None`, which it does when the last tunnel has ended.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Who the peer has proved to be.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.shared.peer()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn incoming(
        &self,
        request: http::Request<h2::RecvStream>,
        respond: h2::server::SendResponse<Frame>,
    ) -> Option<Incoming> {
        let (head, recv) = request.into_parts();
        match target(&head) {
            Ok(authority) => Some(Incoming::new(authority, head.headers, recv, respond, self.shared.clone())),
            Err(refusal) => {
                tracing::debug!(peer = ?self.shared.peer(), %refusal, "request refused");
                refuse(recv, respond, &self.shared, &refusal);
                None
            }
        }
    }
}

/// The target of a request, or what is wrong with it.
fn target(head: &http::request::Parts) -> Result<Authority, Refusal> {
    let invalid = |details: String| Refusal::new(RefusalReason::InvalidRequest).with_details(details);
    if head.method != Method::CONNECT {
        return Err(invalid(format!("the method is {} and must be CONNECT", head.method)));
    }
    let authority = head.uri.authority().map_or("", |authority| authority.as_str());
    authority.parse().map_err(|e: AuthorityError| invalid(e.to_string()))
}

impl<IO> Drop for Server<IO> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<IO> fmt::Debug for Server<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("peer", &self.shared.peer()).finish_non_exhaustive()
    }
}
