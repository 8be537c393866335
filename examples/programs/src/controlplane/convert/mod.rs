//! What the objects of a cluster mean: workloads, services, policies and gateways, each by itself.
//!
//! Objects that do not fit are left out and reported; the others stay as they are.

mod authorization;
mod endpoints;
mod gateways;
mod mesh_config;
mod peer_authentication;
mod pods;
mod ports;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hbone::xds::proto::{Authorization, Locality, Workload, octets};
use hbone::xds::view::{Change, ClusterConfig, ClusterService, NetworkGateway};

use super::kinds::{Map, MeshConfig};
use super::manifest::{Object, Problem};
use super::objects::Objects;

/// Where policies hold for all namespaces, and the mesh is configured.
const ROOT_NAMESPACE: &str = "istio-system";
const DOMAIN: &str = "cluster.local";

/// What the control plane does beside what objects say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Workloads with a waypoint let it in, whatever their policies say (`PILOT_AUTO_ALLOW_WAYPOINT_POLICY`).
    pub auto_allow_waypoint: bool,
    /// Policies that are only logged are sent (`AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY`).
    pub dry_run_policies: bool,
}

/// What a cluster's objects mean.
#[derive(Clone, Debug, Default, PartialEq)]
struct Meaning {
    config: ClusterConfig,
    gateways: BTreeSet<NetworkGateway>,
    namespaces: BTreeMap<String, NamespaceMeaning>,
}

/// What a namespace's objects mean.
#[derive(Clone, Debug, Default, PartialEq)]
struct NamespaceMeaning {
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, ClusterService>,
    policies: BTreeMap<String, Authorization>,
    problems: Vec<Problem>,
}

/// Follows the objects of one cluster, and says what their changes mean.
#[derive(Debug)]
pub struct Converter {
    cluster: Arc<str>,
    features: Features,
    objects: Objects,
    /// Given apart from the objects.
    mesh_config: Option<MeshConfig>,
    meaning: Meaning,
    problems: Vec<Problem>,
    outdated: Outdated,
}

#[derive(Debug, Default)]
struct Outdated {
    all: bool,
    namespaces: BTreeSet<String>,
}

/// What conversion looks at.
#[derive(Clone, Copy)]
struct Context<'a> {
    cluster: &'a str,
    features: Features,
    objects: &'a Objects,
    root: &'a str,
    config: &'a ClusterConfig,
}

impl Converter {
    /// A cluster without objects.
    pub fn new(cluster: impl Into<Arc<str>>, features: Features) -> Self {
        Self {
            cluster: cluster.into(),
            features,
            objects: Objects::default(),
            mesh_config: None,
            meaning: Meaning::default(),
            problems: Vec::new(),
            outdated: Outdated { all: true, namespaces: BTreeSet::new() },
        }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Makes an object, or changes it.
    pub fn put(&mut self, object: Object) {
        self.touch(&object);
        self.objects.put(object);
    }

    /// Takes an object away that has this kind and name.
    pub fn remove(&mut self, object: &Object) {
        self.touch(object);
        self.objects.remove(object);
    }

    /// Replaces what a ConfigMap would say of the mesh.
    pub fn set_mesh_config(&mut self, config: Option<MeshConfig>) {
        self.mesh_config = config;
        self.outdated.all = true;
    }

    /// What has changed since the last call. Only what is outdated is looked at.
    pub fn changes(&mut self) -> Vec<Change> {
        let outdated = std::mem::take(&mut self.outdated);
        let (mut changes, mut namespaces) = (Vec::new(), outdated.namespaces);
        if outdated.all {
            self.convert_cluster(&mut changes);
            namespaces.extend(self.objects.by_namespace.keys().cloned());
            namespaces.insert(ROOT_NAMESPACE.into());
        }
        for name in namespaces {
            let context = Context {
                cluster: &self.cluster,
                features: self.features,
                objects: &self.objects,
                root: ROOT_NAMESPACE,
                config: &self.meaning.config,
            };
            let after = context.namespace(&name);
            let before = self.meaning.namespaces.remove(&name).unwrap_or_default();
            differences(&before, &after, &mut changes);
            self.meaning.namespaces.insert(name, after);
        }
        changes
    }

    /// What holds for all of the cluster.
    fn convert_cluster(&mut self, changes: &mut Vec<Change>) {
        self.problems.clear();
        let mesh = self.mesh_config.clone().unwrap_or_else(|| mesh_config::find(&self.objects, &mut self.problems));
        let config = mesh_config::convert(&self.objects, &mesh, &mut self.problems);
        let gateways = gateways::convert(&self.objects, &mut self.problems);
        if config != self.meaning.config {
            changes.push(Change::Config(config.clone()));
            self.meaning.config = config;
        }
        if gateways != self.meaning.gateways {
            changes.push(Change::Gateways(gateways.clone()));
            self.meaning.gateways = gateways;
        }
    }

    /// What could not be used.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().chain(self.meaning.namespaces.values().flat_map(|of| &of.problems))
    }

    fn touch(&mut self, object: &Object) {
        let namespace = &object.metadata().namespace;
        match object {
            // Whatever is elsewhere may depend on it.
            Object::Namespace(_) | Object::Node(_) | Object::ConfigMap(_) | Object::Gateway(_) => {
                self.outdated.all = true
            }
            _ if namespace == ROOT_NAMESPACE => self.outdated.all = true,
            // The root namespace has the policy that strict workloads name.
            Object::PeerAuthentication(_) => {
                self.outdated.namespaces.extend([namespace.clone(), ROOT_NAMESPACE.into()]);
            }
            _ => drop(self.outdated.namespaces.insert(namespace.clone())),
        }
    }
}

impl Context<'_> {
    fn namespace(&self, name: &str) -> NamespaceMeaning {
        let mut meaning = NamespaceMeaning::default();
        self.services(name, &mut meaning);
        self.pods(name, &mut meaning);
        self.endpoint_slices(name, &mut meaning);
        self.workload_entries(name, &mut meaning);
        self.inline_endpoints(name, &mut meaning);
        self.authorization_policies(name, &mut meaning);
        self.peer_authentications(name, &mut meaning);
        self.waypoint_policies(name, &mut meaning);
        meaning
    }

    /// As it is sent: the usual one is left out.
    fn trust_domain(&self) -> String {
        match &*self.config.trust_domain {
            DOMAIN => String::new(),
            name => name.into(),
        }
    }

    fn problem(&self, meaning: &mut NamespaceMeaning, object: impl Into<String>, reason: impl Into<String>) {
        meaning.problems.push(Problem {
            source: self.cluster.into(),
            line: 0,
            object: object.into(),
            reason: reason.into(),
        });
    }
}

/// Whether all labels of a selector are there. An empty one selects nothing here.
fn selects(selector: &Map, labels: &Map) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `REGION/ZONE/SUBZONE`.
fn locality(text: &str) -> Option<Locality> {
    if text.is_empty() {
        return None;
    }
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Some(Locality { region: next(), zone: next(), subzone: next() })
}

fn differences(before: &NamespaceMeaning, after: &NamespaceMeaning, changes: &mut Vec<Change>) {
    compare(&before.services, &after.services, changes, |s| Change::Service(Box::new(s)), Change::ServiceRemoved);
    compare(&before.workloads, &after.workloads, changes, |w| Change::Workload(Box::new(w)), Change::WorkloadRemoved);
    compare(&before.policies, &after.policies, changes, |p| Change::Policy(Box::new(p)), Change::PolicyRemoved);
}

fn compare<T: Clone + PartialEq>(
    before: &BTreeMap<String, T>,
    after: &BTreeMap<String, T>,
    changes: &mut Vec<Change>,
    made: impl Fn(T) -> Change,
    removed: impl Fn(String) -> Change,
) {
    changes.extend(before.keys().filter(|key| !after.contains_key(*key)).cloned().map(removed));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
    changes.extend(changed.map(|(_, value)| made(value.clone())));
}
