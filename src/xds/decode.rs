//! Messages as values of the mesh.

use std::fmt;
use std::net::IpAddr;

use bytes::Bytes;
use prost::Message as _;

use super::proto::{
    self, ADDRESS_TYPE, AUTHORIZATION_TYPE, application_tunnel, gateway_address, load_balancing, string_match,
};
use crate::mesh::{
    ApplicationProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, HealthPolicy, Hostname, LoadBalancing,
    LoadBalancingMode, LoadBalancingScope, Locality, NamespacedHostname, Network, NetworkAddress, Ports, Protocol,
    Resource, ResourceName, Service, Status, Workload,
};
use crate::metadata::WorkloadType;
use crate::policy::{
    Action, Cidr, Clause, Condition, Match, Policy, PolicyName, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use crate::{AcceptedIdentities, SpiffeId, TrustDomain};

/// What is meant where nothing is said.
const TRUST_DOMAIN: &str = "cluster.local";
const SERVICE_ACCOUNT: &str = "default";

/// Why a resource can't be used, by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    field: String,
    reason: String,
}

impl DecodeError {
    fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { field: field.into(), reason: reason.to_string() }
    }

    /// The field, as protobuf names it. Empty where the message as a whole can't be read.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.field {
            "" => f.write_str(&self.reason),
            field => write!(f, "{field}: {}", self.reason),
        }
    }
}

impl std::error::Error for DecodeError {}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

/// A resource of either type.
///
/// # Errors
///
/// When it is not such a message, has a value that is not known, or one that does not mean anything.
pub fn resource(any: &proto::Any) -> Result<Resource> {
    let unreadable = |error: prost::DecodeError| DecodeError::new("", format_args!("it can't be read: {error}"));
    match &*any.type_url {
        ADDRESS_TYPE => match proto::Address::decode(any.value.clone()).map_err(unreadable)?.r#type {
            Some(proto::address::Type::Workload(message)) => workload(&message).map(Into::into),
            Some(proto::address::Type::Service(message)) => service(&message).map(Into::into),
            None => Err(DecodeError::new("type", "it is neither a workload nor a service")),
        },
        AUTHORIZATION_TYPE => {
            let message = proto::Authorization::decode(any.value.clone()).map_err(unreadable)?;
            policy(&message).map(Into::into)
        }
        other => Err(DecodeError::new("", format_args!("the type {other:?} was not asked for"))),
    }
}

/// What a resource name of a type stands for. A service's name has a hostname after its only slash; a workload's may be
/// anything.
pub(super) fn resource_names(type_url: &str, name: &str) -> Vec<ResourceName> {
    match type_url {
        AUTHORIZATION_TYPE => {
            name.split_once('/').map(|(ns, name)| ResourceName::Policy(PolicyName::new(ns, name))).into_iter().collect()
        }
        _ => {
            let service = name.parse::<NamespacedHostname>().ok().map(ResourceName::Service);
            [Some(ResourceName::Workload(name.into())), service].into_iter().flatten().collect()
        }
    }
}

/// A workload.
///
/// # Errors
///
/// As [`resource`].
pub fn workload(message: &proto::Workload) -> Result<Workload> {
    let identity = identity(message)?;
    let mut workload = Workload::new(message.uid.as_str(), message.name.as_str(), identity);
    workload.addresses = list("addresses", &message.addresses, ip)?;
    workload.hostname = match &*message.hostname {
        "" => None,
        text => Some(hostname("hostname", text)?),
    };
    workload.network = Network::new(message.network.as_str());
    workload.host_network = match known("network_mode", message.network_mode, proto::NetworkMode::try_from)? {
        proto::NetworkMode::Standard => false,
        proto::NetworkMode::HostNetwork => true,
    };
    workload.protocol = match known("tunnel_protocol", message.tunnel_protocol, proto::TunnelProtocol::try_from)? {
        proto::TunnelProtocol::Hbone => Protocol::Hbone,
        proto::TunnelProtocol::None | proto::TunnelProtocol::LegacyIstioMtls => Protocol::None,
    };
    workload.node = message.node.as_str().into();
    workload.cluster = message.cluster_id.as_str().into();
    if let Some(at) = &message.locality {
        workload.locality =
            Locality::new(at.region.as_str()).with_zone(at.zone.as_str()).with_subzone(at.subzone.as_str());
    }
    for (key, of) in &message.services {
        let service = key.parse().map_err(|e| DecodeError::new(format!("services[{key:?}]"), e))?;
        workload.services.insert(service, ports(&format!("services[{key:?}]"), &of.ports)?);
    }
    workload.network_gateway = message.network_gateway.as_ref().map(|at| gateway("network_gateway", at)).transpose()?;
    workload.waypoint = message.waypoint.as_ref().map(|at| gateway("waypoint", at)).transpose()?;
    workload.authorization_policies = list("authorization_policies", &message.authorization_policies, |text| {
        let (namespace, name) = text.split_once('/').ok_or("it is not of the form NAMESPACE/NAME")?;
        Ok::<_, &str>(PolicyName::new(namespace, name))
    })?;
    workload.status = match known("status", message.status, proto::WorkloadStatus::try_from)? {
        proto::WorkloadStatus::Healthy => Status::Healthy,
        proto::WorkloadStatus::Unhealthy => Status::Unhealthy,
    };
    workload.capacity = message.capacity.as_ref().map_or(1, |capacity| capacity.value);
    workload.canonical_name = message.canonical_name.as_str().into();
    workload.canonical_revision = message.canonical_revision.as_str().into();
    workload.workload_type = match known("workload_type", message.workload_type, proto::WorkloadType::try_from)? {
        proto::WorkloadType::Deployment => WorkloadType::Deployment,
        proto::WorkloadType::CronJob => WorkloadType::CronJob,
        proto::WorkloadType::Pod => WorkloadType::Pod,
        proto::WorkloadType::Job => WorkloadType::Job,
    };
    workload.workload_name = message.workload_name.as_str().into();
    workload.application_tunnel = match &message.application_tunnel {
        None => None,
        Some(tunnel) => Some(application(tunnel)?),
    };
    Ok(workload)
}

/// A service.
///
/// # Errors
///
/// As [`resource`].
pub fn service(message: &proto::Service) -> Result<Service> {
    let key = NamespacedHostname::new(message.namespace.as_str(), hostname("hostname", &message.hostname)?);
    let mut service = Service::new(message.name.as_str(), key);
    // A range of addresses has no single one that is the service's.
    let single = message.addresses.iter().filter(|address| address.length.is_none());
    service.vips = list("addresses", single, network_address)?;
    service.ports = ports("ports", &message.ports)?;
    // A workload proves a SPIFFE ID and nothing else: DNS names and other forms are left out.
    let names = message.subject_alt_names.iter().filter_map(|name| name.parse::<SpiffeId>().ok());
    service.subject_alt_names = names.collect::<AcceptedIdentities>();
    service.waypoint = message.waypoint.as_ref().map(|at| gateway("waypoint", at)).transpose()?;
    if let Some(message) = &message.load_balancing {
        service.load_balancing = load_balancing(message)?;
    }
    known("visibility", message.visibility, proto::Visibility::try_from)?;
    known("ip_families", message.ip_families, proto::IpFamilies::try_from)?;
    Ok(service)
}

/// A policy.
///
/// # Errors
///
/// As [`resource`].
pub fn policy(message: &proto::Authorization) -> Result<Policy> {
    let scope = match known("scope", message.scope, proto::Scope::try_from)? {
        proto::Scope::Global => Scope::Global,
        proto::Scope::Namespace => Scope::Namespace,
        proto::Scope::WorkloadSelector => Scope::WorkloadSelector,
    };
    let action = match known("action", message.action, proto::Action::try_from)? {
        proto::Action::Allow => Action::Allow,
        proto::Action::Deny => Action::Deny,
    };
    let name = PolicyName::new(message.namespace.as_str(), message.name.as_str());
    let mut policy = Policy::new(name, scope, action);
    policy.dry_run = message.dry_run;
    policy.rules = list("rules", &message.rules, rule)?;
    Ok(policy)
}

fn rule(message: &proto::Rule) -> Result<Rule> {
    Ok(Rule { clauses: list("clauses", &message.clauses, clause)? })
}

fn clause(message: &proto::Clause) -> Result<Clause> {
    Ok(Clause { matches: list("matches", &message.matches, matching)? })
}

fn matching(message: &proto::Match) -> Result<Match> {
    let port = |port: &u32| u16::try_from(*port).map_err(|_| DecodeError::new("", "it is no port"));
    let m = message;
    Ok(Match {
        namespaces: condition("namespaces", &m.namespaces, &m.not_namespaces, pattern)?,
        principals: condition("principals", &m.principals, &m.not_principals, pattern)?,
        service_accounts: condition("service_accounts", &m.service_accounts, &m.not_service_accounts, account)?,
        source_ips: condition("source_ips", &m.source_ips, &m.not_source_ips, cidr)?,
        destination_ips: condition("destination_ips", &m.destination_ips, &m.not_destination_ips, cidr)?,
        destination_ports: condition("destination_ports", &m.destination_ports, &m.not_destination_ports, port)?,
    })
}

fn condition<M, T>(
    field: &str,
    any_of: &[M],
    none_of: &[M],
    convert: impl Fn(&M) -> Result<T>,
) -> Result<Condition<T>> {
    let any_of = list(field, any_of, &convert)?;
    let none_of = list(&format!("not_{field}"), none_of, &convert)?;
    Ok(Condition { any_of, none_of })
}

fn pattern(message: &proto::StringMatch) -> Result<StringMatch> {
    Ok(match message.kind.clone().ok_or_else(|| DecodeError::new("", "it says nothing"))? {
        string_match::Kind::Exact(text) => StringMatch::Exact(text.into()),
        string_match::Kind::Prefix(text) => StringMatch::Prefix(text.into()),
        string_match::Kind::Suffix(text) => StringMatch::Suffix(text.into()),
        string_match::Kind::Presence(_) => StringMatch::Presence,
    })
}

fn account(message: &proto::ServiceAccountMatch) -> Result<ServiceAccountMatch> {
    Ok(ServiceAccountMatch {
        namespace: message.namespace.as_str().into(),
        service_account: message.service_account.as_str().into(),
    })
}

fn cidr(message: &proto::Cidr) -> Result<Cidr> {
    let length = u8::try_from(message.length).unwrap_or(u8::MAX);
    Cidr::new(ip(&message.address).map_err(|e| DecodeError::new("", e))?, length).map_err(|e| DecodeError::new("", e))
}

fn identity(message: &proto::Workload) -> Result<SpiffeId> {
    let or = |text: &str, otherwise: &'static str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
    let trust_domain: TrustDomain =
        or(&message.trust_domain, TRUST_DOMAIN).parse().map_err(|e| DecodeError::new("trust_domain", e))?;
    let account = or(&message.service_account, SERVICE_ACCOUNT);
    SpiffeId::new(trust_domain, &message.namespace, &account).map_err(|e| DecodeError::new("service_account", e))
}

fn application(message: &proto::ApplicationTunnel) -> Result<ApplicationTunnel> {
    let field = "application_tunnel.protocol";
    let protocol = match known(field, message.protocol, application_tunnel::Protocol::try_from)? {
        application_tunnel::Protocol::None => ApplicationProtocol::None,
        application_tunnel::Protocol::Proxy => ApplicationProtocol::Proxy,
    };
    Ok(ApplicationTunnel::new(protocol, port("application_tunnel.port", message.port)?))
}

fn load_balancing(message: &proto::LoadBalancing) -> Result<LoadBalancing> {
    let mode = match known("load_balancing.mode", message.mode, load_balancing::Mode::try_from)? {
        load_balancing::Mode::Unspecified => LoadBalancingMode::Standard,
        load_balancing::Mode::Strict => LoadBalancingMode::Strict,
        load_balancing::Mode::Failover => LoadBalancingMode::Failover,
        load_balancing::Mode::Passthrough => LoadBalancingMode::Passthrough,
    };
    let field = "load_balancing.routing_preference";
    let mut preferences = Vec::new();
    for scope in &message.routing_preference {
        preferences.extend(match known(field, *scope, load_balancing::Scope::try_from)? {
            load_balancing::Scope::Unspecified => None,
            load_balancing::Scope::Region => Some(LoadBalancingScope::Region),
            load_balancing::Scope::Zone => Some(LoadBalancingScope::Zone),
            load_balancing::Scope::Subzone => Some(LoadBalancingScope::Subzone),
            load_balancing::Scope::Node => Some(LoadBalancingScope::Node),
            load_balancing::Scope::Cluster => Some(LoadBalancingScope::Cluster),
            load_balancing::Scope::Network => Some(LoadBalancingScope::Network),
        });
    }
    let field = "load_balancing.health_policy";
    let health = match known(field, message.health_policy, load_balancing::HealthPolicy::try_from)? {
        load_balancing::HealthPolicy::OnlyHealthy => HealthPolicy::OnlyHealthy,
        load_balancing::HealthPolicy::AllowAll => HealthPolicy::AllowAll,
    };
    Ok(LoadBalancing::new(mode, preferences).with_health_policy(health))
}

fn ports(field: &str, messages: &[proto::Port]) -> Result<Ports> {
    let pair = |message: &proto::Port| {
        known("app_protocol", message.app_protocol, proto::AppProtocol::try_from)?;
        Ok::<_, DecodeError>((port("service_port", message.service_port)?, port("target_port", message.target_port)?))
    };
    Ok(list(field, messages, pair)?.into_iter().collect())
}

fn gateway(field: &str, message: &proto::GatewayAddress) -> Result<GatewayAddress> {
    let destination = match &message.destination {
        None => return Err(DecodeError::new(field, "it has no destination")),
        Some(gateway_address::Destination::Address(address)) => {
            let address = network_address(address).map_err(|e| DecodeError::new(format!("{field}.address"), e))?;
            GatewayDestination::Address(address)
        }
        Some(gateway_address::Destination::Hostname(name)) => {
            let host = hostname(&format!("{field}.hostname"), &name.hostname)?;
            GatewayDestination::Hostname(NamespacedHostname::new(name.namespace.as_str(), host))
        }
    };
    let port = port(&format!("{field}.hbone_mtls_port"), message.hbone_mtls_port)?;
    Ok(GatewayAddress::new(destination, port))
}

fn network_address(message: &proto::NetworkAddress) -> Result<NetworkAddress, &'static str> {
    Ok(NetworkAddress::new(Network::new(message.network.as_str()), ip(&message.address)?))
}

fn ip(octets: &Bytes) -> Result<IpAddr, &'static str> {
    proto::ip(octets).map(|ip| ip.to_canonical()).ok_or("an address has 4 or 16 bytes")
}

fn hostname(field: &str, text: &str) -> Result<Hostname> {
    text.parse().map_err(|e| DecodeError::new(field, format_args!("{text:?}: {e}")))
}

fn port(field: &str, number: u32) -> Result<u16> {
    u16::try_from(number).map_err(|_| DecodeError::new(field, format_args!("{number} is no port")))
}

fn known<T, E>(field: &str, number: i32, convert: impl Fn(i32) -> Result<T, E>) -> Result<T> {
    convert(number).map_err(|_| DecodeError::new(field, format_args!("the value {number} is not known")))
}

fn list<'a, M: 'a, T, E: fmt::Display>(
    field: &str,
    messages: impl IntoIterator<Item = &'a M>,
    convert: impl Fn(&M) -> Result<T, E>,
) -> Result<Vec<T>> {
    let each = messages.into_iter().enumerate();
    each.map(|(n, message)| convert(message).map_err(|e| DecodeError::new(format!("{field}[{n}]"), e))).collect()
}
