//! What one cluster knows of the mesh, as an immutable value.
//!
//! A [`Snapshot`] holds workloads, services and policies under indices, and answers lookups. It comes from a control
//! plane or, with feature `mesh-file`, from a file. A change of the mesh is a new snapshot.

mod address;
mod baggage;
#[cfg(feature = "mesh-file")]
mod file;
mod index;
mod service;
mod workload;

pub(crate) use self::address::HBONE_PORT;
pub use self::address::{
    AddressError, GatewayAddress, GatewayDestination, Hostname, NamespacedHostname, Network, NetworkAddress, Ports,
};
pub(crate) use self::baggage::LastBaggage;
pub use self::index::{Endpoint, Snapshot};
pub use self::service::{HealthPolicy, LoadBalancing, LoadBalancingMode, LoadBalancingScope, Service, ServiceScope};
pub use self::workload::{Locality, Protocol, Status, Workload, WorkloadType};
