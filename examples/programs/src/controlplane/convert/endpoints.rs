//! Endpoints that are no pods: of EndpointSlices, WorkloadEntries, and inline in ServiceEntries.

use std::collections::BTreeMap;

use hbone::xds::proto::{NetworkMode, PortList, TunnelProtocol, UInt32Value, Workload, WorkloadStatus, WorkloadType};

use super::super::kinds::{
    EndpointSlice, Map, ServiceEntry, ServicePort, TargetPort, WorkloadEntry, WorkloadEntrySpec,
};
use super::pods::{canonical_name, canonical_revision, entry_keys, mapped};
use super::services::{hostname, key};
use super::{Context, NamespaceMeaning, locality, octets};

impl Context<'_> {
    /// Of Services without a selector: what has one has pods.
    pub(super) fn endpoint_slices(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        let of = self.objects.namespace(namespace);
        for slice in of.endpoint_slices.values().filter(|slice| slice.address_type != "FQDN") {
            let service =
                slice.metadata.labels.get("kubernetes.io/service-name").and_then(|name| of.services.get(name));
            let Some(service) = service.filter(|service| service.spec.selector.is_empty()) else { continue };
            let target = |port: &ServicePort| slice.ports.iter().find(|own| own.name == port.name).map(|own| own.port);
            let ports = service.spec.ports.iter().filter_map(|port| mapped(port.port, target(port)?));
            let services = BTreeMap::from([(key(namespace, &hostname(service)), PortList { ports: ports.collect() })]);
            self.slice(slice, &services, meaning);
        }
    }

    fn slice(&self, slice: &EndpointSlice, services: &BTreeMap<String, PortList>, meaning: &mut NamespaceMeaning) {
        let metadata = &slice.metadata;
        for endpoint in &slice.endpoints {
            if endpoint.target_ref.as_ref().is_some_and(|target| target.kind == "Pod") {
                continue;
            }
            let Some(text) = endpoint.addresses.first() else { continue };
            let Ok(ip) = text.parse() else {
                let object = format!("EndpointSlice {}/{}", metadata.namespace, metadata.name);
                self.problem(meaning, object, format!("endpoints: {text:?} is not an IP address"));
                continue;
            };
            let status = match endpoint.conditions.ready {
                Some(false) => WorkloadStatus::Unhealthy,
                _ => WorkloadStatus::Healthy,
            };
            let uid = format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{ip}",
                self.cluster, metadata.namespace, metadata.name
            );
            let workload = Workload {
                uid: uid.clone(),
                name: metadata.name.clone(),
                namespace: metadata.namespace.clone(),
                addresses: vec![octets(ip)],
                network: self.config.network.clone(),
                trust_domain: self.trust_domain(),
                status: status as i32,
                cluster_id: self.cluster.into(),
                services: services.clone(),
                network_mode: NetworkMode::HostNetwork as i32,
                ..Default::default()
            };
            meaning.workloads.insert(uid, workload);
        }
    }

    pub(super) fn workload_entries(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        for entry in self.objects.namespace(namespace).workload_entries.values() {
            let WorkloadEntry { metadata, spec, status } = entry;
            let labels: Map = metadata.labels.iter().chain(&spec.labels).map(|(k, v)| (k.clone(), v.clone())).collect();
            let services = self.services_of(namespace, &labels, |port| entry_port(port, spec), meaning);
            let uid = format!("{}/networking.istio.io/WorkloadEntry/{namespace}/{}", self.cluster, metadata.name);
            let Some(mut workload) = self.entry(uid, spec, &labels) else {
                let object = format!("WorkloadEntry {namespace}/{}", metadata.name);
                self.problem(meaning, object, format!("spec.address: {:?} is not an IP address or name", spec.address));
                continue;
            };
            let is_unhealthy =
                status.conditions.iter().any(|condition| condition.kind == "Healthy" && condition.status == "False");
            if is_unhealthy {
                workload.status = WorkloadStatus::Unhealthy as i32;
            }
            workload.name.clone_from(&metadata.name);
            workload.namespace = namespace.into();
            workload.workload_name.clone_from(&metadata.name);
            workload.canonical_name = canonical_name(&labels, &metadata.name);
            workload.canonical_revision = canonical_revision(&labels);
            workload.authorization_policies = self.policies_of(namespace, &labels);
            workload.services = services;
            meaning.workloads.insert(workload.uid.clone(), workload);
        }
    }

    /// Endpoints given in a ServiceEntry itself, and its name where DNS says what they are.
    pub(super) fn inline_endpoints(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        for entry in self.objects.namespace(namespace).service_entries.values() {
            let keys: Vec<_> = entry_keys(entry, meaning).collect();
            if keys.is_empty() || entry.spec.workload_selector.is_some() {
                continue;
            }
            let is_dns = matches!(&*entry.spec.resolution, "DNS" | "DNS_ROUND_ROBIN");
            let hosts: Vec<WorkloadEntrySpec> = match is_dns && entry.spec.endpoints.is_empty() {
                true => {
                    let host = |host: &String| WorkloadEntrySpec { address: host.clone(), ..Default::default() };
                    entry.spec.hosts.iter().map(host).collect()
                }
                false => entry.spec.endpoints.clone(),
            };
            for spec in
                hosts.iter().filter(|spec| matches!(&spec.network, n if n.is_empty() || *n == self.config.network))
            {
                self.inline_endpoint(entry, spec, &keys, meaning);
            }
        }
    }

    fn inline_endpoint(
        &self,
        entry: &ServiceEntry,
        spec: &WorkloadEntrySpec,
        keys: &[String],
        meaning: &mut NamespaceMeaning,
    ) {
        let (namespace, name) = (&entry.metadata.namespace, &entry.metadata.name);
        let uid = format!("{}/networking.istio.io/ServiceEntry/{namespace}/{name}/{}", self.cluster, spec.address);
        let Some(mut workload) = self.entry(uid, spec, &spec.labels) else {
            let reason = format!("spec.endpoints: {:?} is not an IP address or name", spec.address);
            return self.problem(meaning, format!("ServiceEntry {namespace}/{name}"), reason);
        };
        let target = |port: &super::super::kinds::EntryPort| match (spec.ports.get(&port.name), port.target_port) {
            (Some(own), _) => *own,
            (None, 0) => port.number,
            (None, target) => target,
        };
        let ports: Vec<_> = entry.spec.ports.iter().filter_map(|port| mapped(port.number, target(port))).collect();
        workload.name.clone_from(name);
        workload.namespace.clone_from(namespace);
        workload.workload_name.clone_from(name);
        workload.canonical_name = canonical_name(&entry.metadata.labels, name);
        workload.canonical_revision = canonical_revision(&entry.metadata.labels);
        workload.authorization_policies = self.policies_of(namespace, &spec.labels);
        workload.services = keys.iter().map(|key| (key.clone(), PortList { ports: ports.clone() })).collect();
        meaning.workloads.insert(workload.uid.clone(), workload);
    }

    /// What both kinds of entries have.
    fn entry(&self, uid: String, spec: &WorkloadEntrySpec, labels: &Map) -> Option<Workload> {
        let (addresses, hostname) = match spec.address.parse() {
            Ok(ip) => (vec![octets(ip)], String::new()),
            Err(_) if is_name(&spec.address) => (Vec::new(), spec.address.clone()),
            Err(_) => return None,
        };
        let is_native = labels.get("networking.istio.io/tunnel").is_some_and(|tunnels| tunnels.contains("http"));
        let network = if spec.network.is_empty() { &self.config.network } else { &spec.network };
        Some(Workload {
            uid,
            addresses,
            hostname,
            network: network.clone(),
            tunnel_protocol: (if is_native { TunnelProtocol::Hbone } else { TunnelProtocol::None }) as i32,
            native_tunnel: is_native,
            trust_domain: self.trust_domain(),
            service_account: spec.service_account.clone(),
            workload_type: WorkloadType::Pod as i32,
            cluster_id: self.cluster.into(),
            locality: locality(&spec.locality),
            capacity: (spec.weight > 0).then_some(UInt32Value { value: spec.weight }),
            ..Default::default()
        })
    }
}

fn entry_port(port: &ServicePort, spec: &WorkloadEntrySpec) -> Option<u16> {
    if let Some(own) = spec.ports.get(&port.name) {
        return Some(*own);
    }
    match &port.target_port {
        None => Some(port.port),
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(name)) => spec.ports.get(name).copied(),
    }
}

fn is_name(text: &str) -> bool {
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    !text.is_empty() && text.split('.').all(is_label)
}
