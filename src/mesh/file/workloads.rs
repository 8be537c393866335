//! The list `workloads`.

use std::sync::Arc;

use super::node::{At, Fault};
use super::{arc, gateway_address, ip, port, ports};
use crate::identity::{SpiffeId, TrustDomain};
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, Locality, NamespacedHostname, Network, Protocol, Status, Workload,
    WorkloadType,
};

pub(super) const KNOWN: &[&str] = &[
    "uid",
    "name",
    "namespace",
    "workloadIps",
    "addresses",
    "hostname",
    "network",
    "networkMode",
    "protocol",
    "tunnelProtocol",
    "trustDomain",
    "serviceAccount",
    "node",
    "clusterId",
    "locality",
    "services",
    "networkGateway",
    "waypoint",
    "authorizationPolicies",
    "status",
    "capacity",
    "canonicalName",
    "canonicalRevision",
    "workloadType",
    "workloadName",
    "applicationTunnel",
    "nativeTunnel",
    "extensions",
];

pub(super) fn read(at: At<'_>) -> Result<Workload, Fault> {
    let fields = at.fields(KNOWN)?;
    let uid = fields.require_text("uid")?;
    let name = fields.require_text("name")?;
    let namespace = fields.require_text("namespace")?;

    let trust_domain = match fields.text("trustDomain")? {
        "" => "cluster.local",
        text => text,
    };
    let trust_domain: TrustDomain = trust_domain.parse().map_err(|e| match fields.get("trustDomain") {
        Some(at) => at.error(e),
        None => fields.error(e),
    })?;
    let service_account = match fields.text("serviceAccount")? {
        "" => "default",
        text => text,
    };
    let identity = SpiffeId::new(trust_domain, namespace, service_account).map_err(|e| {
        let text = format!("{namespace:?} and service account {service_account:?} make no valid SPIFFE ID: {e}");
        fields.get("namespace").map_or_else(|| fields.error(&text), |at| at.error(&text))
    })?;

    let mut workload = Workload::new(uid, name, identity);
    if let Some(addresses) = fields.either("workloadIps", "addresses")? {
        workload.addresses = addresses.list()?.map(|at| ip(&at)).collect::<Result<_, _>>()?;
    }
    workload.hostname = match fields.text("hostname")? {
        "" => None,
        _ => Some(fields.require("hostname")?.parse("a valid DNS name")?),
    };
    workload.network = Network::new(fields.text("network")?);
    if let Some(mode) = fields.get("networkMode") {
        workload.host_network = mode.one_of(&[("STANDARD", false), ("HOST_NETWORK", true)])?;
    }
    if let Some(at) = fields.either("protocol", "tunnelProtocol")? {
        // ztunnel's file form says TCP where WDS says NONE.
        let words = [("HBONE", Some(Protocol::Hbone)), ("NONE", Some(Protocol::None)), ("TCP", Some(Protocol::None))];
        let legacy = [("LEGACY_ISTIO_MTLS", None)];
        workload.protocol = match at.one_of(&legacy).or_else(|_| at.one_of(&words))? {
            Some(protocol) => protocol,
            None => return Err(at.error("LEGACY_ISTIO_MTLS is not supported; use HBONE or NONE")),
        };
    }
    workload.node = arc(fields.text("node")?);
    workload.cluster = arc(fields.text("clusterId")?);
    if let Some(locality) = fields.get("locality") {
        let locality = locality.fields(&["region", "zone", "subzone"])?;
        workload.locality = Locality::new(locality.text("region")?)
            .with_zone(locality.text("zone")?)
            .with_subzone(locality.text("subzone")?);
    }
    if let Some(services) = fields.get("services") {
        for (key, at) in services.entries()? {
            let service: NamespacedHostname =
                key.parse().map_err(|e| at.error(format_args!("the key {key:?} is {e}")))?;
            if workload.services.insert(service, ports(&at)?).is_some() {
                return Err(at.error("is set twice"));
            }
        }
    }
    workload.network_gateway = fields.get("networkGateway").map(gateway_address).transpose()?;
    workload.waypoint = fields.get("waypoint").map(gateway_address).transpose()?;
    for at in fields.list("authorizationPolicies")? {
        workload.authorization_policies.push(at.parse("of the form namespace/name")?);
    }
    if let Some(at) = fields.get("status") {
        workload.status = at.one_of(&[("HEALTHY", Status::Healthy), ("UNHEALTHY", Status::Unhealthy)])?;
    }
    if let Some(at) = fields.get("capacity") {
        workload.capacity = at.number(u32::MAX)?;
    }
    workload.canonical_name = arc(fields.text("canonicalName")?);
    workload.canonical_revision = arc(fields.text("canonicalRevision")?);
    if let Some(at) = fields.get("workloadType").filter(|at| at.as_text() != Some("")) {
        workload.workload_type = at.one_of(&[
            ("DEPLOYMENT", WorkloadType::Deployment),
            ("CRONJOB", WorkloadType::CronJob),
            ("POD", WorkloadType::Pod),
            ("JOB", WorkloadType::Job),
        ])?;
    }
    workload.workload_name = arc(fields.text("workloadName")?);
    if let Some(tunnel) = fields.get("applicationTunnel") {
        let tunnel = tunnel.fields(&["protocol", "port"])?;
        let protocol = tunnel.get("protocol").map_or(Ok(ApplicationProtocol::None), |at| {
            at.one_of(&[("NONE", ApplicationProtocol::None), ("PROXY", ApplicationProtocol::Proxy)])
        })?;
        let port = tunnel.get("port").map_or(Ok(0), |at| port(&at))?;
        workload.application_tunnel = Some(ApplicationTunnel::new(protocol, port));
    }
    Ok(workload)
}

/// The uid of a workload, even if the rest can't be read.
pub(super) fn uid(at: &At<'_>) -> Option<Arc<str>> {
    at.clone().any_fields().ok()?.require_text("uid").ok().map(arc)
}
