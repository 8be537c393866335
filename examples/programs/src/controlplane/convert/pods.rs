//! Pods as workloads.

use std::collections::BTreeMap;

use hbone::xds::proto::{
    Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

use super::super::kinds::{Map, Pod, PodSpec, ServicePort, TargetPort};
use super::services::{hostname, key};
use super::{Context, NamespaceMeaning, octets, selects};

impl Context<'_> {
    pub(super) fn pods(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        for pod in self.objects.namespace(namespace).pods.values() {
            if let Some(workload) = self.pod(pod, meaning) {
                meaning.workloads.insert(workload.uid.clone(), workload);
            }
        }
    }

    /// `None` for one that has ended, or has no address yet.
    fn pod(&self, pod: &Pod, meaning: &mut NamespaceMeaning) -> Option<Workload> {
        let Pod { metadata, spec, status } = pod;
        if matches!(&*status.phase, "Succeeded" | "Failed") {
            return None;
        }
        let all: Vec<&str> = match status.pod_ips.is_empty() {
            true => Some(&*status.pod_ip).into_iter().filter(|ip| !ip.is_empty()).collect(),
            false => status.pod_ips.iter().map(|ip| &*ip.ip).collect(),
        };
        let mut addresses = Vec::new();
        for text in all {
            match text.parse() {
                Ok(ip) => addresses.push(octets(ip)),
                Err(_) => {
                    let object = format!("Pod {}/{}", metadata.namespace, metadata.name);
                    self.problem(meaning, object, format!("status.podIPs: {text:?} is not an IP address"));
                }
            }
        }
        if addresses.is_empty() {
            return None;
        }
        let (labels, namespace) = (&metadata.labels, &metadata.namespace);
        let is_native = labels.get("networking.istio.io/tunnel").is_some_and(|tunnels| tunnels.contains("http"));
        let is_captured = metadata.annotations.get("ambient.istio.io/redirection").is_some_and(|to| to == "enabled");
        let tunnel = match !spec.host_network && (is_native || is_captured) {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::None,
        };
        let is_ready =
            status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True");
        let health = match is_ready && metadata.deletion_timestamp.is_none() {
            true => WorkloadStatus::Healthy,
            false => WorkloadStatus::Unhealthy,
        };
        let network = labels.get("topology.istio.io/network").unwrap_or(&self.config.network);
        let workload_name = owner(pod);
        let is_managed = labels.contains_key("gateway.istio.io/managed");
        let waypoint = (!is_managed).then(|| self.waypoint(namespace, labels, "workload")).flatten();
        let services = self.services_of(namespace, labels, |port| pod_port(port, spec), meaning);
        let mut policies = self.policies_of(namespace, labels);
        policies.extend(self.waypoint_policies_of(namespace, labels, &services, waypoint.as_ref().map(|(of, _)| of)));
        Some(Workload {
            uid: format!("{}//Pod/{namespace}/{}", self.cluster, metadata.name),
            name: metadata.name.clone(),
            namespace: namespace.clone(),
            addresses,
            network: network.clone(),
            tunnel_protocol: tunnel as i32,
            trust_domain: self.trust_domain(),
            service_account: account(spec).into(),
            waypoint: waypoint.and_then(|(_, gateway)| self.waypoint_address(gateway)),
            node: spec.node_name.clone(),
            canonical_name: canonical_name(labels, &workload_name),
            canonical_revision: canonical_revision(labels),
            workload_type: WorkloadType::Pod as i32,
            workload_name,
            native_tunnel: is_native && !spec.host_network,
            authorization_policies: policies,
            status: health as i32,
            cluster_id: self.cluster.into(),
            services,
            locality: self.node_locality(&spec.node_name),
            network_mode: (if spec.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }) as i32,
            ..Default::default()
        })
    }

    fn node_locality(&self, node: &str) -> Option<Locality> {
        let labels = &self.objects.nodes.get(node)?.metadata.labels;
        let label =
            |name: &str, older: &str| labels.get(name).or_else(|| labels.get(older)).cloned().unwrap_or_default();
        let locality = Locality {
            region: label("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
            subzone: labels.get("topology.istio.io/subzone").cloned().unwrap_or_default(),
        };
        (locality != Locality::default()).then_some(locality)
    }

    /// The services that select these labels, each with the ports that the endpoint has. `target` finds a Service's
    /// port at the endpoint; a ServiceEntry's is the one that it says.
    pub(super) fn services_of(
        &self,
        namespace: &str,
        labels: &Map,
        target: impl Fn(&ServicePort) -> Option<u16>,
        meaning: &NamespaceMeaning,
    ) -> BTreeMap<String, PortList> {
        let of = self.objects.namespace(namespace);
        let mut found = BTreeMap::new();
        for service in of.services.values() {
            if selects(&service.spec.selector, labels) && service.spec.kind != "ExternalName" {
                let ports = service.spec.ports.iter().filter_map(|port| mapped(port.port, target(port)?));
                found.insert(key(namespace, &hostname(service)), PortList { ports: ports.collect() });
            }
        }
        for entry in of.service_entries.values() {
            let selector = entry.spec.workload_selector.as_ref();
            if !selector.is_some_and(|selector| selects(&selector.labels, labels)) {
                continue;
            }
            for key in entry_keys(entry, meaning) {
                let target = |port: &super::super::kinds::EntryPort| match port.target_port {
                    0 => port.number,
                    target => target,
                };
                let ports = entry.spec.ports.iter().filter_map(|port| mapped(port.number, target(port)));
                found.insert(key, PortList { ports: ports.collect() });
            }
        }
        found
    }
}

/// The services that a ServiceEntry makes, without those of a Service of the same name.
pub(super) fn entry_keys<'a>(
    entry: &'a super::super::kinds::ServiceEntry,
    meaning: &'a NamespaceMeaning,
) -> impl Iterator<Item = String> + 'a {
    let keys = entry.spec.hosts.iter().map(|host| key(&entry.metadata.namespace, host));
    keys.filter(|key| {
        let service = meaning.services.get(key);
        service.is_some_and(|service| service.origin == hbone::xds::view::Origin::ServiceEntry)
    })
}

pub(super) fn mapped(service: u16, target: u16) -> Option<Port> {
    (service != 0 && target != 0).then(|| Port {
        service_port: service.into(),
        target_port: target.into(),
        app_protocol: 0,
    })
}

fn pod_port(port: &ServicePort, spec: &PodSpec) -> Option<u16> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(TargetPort::Number(number)) => return Some(*number),
        Some(TargetPort::Name(name)) => name,
    };
    let protocol = |text: &str| if text.is_empty() { "TCP".to_owned() } else { text.to_owned() };
    let containers = spec.containers.iter().chain(&spec.init_containers);
    let mut ports = containers.flat_map(|container| &container.ports);
    let found = ports.find(|own| own.name == *name && protocol(&own.protocol) == protocol(&port.protocol))?;
    Some(found.container_port)
}

pub(super) fn account(spec: &PodSpec) -> &str {
    match &*spec.service_account_name {
        "" => "default",
        name => name,
    }
}

/// What has made a pod whose name is generated: a Deployment, a CronJob, whatever else. Else the pod itself.
fn owner(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let owner = metadata.owner_references.iter().find(|owner| owner.controller);
    let Some(owner) = owner.filter(|_| !metadata.generate_name.is_empty()) else { return metadata.name.clone() };
    let hash = metadata.labels.get("pod-template-hash").filter(|hash| !hash.is_empty());
    match (&*owner.kind, hash) {
        ("ReplicaSet", Some(hash)) => {
            let name = owner.name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-'));
            name.unwrap_or(&owner.name).into()
        }
        ("Job", _) => match owner.name.rsplit_once('-') {
            // A CronJob's jobs end with the minute that they are for.
            Some((name, time)) if (8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit()) => {
                name.into()
            }
            _ => owner.name.clone(),
        },
        _ => owner.name.clone(),
    }
}

pub(super) fn canonical_name(labels: &Map, otherwise: &str) -> String {
    first_of(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or(otherwise).into()
}

pub(super) fn canonical_revision(labels: &Map) -> String {
    let names = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    first_of(labels, &names).unwrap_or("latest").into()
}

fn first_of<'a>(labels: &'a Map, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
}
