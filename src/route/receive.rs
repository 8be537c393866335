//! The sides that receive a CONNECT: the workload, and the gateway before it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::candidates::{Reasons, Unusable, address, check, hbone_address, unranked};
use super::{Backend, Choice, is_illegal};
use crate::authority::Authority;
use crate::mesh::{ApplicationProtocol, Endpoint, Network, ServiceScope, Snapshot, Workload};
use crate::refusal::{Refusal, RefusalReason};

/// Decides where a tunnel that ends at `workload` leads: the address to connect to, and to ask policy about.
///
/// An address has to be the workload's own. A hostname has to be that of a service that the workload is an endpoint
/// of (one in its namespace before others); its port leads to the target port that the endpoint names, else to the
/// one that the service names.
///
/// # Errors
///
/// The refusal to answer with: [`DestinationProhibited`](RefusalReason::DestinationProhibited) for an address that is
/// not the workload's; [`DestinationNotFound`](RefusalReason::DestinationNotFound) for a service or port that it does
/// not serve; [`LoopDetected`](RefusalReason::LoopDetected) for a port of the mesh's own proxies;
/// [`Configuration`](RefusalReason::Configuration) for a workload whose application waits for a PROXY header.
pub fn inbound(mesh: &Snapshot, workload: &Workload, authority: &Authority) -> Result<SocketAddr, Refusal> {
    if workload.application_tunnel.is_some_and(|tunnel| tunnel.protocol == ApplicationProtocol::Proxy) {
        let why = format!("the application of workload {workload} waits for a PROXY header, which is not supported");
        return Err(refuse(RefusalReason::Configuration, why));
    }
    let destination = match authority {
        Authority::Ip(addr) if workload.has_address(addr.ip()) => {
            SocketAddr::new(addr.ip().to_canonical(), addr.port())
        }
        Authority::Ip(addr) => {
            let why = format!("{} is not an address of workload {workload}", addr.ip());
            return Err(refuse(RefusalReason::DestinationProhibited, why));
        }
        Authority::Name(name) => {
            let services = mesh.services_with_hostname(name.host());
            let serves = || services.iter().filter(|s| workload.services.contains_key(&s.key));
            let own = serves().find(|s| s.namespace() == workload.namespace());
            let Some(service) = own.or_else(|| serves().next()) else {
                let why = if services.is_empty() { "no service has the hostname" } else { "it does not serve" };
                let why = format!("workload {workload}: {why} {}", name.host());
                return Err(refuse(RefusalReason::DestinationNotFound, why));
            };
            let own = workload.services.get(&service.key).and_then(|ports| ports.target(name.port()));
            let Some(port) = own.or_else(|| service.ports.target(name.port())) else {
                let why = format!("workload {workload} has nothing behind port {} of service {service}", name.port());
                return Err(refuse(RefusalReason::DestinationNotFound, why));
            };
            let unavailable =
                |why| refuse(RefusalReason::DestinationUnavailable, format!("workload {workload} is {why}"));
            SocketAddr::new(address(workload, None).map_err(unavailable)?, port)
        }
    };
    if is_illegal(destination.port()) {
        let why = format!("port {} is one of the mesh's own proxies", destination.port());
        return Err(refuse(RefusalReason::LoopDetected, why));
    }
    Ok(destination)
}

/// Decides where a gateway of `network` forwards a tunnel to.
///
/// Only hostnames are served, and of a service that is global, compared as a whole: a gateway that went by address
/// would reach the wrong service where networks use the same addresses. The endpoints to choose from are those in
/// `network` that are healthy (unless the service's health policy is
/// [`AllowAll`](crate::mesh::HealthPolicy::AllowAll)), have capacity, an address and a target port, and speak HBONE.
/// Locality does not matter here: the client has taken care of it. `choice` leaves out what has failed recently or is
/// to be passed over, and chooses one of the rest.
///
/// # Errors
///
/// The refusal to answer with: [`DestinationProhibited`](RefusalReason::DestinationProhibited) for an address;
/// [`DestinationNotFound`](RefusalReason::DestinationNotFound) for a service that is not known or is local to this
/// cluster and for a port that it does not have; [`DestinationUnavailable`](RefusalReason::DestinationUnavailable)
/// when no endpoint can be used; [`Configuration`](RefusalReason::Configuration) for a service with a waypoint, which
/// is not supported.
pub fn gateway(
    mesh: &Snapshot,
    network: &Network,
    authority: &Authority,
    choice: &Choice<'_>,
) -> Result<Backend, Refusal> {
    let Authority::Name(name) = authority else {
        let why = format!("the gateway of network {network} serves hostnames, and {authority} is an address");
        return Err(refuse(RefusalReason::DestinationProhibited, why));
    };
    let services = mesh.services_with_hostname(name.host());
    let Some(service) = services.iter().find(|s| s.scope == ServiceScope::Global) else {
        let host = name.host();
        let why = match services.first() {
            Some(_) => format!("service {host} is local to this cluster"),
            None => format!("no service has the hostname {host}"),
        };
        return Err(refuse(RefusalReason::DestinationNotFound, why));
    };
    if !service.ports.contains(name.port()) {
        let why = format!("service {service} has no port {}", name.port());
        return Err(refuse(RefusalReason::DestinationNotFound, why));
    }
    if service.waypoint.is_some() {
        let why = format!("service {service} has a waypoint, and waypoints are not supported yet");
        return Err(refuse(RefusalReason::Configuration, why));
    }
    let usable = |endpoint: &Endpoint| {
        let workload = &endpoint.workload;
        if workload.network != *network {
            return Err(Unusable::OtherNetwork);
        }
        check(workload, service.load_balancing.health_policy)?;
        let target_port = endpoint.target_port(service, name.port()).ok_or(Unusable::NoPort)?;
        if is_illegal(target_port) {
            return Err(Unusable::IllegalPort);
        }
        Ok((hbone_address(address(workload, None)?), workload.clone()))
    };
    let mut reasons = Reasons::default();
    let mut candidates: Vec<(SocketAddr, Arc<Workload>)> = Vec::new();
    for endpoint in mesh.endpoints(service) {
        match usable(endpoint) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => reasons.add(reason),
        }
    }
    let untried = candidates.iter().filter(|(_, workload)| !choice.endpoint(workload).is_tried()).count();
    let left = choice.narrow(candidates, |(_, workload)| choice.endpoint(workload), |(_, workload)| workload);
    match choice.pick(unranked(left), |(_, workload)| workload) {
        Some(((address, workload), in_flight)) => {
            let others = untried - usize::from(!choice.endpoint(&workload).is_tried());
            Ok(Backend { address, workload, others, in_flight })
        }
        None => {
            let why = format!("no endpoint of service {service} in network {network} can be used: {reasons}");
            Err(refuse(RefusalReason::DestinationUnavailable, why))
        }
    }
}

fn refuse(reason: RefusalReason, details: String) -> Refusal {
    Refusal::new(reason).with_details(details)
}
