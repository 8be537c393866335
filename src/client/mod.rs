//! The client's end of a connection: [`handshake`], then [`Client::connect`] for each tunnel.

mod driver;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderName, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use crate::authority::Authority;
use crate::config::Config;
use crate::conn::{
    Description, EarlyDataCell, Frame, Maintenance, OpenTunnel, Permits, Shared, SharedPermit, Traffic, Transport,
    client_builder,
};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::metadata::{FORWARDED, Metadata, TRACEPARENT};
use crate::observe::{ConnectionId, ConnectionRole, Observer};
use crate::tunnel::{Opening, TunnelStream};

pub use driver::Driver;

/// Opens tunnels on one connection. Cheap to clone; all clones share the connection.
///
/// When the last clone and the last tunnel are gone, the [`Driver`] closes the connection in order and ends. A `Client`
/// is `Send + Sync` and used by reference.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Frame>,
    permits: Arc<Permits>,
    shared: Arc<Shared>,
    config: Arc<Config>,
    hop: usize,
}

/// Headers whose values differ for each tunnel. In HPACK's table (RFC 7541, section 6.2.3) they would push out what
/// tunnels have in common, and each new one would be compared to all of them.
const NEVER_INDEXED: [HeaderName; 2] = [FORWARDED, TRACEPARENT];

const OPENING: &str = "opening a tunnel";

/// How many tunnels a connection carries and may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capacity {
    /// Tunnels that are open or being opened.
    pub open: usize,
    /// How many there may be: the smaller of this side's limit and the peer's latest.
    pub limit: usize,
}

/// Starts HTTP/2 as a client over any byte stream, with the default [`Config`].
///
/// Nothing is awaited from the peer, and nothing is sent: the preface leaves together with the first CONNECT. Spawn the
/// [`Driver`]: nothing moves without it. A peer that does not answer the preface within the
/// [`http2_timeout`](Config::with_http2_timeout) is given up by the driver. On a TCP socket of your own set TCP_NODELAY
/// first, else small frames wait for acknowledgements.
///
/// # Errors
///
/// None for now: the driver finds out what is wrong with `io`.
pub async fn handshake<IO>(io: IO) -> Result<(Client, Driver<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    Builder::new().handshake(io).await
}

/// [`handshake`] with settings.
#[derive(Clone, Debug)]
pub struct Builder {
    config: Arc<Config>,
    hop: usize,
    about: Description,
    /// An observer knows the connection already.
    is_described: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self { config: Arc::default(), hop: 0, about: Description::new(ConnectionRole::Client), is_described: false }
    }
}

impl Builder {
    /// The default [`Config`], and no identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits and timeouts.
    pub fn with_config(mut self, config: Arc<Config>) -> Self {
        self.config = config;
        self
    }

    /// Who the peer is, as [`TlsStream::peer_identity`](crate::tls::TlsStream::peer_identity) tells: tunnels and errors
    /// name it.
    pub fn with_peer_identity(mut self, identity: SpiffeId) -> Self {
        self.about.peer_identity = Some(identity);
        self
    }

    /// Which hop of a path this connection is, for errors to name. Default 0, the outer one;
    /// [`nested::extend`](crate::nested::extend) counts by itself.
    pub fn with_hop(mut self, hop: usize) -> Self {
        self.hop = hop;
        self
    }

    /// The address that was dialed, for events.
    pub fn with_peer_address(mut self, address: SocketAddr) -> Self {
        self.about.address = Some(address);
        self
    }

    /// Observes the tunnels. Default: no observer.
    pub fn with_observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.about.observer = Some(observer);
        self
    }

    /// A connection that an observer knows already.
    pub(crate) fn described(mut self, about: Description) -> Self {
        (self.about, self.is_described) = (about, true);
        self
    }

    /// Starts HTTP/2; see [`handshake`].
    ///
    /// # Errors
    ///
    /// As [`handshake`].
    pub async fn handshake<IO>(self, io: IO) -> Result<(Client, Driver<IO>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send,
    {
        const DOING: &str = "sending the HTTP/2 preface";
        let Self { config, hop, mut about, is_described } = self;
        if !is_described {
            // A builder may be used several times.
            about.id = ConnectionId::random();
        }
        about.hop = Some(hop);
        let shared = Shared::new(&config, about);
        let transport = Transport::new(io, shared.clone(), config.linger_timeout, Side::Local);
        let batch = transport.write_batch();
        let starting = client_builder(&config).handshake(transport);
        let (requests, mut connection) = starting.await.map_err(|e| shared.explain(e, Layer::Http2, DOING))?;
        let permits = Permits::new(config.max_tunnels as usize, requests.current_max_send_streams());
        let maintenance = Maintenance::new(&config, connection.ping_pong());
        let driver = Driver::new(connection, batch, maintenance, permits.clone(), shared.clone());
        Ok((Client { requests, permits, shared, config, hop }, driver))
    }
}

impl Client {
    /// Opens a tunnel: waits for room on the connection, sends the CONNECT, and returns when the peer's 200 is here,
    /// which a peer sends only once it is connected to `authority`.
    ///
    /// The [`connect_timeout`](Config::with_connect_timeout) covers all of it. Cancel safe: when dropped, the stream is
    /// cancelled and no longer counts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Refused`] with the peer's status and reason; [`ErrorKind::Timeout`]; [`ErrorKind::Reset`] or
    /// [`ErrorKind::GoAway`] with the code of HTTP/2; or why the connection ended.
    pub async fn connect(&self, authority: &Authority, metadata: &Metadata) -> Result<TunnelStream> {
        let mut tunnel = self.connect_early(authority, metadata).await?;
        tunnel.opened().await?;
        Ok(tunnel)
    }

    /// Sends the CONNECT and returns before its answer: what is written to the tunnel goes out at once, which saves a
    /// round trip where this side speaks first. [`TunnelStream::opened`] waits for the answer, and so does reading.
    ///
    /// A peer that is still connecting to `authority`, or refuses to, gets the bytes all the same; they count as its
    /// stream's window, which it gives back as it passes them on. HTTP/2 keeps each tunnel's bytes in a stream of its
    /// own, so that early ones can't be taken for another request. But they are before their time (RFC 9110, section
    /// 9.3.6; RFC 9113, section 8.5): most peers keep them until they are connected, some reset the tunnel or answer it
    /// with 400, or lose them. Send early only what can be sent again on another tunnel, and only to peers that are
    /// known to keep it, as [`nested::extend`](crate::nested::extend) does.
    ///
    /// Waiting for room and for the answer have the [`connect_timeout`](Config::with_connect_timeout) together. Cancel
    /// safe, as [`Client::connect`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Timeout`] when there was no room in time; or why the connection ended. [`TunnelStream::opened`]
    /// returns what became of the CONNECT.
    pub async fn connect_early(&self, authority: &Authority, metadata: &Metadata) -> Result<TunnelStream> {
        const WAITING: &str = "waiting for room on the connection";
        let deadline = Instant::now() + self.config.connect_timeout;
        match timeout_at(deadline, self.permits.acquire()).await {
            Ok(Ok(permit)) => self.request(authority, metadata, permit, deadline),
            Ok(Err(_)) => Err(self.shared.gone(WAITING)),
            Err(_) => {
                let error = Error::new(ErrorKind::Timeout, Layer::Connect, Side::Local, WAITING);
                Err(self.shared.describe(error.with_advice("allow more tunnels, or open another connection")))
            }
        }
    }

    /// [`Client::connect_early`] with a permit that somebody else has issued, and counts. It is dropped with the
    /// tunnel, or at once where there is none.
    pub(crate) fn connect_with(
        &self,
        authority: &Authority,
        metadata: &Metadata,
        permit: SharedPermit,
    ) -> Result<TunnelStream> {
        if self.is_closed() {
            return Err(self.shared.gone(OPENING));
        }
        self.request(authority, metadata, permit, Instant::now() + self.config.connect_timeout)
    }

    fn request(
        &self,
        authority: &Authority,
        metadata: &Metadata,
        permit: SharedPermit,
        deadline: Instant,
    ) -> Result<TunnelStream> {
        let request = request(authority, metadata)?;
        // Each request has a handle of its own: h2 keeps state about the last request in it.
        let (response, send) = self
            .requests
            .clone()
            .send_request(request, false)
            .map_err(|e| self.shared.explain(e, Layer::Connect, OPENING))?;
        let tunnel = OpenTunnel::asked(self.shared.clone(), authority.clone(), send.stream_id().into());
        let opening = Box::new(Opening::new(response, deadline, authority.clone()));
        Ok(TunnelStream::opening(opening, send, self.shared.clone(), permit, tunnel))
    }

    /// How many tunnels there are and may be.
    pub fn capacity(&self) -> Capacity {
        Capacity { open: self.permits.used(), limit: self.permits.limit() }
    }

    /// Whether the connection takes no new tunnels, because it ended or the peer sent GOAWAY. Tunnels that are open may
    /// still run.
    pub fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    /// Who the peer has proved to be.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.shared.peer()
    }

    /// Which hop of a path this connection is: 0 for the outer one.
    pub fn hop(&self) -> usize {
        self.hop
    }

    /// The view of the connection that does not keep it open.
    pub(crate) fn permits(&self) -> &Arc<Permits> {
        &self.permits
    }

    /// Counts reads that brought something from the peer.
    pub(crate) fn reads(&self) -> u64 {
        self.shared.reads()
    }

    /// The count of its bytes, which does not keep it open.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic(self.shared.clone())
    }

    /// What the peer does with data before its 200.
    pub(crate) fn early_data(&self) -> &EarlyDataCell {
        self.shared.early_data()
    }

    pub(crate) fn age(&self) -> Duration {
        self.shared.age()
    }

    /// Which connection this is to observers.
    pub(crate) fn id(&self) -> ConnectionId {
        self.shared.id()
    }

    pub(crate) fn observer(&self) -> Option<&Arc<dyn Observer>> {
        self.shared.observer()
    }

    pub(crate) fn config(&self) -> &Arc<Config> {
        &self.config
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("peer", &self.shared.peer())
            .field("hop", &self.hop)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

fn request(authority: &Authority, metadata: &Metadata) -> Result<Request<()>> {
    let uri = Uri::from_maybe_shared(Bytes::from(authority.to_string()))
        .map_err(|e| Error::invalid(format!("the authority {authority}")).with_source(e))?;
    let mut request =
        Request::connect(uri).body(()).map_err(|e| Error::invalid("the CONNECT request").with_source(e))?;
    metadata.write_to(request.headers_mut());
    for name in NEVER_INDEXED {
        if let Some(value) = request.headers_mut().get_mut(name) {
            value.set_sensitive(true);
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::metadata::{BAGGAGE, Baggage, Forwarded, Traceparent};

    #[test]
    fn what_differs_between_all_tunnels_stays_out_of_hpacks_table() {
        let traceparent: Traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().unwrap();
        let metadata = Metadata::default()
            .with_baggage(Baggage::default().with_cluster("c1"))
            .with_forwarded(Forwarded::default().with_for(([10, 0, 0, 5], 41234).into()))
            .with_traceparent(traceparent);
        let request = request(&"10.0.0.1:80".parse().unwrap(), &metadata).unwrap();
        let is_kept_out = |name| request.headers().get(name).map(HeaderValue::is_sensitive);
        assert_eq!([BAGGAGE, FORWARDED, TRACEPARENT].map(is_kept_out), [Some(false), Some(true), Some(true)]);
    }
}
