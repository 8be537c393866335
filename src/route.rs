//! Where a connection goes: decisions over a snapshot, without I/O.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::authority::Authority;
use crate::balance::Balance;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::mesh::{Network, Service, Snapshot, Workload};
use crate::path::Path;
use crate::refusal::{Refusal, RefusalReason};

/// The way that a connection of a local application takes.
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
}

/// The endpoint that a gateway forwards a tunnel to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Backend {
    /// Its HBONE address.
    pub address: SocketAddr,
    /// The endpoint.
    pub workload: Arc<Workload>,
}

/// Decides where a connection of `source` to `target` goes.
///
/// # Errors
///
/// [`ErrorKind::NoRoute`].
pub fn outbound(mesh: &Snapshot, source: &Workload, target: &Authority, balance: &dyn Balance) -> Result<Route, Error> {
    let _ = (mesh, balance);
    Err(Error::new(ErrorKind::NoRoute, Layer::Route, Side::Local, format!("{target} from workload {source}")))
}

/// Decides where a tunnel that ends at `workload` leads.
///
/// # Errors
///
/// The refusal to answer with.
pub fn inbound(mesh: &Snapshot, workload: &Workload, authority: &Authority) -> Result<SocketAddr, Refusal> {
    let _ = (mesh, workload, authority);
    Err(Refusal::new(RefusalReason::DestinationNotFound))
}

/// Decides where a gateway of `network` forwards a tunnel to.
///
/// # Errors
///
/// The refusal to answer with.
pub fn gateway(
    mesh: &Snapshot,
    network: &Network,
    authority: &Authority,
    balance: &dyn Balance,
) -> Result<Backend, Refusal> {
    let _ = (mesh, network, authority, balance);
    Err(Refusal::new(RefusalReason::DestinationNotFound))
}
