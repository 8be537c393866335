//! The right to open a tunnel on a connection of the pool.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::state::{ConnId, Handle, Purpose};
use super::{BackendId, Inner};
use crate::authority::Authority;
use crate::client::Client;
use crate::conn::Permit;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::SpiffeId;
use crate::metadata::Metadata;
use crate::tunnel::TunnelStream;

/// The right to open one tunnel on a connection of the pool. Returned to the pool when dropped.
pub struct Lease {
    connection: Arc<Connection>,
    permit: PoolPermit,
}

/// A connection, as its tunnels see it.
pub(super) struct Connection {
    pub(super) id: ConnId,
    pub(super) client: Client,
    /// The peer of each hop, from the outside in.
    pub(super) identities: Vec<SpiffeId>,
    /// How many CONNECTs have been sent on it.
    pub(super) asked: Arc<AtomicU64>,
    /// Whether the 200 of the first tunnel is to say which backend this leads to.
    identification_pending: AtomicBool,
    /// Whether a tunnel has failed because this connection broke.
    failure_reported: AtomicBool,
}

/// A permit issued by the pool. Returned when dropped.
pub(super) struct PoolPermit {
    pub(super) pool: Weak<Inner>,
    pub(super) conn: ConnId,
    pub(super) purpose: Purpose,
}

/// A tunnel through the pool that was not opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct LeaseError {
    /// Why.
    pub error: Error,
    /// Whether the connection as a whole broke and another tunnel has already failed because of it, so that this
    /// failure says nothing new about the peer.
    pub is_repeated: bool,
}

/// A connection whose peer has sent nothing at all for this long while it owed an answer gets no new tunnels. Longer
/// than any round trip.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

const ENHANCE_YOUR_CALM: u32 = 11;

impl Connection {
    pub(super) fn new(id: ConnId, client: Client, identities: Vec<SpiffeId>, identification_pending: bool) -> Self {
        let identification_pending = AtomicBool::new(identification_pending);
        let (asked, failure_reported) = (Arc::default(), AtomicBool::new(false));
        Self { id, client, identities, asked, identification_pending, failure_reported }
    }
}

impl Handle for Arc<Connection> {
    fn limit(&self) -> usize {
        self.client.capacity().limit
    }

    fn awaits_settings(&self) -> bool {
        self.client.reads() == 0
    }

    fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

impl Lease {
    pub(super) fn new(connection: Arc<Connection>, permit: PoolPermit) -> Self {
        Self { connection, permit }
    }

    /// Opens the tunnel, as [`Client::connect`]. The permit is returned when the tunnel is gone.
    ///
    /// Nothing is tried again: [`Pool::connect`](super::Pool::connect) does that. Cancel safe, as [`Client::connect`].
    /// A connection on which the peer has sent nothing at all for a second when this fails or is dropped gets no new
    /// tunnels, as the peer may be gone.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn connect(self, authority: &Authority, metadata: &Metadata) -> Result<TunnelStream, LeaseError> {
        self.connect_within(authority, metadata, SILENCE).await
    }

    /// [`Lease::connect`] for callers who give up earlier and should not meet the same silence again: the shorter time
    /// of `silence` and a second counts.
    pub(crate) async fn connect_within(
        self,
        authority: &Authority,
        metadata: &Metadata,
        silence: Duration,
    ) -> Result<TunnelStream, LeaseError> {
        let (mut tunnel, pending) = self.send_connect(authority, metadata, silence)?;
        match tunnel.opened().await {
            Ok(()) => {
                pending.opened(|| tunnel.metadata());
                Ok(tunnel)
            }
            Err(error) => Err(pending.failed(error)),
        }
    }

    /// Sends the CONNECT, and returns without its answer: [`Client::connect_early`].
    pub(super) fn send_connect(
        self,
        authority: &Authority,
        metadata: &Metadata,
        silence: Duration,
    ) -> Result<(TunnelStream, PendingConnect), LeaseError> {
        let Self { connection, permit } = self;
        let pending = PendingConnect {
            pool: permit.pool.clone(),
            silence: silence.min(SILENCE),
            began: Instant::now(),
            reads: connection.client.reads(),
            connection,
        };
        pending.connection.asked.fetch_add(1, Ordering::Relaxed);
        match pending.connection.client.connect_with(authority, metadata, Arc::new(permit)) {
            Ok(tunnel) => Ok((tunnel, pending)),
            Err(error) => Err(pending.failed(error)),
        }
    }

    /// The verified identities of the peers, from the outer hop to the inner one.
    pub fn identities(&self) -> &[SpiffeId] {
        &self.connection.identities
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

/// A CONNECT without an answer.
pub(super) struct PendingConnect {
    pool: Weak<Inner>,
    connection: Arc<Connection>,
    silence: Duration,
    began: Instant,
    reads: u64,
}

impl PendingConnect {
    /// The 200 has come, with this metadata.
    pub(super) fn opened<'a>(self, metadata: impl FnOnce() -> &'a Metadata) {
        if self.connection.identification_pending.swap(false, Ordering::Relaxed)
            && let Some(pool) = self.pool.upgrade()
        {
            let backend = metadata().baggage().and_then(BackendId::from_baggage);
            pool.step(|state, now| state.identified(self.connection.id, backend, now));
        }
    }

    /// There will be no 200.
    pub(super) fn failed(self, error: Error) -> LeaseError {
        // The connection's task may hear of a GOAWAY later than this: until then who tries again would get the same one.
        let is_over = matches!(error.kind(), ErrorKind::GoAway(_) | ErrorKind::Reset(ENHANCE_YOUR_CALM));
        if let (true, Some(pool)) = (is_over, self.pool.upgrade()) {
            pool.step(|state, now| state.drain(self.connection.id, now));
        }
        let broken = self.connection.client.is_closed() && !error.is_refused();
        let is_repeated = broken && self.connection.failure_reported.swap(true, Ordering::Relaxed);
        LeaseError { error, is_repeated }
    }
}

impl Drop for PendingConnect {
    fn drop(&mut self) {
        if self.connection.client.reads() == self.reads
            && self.began.elapsed() >= self.silence
            && let Some(pool) = self.pool.upgrade()
        {
            pool.step(|state, now| state.drain(self.connection.id, now));
        }
    }
}

impl Permit for PoolPermit {}

impl Drop for PoolPermit {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.step(|state, now| state.release(self.conn, self.purpose, now));
        }
    }
}

impl fmt::Debug for PoolPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolPermit").field("conn", &self.conn).field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl From<Error> for LeaseError {
    fn from(error: Error) -> Self {
        Self { error, is_repeated: false }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("identities", &self.connection.identities).finish_non_exhaustive()
    }
}

impl fmt::Display for LeaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for LeaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

impl From<LeaseError> for Error {
    fn from(e: LeaseError) -> Self {
        e.error
    }
}
