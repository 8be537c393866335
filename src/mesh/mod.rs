//! What one cluster knows of the mesh: a store that takes changes, and immutable snapshots of it.
//!
//! A [`Store`] takes and drops [`Resource`]s (workloads, services and policies) one by one or in batches, and publishes
//! a [`Snapshot`] after each. A snapshot answers look-ups and never changes. Resources come from a control plane or,
//! with feature `mesh-file`, from a `MeshFile`.

mod address;
mod baggage;
#[cfg(feature = "mesh-file")]
mod file;
mod lists;
mod map;
mod resource;
mod scope;
mod service;
mod snapshot;
mod store;
mod tables;
#[cfg(test)]
mod tests;
mod workload;

pub(crate) use self::address::HBONE_PORT;
pub use self::address::{
    AddressError, GatewayAddress, GatewayDestination, Hostname, NamespacedHostname, Network, NetworkAddress, Ports,
};
pub(crate) use self::baggage::BaggageCache;
#[cfg(feature = "mesh-file")]
pub use self::file::{LeftOut, MeshFile};
pub use self::lists::{Endpoint, Endpoints, EndpointsIter};
pub use self::resource::{RejectReason, Rejected, Resource, ResourceName};
pub use self::scope::{
    LabelOperator, LabelRequirement, LabelSelector, LabelSelectorError, Labels, ServiceScopeConfig, ServiceScopeConfigs,
};
pub use self::service::{HealthPolicy, LoadBalancing, LoadBalancingMode, LoadBalancingScope, Service, ServiceScope};
pub use self::snapshot::Snapshot;
pub use self::store::{Applied, Batch, Store};
pub use self::workload::{ApplicationProtocol, ApplicationTunnel, Locality, Protocol, Status, Workload};
pub use crate::metadata::WorkloadType;
