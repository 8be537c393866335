//! The mesh at one moment.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{GatewayAddress, NamespacedHostname, Network, NetworkAddress};
use super::lists::{Endpoints, ShortList};
use super::resource::{RejectReason, Resource};
use super::service::Service;
use super::tables::Tables;
use super::workload::Workload;
use crate::error::Error;
use crate::policy::{Policy, PolicyName};

/// The mesh as one cluster knows it at one moment. It never changes, and cloning it is cheap.
///
/// A [`Store`](super::Store) takes changes, and has a snapshot after each. Two snapshots are equal if their resources
/// are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot(pub(super) Arc<Tables>);

impl Snapshot {
    /// A snapshot of exactly these resources.
    ///
    /// A workload may be an endpoint of a service that is not there, and name a policy that is not there (which then
    /// denies everybody): tables arrive in any order. To leave out what is odd and take the rest, use a
    /// [`Store`](super::Store).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when two workloads have the same uid, or the same
    /// address in the same network; when two services have the same hostname in the same namespace, or the same virtual
    /// address; or when two policies have the same name.
    pub fn new(
        workloads: impl IntoIterator<Item = Workload>,
        services: impl IntoIterator<Item = Service>,
        policies: impl IntoIterator<Item = Policy>,
    ) -> Result<Self, Error> {
        let mut tables = Tables::default();
        let services = services.into_iter().map(Resource::from).enumerate();
        let policies = policies.into_iter().map(Resource::from).enumerate();
        let workloads = workloads.into_iter().map(Resource::from).enumerate();
        for (index, resource) in services.chain(policies).chain(workloads) {
            tables.add_new(&resource).map_err(|conflict| {
                let list = list(&resource);
                let item = conflict.item.map(|i| format!("[{i}]")).unwrap_or_default();
                Error::invalid(format!("{list}[{index}].{}{item}: {}", conflict.field, conflict.message))
            })?;
        }
        Ok(Self(Arc::new(tables)))
    }

    /// All resources, in no particular order.
    pub fn resources(&self) -> impl Iterator<Item = Resource> {
        self.0.resources()
    }

    /// All workloads, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.workloads.values().map(|numbered| &numbered.workload)
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.services.values().filter_map(|entry| entry.service.as_ref())
    }

    /// All policies, in no particular order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.0.policies.values()
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.0.workload(uid)
    }

    /// The workload with this address. One that shares its node's address is not found.
    pub fn workload_at(&self, network: &Network, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.0.by_address.get(&NetworkAddress::new(network.clone(), ip))
    }

    /// The workload of this name. `None` also when several clusters have one of this name: ask for its uid then.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        let found = self.0.by_name.find(&(namespace, name), |(ns, n)| **ns == *namespace && **n == *name)?;
        match found.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The workload with this hostname: one in `namespace` before others, else that with the least uid. The hostname is
    /// compared as [`HostPort::host`](crate::HostPort::host) gives it.
    pub fn workload_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Workload>> {
        let found = self.0.by_hostname.get(hostname)?.as_slice();
        found.iter().find(|w| w.namespace() == namespace).or_else(|| found.first())
    }

    /// The service with this key.
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.0.service(key)
    }

    /// The service with this virtual address.
    pub fn service_at(&self, network: &Network, vip: IpAddr) -> Option<&Arc<Service>> {
        self.0.by_vip.get(&NetworkAddress::new(network.clone(), vip))
    }

    /// The service with this hostname: one in `namespace` before others, else that in the first namespace by name. The
    /// hostname is compared as [`HostPort::host`](crate::HostPort::host) gives it.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let found = self.services_with_hostname(hostname);
        found.iter().find(|s| s.namespace() == namespace).or_else(|| found.first())
    }

    /// All services with this hostname, by namespace: there can be one in each.
    pub fn services_with_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.0.services_by_hostname.get(hostname).map_or(&[], ShortList::as_slice)
    }

    /// The endpoints of a service in all networks, whether healthy or not. None for a service that is not there.
    pub fn endpoints(&self, service: &Service) -> Endpoints<'_> {
        let entry = self.0.services.get(&service.key).filter(|entry| entry.service.is_some());
        entry.map(|entry| entry.endpoints.all()).unwrap_or_default()
    }

    /// The gateways of a network, as its workloads name them.
    pub fn gateways(&self, network: &Network) -> &[GatewayAddress] {
        self.0.gateways.get(network).map_or(&[], |gateways| &gateways.addresses)
    }

    /// The policy of this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<Policy>> {
        self.0.policies.get(name)
    }

    /// The policies that hold for a workload, for [`authorize`](crate::policy::authorize): those that it names, those
    /// of the mesh and those of its namespace. For one that it names and that is not there stands a
    /// [`Policy::missing`], which denies everybody: a policy that has not arrived yet must not let anybody in.
    pub fn policies_for(&self, workload: &Workload) -> Vec<Arc<Policy>> {
        let mut found: Vec<Arc<Policy>> = Vec::new();
        for name in &workload.authorization_policies {
            let policy = self.0.policies.get(name).cloned();
            found.push(policy.unwrap_or_else(|| Arc::new(Policy::missing(name.clone()))));
        }
        let of_namespace = self.0.namespace_policies.get(workload.namespace()).map_or(&[][..], ShortList::as_slice);
        found.extend(self.0.global_policies.as_slice().iter().chain(of_namespace).cloned());
        let mut seen = HashSet::new();
        found.retain(|policy| seen.insert(policy.name.clone()));
        found
    }
}

/// Why a resource can't stand beside others, and in which of its fields that shows.
#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) field: &'static str,
    pub(super) item: Option<usize>,
    pub(super) message: String,
}

impl Tables {
    /// Adds a resource of which no version may be there.
    pub(super) fn add_new(&mut self, new: &Resource) -> Result<(), Conflict> {
        let name = new.name();
        if self.get(&name).is_some() {
            let (field, message) = match new {
                Resource::Workload(workload) => ("uid", format!("another workload has the uid {}", workload.uid)),
                Resource::Service(service) => ("hostname", format!("another service is called {}", service.key)),
                Resource::Policy(policy) => ("name", format!("another policy is called {}", policy.name)),
            };
            return Err(Conflict { field, item: None, message });
        }
        if let Some(reason) = self.conflict(new) {
            return Err(Conflict::new(new, &reason));
        }
        self.add(new);
        Ok(())
    }
}

impl Conflict {
    fn new(resource: &Resource, reason: &RejectReason) -> Self {
        let field = match (resource, reason) {
            (Resource::Workload(_), RejectReason::Unnamed) => "uid",
            (Resource::Workload(_), _) => "workloadIps",
            (Resource::Service(_), _) => "vips",
            (Resource::Policy(_), _) => "name",
        };
        let item = match reason {
            RejectReason::Unnamed => None,
            RejectReason::AddressTaken { address, .. } => resource.addresses().iter().position(|a| a == address),
        };
        Self { field, item, message: reason.to_string() }
    }
}

/// The list of a file that the resource is in.
fn list(resource: &Resource) -> &'static str {
    match resource {
        Resource::Workload(_) => "workloads",
        Resource::Service(_) => "services",
        Resource::Policy(_) => "policies",
    }
}
