//! One connection, from its byte stream to its end: TLS, HTTP/2, a task for each tunnel, and a drain.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::http2::{Builder, Server};
use super::incoming::Incoming;
use super::registry::{Connections, PeerCertificates, Stage};
use crate::config::Config;
use crate::conn::{ConnectionOpening, Description};
use crate::drain::Watch;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{BoxStream, ReadAhead, Stream};
use crate::observe::{ConnectionRole, Observer};
use crate::tls::{Acceptor, TlsStream};

/// Serves connections: all that is the same for those of one server, and the registry of those that are live. Cheap to
/// clone; clones share the registry.
///
/// [`Listener`](super::Listener) adds an accept loop. With one of your own, on several threads for example, give each
/// byte stream to [`serve`](Self::serve).
#[derive(Clone, Debug)]
pub struct ConnectionServer {
    acceptor: Acceptor,
    config: Arc<Config>,
    connections: Connections,
    observer: Option<Arc<dyn Observer>>,
}

/// What ends a connection from outside: gracefully, or at once.
pub(super) struct Ends<G, F> {
    pub(super) graceful: G,
    pub(super) forced: F,
}

impl ConnectionServer {
    /// Serves with the certificate and for the peers of `acceptor`, within the limits and timeouts of `config`.
    pub fn new(acceptor: Acceptor, config: Arc<Config>) -> Self {
        Self { acceptor, config, connections: Connections::default(), observer: None }
    }

    /// Observes the connections and their tunnels. Default: no observer.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Limits and timeouts.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The observer.
    pub fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.observer.as_ref()
    }

    /// The connections that are live.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Serves one connection until it ends or the drain does. `address` is that of its peer, for errors, events and
    /// those who decide by it.
    ///
    /// `tunnel` is called for each CONNECT, and what it returns runs in a task that ends with the connection at the
    /// latest: it decides, answers, and moves the bytes. When the drain starts, GOAWAY is sent, tunnels that the peer
    /// has asked for by then are served, and running ones finish. When the drain's time is over, the connection is
    /// broken.
    ///
    /// Must be called on a tokio runtime. Dropping the future breaks the connection.
    ///
    /// # Errors
    ///
    /// Why the handshake or the connection failed.
    pub async fn serve<F, T>(
        &self,
        stream: impl Stream + 'static,
        address: Option<SocketAddr>,
        drain: &Watch,
        tunnel: F,
    ) -> Result<()>
    where
        F: Fn(Incoming) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let ends = Ends { graceful: drain.graceful(), forced: drain.forced() };
        self.run(Box::new(stream), address, ends, |incoming| Some(tunnel(incoming))).await
    }

    /// [`serve`](Self::serve) with other ends than those of a drain. `tunnel` need not return anything to run.
    pub(super) async fn run<G, F, H, T>(
        &self,
        stream: BoxStream,
        address: Option<SocketAddr>,
        ends: Ends<G, F>,
        tunnel: H,
    ) -> Result<()>
    where
        G: Future<Output = ()>,
        F: Future<Output = ()>,
        H: Fn(Incoming) -> Option<T>,
        T: Future<Output = ()> + Send + 'static,
    {
        let (mut graceful, mut forced) = (pin!(ends.graceful), pin!(ends.forced));
        // A connection that is not up yet has nothing to finish.
        let (mut server, certificates) = tokio::select! {
            // Boxed, so that its memory is free again while the connection is up.
            opened = Box::pin(self.open(stream, address)) => match opened? {
                Some(opened) => opened,
                None => return Ok(()),
            },
            () = graceful.as_mut() => return Ok(()),
            () = forced.as_mut() => return Ok(()),
        };
        let mut registered = self.connections.register(server.shared().clone(), certificates);
        // Dropped with this future, so that no tunnel outlives its connection.
        let mut tunnels = JoinSet::new();
        let (mut stage, mut drain_started) = (Stage::Open, false);
        let result = loop {
            tokio::select! {
                incoming = server.accept() => match incoming {
                    Some(Ok(incoming)) => {
                        registered.live.count_asked();
                        if let Some(tunnel) = tunnel(incoming) {
                            tunnels.spawn(tunnel);
                        }
                    }
                    Some(Err(e)) => break Err(e),
                    None => break Ok(()),
                },
                Some(_) = tunnels.join_next(), if !tunnels.is_empty() => {}
                () = graceful.as_mut(), if !drain_started => {
                    drain_started = true;
                    registered.live.drain();
                }
                next = registered.live.after(stage) => {
                    stage = next;
                    if stage > Stage::Draining {
                        return Ok(());
                    }
                    server.graceful_shutdown();
                    registered.live.notify_draining();
                }
                () = forced.as_mut() => return Ok(()),
            }
        };
        registered.error = result.as_ref().err().cloned();
        drop(registered);
        // An application may take its time with what has arrived for it.
        tokio::select! {
            () = async { while tunnels.join_next().await.is_some() {} } => {}
            () = forced => {}
        }
        result
    }

    /// TLS and HTTP/2.
    ///
    /// `None` when the peer ends before its first byte, as health checks of a port do: nobody to serve, and no event.
    async fn open(&self, stream: BoxStream, address: Option<SocketAddr>) -> Result<Option<(Http2, PeerCertificates)>> {
        let _count = self.connections.begin_handshake();
        let mut stream = ReadAhead::new(stream);
        let first = timeout(self.config.tls_timeout, stream.begins()).await;
        if first == Ok(false) {
            return Ok(None);
        }
        let mut about = Description::new(ConnectionRole::Server);
        (about.address, about.observer) = (address, self.observer.clone());
        let mut opening = ConnectionOpening::begin(about);
        let result = match first {
            Ok(_) => self.handshake(stream, &mut opening).await,
            Err(_) => Err(Error::new(ErrorKind::Timeout, Layer::Tls, Side::Remote, "handshake")),
        };
        let result = result.map_err(|e| match address {
            Some(address) => e.with_peer(address),
            None => e,
        });
        opening.end(result.as_ref().err());
        result.map(Some)
    }

    async fn handshake(
        &self,
        stream: ReadAhead<BoxStream>,
        opening: &mut ConnectionOpening,
    ) -> Result<(Http2, PeerCertificates)> {
        let stream = self.acceptor.accept(stream).await?;
        opening.tls_done(&stream);
        let certificates = PeerCertificates { own: stream.peer_certificate().clone(), serials: stream.peer_serials() };
        let server = Builder::described(self.config.clone(), opening.about.clone())
            .handshake_as(opening.about.id, stream)
            .await?;
        Ok((server, certificates))
    }
}

type Http2 = Server<TlsStream<ReadAhead<BoxStream>>>;
