//! One cluster's view, and what has changed in it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::super::delta::{Entry, Resources};
use super::super::proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, Address, Any, Authorization, Service, Workload, address, ip,
};

/// So many changes are remembered. Who is further behind looks at everything.
const LOG: usize = 65_536;

/// What one cluster is sent, encoded, and what has changed in it.
#[derive(Clone, Debug, Default)]
pub struct View {
    addresses: Addresses,
    policies: Policies,
    /// What each service has put here beside itself.
    pub(super) stand_ins: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    log: Log,
}

/// Workloads and services.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    entries: BTreeMap<Arc<str>, Entry>,
    /// `NETWORK/IP`, in whatever order they came.
    aliases: HashMap<String, BTreeSet<Arc<str>>>,
    endpoints: HashMap<String, BTreeSet<Arc<str>>>,
    nodes: HashMap<String, BTreeSet<Arc<str>>>,
}

/// Policies.
#[derive(Clone, Debug, Default)]
pub struct Policies(BTreeMap<Arc<str>, Entry>);

/// Names of what has changed, by type. The oldest are forgotten.
#[derive(Clone, Debug, Default)]
struct Log {
    first: u64,
    changes: VecDeque<(Kind, Arc<str>)>,
    /// As far as readers may go.
    published: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Address,
    Policy,
}

impl View {
    /// The workloads and services.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The policies.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Counts changes. [`changed_since`](Self::changed_since) takes it.
    pub fn revision(&self) -> u64 {
        self.log.published
    }

    /// The names of addresses and policies that have changed since a revision. `None` when that is too long ago to
    /// tell.
    pub fn changed_since(&self, revision: u64) -> Option<(BTreeSet<&str>, BTreeSet<&str>)> {
        let skip = usize::try_from(revision.checked_sub(self.log.first)?).ok()?;
        let (mut addresses, mut policies) = (BTreeSet::new(), BTreeSet::new());
        for (kind, name) in self.log.changes.iter().skip(skip) {
            match kind {
                Kind::Address => addresses.insert(&**name),
                Kind::Policy => policies.insert(&**name),
            };
        }
        Some((addresses, policies))
    }

    pub(super) fn set_workload(&mut self, uid: &str, workload: Option<&Workload>) {
        let address = workload.map(|workload| address::Type::Workload(Box::new(workload.clone())));
        self.set_address(uid, address);
    }

    pub(super) fn set_service(&mut self, key: &str, service: Option<Service>) {
        self.set_address(key, service.map(|service| address::Type::Service(Box::new(service))));
    }

    fn set_address(&mut self, name: &str, address: Option<address::Type>) {
        let (entries, name): (_, Arc<str>) = (&self.addresses.entries, name.into());
        let entry = address.map(|address| {
            let aliases = aliases(&address);
            (Entry::new(Any::pack(ADDRESS_TYPE, &Address { r#type: Some(address.clone()) }), aliases), address)
        });
        if entries.get(&name) == entry.as_ref().map(|(entry, _)| entry) {
            return;
        }
        self.addresses.remove(&name);
        if let Some((entry, address)) = entry {
            self.addresses.insert(&name, entry, &address);
        }
        self.log.push(Kind::Address, name);
    }

    pub(super) fn set_policy(&mut self, key: &str, policy: Option<&Authorization>) {
        let entry = policy.map(|policy| Entry::new(Any::pack(AUTHORIZATION_TYPE, policy), Vec::new()));
        if self.policies.0.get(key) == entry.as_ref() {
            return;
        }
        match entry {
            Some(entry) => self.policies.0.insert(key.into(), entry),
            None => self.policies.0.remove(key),
        };
        self.log.push(Kind::Policy, key.into());
    }

    /// Lets readers see what has been logged.
    pub(super) fn publish(&mut self) {
        self.log.published = self.log.end();
    }
}

impl Log {
    fn push(&mut self, kind: Kind, name: Arc<str>) {
        self.changes.push_back((kind, name));
        while self.changes.len() > LOG {
            self.changes.pop_front();
            self.first += 1;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.changes.len() as u64
    }
}

impl Addresses {
    /// The names of the workloads on a node.
    pub fn on_node(&self, node: &str) -> BTreeSet<String> {
        self.nodes.get(node).into_iter().flatten().map(|uid| uid.to_string()).collect()
    }

    /// Every resource with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (&**name, entry))
    }

    fn insert(&mut self, name: &Arc<str>, entry: Entry, address: &address::Type) {
        for alias in &entry.aliases {
            self.aliases.entry(alias.clone()).or_default().insert(name.clone());
        }
        if let address::Type::Workload(workload) = address {
            for service in workload.services.keys() {
                self.endpoints.entry(service.clone()).or_default().insert(name.clone());
            }
            if !workload.node.is_empty() {
                self.nodes.entry(workload.node.clone()).or_default().insert(name.clone());
            }
        }
        self.entries.insert(name.clone(), entry);
    }

    fn remove(&mut self, name: &str) {
        let Some(entry) = self.entries.remove(name) else { return };
        for alias in &entry.aliases {
            take(&mut self.aliases, alias, name);
        }
        if let Some(address::Type::Workload(workload)) = decode(&entry.resource.value) {
            for service in workload.services.keys() {
                take(&mut self.endpoints, service, name);
            }
            take(&mut self.nodes, &workload.node, name);
        }
    }
}

fn decode(bytes: &Bytes) -> Option<address::Type> {
    <Address as prost::Message>::decode(bytes.clone()).ok()?.r#type
}

/// Takes a name out of an index.
fn take(index: &mut HashMap<String, BTreeSet<Arc<str>>>, key: &str, name: &str) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

/// What clients may ask for instead of the name.
fn aliases(address: &address::Type) -> Vec<String> {
    let alias = |network: &str, octets: &Bytes| ip(octets).map(|ip| format!("{network}/{ip}"));
    match address {
        address::Type::Workload(workload) => {
            workload.addresses.iter().filter_map(|ip| alias(&workload.network, ip)).collect()
        }
        address::Type::Service(service) => {
            service.addresses.iter().filter_map(|address| alias(&address.network, &address.address)).collect()
        }
    }
}

impl Resources for Addresses {
    fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(|name| &**name))
    }

    fn resolve(&self, name: &str) -> Vec<&str> {
        let own = self.entries.get_key_value(name).map(|(name, _)| name);
        let found: Vec<&Arc<str>> = own.into_iter().chain(self.aliases.get(name).into_iter().flatten()).collect();
        let behind = found.iter().filter_map(|name| self.endpoints.get(&***name)).flatten();
        found.iter().copied().chain(behind).map(|name| &**name).collect()
    }
}

impl Resources for Policies {
    fn get(&self, name: &str) -> Option<&Entry> {
        self.0.get(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(|name| &**name))
    }

    fn resolve(&self, name: &str) -> Vec<&str> {
        self.0.get_key_value(name).map(|(name, _)| &**name).into_iter().collect()
    }
}
