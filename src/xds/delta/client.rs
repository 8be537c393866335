//! The client's side of a delta stream.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::proto::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource, RpcStatus};

/// The code of gRPC that rejects a resource.
const INVALID_ARGUMENT: i32 = 3;
/// A NACK goes into one header of gRPC at the server: it names so many resources at most, and counts the others.
const NAMED_REJECTIONS: usize = 20;

/// What one client asks for, type by type, and the versions it holds.
///
/// It outlives its streams: [`connect`](Self::connect) tells a new one what is held already, so that only what has
/// changed meanwhile is sent.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    node: Node,
    types: Vec<Type>,
}

/// Which resources of a type are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interest {
    /// All.
    Wildcard,
    /// Those that [`Subscriptions::subscribe`] names, and what the server sends unasked.
    OnDemand,
}

#[derive(Clone, Debug)]
struct Type {
    url: String,
    interest: Interest,
    names: BTreeSet<String>,
    held: HashMap<String, String>,
}

/// What a response changes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Update {
    /// The type of all of it.
    pub type_url: String,
    /// New and changed resources, to be decoded.
    pub resources: Vec<Resource>,
    /// Names of those that are gone or do not exist.
    pub removed: Vec<String>,
    nonce: String,
}

impl Subscriptions {
    /// Asks for nothing yet.
    pub fn new(node: Node) -> Self {
        Self { node, types: Vec::new() }
    }

    /// Asks for a type of resources. Types are asked for in this order.
    pub fn with_type(mut self, url: &str, interest: Interest) -> Self {
        self.types.push(Type { url: url.into(), interest, names: BTreeSet::new(), held: HashMap::new() });
        self
    }

    /// The first requests of a new stream.
    pub fn connect(&self) -> Vec<DeltaDiscoveryRequest> {
        let request = |kind: &Type| {
            let mut request = DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                type_url: kind.url.clone(),
                initial_resource_versions: kind.held.clone(),
                ..Default::default()
            };
            if kind.interest == Interest::OnDemand {
                // Both at once is a subscription to nothing, where none at all would be one to everything.
                request.resource_names_subscribe.push("*".into());
                request.resource_names_unsubscribe.push("*".into());
                request.resource_names_subscribe.extend(kind.names.iter().cloned());
            }
            request
        };
        self.types.iter().map(request).collect()
    }

    /// Asks for one more resource by name. `None` when it has been asked for before, or all are wanted anyway.
    ///
    /// There is no opposite: Istio's server answers a request that only unsubscribes by removing everything.
    pub fn subscribe(&mut self, type_url: &str, name: &str) -> Option<DeltaDiscoveryRequest> {
        let kind = self.types.iter_mut().find(|kind| kind.url == type_url)?;
        if kind.interest == Interest::Wildcard || !kind.names.insert(name.into()) {
            return None;
        }
        Some(DeltaDiscoveryRequest {
            type_url: type_url.into(),
            resource_names_subscribe: vec![name.into()],
            ..Default::default()
        })
    }

    /// What a response changes. A type that was not asked for changes nothing.
    pub fn receive(&self, response: DeltaDiscoveryResponse) -> Update {
        let DeltaDiscoveryResponse { mut resources, type_url, nonce, mut removed_resources, .. } = response;
        if !self.types.iter().any(|kind| kind.url == type_url) {
            (resources, removed_resources) = (Vec::new(), Vec::new());
        }
        Update { type_url, resources, removed: removed_resources, nonce }
    }

    /// Takes note of what was applied, and answers: with an ACK, or a NACK that names what was rejected and why. What
    /// was rejected stays as it was, and counts as held in its earlier version.
    pub fn applied(&mut self, update: Update, rejected: &BTreeMap<String, String>) -> DeltaDiscoveryRequest {
        if let Some(kind) = self.types.iter_mut().find(|kind| kind.url == update.type_url) {
            for resource in update.resources {
                if !rejected.contains_key(&resource.name) {
                    kind.held.insert(resource.name, resource.version);
                }
            }
            for name in &update.removed {
                kind.held.remove(name);
            }
        }
        DeltaDiscoveryRequest {
            type_url: update.type_url,
            response_nonce: update.nonce,
            error_detail: (!rejected.is_empty()).then(|| rejection(rejected)),
            ..Default::default()
        }
    }

    /// How many resources are held, of all types.
    pub fn held(&self) -> usize {
        self.types.iter().map(|kind| kind.held.len()).sum()
    }
}

fn rejection(rejected: &BTreeMap<String, String>) -> RpcStatus {
    let mut message = String::new();
    for (name, reason) in rejected.iter().take(NAMED_REJECTIONS) {
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(name);
        message.push_str(": ");
        message.push_str(reason);
    }
    if let Some(more @ 1..) = rejected.len().checked_sub(NAMED_REJECTIONS) {
        message.push_str(&format!("; and {more} more"));
    }
    RpcStatus { code: INVALID_ARGUMENT, message, details: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::super::proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
    use super::*;

    fn subscriptions(interest: Interest) -> Subscriptions {
        let node = Node { id: "ztunnel~10.0.0.1~a.b~b.svc.cluster.local".into(), ..Default::default() };
        Subscriptions::new(node).with_type(ADDRESS_TYPE, interest).with_type(AUTHORIZATION_TYPE, Interest::Wildcard)
    }

    fn response(resources: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            resources: resources
                .iter()
                .map(|(name, version)| Resource {
                    name: (*name).into(),
                    version: (*version).into(),
                    ..Default::default()
                })
                .collect(),
            removed_resources: removed.iter().map(|name| (*name).into()).collect(),
            type_url: ADDRESS_TYPE.into(),
            nonce: "n1".into(),
            ..Default::default()
        }
    }

    fn rejected(names: &[(&str, &str)]) -> BTreeMap<String, String> {
        names.iter().map(|(name, reason)| ((*name).into(), (*reason).into())).collect()
    }

    #[test]
    fn everything_is_a_subscription_without_names() {
        let requests = subscriptions(Interest::Wildcard).connect();
        assert_eq!(requests.iter().map(|r| &r.type_url[..]).collect::<Vec<_>>(), [ADDRESS_TYPE, AUTHORIZATION_TYPE]);
        assert!(requests.iter().all(|r| r.node.is_some() && r.resource_names_subscribe.is_empty()));
    }

    #[test]
    fn on_demand_is_a_subscription_to_nothing_and_then_to_names_once_each() {
        let mut subscriptions = subscriptions(Interest::OnDemand);
        let first = &subscriptions.connect()[0];
        assert_eq!(
            (&first.resource_names_subscribe[..], &first.resource_names_unsubscribe[..]),
            (&["*".into()][..], &["*".into()][..])
        );
        let request = subscriptions.subscribe(ADDRESS_TYPE, "east/10.0.0.1").unwrap();
        assert_eq!(request.resource_names_subscribe, ["east/10.0.0.1"]);
        assert_eq!(subscriptions.subscribe(ADDRESS_TYPE, "east/10.0.0.1"), None);
        assert_eq!(subscriptions.subscribe(AUTHORIZATION_TYPE, "a/b"), None, "all are wanted anyway");
        assert_eq!(subscriptions.connect()[0].resource_names_subscribe, ["*", "east/10.0.0.1"]);
    }

    #[test]
    fn an_ack_has_the_nonce_only_and_versions_are_told_after_a_reconnection() {
        let mut subscriptions = subscriptions(Interest::Wildcard);
        let update = subscriptions.receive(response(&[("a", "1"), ("b", "1")], &[]));
        let ack = subscriptions.applied(update, &BTreeMap::new());
        let expected =
            DeltaDiscoveryRequest { type_url: ADDRESS_TYPE.into(), response_nonce: "n1".into(), ..Default::default() };
        assert_eq!(ack, expected);
        let update = subscriptions.receive(response(&[("a", "2")], &["b"]));
        subscriptions.applied(update, &BTreeMap::new());
        let versions = &subscriptions.connect()[0].initial_resource_versions;
        assert_eq!(versions, &HashMap::from([("a".into(), "2".into())]));
        assert_eq!(subscriptions.held(), 1);
    }

    #[test]
    fn a_nack_names_what_was_rejected_and_its_earlier_version_stays() {
        let mut subscriptions = subscriptions(Interest::Wildcard);
        let update = subscriptions.receive(response(&[("a", "1")], &[]));
        subscriptions.applied(update, &BTreeMap::new());
        let update = subscriptions.receive(response(&[("a", "2"), ("b", "1")], &[]));
        let nack = subscriptions.applied(update, &rejected(&[("a", "address 5 bytes long")]));
        let detail = nack.error_detail.unwrap();
        assert_eq!((detail.code, &detail.message[..]), (3, "a: address 5 bytes long"));
        let versions = &subscriptions.connect()[0].initial_resource_versions;
        assert_eq!(versions, &HashMap::from([("a".into(), "1".into()), ("b".into(), "1".into())]));
    }

    #[test]
    fn a_nack_of_very_many_names_some_and_counts_the_rest() {
        let mut subscriptions = subscriptions(Interest::Wildcard);
        let all: BTreeMap<_, _> = (0..1000).map(|n| (format!("w{n:04}"), "bad".to_owned())).collect();
        let update = subscriptions.receive(response(&[], &[]));
        let message = subscriptions.applied(update, &all).error_detail.unwrap().message;
        assert!(message.starts_with("w0000: bad; w0001: bad") && message.ends_with("; and 980 more"), "{message}");
    }

    #[test]
    fn a_type_that_was_not_asked_for_changes_nothing_and_is_answered() {
        let mut subscriptions = subscriptions(Interest::Wildcard);
        let mut odd = response(&[("a", "1")], &["b"]);
        odd.type_url = "type.googleapis.com/other".into();
        let update = subscriptions.receive(odd);
        assert!(update.resources.is_empty() && update.removed.is_empty());
        assert_eq!(subscriptions.applied(update, &BTreeMap::new()).response_nonce, "n1");
        assert_eq!(subscriptions.held(), 0);
    }
}
