//! What errors and events say of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::observe::{Connection, ConnectionId, ConnectionRole, Observer, TunnelId};

/// Who is at the ends of a connection, where, and who observes it.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    pub(crate) id: ConnectionId,
    pub(crate) role: ConnectionRole,
    pub(crate) hop: Option<usize>,
    pub(crate) carrier: Option<TunnelId>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) local_identity: Option<SpiffeId>,
    pub(crate) peer_identity: Option<SpiffeId>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Description {
    pub(crate) fn new(role: ConnectionRole) -> Self {
        Self {
            id: ConnectionId::random(),
            role,
            hop: None,
            carrier: None,
            address: None,
            local_identity: None,
            peer_identity: None,
            observer: None,
        }
    }

    pub(crate) fn connection(&self) -> Connection<'_> {
        Connection {
            id: self.id,
            role: self.role,
            hop: self.hop,
            carrier: self.carrier,
            address: self.address,
            local_identity: self.local_identity.as_ref(),
            peer_identity: self.peer_identity.as_ref(),
        }
    }
}
