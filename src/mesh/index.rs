//! The snapshot and its indices.

use std::collections::{HashMap, HashSet};
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

type NamespaceAndName = (Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Inner {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    policies: Vec<Arc<Policy>>,
    by_uid: HashMap<Arc<str>, Arc<Workload>>,
    by_address: HashMap<NetworkAddress, Arc<Workload>>,
    /// `None` where several share the name.
    by_name: HashMap<NamespaceAndName, Option<Arc<Workload>>>,
    workloads_by_hostname: HashMap<Arc<str>, Vec<Arc<Workload>>>,
    by_key: HashMap<NamespacedHostname, Arc<Service>>,
    by_vip: HashMap<NetworkAddress, Arc<Service>>,
    services_by_hostname: HashMap<Arc<str>, Vec<Arc<Service>>>,
    endpoints: HashMap<NamespacedHostname, Vec<Endpoint>>,
    gateways: HashMap<Network, Vec<GatewayAddress>>,
    policies_by_name: HashMap<PolicyName, Arc<Policy>>,
    global_policies: Vec<Arc<Policy>>,
    namespace_policies: HashMap<Arc<str>, Vec<Arc<Policy>>>,
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
    pub(super) field: &'static str,
    pub(super) item: Option<usize>,
    pub(super) message: String,
}

impl Snapshot {
    /// Checks and indexes what is known of a mesh.
    ///
    /// A workload may be an endpoint of a service that is not there, and name a policy that is not there (which then
    /// denies everybody): tables arrive in any order.
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
        .map_err(|c| {
            let item = c.item.map(|i| format!("[{i}]")).unwrap_or_default();
            Error::invalid(format!("{}[{}].{}{item}: {}", c.list, c.index, c.field, c.message))
        })
    }

    pub(super) fn index(
        workloads: Vec<Arc<Workload>>,
        services: Vec<Arc<Service>>,
        policies: Vec<Arc<Policy>>,
    ) -> Result<Self, Conflict> {
        let mut inner = Inner::default();
        for (index, service) in services.iter().enumerate() {
            inner.add_service(service).map_err(|c| c.at("services", index))?;
        }
        for (index, policy) in policies.iter().enumerate() {
            inner.add_policy(policy).map_err(|c| c.at("policies", index))?;
        }
        for (index, workload) in workloads.iter().enumerate() {
            inner.add_workload(workload).map_err(|c| c.at("workloads", index))?;
        }
        Ok(Self(Arc::new(Inner { workloads, services, policies, ..inner })))
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

    /// The policies that hold for a workload, for [`authorize`](crate::policy::authorize): those of the mesh, those
    /// of the workload's namespace and those that it names. For one that it names and that is not there stands a
    /// [`Policy::missing`], which denies everybody: a policy that has not arrived yet must not let anybody in.
    pub fn policies_for(&self, workload: &Workload) -> Vec<Arc<Policy>> {
        let mut found: Vec<Arc<Policy>> = Vec::new();
        for name in &workload.authorization_policies {
            let policy = self.0.policies_by_name.get(name).cloned();
            found.push(policy.unwrap_or_else(|| Arc::new(Policy::missing(name.clone()))));
        }
        let of_namespace = self.0.namespace_policies.get(workload.namespace());
        found.extend(self.0.global_policies.iter().chain(of_namespace.into_iter().flatten()).cloned());
        let mut seen = HashSet::new();
        found.retain(|policy| seen.insert(policy.name.clone()));
        found
    }
}

impl Inner {
    fn add_service(&mut self, service: &Arc<Service>) -> Result<(), Conflict> {
        if self.by_key.insert(service.key.clone(), service.clone()).is_some() {
            let message = format!("another service is called {}", service.key);
            return Err(Conflict::of("hostname", None, message));
        }
        for (i, vip) in service.vips.iter().enumerate() {
            match self.by_vip.insert(vip.clone(), service.clone()) {
                Some(other) if !Arc::ptr_eq(&other, service) => {
                    let message = format!("service {other} has the virtual address {vip} too");
                    return Err(Conflict::of("vips", Some(i), message));
                }
                _ => {}
            }
        }
        self.services_by_hostname.entry(service.hostname().into()).or_default().push(service.clone());
        Ok(())
    }

    fn add_policy(&mut self, policy: &Arc<Policy>) -> Result<(), Conflict> {
        if self.policies_by_name.insert(policy.name.clone(), policy.clone()).is_some() {
            return Err(Conflict::of("name", None, format!("another policy is called {}", policy.name)));
        }
        match policy.scope {
            Scope::Global => self.global_policies.push(policy.clone()),
            Scope::Namespace => {
                self.namespace_policies.entry(policy.name.namespace.clone()).or_default().push(policy.clone());
            }
            Scope::WorkloadSelector => {}
        }
        Ok(())
    }

    fn add_workload(&mut self, workload: &Arc<Workload>) -> Result<(), Conflict> {
        if self.by_uid.insert(workload.uid.clone(), workload.clone()).is_some() {
            return Err(Conflict::of("uid", None, format!("another workload has the uid {}", workload.uid)));
        }
        let own_addresses = if workload.host_network { &[] } else { &*workload.addresses };
        for (i, ip) in own_addresses.iter().enumerate() {
            let address = NetworkAddress::new(workload.network.clone(), *ip);
            match self.by_address.insert(address.clone(), workload.clone()) {
                Some(other) if !Arc::ptr_eq(&other, workload) => {
                    let message = format!("workload {other} has the address {address} too");
                    return Err(Conflict::of("workloadIps", Some(i), message));
                }
                _ => {}
            }
        }
        self.by_name
            .entry((workload.namespace().into(), workload.name.clone()))
            .and_modify(|only| *only = None)
            .or_insert_with(|| Some(workload.clone()));
        if let Some(hostname) = &workload.hostname {
            self.workloads_by_hostname.entry(hostname.as_str().into()).or_default().push(workload.clone());
        }
        for key in workload.services.keys().filter(|key| self.by_key.contains_key(key)) {
            self.endpoints.entry(key.clone()).or_default().push(Endpoint { workload: workload.clone() });
        }
        if let Some(gateway) = &workload.network_gateway {
            let gateways = self.gateways.entry(workload.network.clone()).or_default();
            if !gateways.contains(gateway) {
                gateways.push(gateway.clone());
            }
        }
        Ok(())
    }
}

impl Conflict {
    fn of(field: &'static str, item: Option<usize>, message: String) -> Self {
        Self { list: "", index: 0, field, item, message }
    }

    fn at(self, list: &'static str, index: usize) -> Self {
        Self { list, index, ..self }
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::policy::Action;

    fn workload(uid: &str, network: &str, ip: &str) -> Workload {
        let identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
        let mut workload = Workload::new(uid, uid, identity);
        workload.network = Network::new(network);
        workload.addresses = vec![ip.parse().unwrap()];
        workload.services.insert("shop/cart.shop".parse().unwrap(), [(80, 0)].into_iter().collect());
        workload
    }

    fn service(key: &str, vip: &str) -> Service {
        let mut service = Service::new("cart", key.parse().unwrap());
        service.vips = vec![vip.parse().unwrap()];
        service.ports = [(80, 8080)].into_iter().collect();
        service
    }

    fn policy(name: &str, scope: Scope) -> Policy {
        Policy::new(name.parse().unwrap(), scope, Action::Allow)
    }

    #[test]
    fn the_same_address_in_two_networks_is_two_workloads() {
        let workloads = [workload("a", "east", "10.0.0.1"), workload("b", "west", "10.0.0.1")];
        let services = [service("shop/cart.shop", "east/10.1.0.1"), service("shop/web.shop", "west/10.1.0.1")];
        let mesh = Snapshot::new(workloads, services, []).unwrap();
        for (network, uid, host) in [("east", "a", "cart.shop"), ("west", "b", "web.shop")] {
            let network = Network::new(network);
            assert_eq!(&*mesh.workload_at(&network, "::ffff:10.0.0.1".parse().unwrap()).unwrap().uid, uid);
            assert_eq!(mesh.service_at(&network, "10.1.0.1".parse().unwrap()).unwrap().hostname(), host);
        }
        assert!(mesh.workload_at(&Network::default(), "10.0.0.1".parse().unwrap()).is_none());
    }

    #[rstest]
    #[case(vec![workload("a", "n", "10.0.0.1"), workload("a", "n", "10.0.0.2")], vec![], "workloads[1].uid")]
    #[case(vec![workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.1")], vec![], "workloads[1].workloadIps[0]")]
    #[case(vec![], vec![service("a/x", "/10.0.0.1"), service("a/X", "/10.0.0.2")], "services[1].hostname")]
    #[case(vec![], vec![service("a/x", "/10.0.0.1"), service("b/x", "/10.0.0.1")], "services[1].vips[0]")]
    fn what_must_be_unique_is_checked(
        #[case] workloads: Vec<Workload>,
        #[case] services: Vec<Service>,
        #[case] place: &str,
    ) {
        let error = Snapshot::new(workloads, services, []).unwrap_err().to_string();
        assert!(error.contains(place), "{error}");
    }

    #[test]
    fn workloads_on_their_nodes_address_may_share_it() {
        let (mut a, mut b) = (workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.1"));
        a.host_network = true;
        b.host_network = true;
        let mesh = Snapshot::new([a, b, workload("c", "n", "10.0.0.1")], [], []).unwrap();
        assert_eq!(&*mesh.workload_at(&Network::new("n"), "10.0.0.1".parse().unwrap()).unwrap().uid, "c");
    }

    #[test]
    fn endpoints_of_a_service_that_is_not_there_are_kept_out() {
        let mesh = Snapshot::new([workload("a", "n", "10.0.0.1")], [], []).unwrap();
        assert!(mesh.endpoints(&service("shop/cart.shop", "/10.1.0.1")).is_empty());
    }

    #[test]
    fn the_services_target_port_stands_in_for_the_endpoints() {
        let services = [service("shop/cart.shop", "/10.1.0.1")];
        let mesh = Snapshot::new([workload("a", "n", "10.0.0.1")], services, []).unwrap();
        let service = mesh.service_by_hostname("cart.shop", "").unwrap();
        let endpoint = &mesh.endpoints(service)[0];
        assert_eq!((endpoint.target_port(service, 80), endpoint.target_port(service, 81)), (Some(8080), None));
    }

    #[test]
    fn a_hostname_is_looked_for_in_the_preferred_namespace_first() {
        let services = [service("a/x", "/10.0.0.1"), service("b/x", "/10.0.0.2")];
        let mesh = Snapshot::new([], services, []).unwrap();
        for (preferred, found) in [("a", "a"), ("b", "b"), ("c", "a")] {
            assert_eq!(mesh.service_by_hostname("x", preferred).unwrap().namespace(), found);
        }
    }

    #[test]
    fn a_name_that_several_workloads_have_finds_none() {
        let (mut a, mut b) = (workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.2"));
        a.name = "same".into();
        b.name = "same".into();
        let mesh = Snapshot::new([a, b, workload("c", "n", "10.0.0.3")], [], []).unwrap();
        assert!(mesh.workload_named("shop", "same").is_none());
        assert!(mesh.workload_named("shop", "c").is_some());
        assert!(mesh.workload_named("else", "c").is_none());
    }

    #[test]
    fn policies_of_mesh_and_namespace_and_those_named_hold_once_each() {
        let policies = [
            policy("root/mesh", Scope::Global),
            policy("shop/namespace", Scope::Namespace),
            policy("else/namespace", Scope::Namespace),
            policy("shop/named", Scope::WorkloadSelector),
            policy("shop/not-named", Scope::WorkloadSelector),
        ];
        let mut workload = workload("a", "n", "10.0.0.1");
        let named = ["shop/named", "shop/namespace", "shop/gone", "shop/named"];
        workload.authorization_policies = named.iter().map(|n| n.parse().unwrap()).collect();
        let mesh = Snapshot::new([workload.clone()], [], policies).unwrap();
        let found = mesh.policies_for(&workload);
        let names: Vec<String> = found.iter().map(|p| p.name.to_string()).collect();
        assert_eq!(names, ["shop/named", "shop/namespace", "shop/gone", "root/mesh"]);
        let missing: Vec<bool> = found.iter().map(|p| p.is_missing()).collect();
        assert_eq!(missing, [false, false, true, false]);
    }

    #[test]
    fn two_policies_of_one_name_are_an_error() {
        let policies = [policy("a/b", Scope::Global), policy("a/b", Scope::Namespace)];
        let error = Snapshot::new([], [], policies).unwrap_err().to_string();
        assert!(error.contains("policies[1].name: another policy is called a/b"), "{error}");
    }
}
