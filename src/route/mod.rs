//! Where a connection goes: decisions over a [`Snapshot`](crate::mesh::Snapshot), without I/O and without a clock.
//!
//! [`outbound`] decides for the client's side, [`inbound`] for the workload where a tunnel ends, [`gateway`] for an
//! east-west gateway in between. All three decide as ztunnel and Istio's gateway do, except that what would be
//! plaintext, or would skip a waypoint, is refused.
//!
//! Where several endpoints would do, a [`Choice`] decides. When a way turns out not to work, [`Route::blame`] says whom
//! that speaks against, and [`is_retryable`] whether another way may work.

mod blame;
mod candidates;
mod choice;
mod outbound;
mod receive;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

pub use self::blame::is_retryable;
pub use self::choice::Choice;
pub use self::outbound::outbound;
pub use self::receive::{gateway, inbound};
use crate::authority::Authority;
use crate::balance::InFlight;
use crate::mesh::{Service, Workload};
use crate::path::Path;

/// Ports of the mesh's own proxies: HBONE, plain inbound, outbound capture. A tunnel that ends there would loop.
const ILLEGAL_PORTS: [u16; 3] = [15008, 15006, 15001];

/// The way that a connection of a local application takes. Keep it until the connection has ended: see
/// [`in_flight`](Self::in_flight).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Route {
    /// The hops.
    pub path: Path,
    /// The authority of the CONNECT on the last hop.
    pub authority: Authority,
    /// The endpoint that was chosen; in another network what stands for all endpoints there.
    pub picked: Arc<Workload>,
    /// The service, where the target is one.
    pub service: Option<Arc<Service>>,
    /// The gateway of the other network, where there is one on the way.
    pub gateway: Option<Arc<Workload>>,
    /// How many other ways have not [failed this caller](Choice::with_tried), ejected ones included: endpoints in the
    /// source's own network, and gateways of others.
    pub others: usize,
    /// Counts the connection at the endpoint and the gateway that were chosen, until it is dropped together with all of
    /// its clones.
    pub in_flight: InFlight,
}

/// The endpoint that a gateway forwards a tunnel to. Keep it until the tunnel has ended: see
/// [`in_flight`](Self::in_flight).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Backend {
    /// Its HBONE address.
    pub address: SocketAddr,
    /// The endpoint.
    pub workload: Arc<Workload>,
    /// How many other endpoints have not [failed this caller](Choice::with_tried), ejected ones included.
    pub others: usize,
    /// Counts the tunnel at the endpoint, until it is dropped together with all of its clones.
    pub in_flight: InFlight,
}

fn is_illegal(port: u16) -> bool {
    ILLEGAL_PORTS.contains(&port)
}
