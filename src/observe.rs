//! What happens to connections and tunnels, as values: the hook for metrics, access logs, traces and pictures of a
//! mesh.
//!
//! An [`Observer`] gets an [`Event`] for each step. Ids tie events together: a tunnel's [`TunnelId`] names its
//! connection, a nested [`Connection`] names the tunnel that carries it, and a [`Request`] names its tunnel once that
//! is open. An observer that needs at the end of something what was known at its beginning keeps it by its id.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
//! use hbone::observe::{Event, Observer};
//!
//! /// Bytes that left this process through tunnels.
//! #[derive(Debug, Default)]
//! struct SentBytes(AtomicU64);
//!
//! impl Observer for SentBytes {
//!     fn event(&self, event: &Event<'_>) {
//!         if let Event::TunnelEnded(ended) = event {
//!             self.0.fetch_add(ended.sent, Relaxed);
//!         }
//!     }
//! }
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::authority::Authority;
use crate::balance::health::HealthKey;
use crate::error::{Error, Side};
use crate::identity::SpiffeId;
use crate::mesh::{Service, Workload};
use crate::metadata::Metadata;
use crate::path::Path;
use crate::refusal::Refusal;

/// Receives events. Without an observer nothing is measured or kept for it.
///
/// It is called where things happen, on the tasks that move bytes: it must not block or wait for a lock that somebody
/// holds for long. What takes longer than a microsecond goes through a bounded queue to a thread of its own. A panic
/// ends the task that called.
pub trait Observer: fmt::Debug + Send + Sync {
    /// Takes note of an event. What it borrows is gone when this returns.
    fn event(&self, event: &Event<'_>);
}

/// One step in the life of a connection, a tunnel, or a request for a tunnel.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A client begins to dial, or a server has accepted a byte stream. [`ConnectionOpened`](Self::ConnectionOpened) or
    /// [`ConnectionFailed`](Self::ConnectionFailed) follows.
    ConnectionOpening(Connection<'a>),
    /// TLS and HTTP/2 are up. [`ConnectionClosed`](Self::ConnectionClosed) follows.
    ConnectionOpened(ConnectionOpened<'a>),
    /// It was never up. The last event of a connection.
    ConnectionFailed(ConnectionFailed<'a>),
    /// GOAWAY was sent or received: the connection takes no new tunnels.
    ConnectionDraining(ConnectionDraining<'a>),
    /// The last event of a connection that was up.
    ConnectionClosed(ConnectionClosed<'a>),
    /// A tunnel got its 200. [`TunnelEnded`](Self::TunnelEnded) follows.
    TunnelOpened(TunnelOpened<'a>),
    /// A CONNECT was answered with another status. The last event of a tunnel.
    TunnelRefused(TunnelRefused<'a>),
    /// A CONNECT has no answer and won't get one. The last event of a tunnel.
    TunnelFailed(TunnelFailed<'a>),
    /// The last event of a tunnel that was open: both of its directions are gone.
    TunnelEnded(TunnelEnded<'a>),
    /// An endpoint was chosen for a request.
    Picked(Picked<'a>),
    /// One attempt of a request failed. Another [`Picked`](Self::Picked) follows if it is tried again.
    AttemptFailed(AttemptFailed<'a>),
    /// A request has its tunnel or byte stream. Its last event.
    Connected(Connected<'a>),
    /// A request failed for good. Its last event.
    ConnectFailed(ConnectFailed<'a>),
    /// An endpoint is left out because it failed several times in a row.
    Ejected(Ejected<'a>),
    /// An endpoint that was ejected has passed its probe.
    Readmitted(&'a HealthKey),
    /// A pool handed out a permit for a tunnel.
    CheckedOut(CheckedOut<'a>),
    /// A limit kept something from going on at once.
    LimitReached(LimitReached<'a>),
    /// A listener could not accept a byte stream, and goes on.
    AcceptFailed(&'a std::io::Error),
}

/// A connection in this process's logs: random, and unique for all practical purposes across processes and restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// A tunnel: its connection, and its HTTP/2 stream there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct TunnelId {
    /// The connection.
    pub connection: ConnectionId,
    /// The stream, as it appears in packet captures.
    pub stream: u32,
}

/// A request for a tunnel, over all its attempts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

/// Which end of a connection this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionRole {
    /// It dialed, and sends CONNECTs.
    Client,
    /// It accepted, and answers CONNECTs.
    Server,
}

/// The connection that an event is about, as far as it is known by then.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Connection<'a> {
    /// The connection.
    pub id: ConnectionId,
    /// Which end of it this process is.
    pub role: ConnectionRole,
    /// The hop of the [`Path`]: 0 is the direct one. `None` at a server, which can't know.
    pub hop: Option<usize>,
    /// The tunnel that carries it. `None` for one over a socket.
    pub carrier: Option<TunnelId>,
    /// The address of the peer's end of the byte stream: where a client dials, or whom a server accepted.
    pub address: Option<SocketAddr>,
    /// The identity that this process shows.
    pub local_identity: Option<&'a SpiffeId>,
    /// The identity that the peer has proved. `None` before the TLS handshake.
    pub peer_identity: Option<&'a SpiffeId>,
}

/// How long the stages of a handshake took. `None` for one that was not completed or does not apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handshake {
    /// Opening the byte stream: dialing, or the CONNECT of the tunnel that carries it. `None` at a server.
    pub dial: Option<Duration>,
    /// TLS.
    pub tls: Option<Duration>,
    /// HTTP/2, until the preface and settings of the peer were there.
    pub http2: Option<Duration>,
}

/// See [`Event::ConnectionOpened`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionOpened<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// What each stage took.
    pub handshake: Handshake,
}

/// See [`Event::ConnectionFailed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionFailed<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// Why; [`Error::layer`] says at which stage. `None` when it was abandoned without a failure, by a drain for
    /// example.
    pub error: Option<&'a Error>,
    /// What the stages before took.
    pub handshake: Handshake,
    /// From opening to failing.
    pub elapsed: Duration,
}

/// See [`Event::ConnectionDraining`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionDraining<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// Who sent GOAWAY.
    pub by: Side,
}

/// See [`Event::ConnectionClosed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectionClosed<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// Why it broke. `None` for an orderly end, and when this side cut it.
    pub error: Option<&'a Error>,
    /// How many tunnels were asked for in all.
    pub tunnels: u64,
    /// Bytes of both directions together, with the framing of HTTP/2.
    pub bytes: u64,
    /// How long it was up.
    pub duration: Duration,
}

/// The tunnel that an event is about.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Tunnel<'a> {
    /// The tunnel.
    pub id: TunnelId,
    /// Its connection.
    pub connection: Connection<'a>,
    /// Where it leads: the authority of its CONNECT.
    pub authority: &'a Authority,
}

/// See [`Event::TunnelOpened`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TunnelOpened<'a> {
    /// The tunnel.
    pub tunnel: Tunnel<'a>,
    /// What the peer says of itself: with the CONNECT to a server, with the 200 to a client. Nothing vouches for it.
    pub metadata: &'a Metadata,
    /// From the CONNECT to the 200.
    pub elapsed: Duration,
}

/// See [`Event::TunnelRefused`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TunnelRefused<'a> {
    /// The tunnel.
    pub tunnel: Tunnel<'a>,
    /// Status, reason and details: sent by a server, received by a client.
    pub refusal: &'a Refusal,
    /// From the CONNECT to its answer.
    pub elapsed: Duration,
}

/// See [`Event::TunnelFailed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TunnelFailed<'a> {
    /// The tunnel.
    pub tunnel: Tunnel<'a>,
    /// Why. `None` when it was canceled: by the peer at a server, by the caller at a client.
    pub error: Option<&'a Error>,
    /// From the CONNECT until then.
    pub elapsed: Duration,
}

/// See [`Event::TunnelEnded`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct TunnelEnded<'a> {
    /// The tunnel.
    pub tunnel: Tunnel<'a>,
    /// How.
    pub end: TunnelEnd<'a>,
    /// Bytes that came out of the tunnel here.
    pub received: u64,
    /// Bytes that were written into the tunnel here.
    pub sent: u64,
    /// From the 200 to the first byte in the direction of the client. `None` when there was none.
    pub first_byte: Option<Duration>,
    /// From the 200 to the end.
    pub duration: Duration,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum TunnelEnd<'a> {
    /// Both sides said that they were done.
    Finished,
    /// This side reset it, or let it go before its end.
    Abandoned,
    /// This side cut it by the [registry](crate::server).
    Cut,
    /// The peer reset it, or the connection broke.
    Failed(&'a Error),
}

/// A request for a tunnel: one call of [`Connector::connect`](crate::connector::Connector::connect), or a tunnel that a
/// gateway or a workload's proxy leads on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Request<'a> {
    /// The request.
    pub id: RequestId,
    /// The tunnel that arrived with it. `None` at a client.
    pub incoming: Option<TunnelId>,
    /// The workload for which a client connects.
    pub source: Option<&'a Workload>,
    /// The application's address.
    pub from: Option<SocketAddr>,
    /// Where it is to go.
    pub target: &'a Authority,
}

/// See [`Event::Picked`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Picked<'a> {
    /// The request.
    pub request: Request<'a>,
    /// Counts the attempts of the request, from 1.
    pub attempt: usize,
    /// The service, where the target is one.
    pub service: Option<&'a Service>,
    /// The endpoint; in another network what stands for all endpoints there.
    pub endpoint: &'a Workload,
    /// The gateway to the other network, where there is one on the way.
    pub gateway: Option<&'a Workload>,
    /// The hops. `None` at a gateway, which dials.
    pub path: Option<&'a Path>,
    /// How many others could have been chosen.
    pub others: usize,
}

/// See [`Event::AttemptFailed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AttemptFailed<'a> {
    /// The request.
    pub request: Request<'a>,
    /// Counts the attempts of the request, from 1.
    pub attempt: usize,
    /// Why.
    pub error: &'a Error,
    /// The endpoint at fault, if it is one.
    pub blamed: Option<&'a HealthKey>,
    /// Whether another attempt follows.
    pub is_retried: bool,
    /// What the attempt took.
    pub elapsed: Duration,
}

/// See [`Event::Connected`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Connected<'a> {
    /// The request.
    pub request: Request<'a>,
    /// The tunnel that it got. `None` at a gateway or a workload's proxy, which dials.
    pub tunnel: Option<TunnelId>,
    /// How many attempts it took, at least 1.
    pub attempts: usize,
    /// From the request to now.
    pub elapsed: Duration,
}

/// See [`Event::ConnectFailed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ConnectFailed<'a> {
    /// The request.
    pub request: Request<'a>,
    /// Why the last attempt failed, or why there was none.
    pub error: &'a Error,
    /// How many attempts there were.
    pub attempts: usize,
    /// From the request to now.
    pub elapsed: Duration,
}

/// See [`Event::Ejected`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ejected<'a> {
    /// What is left out.
    pub key: &'a HealthKey,
    /// For how long at least.
    pub duration: Duration,
}

/// See [`Event::CheckedOut`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CheckedOut<'a> {
    /// The connection of the last hop.
    pub connection: ConnectionId,
    /// The hops.
    pub path: &'a Path,
    /// Whether the connection was there already.
    pub is_reused: bool,
    /// How long the caller waited for it.
    pub waited: Duration,
}

/// See [`Event::LimitReached`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LimitReached<'a> {
    /// Which one.
    pub limit: Limit,
    /// Its value.
    pub value: u64,
    /// Where, if it is a limit of one connection.
    pub connection: Option<Connection<'a>>,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Limit {
    /// Tunnels of a connection: a caller waits for a permit, or dials another one.
    Tunnels,
    /// Connections of a pool or a listener.
    Connections,
    /// Handshakes under way at a listener.
    Handshakes,
    /// Tunnels that wait to be taken from a listener.
    Backlog,
    /// Bytes that a connection may hold unread.
    ReceiveBuffer,
}

/// Calls `observer`, if there is one, with an event that is not even made otherwise.
#[inline]
pub(crate) fn notify<'a>(observer: Option<&Arc<dyn Observer>>, event: impl FnOnce() -> Event<'a>) {
    if let Some(observer) = observer {
        observer.event(&event());
    }
}

impl ConnectionId {
    /// A new one.
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl RequestId {
    /// A new one.
    pub(crate) fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The connection and the stream: `00c0ffee00c0ffee/5`.
impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.connection, self.stream)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Failures(Mutex<Vec<String>>);

    impl Observer for Failures {
        fn event(&self, event: &Event<'_>) {
            if let Event::AcceptFailed(error) = event {
                self.0.lock().unwrap().push(error.to_string());
            }
        }
    }

    #[test]
    fn an_event_is_made_only_for_an_observer() {
        notify(None, || unreachable!());
        let failures = Arc::new(Failures::default());
        let observer: Arc<dyn Observer> = failures.clone();
        let error = std::io::Error::other("no descriptors");
        notify(Some(&observer), || Event::AcceptFailed(&error));
        assert_eq!(*failures.0.lock().unwrap(), ["no descriptors"]);
    }

    #[test]
    fn a_tunnel_is_named_by_its_connection_and_stream() {
        let id = TunnelId { connection: ConnectionId(0xc0ffee), stream: 5 };
        assert_eq!(id.to_string(), "0000000000c0ffee/5");
        assert_ne!(ConnectionId::random(), ConnectionId::random());
        assert_ne!(RequestId::random().to_string(), RequestId::random().to_string());
    }
}
