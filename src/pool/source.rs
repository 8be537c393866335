//! Who connects.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::Inner;
use super::state::SourceId;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::metadata::Metadata;
use crate::tls::{Connector, CredentialSource, Credentials};

/// An identity that connects through a [`Pool`](super::Pool): its certificate is shown at every hop, and only tunnels of the
/// same source share a connection. Clones are the same source; take one for each identity.
///
/// When the last clone is gone, its connections take no more tunnels and close when those that are open have ended.
#[derive(Clone)]
pub struct Source {
    pub(super) shared: Arc<SourceShared>,
    _guard: Arc<Guard>,
}

/// What dials need of a source. Does not keep it.
pub(super) struct SourceShared {
    pub(super) id: SourceId,
    pub(super) identity: SpiffeId,
    pub(super) tls: Connector,
    /// What the CONNECTs of the path's own tunnels say.
    pub(super) metadata: Metadata,
    credentials: Arc<dyn CredentialSource>,
    shown: Mutex<Credentials>,
}

/// Lives as long as the source.
struct Guard {
    pool: Weak<Inner>,
    id: SourceId,
}

impl Source {
    pub(super) fn new(
        pool: &Arc<Inner>,
        id: SourceId,
        credentials: Arc<dyn CredentialSource>,
        metadata: Metadata,
        config: &Arc<Config>,
    ) -> Result<Self> {
        let shown = credentials.credentials().map_err(|e| {
            Error::new(ErrorKind::InvalidCredentials, Layer::Config, Side::Local, "getting the certificate of a source")
                .with_source(e)
        })?;
        let tls = Connector::new(credentials.clone(), config.clone());
        let identity = shown.identity().clone();
        let shared = SourceShared { id, identity, tls, metadata, credentials, shown: Mutex::new(shown) };
        Ok(Self { shared: Arc::new(shared), _guard: Arc::new(Guard { pool: Arc::downgrade(pool), id }) })
    }

    /// The identity, as in the certificate that the source had at first.
    pub fn identity(&self) -> &SpiffeId {
        &self.shared.identity
    }
}

impl SourceShared {
    /// Whether another certificate is to be shown than up to now. Says so once.
    pub(super) fn has_rotated(&self) -> bool {
        // Without credentials no handshake will succeed; what is connected may stay.
        let Ok(now) = self.credentials.credentials() else { return false };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_same(&shown) {
            return false;
        }
        *shown = now;
        true
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
        f.debug_struct("Source").field("identity", self.identity()).finish_non_exhaustive()
    }
}
