//! The resources under their indices.

use std::sync::Arc;

use super::address::{GatewayAddress, Hostname, NamespacedHostname, Network, NetworkAddress};
use super::lists::{EndpointList, ShortList};
use super::map::Map;
use super::resource::{RejectReason, Resource, ResourceName};
use super::service::Service;
use super::workload::Workload;
use crate::policy::{Policy, PolicyName, Scope};

pub(super) type NamespaceAndName = (Arc<str>, Arc<str>);

/// A clone takes a reference to each index. Two with the same resources are equal, whatever came when.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) workloads: Map<Arc<str>, Numbered>,
    pub(super) by_address: Map<NetworkAddress, Arc<Workload>>,
    pub(super) by_name: Map<NamespaceAndName, ShortList<Workload>>,
    pub(super) by_hostname: Map<Hostname, ShortList<Workload>>,
    pub(super) services: Map<NamespacedHostname, ServiceEntry>,
    pub(super) by_vip: Map<NetworkAddress, Arc<Service>>,
    pub(super) services_by_hostname: Map<Hostname, ShortList<Service>>,
    pub(super) gateways: Map<Network, NetworkGateways>,
    pub(super) policies: Map<PolicyName, Arc<Policy>>,
    pub(super) global_policies: ShortList<Policy>,
    pub(super) namespace_policies: Map<Arc<str>, ShortList<Policy>>,
    /// How many workloads have come so far.
    came: u64,
}

/// A workload, and when it came: a new version has the number of the one that it replaces.
#[derive(Clone, Debug)]
pub(super) struct Numbered {
    number: u64,
    pub(super) workload: Arc<Workload>,
}

/// A service and its endpoints, either of which may come first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceEntry {
    pub(super) service: Option<Arc<Service>>,
    pub(super) endpoints: EndpointList,
}

/// The gateways of a network, in order, each with the number of workloads that name it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NetworkGateways {
    pub(super) addresses: Arc<[GatewayAddress]>,
    uses: Arc<[usize]>,
}

impl Tables {
    pub(super) fn get(&self, name: &ResourceName) -> Option<Resource> {
        match name {
            ResourceName::Workload(uid) => self.workload(uid).cloned().map(Resource::Workload),
            ResourceName::Service(key) => self.service(key).cloned().map(Resource::Service),
            ResourceName::Policy(name) => self.policies.get(name).cloned().map(Resource::Policy),
        }
    }

    pub(super) fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|numbered| &numbered.workload)
    }

    pub(super) fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)?.service.as_ref()
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = Resource> {
        let workloads = self.workloads.values().map(|numbered| numbered.workload.clone()).map(Resource::Workload);
        let services = self.services.values().filter_map(|entry| entry.service.clone()).map(Resource::Service);
        let policies = self.policies.values().cloned().map(Resource::Policy);
        workloads.chain(services).chain(policies)
    }

    /// Why a resource can't be added, even in place of its present version.
    pub(super) fn conflict(&self, new: &Resource) -> Option<RejectReason> {
        let taken = |address: &NetworkAddress, by| RejectReason::AddressTaken { address: address.clone(), by };
        match new {
            Resource::Workload(new) if new.uid.is_empty() => Some(RejectReason::Unnamed),
            Resource::Policy(new) if new.name.name.is_empty() => Some(RejectReason::Unnamed),
            Resource::Workload(new) => new.own_addresses().find_map(|address| {
                let other = self.by_address.get(&address).filter(|other| other.uid != new.uid)?;
                Some(taken(&address, other.clone().into()))
            }),
            Resource::Service(new) => new.vips.iter().find_map(|vip| {
                let other = self.by_vip.get(vip).filter(|other| other.key != new.key)?;
                Some(taken(vip, other.clone().into()))
            }),
            Resource::Policy(_) => None,
        }
    }

    /// Adds a resource that conflicts with none, and of which no version is there.
    pub(super) fn add(&mut self, new: &Resource) {
        match new {
            Resource::Workload(workload) => {
                self.came += 1;
                self.add_workload(workload, self.came);
            }
            Resource::Service(service) => self.add_service(service),
            Resource::Policy(policy) => self.add_policy(policy),
        }
    }

    /// Puts a new version of a resource in the place of the one that is there. It conflicts with none.
    pub(super) fn replace(&mut self, old: &Resource, new: &Resource) {
        match (old, new) {
            (Resource::Workload(old), Resource::Workload(new)) => self.replace_workload(old, new),
            _ => {
                self.remove(old);
                self.add(new);
            }
        }
    }

    /// Removes a resource as it was added.
    pub(super) fn remove(&mut self, old: &Resource) {
        match old {
            Resource::Workload(workload) => self.remove_workload(workload),
            Resource::Service(service) => self.remove_service(service),
            Resource::Policy(policy) => self.remove_policy(policy),
        }
    }

    fn add_workload(&mut self, workload: &Arc<Workload>, number: u64) {
        self.workloads.insert(workload.uid.clone(), Numbered { number, workload: workload.clone() });
        for address in workload.own_addresses() {
            self.by_address.insert(address, workload.clone());
        }
        self.by_name.update(&namespace_and_name(workload), |list| list.insert(workload));
        if let Some(hostname) = &workload.hostname {
            self.by_hostname.update(hostname, |list| list.insert(workload));
        }
        for key in workload.services.keys() {
            self.services.update(key, |entry| entry.endpoints.insert(number, workload));
        }
        if let Some(gateway) = &workload.network_gateway {
            self.gateways.update(&workload.network, |gateways| gateways.add(gateway));
        }
    }

    /// Most changes of a workload leave its addresses, name, services and gateway as they are: what both versions have
    /// is touched once.
    fn replace_workload(&mut self, old: &Arc<Workload>, new: &Arc<Workload>) {
        let Some(number) = self.workloads.get(&old.uid).map(|numbered| numbered.number) else { return };
        if old.hostname != new.hostname
            || namespace_and_name(old) != namespace_and_name(new)
            || !old.own_addresses().eq(new.own_addresses())
            || !old.services.keys().eq(new.services.keys())
            || (&old.network, &old.network_gateway) != (&new.network, &new.network_gateway)
        {
            self.remove_workload(old);
        } else if let Some(gateway) = &old.network_gateway {
            // Counted once more below.
            self.gateways.update(&old.network, |gateways| gateways.remove(gateway));
        }
        self.add_workload(new, number);
    }

    fn remove_workload(&mut self, workload: &Workload) {
        let Some(number) = self.workloads.get(&workload.uid).map(|numbered| numbered.number) else { return };
        self.workloads.remove(&workload.uid);
        for address in workload.own_addresses() {
            self.by_address.remove(&address);
        }
        self.by_name.update(&namespace_and_name(workload), |list| list.remove(&workload.uid));
        if let Some(hostname) = &workload.hostname {
            self.by_hostname.update(hostname, |list| list.remove(&workload.uid));
        }
        for key in workload.services.keys() {
            self.services.update(key, |entry| entry.endpoints.remove(number));
        }
        if let Some(gateway) = &workload.network_gateway {
            self.gateways.update(&workload.network, |gateways| gateways.remove(gateway));
        }
    }

    fn add_service(&mut self, service: &Arc<Service>) {
        self.services.update(&service.key, |entry| entry.service = Some(service.clone()));
        for vip in &service.vips {
            self.by_vip.insert(vip.clone(), service.clone());
        }
        self.services_by_hostname.update(&service.key.hostname, |list| list.insert(service));
    }

    fn remove_service(&mut self, service: &Service) {
        self.services.update(&service.key, |entry| entry.service = None);
        for vip in &service.vips {
            self.by_vip.remove(vip);
        }
        self.services_by_hostname.update(&service.key.hostname, |list| list.remove(&service.key));
    }

    fn add_policy(&mut self, policy: &Arc<Policy>) {
        self.policies.insert(policy.name.clone(), policy.clone());
        match policy.scope {
            Scope::Global => self.global_policies.insert(policy),
            Scope::Namespace => {
                self.namespace_policies.update(&policy.name.namespace, |list| list.insert(policy));
            }
            Scope::WorkloadSelector => {}
        }
    }

    fn remove_policy(&mut self, policy: &Policy) {
        self.policies.remove(&policy.name);
        match policy.scope {
            Scope::Global => self.global_policies.remove(&policy.name),
            Scope::Namespace => {
                self.namespace_policies.update(&policy.name.namespace, |list| list.remove(&policy.name));
            }
            Scope::WorkloadSelector => {}
        }
    }
}

impl PartialEq for Tables {
    fn eq(&self, other: &Self) -> bool {
        self.workloads == other.workloads
            && self.by_address == other.by_address
            && self.by_name == other.by_name
            && self.by_hostname == other.by_hostname
            && self.services == other.services
            && self.by_vip == other.by_vip
            && self.services_by_hostname == other.services_by_hostname
            && self.gateways == other.gateways
            && self.policies == other.policies
            && self.global_policies == other.global_policies
            && self.namespace_policies == other.namespace_policies
    }
}

/// Whatever the numbers.
impl PartialEq for Numbered {
    fn eq(&self, other: &Self) -> bool {
        self.workload == other.workload
    }
}

fn namespace_and_name(workload: &Workload) -> NamespaceAndName {
    (workload.namespace().into(), workload.name.clone())
}

impl NetworkGateways {
    fn add(&mut self, gateway: &GatewayAddress) {
        match self.addresses.binary_search(gateway) {
            Ok(found) => Arc::make_mut(&mut self.uses)[found] += 1,
            Err(at) => {
                self.addresses = with(&self.addresses, at, gateway.clone());
                self.uses = with(&self.uses, at, 1);
            }
        }
    }

    fn remove(&mut self, gateway: &GatewayAddress) {
        let Ok(found) = self.addresses.binary_search(gateway) else { return };
        if self.uses[found] > 1 {
            Arc::make_mut(&mut self.uses)[found] -= 1;
        } else {
            self.addresses = without(&self.addresses, found);
            self.uses = without(&self.uses, found);
        }
    }
}

fn with<T: Clone>(list: &[T], at: usize, item: T) -> Arc<[T]> {
    list[..at].iter().cloned().chain([item]).chain(list[at..].iter().cloned()).collect()
}

fn without<T: Clone>(list: &[T], at: usize) -> Arc<[T]> {
    list[..at].iter().chain(&list[at + 1..]).cloned().collect()
}
