//! What each cluster learns of the mesh: its own state in full, and of the others only what it takes to reach their
//! global services.
//!
//! The values are the messages that go on the wire. [`Views`] holds the state of all clusters and, for each, its
//! [`View`]. A change recomputes what depends on it: an endpoint its services, a service itself.
//!
//! # What is sent
//!
//! * A cluster's own workloads, services and policies, and the workloads of other clusters in its network.
//! * Of a service that is global by the cluster's own rules and exists in several clusters: the local copy, or where
//!   there is none the first by name; with the virtual addresses of all, each in its network, and with the identities
//!   that its endpoints in other networks may have.
//! * For each other network and gateway into it, one workload that stands for all endpoints of the service there, with
//!   their number as its capacity. Not one remote pod.
//! * Each gateway into another network as a workload, for its identity.
//!
//! # What is better than Istio's
//!
//! [`Options::istio`] turns these off:
//!
//! | Here | Istio (86c9f01) | Why |
//! |---|---|---|
//! | Only endpoints that are ready and take tunnels count | All that have an address do | A cluster that can't answer gets no traffic |
//! | All gateways into a network, sharing its capacity | One at random, again at each change | Failover, and no churn of names |
//! | Identities of the waypoints in other networks are accepted | Only those of endpoints | A tunnel to a service with a waypoint ends there |
//!
//! And always: a service that is known only elsewhere has the identities of its endpoints, without which no inner
//! handshake succeeds; workload entries count in the network that they are in; and no identity without a service
//! account is accepted.

mod changes;
mod cluster;
mod compute;
mod options;
mod skew;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::changes::{Addresses, Policies, View};
use self::cluster::Cluster;
pub use self::cluster::{ClusterConfig, ClusterService, GatewayHost, NetworkGateway, Origin};
pub use self::options::Options;
pub use self::skew::{Resolution, Skew, SkewField};
use super::proto::{Authorization, Workload};

/// The state of all clusters, and what each is sent.
#[derive(Clone, Debug, Default)]
pub struct Views {
    options: Options,
    clusters: BTreeMap<Arc<str>, Cluster>,
    views: BTreeMap<Arc<str>, View>,
    /// Services to look at again, in all views.
    dirty: BTreeSet<Arc<str>>,
    /// Views to compute anew.
    stale: BTreeSet<Arc<str>>,
}

/// One thing of a cluster that is made or changed.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// A workload, by its uid.
    Workload(Box<Workload>),
    /// A workload that is gone, by its uid.
    WorkloadRemoved(String),
    /// A service, by namespace and hostname.
    Service(Box<ClusterService>),
    /// A service that is gone, as `NAMESPACE/HOSTNAME`.
    ServiceRemoved(String),
    /// A policy, by namespace and name.
    Policy(Box<Authorization>),
    /// A policy that is gone, as `NAMESPACE/NAME`.
    PolicyRemoved(String),
    /// All of its gateways.
    Gateways(BTreeSet<NetworkGateway>),
    /// What holds for all of it.
    Config(ClusterConfig),
}

impl Views {
    /// No clusters.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// Changes something of a cluster, which is made if it is new. Views follow with [`update`](Self::update).
    pub fn apply(&mut self, cluster: &str, change: Change) {
        let id: Arc<str> = match self.clusters.get_key_value(cluster) {
            Some((id, _)) => id.clone(),
            None => {
                let id: Arc<str> = cluster.into();
                self.clusters.insert(id.clone(), Cluster::new(id.clone()));
                self.views.insert(id.clone(), View::default());
                id
            }
        };
        let Some(of) = self.clusters.get_mut(&id) else { return };
        match change {
            Change::Workload(workload) => {
                let uid = workload.uid.clone();
                self.set_workload(&id, &uid, Some(*workload));
            }
            Change::WorkloadRemoved(uid) => self.set_workload(&id, &uid, None),
            Change::Service(service) => {
                let key: Arc<str> = format!("{}/{}", service.service.namespace, service.service.hostname).into();
                if of.services.get(&key) != Some(&*service) {
                    of.services.insert(key.clone(), *service);
                    self.dirty.insert(key);
                }
            }
            Change::ServiceRemoved(key) => {
                if let Some((key, _)) = of.services.remove_entry(&*key) {
                    self.dirty.insert(key);
                }
            }
            Change::Policy(policy) => {
                let key: Arc<str> = format!("{}/{}", policy.namespace, policy.name).into();
                if let Some(view) = self.views.get_mut(&id) {
                    view.set_policy(&key, Some(&policy));
                }
                of.policies.insert(key, *policy);
            }
            Change::PolicyRemoved(key) => {
                of.policies.remove(&*key);
                if let Some(view) = self.views.get_mut(&id) {
                    view.set_policy(&key, None);
                }
            }
            Change::Gateways(gateways) => {
                if of.gateways != gateways {
                    of.gateways = gateways;
                    // All services of a network depend on the gateways into it.
                    self.stale.extend(self.views.keys().cloned());
                }
            }
            Change::Config(config) => {
                if of.config != config {
                    of.config = config;
                    self.stale.extend(self.views.keys().cloned());
                }
            }
        }
    }

    /// Forgets a cluster, and its view.
    pub fn remove_cluster(&mut self, cluster: &str) {
        if self.clusters.remove(cluster).is_some() {
            self.views.remove(cluster);
            self.stale.remove(cluster);
            self.stale.extend(self.views.keys().cloned());
        }
    }

    /// Computes what is outdated in all views, and records what has changed in each.
    pub fn update(&mut self) {
        let (dirty, stale) = (std::mem::take(&mut self.dirty), std::mem::take(&mut self.stale));
        let mut views = std::mem::take(&mut self.views);
        for (id, view) in &mut views {
            if stale.contains(id) {
                self.compute_all(id, view);
            } else {
                for service in &dirty {
                    self.compute_service(id, service, view);
                }
            }
            view.publish();
        }
        self.views = views;
    }

    /// What a cluster is sent.
    pub fn view(&self, cluster: &str) -> Option<&View> {
        self.views.get(cluster)
    }

    /// The clusters, by name.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        self.clusters.keys().map(|id| &**id)
    }

    fn set_workload(&mut self, id: &Arc<str>, uid: &str, workload: Option<Workload>) {
        let Some(of) = self.clusters.get_mut(id) else { return };
        if of.workloads.get(uid) == workload.as_ref() {
            return;
        }
        let network = of.config.network.clone();
        for (viewer, view) in &mut self.views {
            let is_near = viewer == id || self.clusters.get(viewer).is_some_and(|of| of.config.network == network);
            if is_near {
                view.set_workload(uid, workload.as_ref());
            }
        }
        if let Some(of) = self.clusters.get_mut(id) {
            self.dirty.extend(of.set_workload(uid, workload));
        }
    }
}
