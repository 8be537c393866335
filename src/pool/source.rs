//! Who connects.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use super::Inner;
use super::state::SourceId;
use crate::identity::SpiffeId;
use crate::metadata::Metadata;
use crate::tls::{Certificate, Connector, Shown};

/// An identity that connects through a [`Pool`](super::Pool): its certificate is shown at every hop, and only tunnels
/// of the same source share a connection. Clones are the same source; take one for each identity.
///
/// When the last clone is gone, its connections take no new tunnels and close when those that are open have ended.
#[derive(Clone)]
pub struct Source {
    pub(super) shared: Arc<SourceShared>,
    _guard: Arc<Guard>,
}

/// What dials need of a source. Does not keep it.
pub(super) struct SourceShared {
    pub(super) id: SourceId,
    pub(super) tls: Connector,
    /// What the CONNECTs of the path's own tunnels say.
    pub(super) metadata: Metadata,
    /// `None` until there is a certificate.
    shown: Mutex<Option<Shown>>,
}

/// Lives as long as the source.
struct Guard {
    pool: Weak<Inner>,
    id: SourceId,
}

impl Source {
    pub(super) fn new(pool: &Arc<Inner>, id: SourceId, tls: Connector, metadata: Metadata) -> Self {
        let shown = tls.shown();
        let shared = SourceShared { id, tls, metadata, shown: Mutex::new(shown) };
        Self { shared: Arc::new(shared), _guard: Arc::new(Guard { pool: Arc::downgrade(pool), id }) }
    }

    /// The identity, as in the certificate shown last. `None` while there has not been one.
    pub fn identity(&self) -> Option<SpiffeId> {
        self.shared.identity()
    }
}

impl SourceShared {
    pub(super) fn identity(&self) -> Option<SpiffeId> {
        self.shown().as_ref().map(|shown| shown.certificate().identity().clone())
    }

    /// Whether the connections so far are to take no new tunnels: their certificate has been renewed, or has expired.
    pub(super) fn has_rotated(&self, now: SystemTime) -> bool {
        let current = self.tls.shown();
        let mut shown = self.shown();
        let renewed = match current {
            Some(current) if shown.as_ref() != Some(&current) => shown.replace(current).is_some(),
            // Without credentials no handshake will succeed; what is connected may stay.
            Some(_) | None => false,
        };
        renewed || shown.as_ref().is_some_and(|shown| shown.has_expired(now))
    }

    /// Notes the certificate of the first handshake, where there was none to compare with until then.
    pub(super) fn note_shown(&self, certificate: Option<&Certificate>) {
        let mut shown = self.shown();
        if let (None, Some(certificate)) = (&*shown, certificate) {
            let current = self.tls.shown().filter(|current| current.certificate() == certificate);
            *shown = Some(current.unwrap_or_else(|| Shown::Certificate(certificate.clone())));
        }
    }

    fn shown(&self) -> MutexGuard<'_, Option<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.forget_source(self.id);
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("identity", &self.identity()).finish_non_exhaustive()
    }
}
