//! A place on a connection of the pool.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::state::{ConnId, Handle};
use super::{Backend, Inner};
use crate::authority::Authority;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::SpiffeId;
use crate::metadata::Metadata;
use crate::tunnel::TunnelStream;

/// The right to open one tunnel on a connection of the pool. Dropped, the place is free again.
pub struct Lease {
    connection: Arc<Connection>,
    place: Place,
}

/// A connection, as its tunnels see it.
pub(super) struct Connection {
    pub(super) id: ConnId,
    pub(super) client: Client,
    /// Who is at the far end of each hop, from the outside in.
    pub(super) identities: Vec<SpiffeId>,
    /// Whether the first tunnel is still to tell which backend this leads to.
    pub(super) untold: AtomicBool,
    /// Whether somebody has been told that this connection broke.
    blamed: AtomicBool,
}

/// One tunnel's place. Given back when dropped.
pub(super) struct Place {
    pub(super) pool: Weak<Inner>,
    pub(super) conn: ConnId,
    /// Whether the tunnel is there for another connection of the pool.
    pub(super) inner: bool,
}

/// A tunnel through the pool that was not opened.
#[derive(Debug)]
#[non_exhaustive]
pub struct LeaseError {
    /// Why.
    pub error: Error,
    /// Whether the connection as a whole broke, and another tunnel has already failed by it. Then this is not news of the
    /// peer.
    pub is_repeated: bool,
}

/// A peer that has sent nothing at all for this long while it owed an answer is not trusted with another tunnel. It is more
/// than any round trip takes.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

const ENHANCE_YOUR_CALM: u32 = 11;

impl Connection {
    pub(super) fn new(id: ConnId, client: Client, identities: Vec<SpiffeId>, untold: bool) -> Self {
        Self { id, client, identities, untold: AtomicBool::new(untold), blamed: AtomicBool::new(false) }
    }
}

impl Handle for Arc<Connection> {
    fn limit(&self) -> usize {
        self.client.load().limit
    }

    fn is_unsettled(&self) -> bool {
        self.client.reads() == 0
    }

    fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

impl Lease {
    pub(super) fn new(connection: Arc<Connection>, place: Place) -> Self {
        Self { connection, place }
    }

    /// Opens the tunnel, as [`Client::connect`]. The place is given back when the tunnel is gone.
    ///
    /// Cancel safe, as [`Client::connect`]. A connection on which the peer has sent nothing at all for a second by the time
    /// that this is dropped or fails takes no more tunnels: the peer may be gone.
    ///
    /// # Errors
    ///
    /// As [`Client::connect`].
    pub async fn connect(self, authority: &Authority, metadata: &Metadata) -> Result<TunnelStream, LeaseError> {
        self.connect_patiently(authority, metadata, SILENCE).await
    }

    /// [`Lease::connect`] for callers who give up earlier, and should not meet the same silence again: the shorter time
    /// counts.
    pub(crate) async fn connect_patiently(
        self,
        authority: &Authority,
        metadata: &Metadata,
        patience: Duration,
    ) -> Result<TunnelStream, LeaseError> {
        let (mut tunnel, asked) = self.ask(authority, metadata, patience).await?;
        match tunnel.opened().await {
            Ok(()) => {
                asked.opened(|| tunnel.metadata());
                Ok(tunnel)
            }
            Err(error) => Err(asked.failed(error)),
        }
    }

    /// Sends the CONNECT, and returns without its answer: [`Client::connect_early`].
    pub(super) async fn ask(
        self,
        authority: &Authority,
        metadata: &Metadata,
        patience: Duration,
    ) -> Result<(TunnelStream, Asked), LeaseError> {
        let Self { connection, place } = self;
        let asked = Asked {
            pool: place.pool.clone(),
            patience: patience.min(SILENCE),
            began: Instant::now(),
            reads: connection.client.reads(),
            connection,
        };
        match asked.connection.client.connect_holding(authority, metadata, place).await {
            Ok(tunnel) => Ok((tunnel, asked)),
            Err(error) => Err(asked.failed(error)),
        }
    }

    /// Who has proved to be at the far end of each hop, from the outside in.
    pub fn identities(&self) -> &[SpiffeId] {
        &self.connection.identities
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

/// A CONNECT without an answer.
pub(super) struct Asked {
    pool: Weak<Inner>,
    connection: Arc<Connection>,
    patience: Duration,
    began: Instant,
    reads: u64,
}

impl Asked {
    /// The 200 is here, with this.
    pub(super) fn opened<'a>(self, metadata: impl FnOnce() -> &'a Metadata) {
        if self.connection.untold.swap(false, Ordering::Relaxed)
            && let Some(pool) = self.pool.upgrade()
        {
            let backend = metadata().baggage().and_then(Backend::from_baggage);
            pool.step(|state, now| state.learned(self.connection.id, backend, now));
        }
    }

    /// There will be none.
    pub(super) fn failed(self, error: Error) -> LeaseError {
        if *error.kind() == ErrorKind::Reset(ENHANCE_YOUR_CALM)
            && let Some(pool) = self.pool.upgrade()
        {
            pool.step(|state, now| state.doomed(self.connection.id, now));
        }
        let broken = self.connection.client.is_closed() && !error.is_refused();
        let is_repeated = broken && self.connection.blamed.swap(true, Ordering::Relaxed);
        LeaseError { error, is_repeated }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if self.connection.client.reads() == self.reads
            && self.began.elapsed() >= self.patience
            && let Some(pool) = self.pool.upgrade()
        {
            pool.step(|state, now| state.doomed(self.connection.id, now));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.release(self.conn, self.inner);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("client", &self.connection.client).finish_non_exhaustive()
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
