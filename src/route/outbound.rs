//! The client's side.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::candidates::{
    Gateway, Reasons, Unusable, accepted, address, check, exclude, gateways, hbone_address, prefer, unranked,
};
use super::{Choice, Route, is_illegal};
use crate::authority::{Authority, HostPort};
use crate::balance::InFlight;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::identity::AcceptedIdentities;
use crate::mesh::{Endpoint, LoadBalancingMode, Network, Protocol, Service, Snapshot, Workload};
use crate::path::{DirectHop, Path, Reuse, TunnelledHop};

/// Decides where a connection of `source` to `target` goes.
///
/// A target is, in this order: the virtual address of a service in the source's network, the address of a workload
/// there, the hostname of a service (one in the source's namespace before others), or that of a workload. An address
/// in another network is never a target: networks may use the same addresses for different things.
///
/// Of a service, the endpoints to choose from are those that are healthy (unless its health policy is
/// [`AllowAll`](crate::mesh::HealthPolicy::AllowAll)), have capacity, speak HBONE, have a target port for the port
/// asked for, and can be reached: in the source's network by an address; in another by a gateway, if the service has
/// subject alternative names, since only these say who may answer there. A STRICT service excludes those that don't
/// meet all of its preferences; `choice` leaves out what has failed recently; a service that fails over thins out the
/// rest, so that a tier, or a network, in which all have failed gives way to the next; then the balancer chooses. One
/// that [heeds ranks](crate::balance::Balance::heeds_rank) is given all tiers of a service that fails over. Where there
/// is only one way, as to a workload by its own address, that one is taken.
///
/// In the source's own network the path has one hop, to the workload's address, which may be shared, and the
/// authority is the workload's address with the target port. To another network it has two: to the gateway, and
/// through it to the service, both with the service's hostname and port as authority. The second is [`Reuse::Spread`]
/// over the ready endpoints there.
///
/// # Errors
///
/// [`ErrorKind::NoRoute`], with target, source and reason, when nothing of this kind is known or usable. Also where a
/// waypoint would have to be passed, since waypoints are not supported and leaving one out would skip its policy; for a
/// workload outside of the mesh, since that would be plaintext; and for ports of the mesh's own proxies.
pub fn outbound(mesh: &Snapshot, source: &Workload, target: &Authority, choice: &Choice<'_>) -> Result<Route, Error> {
    let query = Query { mesh, source, target, choice };
    match target {
        Authority::Ip(addr) => query.by_address(*addr),
        Authority::Name(name) => query.by_name(name),
    }
}

struct Query<'a> {
    mesh: &'a Snapshot,
    source: &'a Workload,
    target: &'a Authority,
    choice: &'a Choice<'a>,
}

/// A usable endpoint, and the way to it.
struct Reached {
    workload: Arc<Workload>,
    way: Way,
}

enum Way {
    Near { ip: IpAddr, target_port: u16 },
    Far { gateways: Vec<Gateway> },
}

impl Query<'_> {
    fn by_address(&self, addr: SocketAddr) -> Result<Route, Error> {
        let (network, ip) = (&self.source.network, addr.ip().to_canonical());
        if let Some(service) = self.mesh.service_at(network, ip) {
            return self.service(service, addr.port(), Some(ip));
        }
        if let Some(workload) = self.mesh.workload_at(network, ip) {
            return self.workload(workload, ip, addr.port());
        }
        let elsewhere = |network| {
            format!("it is an address in network {network}, and no network is left by address; use the hostname")
        };
        let vip = self.mesh.services().flat_map(|s| &s.vips).find(|vip| vip.ip == ip).map(|vip| &vip.network);
        let pod = self.mesh.workloads().find(|w| !w.host_network && w.has_address(ip)).map(|w| &w.network);
        match vip.or(pod) {
            Some(network) => Err(self.no_route(elsewhere(network))),
            None => Err(self.no_route(format_args!("no service or workload in network {network} has this address"))),
        }
    }

    fn by_name(&self, name: &HostPort) -> Result<Route, Error> {
        let namespace = self.source.namespace();
        if let Some(service) = self.mesh.service_by_hostname(name.host(), namespace) {
            return self.service(service, name.port(), None);
        }
        let Some(workload) = self.mesh.workload_by_hostname(name.host(), namespace) else {
            return Err(self.no_route("no service or workload has this hostname"));
        };
        let ip = address(workload, self.source.addresses.first().copied());
        let ip = ip.map_err(|reason| self.no_route(format_args!("workload {workload} is {reason}")))?;
        self.workload(workload, ip, name.port())
    }

    /// To a workload by its own address or name.
    fn workload(&self, workload: &Arc<Workload>, ip: IpAddr, port: u16) -> Result<Route, Error> {
        if workload.waypoint.is_some() {
            return Err(
                self.no_route(format_args!("workload {workload} has a waypoint, and waypoints are not supported yet"))
            );
        }
        if workload.network != self.source.network {
            return Err(self.no_route(format_args!(
                "workload {workload} is in network {}, and only services are reached in other networks",
                workload.network
            )));
        }
        if workload.protocol != Protocol::Hbone {
            return Err(self.no_route(format_args!("workload {workload} is {}", Unusable::NotHbone)));
        }
        if port == 0 || is_illegal(port) {
            return Err(self.no_route(format_args!("port {port} is 0 or one of the mesh's own proxies")));
        }
        let accept = workload.identity().clone().into();
        Ok(near(workload.clone(), ip, port, accept, None))
    }

    fn service(&self, service: &Arc<Service>, port: u16, dialled: Option<IpAddr>) -> Result<Route, Error> {
        if service.waypoint.is_some() {
            return Err(
                self.no_route(format_args!("service {service} has a waypoint, and waypoints are not supported yet"))
            );
        }
        if service.load_balancing.mode == LoadBalancingMode::Passthrough {
            return Err(self.no_route(format_args!("service {service} has mode PASSTHROUGH, which is not supported")));
        }
        let endpoints = self.mesh.endpoints(service);
        let has_port = |e: &Endpoint| e.target_port(service, port).is_some();
        if !service.ports.contains(port) && !endpoints.iter().any(has_port) {
            return Err(self.no_route(format_args!("service {service} has no port {port}")));
        }
        let mut reasons = Reasons::default();
        let mut reached = Vec::new();
        for endpoint in endpoints {
            match self.reach(service, endpoint, port, dialled) {
                Ok(way) => reached.push(Reached { workload: endpoint.workload.clone(), way }),
                Err(reason) => reasons.add(reason),
            }
        }
        let mut capacities: HashMap<Network, u32> = HashMap::new();
        for Reached { workload, .. } in &reached {
            let there = capacities.entry(workload.network.clone()).or_default();
            *there = there.saturating_add(workload.capacity);
        }
        let rule = &service.load_balancing;
        let allowed = exclude(rule, self.source, reached, |r| &r.workload, &mut reasons);
        let record = |r: &Reached| match &r.way {
            Way::Near { .. } => self.choice.endpoint(&r.workload),
            Way::Far { gateways } => self.choice.ways(gateways, service),
        };
        let untried = |r: &Reached| match &r.way {
            Way::Near { .. } => usize::from(!self.choice.endpoint(&r.workload).is_tried()),
            Way::Far { gateways } => gateways.iter().filter(|g| !self.choice.way(g, service).is_tried()).count(),
        };
        let untried: usize = allowed.iter().map(untried).sum();
        let left = self.choice.narrow(allowed, record, |r| &r.workload);
        let best = prefer(rule, self.source, left, |r| &r.workload, self.choice.heeds_rank());
        let Some((Reached { workload, way }, in_flight)) = self.choice.pick(best, |r| &r.workload) else {
            return Err(self.no_route(format_args!("no endpoint of service {service} can be used: {reasons}")));
        };
        match way {
            Way::Near { ip, target_port } => {
                let accept = accepted(&workload, service);
                let route = near(workload, ip, target_port, accept, Some(service.clone()));
                let others = untried - usize::from(!self.choice.endpoint(&route.picked).is_tried());
                Ok(Route { in_flight, others, ..route })
            }
            Way::Far { gateways } => {
                let left = self.choice.narrow(gateways, |g| self.choice.way(g, service), |g| &g.workload);
                let Some((gateway, at_gateway)) = self.choice.pick(unranked(left), |g| &g.workload) else {
                    return Err(self.no_route(format_args!("no gateway of network {} was chosen", workload.network)));
                };
                let capacity = capacities.get(&workload.network).copied().unwrap_or(1);
                let others = untried - usize::from(!self.choice.way(&gateway, service).is_tried());
                let route = self.far(workload, gateway, service, port, capacity)?;
                Ok(Route { in_flight: in_flight.and(at_gateway), others, ..route })
            }
        }
    }

    fn reach(
        &self,
        service: &Service,
        endpoint: &Endpoint,
        port: u16,
        dialled: Option<IpAddr>,
    ) -> Result<Way, Unusable> {
        let workload = &*endpoint.workload;
        check(workload, service.load_balancing.health_policy)?;
        let target_port = endpoint.target_port(service, port).ok_or(Unusable::NoPort)?;
        if workload.network == self.source.network {
            if is_illegal(target_port) {
                return Err(Unusable::IllegalPort);
            }
            let ip = address(workload, dialled.or(self.source.addresses.first().copied()))?;
            return Ok(Way::Near { ip, target_port });
        }
        if service.subject_alt_names.is_empty() {
            return Err(Unusable::NoNames);
        }
        let gateways = gateways(self.mesh, workload);
        if gateways.is_empty() { Err(Unusable::NoGateway) } else { Ok(Way::Far { gateways }) }
    }

    fn far(
        &self,
        picked: Arc<Workload>,
        gateway: Gateway,
        service: &Arc<Service>,
        port: u16,
        capacity: u32,
    ) -> Result<Route, Error> {
        let authority = Authority::name(service.hostname(), port)
            .map_err(|e| self.no_route(format_args!("service {service} has no valid hostname: {e}")))?;
        let outer = DirectHop { address: gateway.address.into(), accept: gateway.accept, reuse: Reuse::Shared };
        let inner = TunnelledHop {
            authority: authority.clone(),
            accept: service.subject_alt_names.clone(),
            reuse: Reuse::Spread(capacity),
            metadata: None,
        };
        Ok(Route {
            path: Path::direct(outer).then(inner),
            authority,
            picked,
            service: Some(service.clone()),
            gateway: Some(gateway.workload),
            others: 0,
            in_flight: InFlight::none(),
        })
    }

    fn no_route(&self, why: impl fmt::Display) -> Error {
        let (target, source) = (self.target, self.source);
        let network = &source.network;
        Error::new(
            ErrorKind::NoRoute,
            Layer::Route,
            Side::Local,
            format!("no way to {target} from workload {source} in network {network}: {why}"),
        )
    }
}

fn near(
    picked: Arc<Workload>,
    ip: IpAddr,
    port: u16,
    accept: AcceptedIdentities,
    service: Option<Arc<Service>>,
) -> Route {
    let hop = DirectHop { address: hbone_address(ip).into(), accept, reuse: Reuse::Shared };
    Route {
        path: Path::direct(hop),
        authority: SocketAddr::new(ip, port).into(),
        picked,
        service,
        gateway: None,
        others: 0,
        in_flight: InFlight::none(),
    }
}
