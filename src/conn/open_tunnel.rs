//! What the two halves of a tunnel share with each other and with the list of their connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use h2::server::SendResponse;
use tokio::time::Instant;

use super::{Frame, Shared};
use crate::authority::Authority;
use crate::error::Error;
use crate::metadata::Metadata;
use crate::observe::{
    ConnectionRole, Event, Tunnel, TunnelEnd, TunnelEnded, TunnelFailed, TunnelId, TunnelOpened, TunnelRefused, notify,
};
use crate::refusal::Refusal;

/// The tunnels of a connection that are open here, by stream.
#[derive(Debug, Default)]
pub(crate) struct OpenTunnels(Mutex<HashMap<u32, Weak<OpenTunnel>>>);

/// One tunnel, for as long as one of its halves is there.
#[derive(Debug)]
pub(crate) struct OpenTunnel {
    shared: Arc<Shared>,
    authority: Authority,
    stream: u32,
    /// This side has sent END_STREAM.
    finished: AtomicBool,
    /// The peer's END_STREAM is here. After it a reset with NO_ERROR only asks this side to stop sending (RFC 9113,
    /// section 8.1), and HTTP/2 then knows of the reset alone.
    peer_ended: AtomicBool,
    /// The peer's END_STREAM has been read.
    read: AtomicBool,
    /// The peer has broken the protocol on the stream.
    violated: AtomicBool,
    progress: AtomicU8,
    received: AtomicU64,
    sent: AtomicU64,
    /// When it was opened, or asked for until then: microseconds in the life of its connection.
    since: AtomicU64,
    /// Keeps nothing open: it ends with the halves.
    respond: Mutex<Option<SendResponse<Frame>>>,
    observed: Option<Box<Observed>>,
}

/// What is noted for an observer alone.
#[derive(Debug, Default)]
struct Observed {
    failure: OnceLock<Error>,
    first_byte: OnceLock<Duration>,
}

/// How far a tunnel has come, for its last event.
const ASKED: u8 = 0;
const OPEN: u8 = 1;
/// Its last event has been sent, or it was never asked for.
const OVER: u8 = 2;
const CUT: u8 = 3;

impl OpenTunnels {
    fn add(&self, tunnel: &Arc<OpenTunnel>) {
        self.lock().insert(tunnel.stream, Arc::downgrade(tunnel));
    }

    fn remove(&self, stream: u32) {
        self.lock().remove(&stream);
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn get(&self, stream: u32) -> Option<Arc<OpenTunnel>> {
        self.lock().get(&stream).and_then(Weak::upgrade)
    }

    /// The peer's END_STREAM is here, for a tunnel or for something else.
    pub(super) fn note_peer_end(&self, stream: u32) {
        if let Some(tunnel) = self.get(stream) {
            tunnel.peer_ended.store(true, Relaxed);
        }
    }

    /// In the order in which they were asked for.
    pub(crate) fn all(&self) -> Vec<Arc<OpenTunnel>> {
        // Those that have just ended must not be dropped under the lock, which their end takes.
        let mut tunnels: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        tunnels.sort_unstable_by_key(|tunnel| tunnel.stream);
        tunnels
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Weak<OpenTunnel>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenTunnel {
    /// A tunnel that a client has asked for.
    pub(crate) fn asked(shared: Arc<Shared>, authority: Authority, stream: u32) -> Arc<Self> {
        Self::new(shared, authority, stream, ASKED, None)
    }

    /// A tunnel that a server has answered with 200. By `respond` it can be cut.
    pub(crate) fn answered(
        shared: Arc<Shared>,
        authority: Authority,
        stream: u32,
        respond: SendResponse<Frame>,
    ) -> Arc<Self> {
        Self::new(shared, authority, stream, OPEN, Some(respond))
    }

    fn new(
        shared: Arc<Shared>,
        authority: Authority,
        stream: u32,
        progress: u8,
        respond: Option<SendResponse<Frame>>,
    ) -> Arc<Self> {
        let since = AtomicU64::new(micros(shared.age()));
        let observed = shared.observer().map(|_| Box::default());
        let tunnel = Arc::new(Self {
            shared,
            authority,
            stream,
            finished: AtomicBool::new(false),
            peer_ended: AtomicBool::new(false),
            read: AtomicBool::new(false),
            violated: AtomicBool::new(false),
            progress: AtomicU8::new(progress),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            since,
            respond: Mutex::new(respond),
            observed,
        });
        tunnel.shared.tunnels().add(&tunnel);
        tunnel
    }

    pub(crate) fn id(&self) -> TunnelId {
        TunnelId { connection: self.shared.id(), stream: self.stream }
    }

    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Since it was opened, or asked for until then.
    pub(crate) fn age(&self) -> Duration {
        self.shared.age().saturating_sub(Duration::from_micros(self.since.load(Relaxed)))
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Whether this side has sent END_STREAM.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(std::sync::atomic::Ordering::Acquire)
    }

    pub(crate) fn finish(&self) {
        self.finished.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether the peer has sent END_STREAM, read or not.
    pub(crate) fn has_peer_ended(&self) -> bool {
        self.peer_ended.load(Relaxed)
    }

    /// The peer has broken the protocol on the stream, which is to be reset for that.
    pub(crate) fn set_violated(&self) {
        self.violated.store(true, Relaxed);
    }

    pub(crate) fn is_violated(&self) -> bool {
        self.violated.load(Relaxed)
    }

    /// Everything that the peer has sent was read.
    pub(crate) fn read_all(&self) {
        self.read.store(true, Relaxed);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.count(&self.received, bytes, ConnectionRole::Client);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.count(&self.sent, bytes, ConnectionRole::Server);
    }

    /// Counts bytes that go towards the client where this side has the `role`.
    fn count(&self, counter: &AtomicU64, bytes: usize, role: ConnectionRole) {
        // Each direction has one half that counts it: no need for an atomic addition.
        let before = counter.load(Relaxed);
        counter.store(before + bytes as u64, Relaxed);
        if before == 0
            && let Some(observed) = &self.observed
            && self.shared.role() == role
        {
            let _ = observed.first_byte.set(self.age());
        }
    }

    /// Notes why it broke; the first reason stays.
    pub(crate) fn fail(&self, error: &Error) {
        if let Some(observed) = &self.observed {
            let _ = observed.failure.set(error.clone());
        }
    }

    /// The 200 is here, with what the peer says of itself.
    pub(crate) fn opened<'a>(&self, metadata: impl FnOnce() -> &'a Metadata) {
        let elapsed = self.age();
        self.since.store(micros(self.shared.age()), Relaxed);
        self.progress.store(OPEN, Relaxed);
        self.notify_opened(metadata, elapsed);
    }

    /// Its 200 came this long after the CONNECT.
    pub(crate) fn notify_opened<'a>(&self, metadata: impl FnOnce() -> &'a Metadata, elapsed: Duration) {
        notify(self.shared.observer(), || {
            Event::TunnelOpened(TunnelOpened { tunnel: self.tunnel(), metadata: metadata(), elapsed })
        });
    }

    /// It won't be opened.
    pub(crate) fn not_opened(&self, error: &Error) {
        self.progress.store(OVER, Relaxed);
        let (tunnel, elapsed) = (self.tunnel(), self.age());
        notify(self.shared.observer(), || match error.refusal() {
            Some(refusal) => Event::TunnelRefused(TunnelRefused { tunnel, refusal, elapsed }),
            None => Event::TunnelFailed(TunnelFailed { tunnel, error: Some(error), elapsed }),
        });
    }

    /// Resets it, whoever has its halves. Does nothing at a client.
    pub(crate) fn cut(&self) {
        let mut respond = self.respond.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(respond) = &mut *respond {
            self.progress.store(CUT, Relaxed);
            respond.send_reset(h2::Reason::CANCEL);
        }
    }

    fn tunnel(&self) -> Tunnel<'_> {
        Tunnel { id: self.id(), connection: self.shared.connection(), authority: &self.authority }
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.shared.tunnels().remove(self.stream);
        let Some(observed) = &self.observed else { return };
        let (progress, failure) = (*self.progress.get_mut(), observed.failure.get());
        let (tunnel, elapsed) = (self.tunnel(), self.age());
        let end = match (progress, failure) {
            (OVER, _) => return,
            (ASKED, error) => {
                return notify(self.shared.observer(), || Event::TunnelFailed(TunnelFailed { tunnel, error, elapsed }));
            }
            (CUT, _) => TunnelEnd::Cut,
            (_, Some(error)) => TunnelEnd::Failed(error),
            _ if self.is_finished() && self.read.load(Relaxed) => TunnelEnd::Finished,
            _ => TunnelEnd::Abandoned,
        };
        notify(self.shared.observer(), || {
            Event::TunnelEnded(TunnelEnded {
                tunnel,
                end,
                received: self.received(),
                sent: self.sent(),
                first_byte: observed.first_byte.get().copied(),
                duration: elapsed,
            })
        });
    }
}

/// Reports that a CONNECT was turned down, or will not be answered.
pub(crate) fn notify_unopened(
    shared: &Shared,
    authority: &Authority,
    stream: u32,
    refusal: Option<&Refusal>,
    since: Instant,
) {
    notify(shared.observer(), || {
        let id = TunnelId { connection: shared.id(), stream };
        let (tunnel, elapsed) = (Tunnel { id, connection: shared.connection(), authority }, since.elapsed());
        match refusal {
            Some(refusal) => Event::TunnelRefused(TunnelRefused { tunnel, refusal, elapsed }),
            None => Event::TunnelFailed(TunnelFailed { tunnel, error: None, elapsed }),
        }
    });
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
