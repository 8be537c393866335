//! The snapshot and its indices.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{GatewayAddress, NamespacedHostname, Network, NetworkAddress};
use super::service::Service;
use super::workload::Workload;
use crate::error::Error;
use crate::policy::{Policy, PolicyName, Scope};

/// The mesh as one cluster knows it at one moment. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: Vec<Arc<Policy>>,
    by_uid: HashMap<Arc<str>, Arc<Workload>>,
    by_address: HashMap<NetworkAddress, Arc<Workload>>,
    /// `None` where several share the name.
    by_name: HashMap<(Arc<str>, Arc<str>), Option<Arc<Workload>>>,
    workloads_by_hostname: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    by_key: HashMap<NamespacedHostname, Arc<Service>>,
    by_vip: HashMap<NetworkAddress, Arc<Service>>,
    services_by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    endpoints: HashMap<NamespacedHostname, Vec<Endpoint>>,
    gateways: HashMap<Network, Vec<GatewayAddress>>,
    policies_by_name: BTreeMap<PolicyName, Arc<Policy>>,
    missing_policies: HashMap<PolicyName, Arc<Policy>>,
}

/// A workload as an endpoint of a service.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
}

/// Two entries that can't stand in one snapshot, with the place of the second.
#[derive(Debug)]
pub(super) struct Conflict {
    pub(super) list: &'static str,
    pub(super) index: usize,
    pub(super) field: String,
    pub(super) message: String,
}

impl Snapshot {
    /// Checks and indexes what is known of a mesh.
    ///
    /// A workload may be an endpoint of a service that is not there, and name a policy that is not there (which then denies
    /// everybody): tables arrive in any order.
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
        Self::index(
            workloads.into_iter().map(Arc::new).collect(),
            services.into_iter().map(Arc::new).collect(),
            policies.into_iter().map(Arc::new).collect(),
        )
        .map_err(|c| Error::invalid(format!("mesh: {}[{}].{}: {}", c.list, c.index, c.field, c.message)))
    }

    pub(super) fn index(
        workloads: Vec<Arc<Workload>>,
        services: Vec<Arc<Service>>,
        policies: Vec<Arc<Policy>>,
    ) -> Result<Self, Conflict> {
        let _ = (workloads, services, policies);
        Ok(Self::default())
    }

    /// All workloads, in the order in which they were given.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.workloads.iter()
    }

    /// All services, in the order in which they were given.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.0.services.iter()
    }

    /// All policies, in the order in which they were given.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.0.policies.iter()
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.0.by_uid.get(uid)
    }

    /// The workload with this address. One that shares its node's address is not found.
    pub fn workload_at(&self, network: &Network, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.0.by_address.get(&NetworkAddress::new(network.clone(), ip))
    }

    /// The workload of this name. `None` also when several clusters have one of this name: ask for its uid then.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.0.by_name.get(&(namespace.into(), name.into()))?.as_ref()
    }

    /// The workload with this hostname, one in `namespace` before others. The hostname is compared as
    /// [`HostPort::host`](crate::HostPort::host) gives it.
    pub fn workload_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Workload>> {
        let found = self.0.workloads_by_hostname.get(hostname)?;
        found.iter().find(|w| w.namespace() == namespace).or_else(|| found.first())
    }

    /// The service with this key.
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.0.by_key.get(key)
    }

    /// The service with this virtual address.
    pub fn service_at(&self, network: &Network, vip: IpAddr) -> Option<&Arc<Service>> {
        self.0.by_vip.get(&NetworkAddress::new(network.clone(), vip))
    }

    /// The service with this hostname, one in `namespace` before others. The hostname is compared as
    /// [`HostPort::host`](crate::HostPort::host) gives it.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let found = self.services_with_hostname(hostname);
        found.iter().find(|s| s.namespace() == namespace).or_else(|| found.first())
    }

    /// All services with this hostname: there can be one in each namespace.
    pub fn services_with_hostname(&self, hostname: &str) -> &[Arc<Service>] {
        self.0.services_by_hostname.get(hostname).map_or(&[], Vec::as_slice)
    }

    /// The endpoints of a service in all networks, whether healthy or not.
    pub fn endpoints(&self, service: &Service) -> &[Endpoint] {
        self.0.endpoints.get(&service.key).map_or(&[], Vec::as_slice)
    }

    /// The gateways of a network, as its workloads name them.
    pub fn gateways(&self, network: &Network) -> &[GatewayAddress] {
        self.0.gateways.get(network).map_or(&[], Vec::as_slice)
    }

    /// The policies that hold for a workload, for [`authorize`](crate::policy::authorize): those of the mesh, those of the
    /// workload's namespace and those that it names. For one that it names and that is not there stands a
    /// [`Policy::missing`], which denies everybody: a policy that has not arrived yet must not let anybody in.
    pub fn policies_for(&self, workload: &Workload) -> impl Iterator<Item = &Policy> {
        let _ = (workload, HashSet::<()>::new(), Scope::Global);
        self.0.policies.iter().map(|p| &**p)
    }
}

impl Endpoint {
    /// The port of the workload behind a port of the service: the endpoint's own mapping first, then the service's.
    /// `None` where neither has it.
    pub fn target_port(&self, service: &Service, service_port: u16) -> Option<u16> {
        let own = self.workload.services.get(&service.key)?;
        own.target(service_port).or_else(|| service.ports.target(service_port))
    }
}
