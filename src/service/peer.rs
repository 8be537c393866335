//! Who is at the other end of a tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::authority::Authority;
use crate::identity::SpiffeId;
use crate::metadata::Metadata;

/// The other end of a tunnel: in the extensions of the requests that a server receives through it, and of the responses
/// that a client does. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: SpiffeId,
    authority: Authority,
    metadata: Metadata,
    address: Option<SocketAddr>,
}

impl Peer {
    pub(super) fn new(
        identity: SpiffeId,
        authority: Authority,
        metadata: Metadata,
        address: Option<SocketAddr>,
    ) -> Self {
        Self(Arc::new(Inner { identity, authority, metadata, address }))
    }

    /// Who it has proved to be, by its certificate. This, and nothing else here, is for decisions about access.
    pub fn identity(&self) -> &SpiffeId {
        &self.0.identity
    }

    /// Where the tunnel leads: the authority of its CONNECT. Not what the `host` of a request inside it says.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// What it said of itself: with the CONNECT to a server, with the 200 to a client. Nothing vouches for it.
    pub fn metadata(&self) -> &Metadata {
        &self.0.metadata
    }

    /// The address that its connection came from, at a server whose [`Accept`](crate::io::Accept) knows it. It may be
    /// that of a gateway on the way.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address
    }
}
