//! Services: a name for endpoints in one or more networks.

use std::fmt;
use std::sync::Arc;

use super::address::{GatewayAddress, NamespacedHostname, NetworkAddress, Ports};
use crate::identity::AcceptedIdentities;

/// A name with ports, served by workloads (`istio.workload.Service`).
///
/// [`Service::new`] gives one with the defaults below; set what differs. The same hostname in the same namespace is the
/// same service in every cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// Its name in its namespace.
    pub name: Arc<str>,
    /// Namespace and hostname, which are unique in a snapshot.
    pub key: NamespacedHostname,
    /// Its virtual addresses, each valid in one network only. Default: none.
    pub vips: Vec<NetworkAddress>,
    /// Its ports, each with the target port for endpoints that don't name their own. Default: none.
    pub ports: Ports,
    /// The identities that may terminate its connections in other networks. Default: none, so that it can't be reached
    /// there.
    pub subject_alt_names: AcceptedIdentities,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// The waypoint that connections to it go through. Default: none.
    pub waypoint: Option<GatewayAddress>,
    /// Whether other clusters may reach it. Default: [`ServiceScope::Global`].
    pub scope: ServiceScope,
}

/// Whether other clusters may reach a service through the gateway.
///
/// WDS has no such field: a control plane sends a gateway only the services that it may serve. So the default is
/// global.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServiceScope {
    /// Only within its own cluster.
    Local,
    /// From all clusters.
    #[default]
    Global,
}

/// How an endpoint of a service is chosen (`istio.workload.LoadBalancing`). [`LoadBalancing::default`] prefers none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadBalancing {
    /// What the preferences mean. Default: [`LoadBalancingMode::Standard`].
    pub mode: LoadBalancingMode,
    /// What an endpoint should have in common with the client, the most important first. Default: none.
    pub preferences: Vec<LoadBalancingScope>,
    /// Whether endpoints have to be healthy. Default: [`HealthPolicy::OnlyHealthy`].
    pub health_policy: HealthPolicy,
}

/// What the preferences of a [`LoadBalancing`] mean (`istio.workload.LoadBalancing.Mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadBalancingMode {
    /// Nothing: all endpoints are equal.
    #[default]
    Standard,
    /// Only endpoints that meet all of them.
    Strict,
    /// The endpoints that meet the most of them.
    Failover,
    /// Connect to the address that the client dialed, which is not supported here.
    Passthrough,
}

/// What an endpoint may have in common with a client (`istio.workload.LoadBalancing.Scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadBalancingScope {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The part of the zone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// Which endpoints are eligible by health (`istio.workload.LoadBalancing.HealthPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthPolicy {
    /// The healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

impl LoadBalancing {
    /// By these preferences, the most important first, among healthy endpoints.
    pub fn new(mode: LoadBalancingMode, preferences: impl IntoIterator<Item = LoadBalancingScope>) -> Self {
        Self { mode, preferences: preferences.into_iter().collect(), health_policy: HealthPolicy::default() }
    }

    /// Sets whether endpoints have to be healthy.
    pub fn with_health_policy(mut self, health_policy: HealthPolicy) -> Self {
        self.health_policy = health_policy;
        self
    }
}

impl Service {
    /// A service with the defaults of its fields.
    pub fn new(name: impl Into<Arc<str>>, key: NamespacedHostname) -> Self {
        Self {
            name: name.into(),
            key,
            vips: Vec::new(),
            ports: Ports::default(),
            subject_alt_names: AcceptedIdentities::default(),
            load_balancing: LoadBalancing::default(),
            waypoint: None,
            scope: ServiceScope::default(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// The hostname.
    pub fn hostname(&self) -> &str {
        self.key.hostname.as_str()
    }
}

/// Namespace and hostname, for messages.
impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}
