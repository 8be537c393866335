//! Which endpoints of a service may be chosen, and why the others may not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::identity::AcceptedIdentities;
use crate::mesh::{
    GatewayAddress, GatewayDestination, HBONE_PORT, HealthPolicy, LoadBalancing, LoadBalancingMode, LoadBalancingScope,
    Protocol, Service, Snapshot, Status, Workload,
};

/// Why an endpoint can't be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unusable {
    Unhealthy,
    NoCapacity,
    NotHbone,
    NoAddress,
    NoPort,
    IllegalPort,
    NoGateway,
    NoNames,
    OtherNetwork,
    NotPreferred,
}

/// Counts of the endpoints that can't be chosen, for an error.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<Unusable, usize>);

impl Reasons {
    pub(super) fn add(&mut self, reason: Unusable) {
        *self.0.entry(reason).or_default() += 1;
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it has no endpoints");
        }
        for (i, (reason, count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {reason}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unhealthy => "unhealthy",
            Self::NoCapacity => "with capacity 0, so without a ready endpoint",
            Self::NotHbone => "not reached by HBONE, and plaintext is not sent",
            Self::NoAddress => "without an address",
            Self::NoPort => "without a target port for this service port",
            Self::IllegalPort => "with a target port of the mesh's own proxies",
            Self::NoGateway => "in another network without a usable gateway",
            Self::NoNames => "in another network, where nobody would be accepted: the service has no subjectAltNames",
            Self::OtherNetwork => "in another network",
            Self::NotPreferred => "excluded by the service's STRICT load balancing",
        })
    }
}

/// What holds of any endpoint, wherever it is: health, capacity and protocol.
pub(super) fn check(workload: &Workload, health: HealthPolicy) -> Result<(), Unusable> {
    if workload.status != Status::Healthy && health != HealthPolicy::AllowAll {
        Err(Unusable::Unhealthy)
    } else if workload.capacity == 0 {
        Err(Unusable::NoCapacity)
    } else if workload.protocol != Protocol::Hbone {
        Err(Unusable::NotHbone)
    } else {
        Ok(())
    }
}

/// The workload's address of the same family as `like`, else its first.
pub(super) fn address(workload: &Workload, like: Option<IpAddr>) -> Result<IpAddr, Unusable> {
    let same = |ip: &&IpAddr| like.is_none_or(|like| like.is_ipv4() == ip.is_ipv4());
    let addresses = &workload.addresses;
    addresses.iter().find(same).or_else(|| addresses.first()).copied().ok_or(Unusable::NoAddress)
}

/// Something to choose, in its tier: 0 is the best.
pub(super) struct Ranked<T> {
    pub(super) item: T,
    pub(super) rank: u32,
}

/// All in one tier.
pub(super) fn unranked<T>(items: Vec<T>) -> Vec<Ranked<T>> {
    items.into_iter().map(|item| Ranked { item, rank: 0 }).collect()
}

/// Takes out the endpoints that a STRICT service excludes: they are no alternative to any other.
pub(super) fn exclude<T>(
    rule: &LoadBalancing,
    source: &Workload,
    mut candidates: Vec<T>,
    workload: impl Fn(&T) -> &Workload,
    reasons: &mut Reasons,
) -> Vec<T> {
    if rule.mode == LoadBalancingMode::Strict {
        let before = candidates.len();
        candidates.retain(|c| rule.preferences.iter().all(|scope| shares(*scope, source, workload(c))));
        (candidates.len()..before).for_each(|_| reasons.add(Unusable::NotPreferred));
    }
    candidates
}

/// Puts the endpoints into tiers by the preferences of a service that fails over. Of several tiers these are the best
/// one's, unless `all_ranks` are wanted.
pub(super) fn prefer<T>(
    rule: &LoadBalancing,
    source: &Workload,
    candidates: Vec<T>,
    workload: impl Fn(&T) -> &Workload,
    all_ranks: bool,
) -> Vec<Ranked<T>> {
    if rule.mode != LoadBalancingMode::Failover {
        return unranked(candidates);
    }
    let has = |scope: &LoadBalancingScope, c: &T| shares(*scope, source, workload(c));
    let met: Vec<usize> =
        candidates.iter().map(|c| preferences_met(&rule.preferences, |scope| has(scope, c))).collect();
    let most = met.iter().copied().max().unwrap_or(0);
    let rank = |met: usize| u32::try_from(most - met).unwrap_or(u32::MAX);
    let ranked = candidates.into_iter().zip(met).map(|(item, met)| Ranked { item, rank: rank(met) });
    ranked.filter(|c| all_ranks || c.rank == 0).collect()
}

/// How many preferences hold before the first that does not. As in ztunnel, a leading NETWORK outranks all that
/// follows, and without it the rest still counts, so that endpoints in other networks are told apart.
fn preferences_met(preferences: &[LoadBalancingScope], has: impl Fn(&LoadBalancingScope) -> bool) -> usize {
    let leading = |scopes: &[LoadBalancingScope]| scopes.iter().take_while(|scope| has(scope)).count();
    match preferences {
        [first @ LoadBalancingScope::Network, rest @ ..] if has(first) => 1 + rest.len() + leading(rest),
        [LoadBalancingScope::Network, rest @ ..] => leading(rest),
        all => leading(all),
    }
}

/// Whether both have this in common. What is not known of either is not in common; network and cluster may have the
/// empty name.
fn shares(scope: LoadBalancingScope, a: &Workload, b: &Workload) -> bool {
    let known = |a: &str, b: &str| !a.is_empty() && a == b;
    match scope {
        LoadBalancingScope::Region => known(&a.locality.region, &b.locality.region),
        LoadBalancingScope::Zone => known(&a.locality.zone, &b.locality.zone),
        LoadBalancingScope::Subzone => known(&a.locality.subzone, &b.locality.subzone),
        LoadBalancingScope::Node => known(&a.node, &b.node),
        LoadBalancingScope::Cluster => a.cluster == b.cluster,
        LoadBalancingScope::Network => a.network == b.network,
    }
}

/// A gateway: where to dial, whom to accept there.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    pub(super) accept: AcceptedIdentities,
    pub(super) workload: Arc<Workload>,
}

/// The ways to the network that `remote` is in: through its own gateway, else through any that is known for the
/// network.
pub(super) fn gateways(mesh: &Snapshot, remote: &Workload) -> Vec<Gateway> {
    let of_network = mesh.gateways(&remote.network);
    let addresses = remote.network_gateway.as_ref().map_or(of_network, std::slice::from_ref);
    addresses.iter().flat_map(|address| resolve(mesh, address)).collect()
}

fn resolve(mesh: &Snapshot, gateway: &GatewayAddress) -> Vec<Gateway> {
    let service = match &gateway.destination {
        GatewayDestination::Address(at) => {
            if let Some(workload) = mesh.workload_at(&at.network, at.ip) {
                let address = SocketAddr::new(at.ip, gateway.hbone_mtls_port);
                let accept = AcceptedIdentities::from(workload.identity().clone());
                let found = Gateway { address, accept, workload: workload.clone() };
                let usable = check(workload, HealthPolicy::OnlyHealthy).is_ok();
                return if usable { vec![found] } else { Vec::new() };
            }
            mesh.service_at(&at.network, at.ip)
        }
        GatewayDestination::Hostname(key) => mesh.service(key),
    };
    let Some(service) = service else {
        return Vec::new();
    };
    let through = |workload: &Arc<Workload>, port: Option<u16>| {
        check(workload, service.load_balancing.health_policy).ok()?;
        let address = SocketAddr::new(address(workload, None).ok()?, port?);
        Some(Gateway { address, accept: accepted(workload, service), workload: workload.clone() })
    };
    let endpoints = mesh.endpoints(service).iter();
    endpoints.filter_map(|e| through(&e.workload, e.target_port(service, gateway.hbone_mtls_port))).collect()
}

/// Whom to accept at an endpoint that was reached through a service.
pub(super) fn accepted(workload: &Workload, service: &Service) -> AcceptedIdentities {
    service.subject_alt_names.iter().chain([workload.identity()]).cloned().collect()
}

/// The HBONE address of a workload.
pub(super) fn hbone_address(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, HBONE_PORT)
}
