//! The objects of one cluster, by kind, namespace and name.

use std::collections::BTreeMap;

use super::kinds::{
    AuthorizationPolicy, Bare, ConfigMap, EndpointSlice, Gateway, PeerAuthentication, Pod, Service, ServiceEntry,
    WorkloadEntry,
};
use super::manifest::Object;

/// By name.
pub type Named<T> = BTreeMap<String, T>;

/// The objects of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the kinds, by name")]
pub struct Objects {
    pub namespaces: Named<Bare>,
    pub nodes: Named<Bare>,
    pub by_namespace: Named<Namespaced>,
}

/// The objects of one namespace.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the kinds, by name")]
pub struct Namespaced {
    pub authorization_policies: Named<AuthorizationPolicy>,
    pub config_maps: Named<ConfigMap>,
    pub endpoint_slices: Named<EndpointSlice>,
    pub gateways: Named<Gateway>,
    pub peer_authentications: Named<PeerAuthentication>,
    pub pods: Named<Pod>,
    pub services: Named<Service>,
    pub service_entries: Named<ServiceEntry>,
    pub workload_entries: Named<WorkloadEntry>,
}

static NOTHING: Namespaced = Namespaced {
    authorization_policies: BTreeMap::new(),
    config_maps: BTreeMap::new(),
    endpoint_slices: BTreeMap::new(),
    gateways: BTreeMap::new(),
    peer_authentications: BTreeMap::new(),
    pods: BTreeMap::new(),
    services: BTreeMap::new(),
    service_entries: BTreeMap::new(),
    workload_entries: BTreeMap::new(),
};

impl Objects {
    /// Makes an object, or changes it.
    pub fn put(&mut self, object: Object) {
        let (namespace, name) = (object.metadata().namespace.clone(), object.metadata().name.clone());
        let of = match &object {
            Object::Namespace(_) | Object::Node(_) => None,
            _ => Some(self.by_namespace.entry(namespace).or_default()),
        };
        match (object, of) {
            (Object::Namespace(object), _) => drop(self.namespaces.insert(name, object)),
            (Object::Node(object), _) => drop(self.nodes.insert(name, object)),
            (Object::AuthorizationPolicy(object), Some(of)) => drop(of.authorization_policies.insert(name, object)),
            (Object::ConfigMap(object), Some(of)) => drop(of.config_maps.insert(name, object)),
            (Object::EndpointSlice(object), Some(of)) => drop(of.endpoint_slices.insert(name, object)),
            (Object::Gateway(object), Some(of)) => drop(of.gateways.insert(name, object)),
            (Object::PeerAuthentication(object), Some(of)) => drop(of.peer_authentications.insert(name, object)),
            (Object::Pod(object), Some(of)) => drop(of.pods.insert(name, *object)),
            (Object::Service(object), Some(of)) => drop(of.services.insert(name, *object)),
            (Object::ServiceEntry(object), Some(of)) => drop(of.service_entries.insert(name, object)),
            (Object::WorkloadEntry(object), Some(of)) => drop(of.workload_entries.insert(name, object)),
            (_, None) => {}
        }
    }

    /// Takes an object away that has this kind and name.
    pub fn remove(&mut self, object: &Object) {
        let (namespace, name) = (&object.metadata().namespace, &object.metadata().name);
        let of = self.by_namespace.entry(namespace.clone()).or_default();
        match object {
            Object::Namespace(_) => drop(self.namespaces.remove(name)),
            Object::Node(_) => drop(self.nodes.remove(name)),
            Object::AuthorizationPolicy(_) => drop(of.authorization_policies.remove(name)),
            Object::ConfigMap(_) => drop(of.config_maps.remove(name)),
            Object::EndpointSlice(_) => drop(of.endpoint_slices.remove(name)),
            Object::Gateway(_) => drop(of.gateways.remove(name)),
            Object::PeerAuthentication(_) => drop(of.peer_authentications.remove(name)),
            Object::Pod(_) => drop(of.pods.remove(name)),
            Object::Service(_) => drop(of.services.remove(name)),
            Object::ServiceEntry(_) => drop(of.service_entries.remove(name)),
            Object::WorkloadEntry(_) => drop(of.workload_entries.remove(name)),
        }
    }

    /// What is in a namespace.
    pub fn namespace(&self, name: &str) -> &Namespaced {
        self.by_namespace.get(name).unwrap_or(&NOTHING)
    }

    /// A label of a namespace.
    pub fn namespace_label(&self, namespace: &str, label: &str) -> Option<&str> {
        self.namespaces.get(namespace)?.metadata.labels.get(label).map(String::as_str)
    }
}
