//! From the state of all clusters to what one of them is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::proto::{
    GatewayAddress, NamespacedHostname, NetworkAddress, PortList, Service, TunnelProtocol, UInt32Value, Workload,
    WorkloadType, gateway_address, octets,
};
use super::changes::View;
use super::cluster::{Cluster, ClusterService, GatewayHost, NetworkGateway};
use super::{Options, Views};

/// What an identity is in when its trust domain is left out.
const TRUST_DOMAIN: &str = "cluster.local";

/// One copy of a service, and its cluster.
type Copy<'a> = (&'a Cluster, &'a ClusterService);

impl Views {
    /// Everything that a cluster is sent.
    pub(super) fn compute_all(&self, id: &str, view: &mut View) {
        let Some(own) = self.clusters.get(id) else { return };
        let near = |of: &&Cluster| of.config.network == own.config.network;
        let (near, far): (Vec<_>, Vec<_>) = self.clusters.values().partition(near);
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for of in &near {
            for (uid, workload) in &of.workloads {
                view.set_workload(uid, Some(workload));
                wanted.insert(uid.to_string());
            }
        }
        for gateway in self.gateways(own) {
            let workload = gateway_workload(gateway, own);
            view.set_workload(&workload.uid, Some(&workload));
            wanted.insert(workload.uid);
        }
        let services: BTreeSet<_> = near.iter().chain(&far).flat_map(|of| of.services.keys()).cloned().collect();
        let known: BTreeSet<_> = view.stand_ins.keys().cloned().collect();
        for service in services.union(&known) {
            self.compute_service(id, service, view);
            wanted.insert(service.to_string());
        }
        wanted.extend(view.stand_ins.values().flatten().map(|name| name.to_string()));
        let gone: Vec<String> = view
            .addresses()
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !wanted.contains(*name))
            .map(Into::into)
            .collect();
        for name in gone {
            view.set_workload(&name, None);
        }
    }

    /// What a cluster is sent about one service.
    pub(super) fn compute_service(&self, id: &str, key: &Arc<str>, view: &mut View) {
        let Some(own) = self.clusters.get(id) else { return };
        let local = own.services.get(key);
        let copies: Vec<Copy<'_>> = match local {
            Some(local) if !local.is_global(&own.config.scopes) => vec![(own, local)],
            _ => {
                let others = self.clusters.iter().filter(|(other, _)| &***other != id).map(|(_, of)| of);
                let remote = others.filter_map(|of| Some((of, of.services.get(key)?)));
                let remote = remote.filter(|(_, copy)| copy.is_global(&own.config.scopes));
                local.map(|local| (own, local)).into_iter().chain(remote).collect()
            }
        };
        let service = copies.first().map(|_| merged(own, key, &copies, self.options));
        let stand_ins: BTreeMap<Arc<str>, Workload> = match &service {
            Some(service) => self.stand_ins(own, key, service, &copies),
            None => BTreeMap::new(),
        };
        view.set_service(key, service);
        for (uid, workload) in &stand_ins {
            view.set_workload(uid, Some(workload));
        }
        let names: BTreeSet<_> = stand_ins.into_keys().collect();
        let before = match names.is_empty() {
            true => view.stand_ins.remove(key),
            false => view.stand_ins.insert(key.clone(), names.clone()),
        };
        for gone in before.unwrap_or_default().difference(&names) {
            view.set_workload(gone, None);
        }
    }

    /// The gateways into other networks than its own.
    fn gateways(&self, own: &Cluster) -> BTreeSet<&NetworkGateway> {
        let all = self.clusters.values().flat_map(|of| &of.gateways);
        all.filter(|gateway| gateway.network != own.config.network).collect()
    }

    /// What stands for the endpoints of a service in each other network.
    fn stand_ins(
        &self,
        own: &Cluster,
        key: &Arc<str>,
        service: &Service,
        copies: &[Copy<'_>],
    ) -> BTreeMap<Arc<str>, Workload> {
        let mut capacities: BTreeMap<&str, u64> = BTreeMap::new();
        for (of, _) in copies.iter().filter(|(of, _)| of.config.network != own.config.network) {
            let endpoints = of.endpoints(key);
            *capacities.entry(&of.config.network).or_default() +=
                endpoints.map_or(0, |endpoints| endpoints.capacity(self.options.only_ready()));
        }
        let mut stand_ins = BTreeMap::new();
        for (network, capacity) in capacities.into_iter().filter(|(_, capacity)| *capacity > 0) {
            let mut gateways = self.gateways_into(network);
            if !self.options.all_gateways() {
                gateways.truncate(1);
            }
            for ((gateway, cluster), capacity) in gateways.iter().zip(shares(capacity, gateways.len())) {
                if capacity > 0 {
                    let stand_in = stand_in(own, (gateway, cluster), key, service, capacity);
                    stand_ins.insert(stand_in.uid.as_str().into(), stand_in);
                }
            }
        }
        stand_ins
    }

    /// The gateways into a network, each with the cluster that it is in.
    fn gateways_into(&self, network: &str) -> Vec<(&NetworkGateway, &str)> {
        let all = self.clusters.iter().flat_map(|(id, of)| of.gateways.iter().map(move |gateway| (gateway, &**id)));
        let mut all: Vec<_> = all.filter(|(gateway, _)| gateway.network == network).collect();
        all.sort();
        // The same one may be known from both sides.
        all.dedup_by(|a, b| a.0.address == b.0.address);
        all
    }
}

/// Divides a capacity into equal whole parts, the first of which take the rest.
fn shares(capacity: u64, parts: usize) -> impl Iterator<Item = u64> {
    let parts = parts.max(1) as u64;
    (0..parts).map(move |part| capacity / parts + u64::from(part < capacity % parts))
}

/// A service of which there are copies, of which the first decides.
fn merged(own: &Cluster, key: &str, copies: &[Copy<'_>], options: Options) -> Service {
    let (_, base) = copies[0];
    let mut service = base.service.clone();
    // By cluster and not by whose copy decides: the same in every view.
    let mut by_cluster: Vec<_> = copies.iter().collect();
    by_cluster.sort_by_key(|(of, _)| &of.id);
    service.addresses.clear();
    for address in by_cluster.iter().flat_map(|(_, copy)| &copy.service.addresses) {
        if !service.addresses.contains(address) {
            service.addresses.push(address.clone());
        }
    }
    let mut names: BTreeSet<String> = service.subject_alt_names.drain(..).collect();
    let trust_domain = trust_domain(own);
    for (of, copy) in copies.iter().filter(|(of, _)| of.config.network != own.config.network) {
        names.extend(copy.service.subject_alt_names.iter().cloned());
        let accounts = of.endpoints(key).into_iter().flat_map(|endpoints| endpoints.accounts(options.only_ready()));
        let waypoints = copy.waypoint_accounts.iter().filter(|_| options.waypoint_identities());
        let accounts = accounts.chain(waypoints).filter(|(_, account)| !account.is_empty());
        names.extend(
            accounts.map(|(namespace, account)| format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}")),
        );
    }
    service.subject_alt_names = names.into_iter().collect();
    service
}

fn trust_domain(of: &Cluster) -> &str {
    match &*of.config.trust_domain {
        "" => TRUST_DOMAIN,
        name => name,
    }
}

/// As it is sent: the usual one is left out.
fn sent_trust_domain(of: &Cluster) -> String {
    match trust_domain(of) {
        TRUST_DOMAIN => String::new(),
        name => name.into(),
    }
}

fn stand_in(
    own: &Cluster,
    (gateway, cluster): (&NetworkGateway, &str),
    key: &str,
    service: &Service,
    capacity: u64,
) -> Workload {
    let NetworkGateway { namespace, name, network, address, .. } = gateway;
    let uid = format!("{network}/SplitHorizonWorkload/{namespace}/{name}/{address}/{key}");
    Workload {
        name: uid.clone(),
        uid,
        namespace: service.namespace.clone(),
        network: network.clone(),
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        trust_domain: sent_trust_domain(own),
        workload_type: WorkloadType::Pod as i32,
        cluster_id: cluster.into(),
        network_gateway: Some(gateway_address(gateway)),
        services: BTreeMap::from([(key.into(), PortList { ports: service.ports.clone() })]),
        capacity: Some(UInt32Value { value: u32::try_from(capacity).unwrap_or(u32::MAX) }),
        ..Default::default()
    }
}

fn gateway_address(gateway: &NetworkGateway) -> GatewayAddress {
    let destination = match &gateway.address {
        GatewayHost::Ip(ip) => gateway_address::Destination::Address(NetworkAddress {
            network: gateway.network.clone(),
            address: octets(*ip),
            length: None,
        }),
        GatewayHost::Name(name) => gateway_address::Destination::Hostname(NamespacedHostname {
            namespace: gateway.namespace.clone(),
            hostname: name.clone(),
        }),
    };
    GatewayAddress { destination: Some(destination), hbone_mtls_port: gateway.port }
}

/// Tells who a gateway is.
fn gateway_workload(gateway: &NetworkGateway, own: &Cluster) -> Workload {
    let (addresses, hostname) = match &gateway.address {
        GatewayHost::Ip(ip) => (vec![octets(*ip)], String::new()),
        GatewayHost::Name(name) => (Vec::new(), name.clone()),
    };
    Workload {
        uid: gateway.uid(),
        name: gateway.uid(),
        namespace: gateway.namespace.clone(),
        addresses,
        hostname,
        network: gateway.network.clone(),
        trust_domain: sent_trust_domain(own),
        service_account: gateway.service_account.clone(),
        ..Default::default()
    }
}
