//! Services: those of Kubernetes, and ServiceEntries.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hbone::xds::proto::load_balancing::{HealthPolicy, Mode, Scope};
use hbone::xds::proto::{IpFamilies, LoadBalancing, NetworkAddress, Port, Service};
use hbone::xds::view::{ClusterService, Origin};

use super::super::kinds::{Map, Service as KubernetesService, ServiceEntry, TargetPort};
use super::{Context, DOMAIN, NamespaceMeaning, octets, ports};

const DISTRIBUTION_ANNOTATION: &str = "networking.istio.io/traffic-distribution";

impl Context<'_> {
    pub(super) fn services(&self, namespace: &str, meaning: &mut NamespaceMeaning) {
        let of = self.objects.namespace(namespace);
        for service in of.services.values().filter(|service| service.spec.kind != "ExternalName") {
            let converted = self.service(service, meaning);
            meaning.services.insert(key(namespace, &hostname(service)), converted);
        }
        for entry in of.service_entries.values() {
            for host in &entry.spec.hosts {
                // A Service of the same name is what others reach by it.
                if !meaning.services.contains_key(&key(namespace, host)) {
                    let converted = self.service_entry(entry, host, meaning);
                    meaning.services.insert(key(namespace, host), converted);
                }
            }
        }
    }

    fn service(&self, service: &KubernetesService, meaning: &mut NamespaceMeaning) -> ClusterService {
        let (metadata, spec) = (&service.metadata, &service.spec);
        let first = std::slice::from_ref(&spec.cluster_ip);
        let ips = if spec.cluster_ips.is_empty() { first } else { &spec.cluster_ips };
        let is_address = |text: &&String| !matches!(&***text, "" | "None");
        let addresses = ips.iter().filter(is_address).filter_map(|text| {
            let address = self.network_address(text);
            if address.is_none() {
                let object = format!("Service {}/{}", metadata.namespace, metadata.name);
                self.problem(meaning, object, format!("spec.clusterIPs: {text:?} is not an IP address"));
            }
            address
        });
        let mut converted = ClusterService::new(Service {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            hostname: hostname(service),
            addresses: addresses.collect(),
            ports: spec.ports.iter().map(port).collect(),
            load_balancing: self.load_balancing(service),
            ip_families: ip_families(&spec.ip_families) as i32,
            canonical: true,
            ..Default::default()
        });
        self.add_waypoint(&metadata.namespace, &metadata.labels, &mut converted);
        converted.labels.clone_from(&metadata.labels);
        converted.namespace_labels = self.namespace_labels(&metadata.namespace);
        converted
    }

    fn service_entry(&self, entry: &ServiceEntry, host: &str, meaning: &mut NamespaceMeaning) -> ClusterService {
        let (metadata, spec) = (&entry.metadata, &entry.spec);
        let addresses = spec.addresses.iter().filter_map(|text| {
            let address = self.network_address(text);
            if address.is_none() {
                let object = format!("ServiceEntry {}/{}", metadata.namespace, metadata.name);
                self.problem(meaning, object, format!("spec.addresses: {text:?} is not an IP address or range"));
            }
            address
        });
        let is_passthrough = matches!(&*spec.resolution, "" | "NONE");
        let mut converted = ClusterService::new(Service {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            hostname: host.into(),
            addresses: addresses.collect(),
            ports: spec.ports.iter().map(entry_port).collect(),
            subject_alt_names: spec.subject_alt_names.clone(),
            load_balancing: is_passthrough.then(|| LoadBalancing {
                mode: Mode::Passthrough as i32,
                health_policy: HealthPolicy::AllowAll as i32,
                ..Default::default()
            }),
            canonical: true,
            ..Default::default()
        });
        self.add_waypoint(&metadata.namespace, &metadata.labels, &mut converted);
        converted.origin = Origin::ServiceEntry;
        converted.labels.clone_from(&metadata.labels);
        converted.namespace_labels = self.namespace_labels(&metadata.namespace);
        converted
    }

    fn add_waypoint(&self, namespace: &str, labels: &Map, service: &mut ClusterService) {
        let Some((_, gateway)) = self.waypoint(namespace, labels, "service") else { return };
        service.service.waypoint = self.waypoint_address(gateway);
        let of = &gateway.metadata;
        let pods = self.objects.namespace(&of.namespace).pods.values();
        let label = "gateway.networking.k8s.io/gateway-name";
        let own = pods.filter(|pod| pod.metadata.labels.get(label) == Some(&of.name));
        let accounts: BTreeSet<_> =
            own.map(|pod| (of.namespace.clone(), super::pods::account(&pod.spec).to_owned())).collect();
        service.waypoint_accounts =
            if accounts.is_empty() { [(of.namespace.clone(), of.name.clone())].into() } else { accounts };
    }

    fn namespace_labels(&self, namespace: &str) -> Map {
        self.objects.namespaces.get(namespace).map(|of| of.metadata.labels.clone()).unwrap_or_default()
    }

    /// An address in the cluster's network, or a range of them.
    fn network_address(&self, text: &str) -> Option<NetworkAddress> {
        let (ip, length) = match text.split_once('/') {
            Some((ip, length)) => (ip, Some(length.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let full = if ip.is_ipv4() { 32 } else { 128 };
        if length.is_some_and(|length| length > full) {
            return None;
        }
        let length = length.filter(|length| *length < full);
        Some(NetworkAddress { network: self.config.network.clone(), address: octets(ip), length })
    }

    fn load_balancing(&self, service: &KubernetesService) -> Option<LoadBalancing> {
        let (metadata, spec) = (&service.metadata, &service.spec);
        let namespace = self.objects.namespaces.get(&metadata.namespace);
        let annotation = metadata
            .annotations
            .get(DISTRIBUTION_ANNOTATION)
            .or_else(|| namespace.and_then(|of| of.metadata.annotations.get(DISTRIBUTION_ANNOTATION)));
        let preferences = distribution(&spec.traffic_distribution)
            .or_else(|| annotation.and_then(|text| annotated_distribution(text)))
            .unwrap_or_default();
        let (mode, preferences) = match (&*spec.internal_traffic_policy, preferences) {
            ("Local", _) => (Mode::Strict, &[Scope::Node][..]),
            (_, []) => (Mode::Unspecified, &[][..]),
            (_, preferences) => (Mode::Failover, preferences),
        };
        let health = match spec.publish_not_ready_addresses {
            true => HealthPolicy::AllowAll,
            false => HealthPolicy::OnlyHealthy,
        };
        let load_balancing = LoadBalancing {
            routing_preference: preferences.iter().map(|scope| *scope as i32).collect(),
            mode: mode as i32,
            health_policy: health as i32,
        };
        (load_balancing != LoadBalancing::default()).then_some(load_balancing)
    }
}

const SAME_ZONE: &[Scope] = &[Scope::Network, Scope::Region, Scope::Zone];
const SAME_NODE: &[Scope] = &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node];

fn distribution(text: &str) -> Option<&'static [Scope]> {
    match text {
        "PreferClose" | "PreferSameZone" => Some(SAME_ZONE),
        "PreferSameNode" => Some(SAME_NODE),
        _ => None,
    }
}

/// Whatever its case; what is not known prefers nothing.
fn annotated_distribution(text: &str) -> Option<&'static [Scope]> {
    match &*text.to_ascii_lowercase() {
        "preferclose" | "prefersamezone" => Some(SAME_ZONE),
        "prefersamenode" => Some(SAME_NODE),
        _ => None,
    }
}

fn ip_families(families: &[String]) -> IpFamilies {
    let has = |family: &str| families.iter().any(|own| own == family);
    match (has("IPv4"), has("IPv6")) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn port(port: &super::super::kinds::ServicePort) -> Port {
    let target = match &port.target_port {
        Some(TargetPort::Number(number)) => *number,
        // It differs between endpoints.
        Some(TargetPort::Name(_)) => 0,
        None => port.port,
    };
    let protocol = ports::of_service(port.port, &port.name, &port.protocol, port.app_protocol.as_deref());
    Port { service_port: port.port.into(), target_port: target.into(), app_protocol: protocol as i32 }
}

fn entry_port(port: &super::super::kinds::EntryPort) -> Port {
    let target = if port.target_port == 0 { port.number } else { port.target_port };
    let protocol = ports::of_entry(port.number, &port.name, &port.protocol);
    Port { service_port: port.number.into(), target_port: target.into(), app_protocol: protocol as i32 }
}

pub(super) fn hostname(service: &KubernetesService) -> String {
    format!("{}.{}.svc.{DOMAIN}", service.metadata.name, service.metadata.namespace)
}

pub(super) fn key(namespace: &str, hostname: &str) -> String {
    format!("{namespace}/{hostname}")
}
