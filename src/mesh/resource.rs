//! What a mesh consists of, piece by piece, and why a piece is not taken.

use std::fmt;
use std::sync::Arc;

use super::address::{NamespacedHostname, NetworkAddress};
use super::service::Service;
use super::workload::Workload;
use crate::policy::{Policy, PolicyName};

/// One piece of a mesh. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
    /// A policy.
    Policy(Arc<Policy>),
}

/// What a [`Resource`] is called, as a control plane calls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ResourceName {
    /// A workload, by its uid.
    Workload(Arc<str>),
    /// A service, by namespace and hostname.
    Service(NamespacedHostname),
    /// A policy, by namespace and name.
    Policy(PolicyName),
}

/// A resource that was not taken, and why. For a control plane this is what a NACK says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejected {
    /// The resource.
    pub resource: Resource,
    /// Why.
    pub reason: RejectReason,
}

/// Why a resource was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectReason {
    /// Its uid, or the name of its policy, is empty.
    Unnamed,
    /// Another workload has one of its addresses in the same network, or another service one of its virtual addresses.
    AddressTaken {
        /// The address.
        address: NetworkAddress,
        /// The resource that has it.
        by: Resource,
    },
}

impl Resource {
    /// Its name.
    pub fn name(&self) -> ResourceName {
        match self {
            Self::Workload(workload) => ResourceName::Workload(workload.uid.clone()),
            Self::Service(service) => ResourceName::Service(service.key.clone()),
            Self::Policy(policy) => ResourceName::Policy(policy.name.clone()),
        }
    }

    /// The addresses that no other resource of its kind may have.
    pub(super) fn addresses(&self) -> Vec<NetworkAddress> {
        match self {
            Self::Workload(workload) => workload.own_addresses().collect(),
            Self::Service(service) => service.vips.clone(),
            Self::Policy(_) => Vec::new(),
        }
    }
}

impl From<Workload> for Resource {
    fn from(workload: Workload) -> Self {
        Self::Workload(Arc::new(workload))
    }
}

impl From<Service> for Resource {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<Policy> for Resource {
    fn from(policy: Policy) -> Self {
        Self::Policy(Arc::new(policy))
    }
}

impl From<Arc<Workload>> for Resource {
    fn from(workload: Arc<Workload>) -> Self {
        Self::Workload(workload)
    }
}

impl From<Arc<Service>> for Resource {
    fn from(service: Arc<Service>) -> Self {
        Self::Service(service)
    }
}

impl From<Arc<Policy>> for Resource {
    fn from(policy: Arc<Policy>) -> Self {
        Self::Policy(policy)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(workload) => write!(f, "workload {workload}"),
            Self::Service(service) => write!(f, "service {service}"),
            Self::Policy(policy) => write!(f, "policy {}", policy.name),
        }
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(uid) => write!(f, "workload {uid}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::Policy(name) => write!(f, "policy {name}"),
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unnamed => f.write_str("it has no name"),
            Self::AddressTaken { address, by: by @ Resource::Service(_) } => {
                write!(f, "{by} has the virtual address {address} too")
            }
            Self::AddressTaken { address, by } => write!(f, "{by} has the address {address} too"),
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.reason)
    }
}
