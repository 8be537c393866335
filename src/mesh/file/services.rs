//! The list `services`.

use super::node::{At, Fault, Fields};
use super::{gateway_address, network_address, ports};
use crate::identity::SpiffeId;
use crate::mesh::{
    HealthPolicy, LoadBalancing, LoadBalancingMode, LoadBalancingScope, NamespacedHostname, Service, ServiceScope,
};

pub(super) const KNOWN: &[&str] = &[
    "name",
    "namespace",
    "hostname",
    "vips",
    "addresses",
    "ports",
    "subjectAltNames",
    "loadBalancing",
    "loadBalancer",
    "waypoint",
    "weightedWaypoints",
    "scope",
    "ipFamilies",
    "canonical",
    "ingressUseWaypoint",
    "visibility",
    "extensions",
];

/// Reads a service. A subject alternative name that is not a SPIFFE ID goes to `odd_names` and is left out: one less is
/// accepted. The IDs may be of any form, as each is listed by itself.
pub(super) fn read(at: At<'_>, odd_names: &mut Vec<Fault>) -> Result<Service, Fault> {
    let fields = at.fields(KNOWN)?;
    let name = fields.require_text("name")?;
    let mut service = Service::new(name, key(&fields)?);
    if let Some(vips) = fields.either("vips", "addresses")? {
        service.vips = vips.list()?.map(|at| network_address(&at)).collect::<Result<_, _>>()?;
    }
    if let Some(at) = fields.get("ports") {
        service.ports = ports(&at)?;
    }
    let mut names = Vec::new();
    for at in fields.list("subjectAltNames")? {
        match SpiffeId::from_any_path(at.text()?) {
            Ok(name) => names.push(name),
            Err(error) => odd_names.push(at.error(error)),
        }
    }
    service.subject_alt_names = names.into_iter().collect();
    if let Some(at) = fields.either("loadBalancing", "loadBalancer")? {
        service.load_balancing = load_balancing(at)?;
    }
    service.waypoint = fields.get("waypoint").map(gateway_address).transpose()?;
    for at in fields.list("weightedWaypoints")? {
        let weighted = at.fields(&["destination", "weight"])?;
        let waypoint = gateway_address(weighted.require("destination")?)?;
        service.waypoint.get_or_insert(waypoint);
    }
    if let Some(at) = fields.get("scope") {
        service.scope = at.one_of(&[("LOCAL", ServiceScope::Local), ("GLOBAL", ServiceScope::Global)])?;
    }
    Ok(service)
}

/// The key of a service, even if the rest can't be read.
pub(super) fn name(at: &At<'_>) -> Option<NamespacedHostname> {
    key(&at.clone().any_fields().ok()?).ok()
}

fn key(fields: &Fields<'_>) -> Result<NamespacedHostname, Fault> {
    let namespace = fields.require_text("namespace")?;
    Ok(NamespacedHostname::new(namespace, fields.require("hostname")?.parse("a valid DNS name")?))
}

fn load_balancing(at: At<'_>) -> Result<LoadBalancing, Fault> {
    let fields = at.fields(&["mode", "routingPreference", "routingPreferences", "healthPolicy"])?;
    let mut result = LoadBalancing::default();
    if let Some(at) = fields.get("mode") {
        result.mode = at.one_of(&[
            ("STANDARD", LoadBalancingMode::Standard),
            ("STRICT", LoadBalancingMode::Strict),
            ("FAILOVER", LoadBalancingMode::Failover),
            ("PASSTHROUGH", LoadBalancingMode::Passthrough),
            ("UNSPECIFIED", LoadBalancingMode::Standard),
            ("UNSPECIFIED_MODE", LoadBalancingMode::Standard),
        ])?;
    }
    if let Some(at) = fields.either("routingPreference", "routingPreferences")? {
        for at in at.list()? {
            result.preferences.push(at.one_of(&[
                ("REGION", LoadBalancingScope::Region),
                ("ZONE", LoadBalancingScope::Zone),
                ("SUBZONE", LoadBalancingScope::Subzone),
                ("NODE", LoadBalancingScope::Node),
                ("CLUSTER", LoadBalancingScope::Cluster),
                ("NETWORK", LoadBalancingScope::Network),
            ])?);
        }
    }
    if let Some(at) = fields.get("healthPolicy") {
        result.health_policy =
            at.one_of(&[("ONLY_HEALTHY", HealthPolicy::OnlyHealthy), ("ALLOW_ALL", HealthPolicy::AllowAll)])?;
    }
    Ok(result)
}
