//! The live connections of a server.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use crate::authority::Authority;
use crate::conn::{OpenTunnel, Shared};
use crate::error::{Error, Side};
use crate::identity::SpiffeId;
use crate::observe::{ConnectionClosed, ConnectionDraining, ConnectionId, Event, TunnelId, notify};
use crate::tls::Certificate;

/// The registry of a server's live connections: who is connected, and handles to drain or cut single ones. Cheap to
/// clone; all clones are of the same server.
///
/// A connection is in it from the end of its handshakes to its own end. Looking at it takes a lock that is also taken
/// when a connection or a tunnel opens or ends, and never to move bytes.
#[derive(Clone, Default)]
pub struct Connections(Arc<Registry>);

#[derive(Default)]
struct Registry {
    live: Mutex<HashMap<ConnectionId, LiveConnection>>,
    handshakes: AtomicUsize,
}

/// A connection of a server. Cheap to clone; does not keep it open, and stays valid after its end.
#[derive(Clone)]
pub struct LiveConnection(Arc<Live>);

struct Live {
    shared: Arc<Shared>,
    certificates: PeerCertificates,
    asked: AtomicU64,
    stage: AtomicU8,
    changed: AtomicWaker,
}

/// What the peer of a connection has shown.
pub(super) struct PeerCertificates {
    pub(super) own: Certificate,
    /// Of the whole chain, its own first.
    pub(super) serials: Vec<Box<[u8]>>,
}

/// A tunnel of a [`LiveConnection`]. Cheap to clone; does not keep it open, and stays valid after its end.
#[derive(Clone)]
pub struct LiveTunnel(Arc<OpenTunnel>);

/// How far a connection has been taken towards its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    Open,
    Draining,
    Cut,
    Closed,
}

impl Connections {
    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.live().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many handshakes are under way.
    pub fn handshakes(&self) -> usize {
        self.0.handshakes.load(Ordering::Relaxed)
    }

    /// How many tunnels are open in all connections.
    pub fn tunnels(&self) -> usize {
        self.iter().map(|connection| connection.tunnel_count()).sum()
    }

    /// The connections of this moment, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = LiveConnection> + use<> {
        self.live().values().cloned().collect::<Vec<_>>().into_iter()
    }

    /// The connection of this id, if it is live.
    pub fn get(&self, id: ConnectionId) -> Option<LiveConnection> {
        self.live().get(&id).cloned()
    }

    /// Lists a connection until the returned guard is dropped.
    pub(super) fn register(&self, shared: Arc<Shared>, certificates: PeerCertificates) -> Registered {
        let (asked, stage) = (AtomicU64::new(0), AtomicU8::new(Stage::Open as u8));
        let live = LiveConnection(Arc::new(Live { shared, certificates, asked, stage, changed: AtomicWaker::new() }));
        self.live().insert(live.id(), live.clone());
        Registered { connections: self.clone(), live, error: None }
    }

    /// Counts a handshake until the returned guard is dropped.
    pub(super) fn begin_handshake(&self) -> HandshakeCount {
        self.0.handshakes.fetch_add(1, Ordering::Relaxed);
        HandshakeCount(self.clone())
    }

    fn live(&self) -> MutexGuard<'_, HashMap<ConnectionId, LiveConnection>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LiveConnection {
    /// Its id in events.
    pub fn id(&self) -> ConnectionId {
        self.0.shared.id()
    }

    /// Who the peer has proved to be.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.0.shared.peer()
    }

    /// The certificate by which the peer has proved that.
    pub fn peer_certificate(&self) -> &Certificate {
        &self.0.certificates.own
    }

    /// The serial numbers of the whole chain that the peer has sent, in the form of [`Certificate::serial`], its own
    /// one first.
    pub fn certificate_serials(&self) -> impl Iterator<Item = &[u8]> {
        self.0.certificates.serials.iter().map(|serial| &**serial)
    }

    /// The address that it came from, where its byte stream has one.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.shared.address()
    }

    /// Since its TLS handshake.
    pub fn age(&self) -> Duration {
        self.0.shared.age()
    }

    /// Bytes of both directions together, with the framing of HTTP/2.
    pub fn bytes(&self) -> u64 {
        self.0.shared.moved()
    }

    /// How many tunnels are open.
    pub fn tunnel_count(&self) -> usize {
        self.0.shared.tunnels().len()
    }

    /// How many tunnels were asked for in all.
    pub fn tunnels_asked(&self) -> u64 {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// The tunnels that are open at this moment, in the order in which they were asked for.
    pub fn tunnels(&self) -> Vec<LiveTunnel> {
        self.0.shared.tunnels().all().into_iter().map(LiveTunnel).collect()
    }

    /// The tunnel of this id, if it is open.
    pub fn tunnel(&self, id: TunnelId) -> Option<LiveTunnel> {
        let tunnel = (id.connection == self.id()).then(|| self.0.shared.tunnels().get(id.stream));
        tunnel.flatten().map(LiveTunnel)
    }

    /// Tells the peer by GOAWAY to open no further tunnels. Open ones continue, and the connection ends with the last
    /// of them.
    pub fn drain(&self) {
        self.reach(Stage::Draining);
    }

    /// Breaks it at once, with all of its tunnels.
    pub fn cut(&self) {
        self.reach(Stage::Cut);
    }

    /// Whether [`drain`](Self::drain) was called, or the drain of its server has started.
    pub fn is_draining(&self) -> bool {
        self.stage() >= Stage::Draining
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.stage() == Stage::Closed
    }

    fn stage(&self) -> Stage {
        match self.0.stage.load(Ordering::Acquire) {
            0 => Stage::Open,
            1 => Stage::Draining,
            2 => Stage::Cut,
            _ => Stage::Closed,
        }
    }

    fn reach(&self, stage: Stage) {
        self.0.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.0.changed.wake();
    }

    pub(super) fn count_asked(&self) {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for a later stage than this one. For one task only. Cancel safe.
    pub(super) async fn after(&self, stage: Stage) -> Stage {
        poll_fn(|cx| {
            self.0.changed.register(cx.waker());
            let now = self.stage();
            if now > stage { Poll::Ready(now) } else { Poll::Pending }
        })
        .await
    }

    pub(super) fn notify_draining(&self) {
        let shared = &self.0.shared;
        notify(shared.observer(), || {
            Event::ConnectionDraining(ConnectionDraining { connection: shared.connection(), by: Side::Local })
        });
    }
}

impl LiveTunnel {
    /// Its id in events.
    pub fn id(&self) -> TunnelId {
        self.0.id()
    }

    /// Where it leads.
    pub fn authority(&self) -> &Authority {
        self.0.authority()
    }

    /// Since its 200.
    pub fn age(&self) -> Duration {
        self.0.age()
    }

    /// Bytes that came out of it here.
    pub fn received(&self) -> u64 {
        self.0.received()
    }

    /// Bytes that were written into it here.
    pub fn sent(&self) -> u64 {
        self.0.sent()
    }

    /// Resets it. Reading and writing it here fails, as after
    /// [`TunnelStream::reset`](crate::TunnelStream::reset).
    pub fn cut(&self) {
        self.0.cut();
    }
}

/// Keeps a connection in the registry.
pub(super) struct Registered {
    connections: Connections,
    pub(super) live: LiveConnection,
    pub(super) error: Option<Error>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.live.reach(Stage::Closed);
        self.connections.live().remove(&self.live.id());
        let shared = &self.live.0.shared;
        notify(shared.observer(), || {
            Event::ConnectionClosed(ConnectionClosed {
                connection: shared.connection(),
                error: self.error.as_ref(),
                tunnels: self.live.tunnels_asked(),
                bytes: shared.moved(),
                duration: shared.age(),
            })
        });
    }
}

pub(super) struct HandshakeCount(Connections);

impl Drop for HandshakeCount {
    fn drop(&mut self) {
        self.0.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("len", &self.len()).field("handshakes", &self.handshakes()).finish()
    }
}

impl fmt::Debug for LiveConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveConnection")
            .field("id", &self.id())
            .field("peer", &self.peer_identity())
            .field("address", &self.address())
            .field("tunnels", &self.tunnel_count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LiveTunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveTunnel")
            .field("id", &self.id())
            .field("authority", self.authority())
            .finish_non_exhaustive()
    }
}
