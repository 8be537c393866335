//! Where clusters disagree about a global service, and what is done about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::super::proto::{AppProtocol, LoadBalancing, Service, gateway_address, load_balancing};
use super::{ClusterService, Views};

/// A field of a global service that differs between clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skew {
    /// The service, as `NAMESPACE/HOSTNAME`.
    pub service: Arc<str>,
    /// What differs.
    pub field: SkewField,
    /// What each cluster that has the service says.
    pub values: BTreeMap<Arc<str>, String>,
    /// What is done about it.
    pub resolution: Resolution,
}

/// What can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum SkewField {
    /// Which clusters say that the service is global.
    Scope,
    /// The service ports. Target ports may differ: each cluster maps its own.
    Ports,
    /// What is spoken at a port.
    AppProtocols,
    /// The waypoint.
    Waypoint,
    /// Which endpoints are preferred.
    TrafficDistribution,
    /// Identities that the endpoints may have beside their own.
    SubjectAltNames,
    /// Which clusters have the service at all.
    Presence,
}

/// What is done about a [`Skew`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resolution {
    /// Each cluster goes by its own copy.
    LocalCopy,
    /// Each cluster goes by its own copy, and a port that the other side does not know is refused there.
    LocalCopyMayFail,
    /// The service stays apart: where it is not global, others neither learn of it nor reach it.
    Apart,
    /// All of them hold.
    Union,
    /// The waypoint of the destination's cluster is passed, whatever the client's cluster says.
    DestinationWaypoint,
    /// Clusters without it reach the others by the copy of the first.
    FirstCopy,
}

impl Views {
    /// Where clusters disagree about services that any of them calls global.
    pub fn skew(&self) -> Vec<Skew> {
        let keys: BTreeSet<&Arc<str>> = self.clusters.values().flat_map(|of| of.services.keys()).collect();
        keys.into_iter().flat_map(|key| self.skew_of(key)).collect()
    }

    /// Where clusters disagree about one service.
    pub fn skew_of(&self, key: &str) -> Vec<Skew> {
        let copies: Vec<(&Arc<str>, &ClusterService, bool)> = self
            .clusters
            .iter()
            .filter_map(|(id, of)| of.services.get(key).map(|copy| (id, copy, copy.is_global(&of.config.scopes))))
            .collect();
        let Some((name, _)) = self.clusters.values().find_map(|of| of.services.get_key_value(key)) else {
            return Vec::new();
        };
        if !copies.iter().any(|(_, _, is_global)| *is_global) {
            return Vec::new();
        }
        let mut found = Vec::new();
        let mut compare = |field, resolution, values: BTreeMap<Arc<str>, String>| {
            if values.values().collect::<BTreeSet<_>>().len() > 1 {
                found.push(Skew { service: name.clone(), field, values, resolution });
            }
        };
        let has = |id: &Arc<str>| copies.iter().any(|(other, _, _)| *other == id);
        let presence = |id: &Arc<str>| if has(id) { "there" } else { "missing" };
        let presence = self.clusters.keys().map(|id| (id.clone(), presence(id).to_owned())).collect();
        compare(SkewField::Presence, Resolution::FirstCopy, presence);
        let scope = |is_global: bool| if is_global { "GLOBAL" } else { "LOCAL" };
        let scopes = copies.iter().map(|(id, _, is_global)| ((*id).clone(), scope(*is_global).to_owned()));
        compare(SkewField::Scope, Resolution::Apart, scopes.collect());

        let global: Vec<_> = copies.iter().filter(|(_, _, is_global)| *is_global).collect();
        let values = |value: fn(&Service) -> String| {
            global.iter().map(|(id, copy, _)| ((*id).clone(), value(&copy.service))).collect::<BTreeMap<_, _>>()
        };
        compare(SkewField::Ports, Resolution::LocalCopyMayFail, values(ports));
        compare(SkewField::AppProtocols, Resolution::LocalCopy, values(app_protocols));
        compare(SkewField::Waypoint, Resolution::DestinationWaypoint, values(waypoint));
        compare(SkewField::TrafficDistribution, Resolution::LocalCopy, values(traffic_distribution));
        compare(SkewField::SubjectAltNames, Resolution::Union, values(subject_alt_names));
        found
    }
}

fn ports(service: &Service) -> String {
    let ports: BTreeSet<u32> = service.ports.iter().map(|port| port.service_port).collect();
    join(ports.iter().map(u32::to_string))
}

fn app_protocols(service: &Service) -> String {
    let name = |port: &super::super::proto::Port| {
        let protocol = AppProtocol::try_from(port.app_protocol).unwrap_or(AppProtocol::Unknown);
        (port.service_port, protocol.as_str_name())
    };
    let protocols: BTreeSet<_> = service.ports.iter().map(name).collect();
    join(protocols.into_iter().map(|(port, protocol)| format!("{port} {protocol}")))
}

fn waypoint(service: &Service) -> String {
    match service.waypoint.as_ref().and_then(|waypoint| waypoint.destination.as_ref()) {
        Some(gateway_address::Destination::Hostname(name)) => format!("{}/{}", name.namespace, name.hostname),
        // Addresses differ between clusters even if they mean the same.
        Some(gateway_address::Destination::Address(_)) => "by address".into(),
        None => "none".into(),
    }
}

fn traffic_distribution(service: &Service) -> String {
    let LoadBalancing { routing_preference, mode, health_policy } = service.load_balancing.clone().unwrap_or_default();
    let mode = load_balancing::Mode::try_from(mode).unwrap_or(load_balancing::Mode::Unspecified).as_str_name();
    let scope = |scope: i32| load_balancing::Scope::try_from(scope).map_or("?", load_balancing::Scope::as_str_name);
    let all = load_balancing::HealthPolicy::try_from(health_policy) == Ok(load_balancing::HealthPolicy::AllowAll);
    let preferences = join(routing_preference.into_iter().map(|value| scope(value).to_owned()));
    [mode, &preferences, if all { "unready too" } else { "" }]
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join(" ")
}

fn subject_alt_names(service: &Service) -> String {
    let names: BTreeSet<_> = service.subject_alt_names.iter().cloned().collect();
    join(names)
}

fn join(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

impl fmt::Display for SkewField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scope => "scope",
            Self::Ports => "ports",
            Self::AppProtocols => "application protocols",
            Self::Waypoint => "waypoint",
            Self::TrafficDistribution => "traffic distribution",
            Self::SubjectAltNames => "subject alternative names",
            Self::Presence => "presence",
        })
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LocalCopy => "each cluster goes by its own copy",
            Self::LocalCopyMayFail => {
                "each cluster goes by its own copy; a port that the other side does not know is refused there"
            }
            Self::Apart => "where it is not global, others are neither told of it nor reached",
            Self::Union => "all of them hold",
            Self::DestinationWaypoint => "the waypoint of the destination's cluster is passed",
            Self::FirstCopy => "clusters without it reach the others by the copy of the first",
        })
    }
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} differs (", self.service, self.field)?;
        for (n, (cluster, value)) in self.values.iter().enumerate() {
            write!(f, "{}{cluster}: {value}", if n == 0 { "" } else { "; " })?;
        }
        write!(f, "): {}", self.resolution)
    }
}
