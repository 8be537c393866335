//! The way to a destination: one direct hop, then hops through tunnels.

use std::net::SocketAddr;

use crate::authority::Authority;
use crate::identity::AcceptedIdentities;

/// The hops that a connection takes, from the outside in.
///
/// The first hop is dialled; each further one is a tunnel through the hop before it, with its own TLS and HTTP/2 inside. A
/// path with one hop is single HBONE; with two it is nested (double) HBONE. Two equal paths may share their connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    direct: DirectHop,
    tunnelled: Vec<TunnelledHop>,
}

/// The first hop of a [`Path`]: a byte stream to an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DirectHop {
    /// The peer's HBONE address.
    pub address: SocketAddr,
    /// Whom to accept there.
    pub accept: AcceptedIdentities,
    /// How its connections may be shared.
    pub reuse: Reuse,
}

/// A further hop of a [`Path`]: a tunnel through the hop before it, and a session with its own identities inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct TunnelledHop {
    /// The authority of the CONNECT that opens the tunnel.
    pub authority: Authority,
    /// Whom to accept at its far end.
    pub accept: AcceptedIdentities,
    /// How its connections may be shared.
    pub reuse: Reuse,
}

/// How the connections of a hop may be shared by many tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reuse {
    /// One far end, so any connection will do.
    Shared,
    /// This many far ends stand behind one name: keep connections to as many and spread tunnels over them, since sharing
    /// just one would pin every tunnel to the far end it happens to lead to.
    Spread(u32),
    /// A connection of its own for each tunnel.
    Never,
}

impl DirectHop {
    /// A hop whose connections are [`Reuse::Shared`].
    pub fn new(address: SocketAddr, accept: AcceptedIdentities) -> Self {
        Self { address, accept, reuse: Reuse::Shared }
    }

    /// Says how its connections may be shared.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }
}

impl TunnelledHop {
    /// A hop whose connections are [`Reuse::Shared`].
    pub fn new(authority: Authority, accept: AcceptedIdentities) -> Self {
        Self { authority, accept, reuse: Reuse::Shared }
    }

    /// Says how its connections may be shared.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }
}

impl Path {
    /// A path of one hop.
    pub fn direct(hop: DirectHop) -> Self {
        Self { direct: hop, tunnelled: Vec::new() }
    }

    /// Adds a hop inside the ones so far. Depth is not limited.
    pub fn then(mut self, hop: TunnelledHop) -> Self {
        self.tunnelled.push(hop);
        self
    }

    /// The first hop.
    pub fn first(&self) -> &DirectHop {
        &self.direct
    }

    /// The hops after the first, from the outside in.
    pub fn tunnelled(&self) -> &[TunnelledHop] {
        &self.tunnelled
    }

    /// How many hops there are: 1 is single HBONE, 2 nested HBONE.
    pub fn depth(&self) -> usize {
        1 + self.tunnelled.len()
    }
}
