//! Gateways between networks, and waypoints.

use std::collections::BTreeSet;

use hbone::xds::proto;
use hbone::xds::view::{GatewayHost, NetworkGateway};

use super::super::kinds::{Gateway, Map};
use super::super::manifest::Problem;
use super::super::objects::Objects;
use super::{Context, octets};

const NETWORK_LABEL: &str = "topology.istio.io/network";
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const ACCOUNT_ANNOTATION: &str = "gateway.istio.io/service-account";
const HBONE_PORT: u16 = 15008;

/// The ways into this and other networks.
pub(super) fn convert(objects: &Objects, problems: &mut Vec<Problem>) -> BTreeSet<NetworkGateway> {
    let all = objects.by_namespace.values().flat_map(|of| of.gateways.values());
    let mut found = BTreeSet::new();
    for gateway in all {
        let is_remote = match &*gateway.spec.gateway_class_name {
            "istio-east-west" => false,
            "istio-remote" => true,
            _ => continue,
        };
        match network_gateways(gateway, is_remote) {
            Ok(gateways) => found.extend(gateways),
            Err(reason) => problems.push(Problem {
                source: String::new(),
                line: 0,
                object: format!("Gateway {}/{}", gateway.metadata.namespace, gateway.metadata.name),
                reason: format!("it leads into no network: {reason}"),
            }),
        }
    }
    found
}

fn network_gateways(gateway: &Gateway, is_remote: bool) -> Result<Vec<NetworkGateway>, &'static str> {
    let metadata = &gateway.metadata;
    let network = metadata.labels.get(NETWORK_LABEL).ok_or("it has no label topology.istio.io/network")?;
    let terminates = |tls: &super::super::kinds::ListenerTls| matches!(&*tls.mode, "" | "Terminate");
    let mut listeners = gateway.spec.listeners.iter().filter(|listener| listener.protocol == "HBONE");
    let listener = listeners.find(|listener| is_remote || listener.tls.as_ref().is_some_and(terminates));
    let listener = listener.ok_or("it has no listener for HBONE that terminates TLS")?;
    let addresses = if gateway.status.addresses.is_empty() && is_remote {
        &gateway.spec.addresses
    } else {
        &gateway.status.addresses
    };
    if addresses.is_empty() {
        return Err("it has no address");
    }
    let host = |address: &super::super::kinds::GatewayAddress| match &*address.kind {
        "Hostname" => Some(GatewayHost::Name(address.value.clone())),
        _ => address.value.parse().ok().map(GatewayHost::Ip),
    };
    let gateways = addresses.iter().filter_map(host).map(|host| {
        let mut found =
            NetworkGateway::new((metadata.namespace.as_str(), metadata.name.as_str()), network.as_str(), host);
        if is_remote {
            found.port = listener.port.into();
        }
        if let Some(account) = metadata.annotations.get(ACCOUNT_ANNOTATION) {
            found.service_account.clone_from(account);
        }
        found
    });
    Ok(gateways.collect())
}

/// A waypoint that something uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waypoint<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
}

impl<'a> Context<'a> {
    /// The waypoint before something with these labels in a namespace, if it is for that kind: `service` or `workload`.
    pub(super) fn waypoint(
        &self,
        namespace: &'a str,
        labels: &'a Map,
        kind: &str,
    ) -> Option<(Waypoint<'a>, &'a Gateway)> {
        let objects = self.objects;
        let on_namespace = objects.namespaces.get(namespace).map(|of| &of.metadata.labels);
        let labels =
            [Some(labels), on_namespace].into_iter().flatten().find(|labels| labels.contains_key(USE_WAYPOINT))?;
        let name = labels.get(USE_WAYPOINT).filter(|name| *name != "none")?;
        let namespace = labels.get(USE_WAYPOINT_NAMESPACE).map_or(namespace, String::as_str);
        let gateway = objects.namespace(namespace).gateways.get(name)?;
        let serves = gateway.metadata.labels.get(WAYPOINT_FOR).map_or("service", String::as_str);
        let is_waypoint = gateway.spec.gateway_class_name == "istio-waypoint" && (serves == kind || serves == "all");
        is_waypoint.then_some((Waypoint { namespace, name }, gateway))
    }

    /// As proxies are told of it. `None` until it has an address.
    pub(super) fn waypoint_address(&self, gateway: &Gateway) -> Option<proto::GatewayAddress> {
        let address = gateway.status.addresses.first()?;
        let destination = match &*address.kind {
            "Hostname" => proto::gateway_address::Destination::Hostname(proto::NamespacedHostname {
                namespace: gateway.metadata.namespace.clone(),
                hostname: address.value.clone(),
            }),
            _ => proto::gateway_address::Destination::Address(proto::NetworkAddress {
                network: self.config.network.clone(),
                address: octets(address.value.parse().ok()?),
                length: None,
            }),
        };
        let hbone = gateway.spec.listeners.iter().find(|listener| listener.protocol == "HBONE");
        let port = hbone.map_or(HBONE_PORT, |listener| listener.port);
        Some(proto::GatewayAddress { destination: Some(destination), hbone_mtls_port: port.into() })
    }
}
