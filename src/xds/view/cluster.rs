//! A cluster as its own control plane sees it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::proto::{Authorization, Service, TunnelProtocol, Workload, WorkloadStatus};
use crate::mesh::{Labels, ServiceScope, ServiceScopeConfigs};

/// What holds for all of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// The network that its pods' addresses are in.
    pub network: String,
    /// Empty is `cluster.local`.
    pub trust_domain: String,
    /// Which services are global, its own and those of others.
    pub scopes: ServiceScopeConfigs,
}

/// A service of a cluster, and what decides whether others hear of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterService {
    /// As its own cluster gets it when it is not global.
    pub service: Service,
    /// Its labels.
    pub labels: Labels,
    /// Those of its namespace.
    pub namespace_labels: Labels,
    /// Where it comes from.
    pub origin: Origin,
    /// The identities of the waypoint before it, as `NAMESPACE/ACCOUNT`.
    pub waypoint_accounts: BTreeSet<(String, String)>,
}

/// What a service was defined as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// A Kubernetes Service.
    #[default]
    Kubernetes,
    /// An Istio ServiceEntry, which is never global.
    ServiceEntry,
}

/// A way into a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct NetworkGateway {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The network that it leads into.
    pub network: String,
    /// Where it is.
    pub address: GatewayHost,
    /// Its port for HBONE.
    pub port: u32,
    /// Its identity's service account.
    pub service_account: String,
}

/// Where a [`NetworkGateway`] is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GatewayHost {
    /// At an address that can be routed to from everywhere.
    Ip(std::net::IpAddr),
    /// Where DNS says.
    Name(String),
}

/// How many endpoints of a service a cluster has, kept up to date with each change.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    /// Weights of all.
    all: u64,
    /// Weights of those that can take a tunnel.
    ready: u64,
    /// How many endpoints of all have an identity, as namespace and account.
    accounts: BTreeMap<(String, String), Accounts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Accounts {
    all: usize,
    ready: usize,
}

/// Everything of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) id: Arc<str>,
    pub(super) config: ClusterConfig,
    pub(super) workloads: HashMap<Arc<str>, Workload>,
    pub(super) services: BTreeMap<Arc<str>, ClusterService>,
    pub(super) gateways: BTreeSet<NetworkGateway>,
    pub(super) policies: BTreeMap<Arc<str>, Authorization>,
    endpoints: HashMap<Arc<str>, Endpoints>,
}

impl ClusterConfig {
    /// A cluster in a network, with Istio's trust domain and scopes.
    pub fn new(network: impl Into<String>) -> Self {
        Self { network: network.into(), ..Self::default() }
    }
}

impl ClusterService {
    /// A Kubernetes Service without labels.
    pub fn new(service: Service) -> Self {
        Self {
            service,
            labels: Labels::new(),
            namespace_labels: Labels::new(),
            origin: Origin::Kubernetes,
            waypoint_accounts: BTreeSet::new(),
        }
    }

    /// Whether others may hear of it, by the rules of who asks.
    pub(super) fn is_global(&self, scopes: &ServiceScopeConfigs) -> bool {
        self.origin == Origin::Kubernetes && scopes.scope(&self.namespace_labels, &self.labels) == ServiceScope::Global
    }
}

impl NetworkGateway {
    /// The gateway `NAMESPACE/NAME` into `network`.
    pub fn new(
        (namespace, name): (impl Into<String>, impl Into<String>),
        network: impl Into<String>,
        address: GatewayHost,
    ) -> Self {
        let name = name.into();
        let service_account = name.clone();
        Self { namespace: namespace.into(), name, network: network.into(), address, port: 15008, service_account }
    }

    /// The name of the workload that stands for it.
    pub(super) fn uid(&self) -> String {
        format!("NetworkGateway/{}/{}/0", self.network, self.address)
    }
}

impl std::fmt::Display for GatewayHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Endpoints {
    /// The weight of all, or of those that can take a tunnel.
    pub(super) fn capacity(&self, only_ready: bool) -> u64 {
        if only_ready { self.ready } else { self.all }
    }

    /// The accounts of all, or of those that can take a tunnel.
    pub(super) fn accounts(&self, only_ready: bool) -> impl Iterator<Item = &(String, String)> {
        let counts = move |accounts: &Accounts| if only_ready { accounts.ready } else { accounts.all };
        self.accounts.iter().filter(move |(_, accounts)| counts(accounts) > 0).map(|(account, _)| account)
    }

    fn add(&mut self, workload: &Workload) {
        let (weight, is_ready) = (weight(workload), is_ready(workload));
        self.all += weight;
        let accounts = self.accounts.entry(account(workload)).or_default();
        accounts.all += 1;
        if is_ready {
            self.ready += weight;
            accounts.ready += 1;
        }
    }

    fn subtract(&mut self, workload: &Workload) {
        let (weight, is_ready, account) = (weight(workload), is_ready(workload), account(workload));
        self.all -= weight;
        if is_ready {
            self.ready -= weight;
        }
        if let Some(accounts) = self.accounts.get_mut(&account) {
            accounts.all -= 1;
            accounts.ready -= usize::from(is_ready);
            if accounts.all == 0 {
                self.accounts.remove(&account);
            }
        }
    }
}

fn weight(workload: &Workload) -> u64 {
    workload.capacity.as_ref().map_or(1, |capacity| capacity.value.into())
}

/// Whether a tunnel through a gateway can end there.
fn is_ready(workload: &Workload) -> bool {
    workload.status == WorkloadStatus::Healthy as i32 && workload.tunnel_protocol == TunnelProtocol::Hbone as i32
}

fn account(workload: &Workload) -> (String, String) {
    (workload.namespace.clone(), workload.service_account.clone())
}

impl Cluster {
    /// A cluster without anything.
    pub(super) fn new(id: Arc<str>) -> Self {
        Self {
            id,
            config: ClusterConfig::default(),
            workloads: HashMap::new(),
            services: BTreeMap::new(),
            gateways: BTreeSet::new(),
            policies: BTreeMap::new(),
            endpoints: HashMap::new(),
        }
    }

    /// The endpoints of a service.
    pub(super) fn endpoints(&self, service: &str) -> Option<&Endpoints> {
        self.endpoints.get(service)
    }

    /// Puts a workload, or takes it away. Which services have another endpoint now?
    pub(super) fn set_workload(&mut self, uid: &str, workload: Option<Workload>) -> BTreeSet<Arc<str>> {
        let mut services = BTreeSet::new();
        if let Some(before) = self.workloads.remove(uid) {
            for service in before.services.keys() {
                if let Some((service, _)) = self.endpoints.get_key_value(service.as_str()) {
                    let service = service.clone();
                    let endpoints = self.endpoints.entry(service.clone()).or_default();
                    endpoints.subtract(&before);
                    if endpoints.accounts.is_empty() {
                        self.endpoints.remove(&service);
                    }
                    services.insert(service);
                }
            }
        }
        if let Some(workload) = workload {
            for service in workload.services.keys() {
                let service: Arc<str> = service.as_str().into();
                self.endpoints.entry(service.clone()).or_default().add(&workload);
                services.insert(service);
            }
            self.workloads.insert(uid.into(), workload);
        }
        services
    }
}
