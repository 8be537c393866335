//! The mesh as it changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use super::address::NetworkAddress;
use super::resource::{RejectReason, Rejected, Resource, ResourceName};
use super::snapshot::Snapshot;
use super::tables::Tables;

/// The mesh as it changes: takes and drops resources by name, one by one or many at once, and publishes a [`Snapshot`]
/// after each change.
///
/// A change copies the parts of the indices that it touches, never the whole, so that its cost hardly depends on the
/// size of the mesh. Readers hold snapshots, which share the rest, and never wait for a change.
///
/// Each resource is taken or rejected by itself. One is [rejected](super::RejectReason) when it has no name, or an
/// address that another one of its kind has in the same network: of two claimants the one that came first has it. The
/// previous version of the resource then stays, if it has one and still can. A resource that was rejected for its
/// address is kept aside, and taken as soon as the address is free: whoever sent it will not send it again.
///
/// ```
/// use hbone::mesh::{ResourceName, Service, Store, Workload};
///
/// let mut store = Store::new();
/// let mesh = store.subscribe();
/// let mut cart = Workload::new("east//Pod/shop/cart", "cart", "spiffe://cluster.local/ns/shop/sa/cart".parse()?);
/// cart.addresses = vec!["10.0.0.1".parse()?];
/// assert!(store.upsert(cart.clone()).is_ok());
///
/// // Another one with its address has to wait, and what else comes does not.
/// let mut late = cart.clone();
/// late.uid = "east//Pod/shop/late".into();
/// let rejected = store.upsert(late).unwrap_err();
/// assert!(rejected.to_string().contains("workload shop/cart (east//Pod/shop/cart) has the address /10.0.0.1 too"));
/// assert!(store.upsert(Service::new("cart", "shop/cart.shop".parse()?)).is_ok());
///
/// let before = mesh.borrow().clone();
/// store.remove(&ResourceName::Workload(cart.uid.clone()));
/// assert!(mesh.borrow().workload("east//Pod/shop/late").is_some());
/// assert!(before.workload(&cart.uid).is_some(), "a snapshot never changes");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Store {
    tables: Arc<Tables>,
    waiting: Waiting,
    published: watch::Sender<Snapshot>,
}

/// Changes to be made at once, by [`Store::apply`]. Of several to one name the last one counts.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<(ResourceName, Option<Resource>)>);

/// What has become of a [`Batch`].
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use = "what was rejected has to be reported"]
pub struct Applied {
    /// The resources of the batch that were not taken, in its order.
    pub rejected: Vec<Rejected>,
    /// The names under which the mesh is different now, each once: what was taken, replaced or removed, in the batch
    /// or, as an address became free or was lost, because of it. Resources that came again as they were are none of
    /// these.
    pub changed: Vec<ResourceName>,
}

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a resource, or replaces it by a new version.
    pub fn upsert(&mut self, resource: impl Into<Resource>) {
        let resource = resource.into();
        self.0.push((resource.name(), Some(resource)));
    }

    /// Removes a resource, if it is there.
    pub fn remove(&mut self, name: ResourceName) {
        self.0.push((name, None));
    }

    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Leaves only the last change to each name.
    fn without_repetitions(mut self) -> Vec<(ResourceName, Option<Resource>)> {
        if self.0.len() > 1 {
            let mut seen = HashSet::new();
            let mut last: Vec<bool> = self.0.iter().rev().map(|(name, _)| seen.insert(name)).collect();
            self.0.retain(|_| last.pop().unwrap_or(true));
        }
        self.0
    }
}

impl Store {
    /// An empty mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a resource, or replaces it by a new version, and publishes.
    ///
    /// # Errors
    ///
    /// When the resource is rejected. Its previous version, if it has one, stays.
    pub fn upsert(&mut self, resource: impl Into<Resource>) -> Result<(), Rejected> {
        let mut batch = Batch::new();
        batch.upsert(resource);
        self.apply(batch).rejected.pop().map_or(Ok(()), Err)
    }

    /// Removes a resource, and publishes. Returns whether it was there, taken or kept aside.
    pub fn remove(&mut self, name: &ResourceName) -> bool {
        let was_there = self.tables.get(name).is_some() || self.waiting.get(name).is_some();
        let mut batch = Batch::new();
        batch.remove(name.clone());
        let _ = self.apply(batch);
        was_there
    }

    /// Makes all changes of a batch at once, and publishes if there are any.
    ///
    /// All that goes or changes gives up its addresses first, so that in one batch an address may pass from one
    /// resource to another, whatever the order.
    pub fn apply(&mut self, batch: Batch) -> Applied {
        let mut change = Change { tables: Arc::make_mut(&mut self.tables), freed: Vec::new(), before: Vec::new() };
        let mut new = Vec::new();
        for (name, resource) in batch.without_repetitions() {
            self.waiting.remove(&name);
            let old = change.tables.get(&name);
            match (old, resource) {
                (Some(old), Some(resource)) if old == resource => {}
                // Most changes are of this kind: no other resource is concerned.
                (Some(old), Some(resource)) if old.addresses() == resource.addresses() => change.replace(old, resource),
                (old, resource) => {
                    if let Some(old) = old.clone() {
                        change.remove(old);
                    }
                    new.extend(resource.map(|resource| (resource, old)));
                }
            }
        }
        let mut failed = Vec::new();
        for (resource, old) in new {
            match change.tables.conflict(&resource) {
                None => change.add(resource),
                Some(reason) => failed.push((Rejected { resource, reason }, old)),
            }
        }
        let mut rejected = Vec::new();
        for (reject, old) in failed {
            if let Some(old) = old
                && change.tables.conflict(&old).is_none()
            {
                change.add(old);
            }
            if matches!(reject.reason, RejectReason::AddressTaken { .. }) {
                self.waiting.insert(&reject.resource);
            }
            rejected.push(reject);
        }
        change.admit(&mut self.waiting);
        let changed = change.changed();
        if !changed.is_empty() {
            self.published.send_replace(Snapshot(self.tables.clone()));
        }
        Applied { rejected, changed }
    }

    /// Makes the mesh consist of exactly these resources, and publishes if that changes anything: what is there and not
    /// among them is removed, except for the names in `keep`, whose present version stays.
    ///
    /// This is how a source that sends everything each time, such as a file, is followed.
    pub fn replace(
        &mut self,
        resources: impl IntoIterator<Item = Resource>,
        keep: impl IntoIterator<Item = ResourceName>,
    ) -> Applied {
        let mut batch = Batch::new();
        resources.into_iter().for_each(|resource| batch.upsert(resource));
        let mut stay: HashSet<ResourceName> = batch.0.iter().map(|(name, _)| name.clone()).collect();
        stay.extend(keep);
        let present = self.tables.resources().map(|resource| resource.name()).chain(self.waiting.names().cloned());
        let gone: Vec<ResourceName> = present.filter(|name| !stay.contains(name)).collect();
        gone.into_iter().for_each(|name| batch.remove(name));
        self.apply(batch)
    }

    /// The mesh as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.tables.clone())
    }

    /// Follows the mesh: the receiver has the snapshot after the last change, also when the store is gone.
    pub fn subscribe(&self) -> watch::Receiver<Snapshot> {
        self.published.subscribe()
    }

    /// The resources that are kept aside until an address is free, each with the reason as of now.
    pub fn rejected(&self) -> impl Iterator<Item = Rejected> + '_ {
        self.waiting.resources().filter_map(|resource| {
            let reason = self.tables.conflict(resource)?;
            Some(Rejected { resource: resource.clone(), reason })
        })
    }
}

/// A change of the tables that is under way.
struct Change<'a> {
    tables: &'a mut Tables,
    /// The addresses that have been given up.
    freed: Vec<Claim>,
    /// What was there under each name that has been touched, before it was for the first time.
    before: Vec<(ResourceName, Option<Resource>)>,
}

impl Change<'_> {
    fn add(&mut self, resource: Resource) {
        self.tables.add(&resource);
        self.touch(resource.name(), None);
    }

    fn replace(&mut self, old: Resource, new: Resource) {
        self.tables.replace(&old, &new);
        self.touch(new.name(), Some(old));
    }

    fn remove(&mut self, resource: Resource) {
        self.tables.remove(&resource);
        self.freed.extend(Claim::all(&resource));
        self.touch(resource.name(), Some(resource));
    }

    fn touch(&mut self, name: ResourceName, before: Option<Resource>) {
        self.before.push((name, before));
    }

    /// Takes what has waited for the addresses that are free now.
    fn admit(&mut self, waiting: &mut Waiting) {
        while let Some(claim) = self.freed.pop() {
            for name in waiting.for_claim(&claim) {
                let Some(resource) = waiting.get(&name).cloned() else { continue };
                if self.tables.conflict(&resource).is_some() {
                    continue;
                }
                waiting.remove(&name);
                if let Some(old) = self.tables.get(&name) {
                    self.remove(old);
                }
                self.add(resource);
            }
        }
    }

    fn changed(self) -> Vec<ResourceName> {
        let mut seen = HashSet::new();
        let first = self.before.into_iter().filter(|(name, _)| seen.insert(name.clone()));
        first.filter(|(name, before)| self.tables.get(name) != *before).map(|(name, _)| name).collect()
    }
}

/// An address that one resource of a kind may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Claim {
    Workload(NetworkAddress),
    Service(NetworkAddress),
}

impl Claim {
    fn all(resource: &Resource) -> impl Iterator<Item = Self> + use<> {
        let of = match resource {
            Resource::Workload(_) => Self::Workload,
            Resource::Service(_) | Resource::Policy(_) => Self::Service,
        };
        resource.addresses().into_iter().map(of)
    }
}

/// Resources that wait for an address.
#[derive(Debug, Default)]
struct Waiting {
    resources: HashMap<ResourceName, Resource>,
    by_claim: HashMap<Claim, BTreeSet<ResourceName>>,
}

impl Waiting {
    fn insert(&mut self, resource: &Resource) {
        let name = resource.name();
        for claim in Claim::all(resource) {
            self.by_claim.entry(claim).or_default().insert(name.clone());
        }
        self.resources.insert(name, resource.clone());
    }

    fn remove(&mut self, name: &ResourceName) {
        let Some(resource) = self.resources.remove(name) else { return };
        for claim in Claim::all(&resource) {
            if let Some(names) = self.by_claim.get_mut(&claim) {
                names.remove(name);
                if names.is_empty() {
                    self.by_claim.remove(&claim);
                }
            }
        }
    }

    fn get(&self, name: &ResourceName) -> Option<&Resource> {
        self.resources.get(name)
    }

    fn names(&self) -> impl Iterator<Item = &ResourceName> {
        self.resources.keys()
    }

    fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// Those that want this address, in the order of their names.
    fn for_claim(&self, claim: &Claim) -> BTreeSet<ResourceName> {
        self.by_claim.get(claim).cloned().unwrap_or_default()
    }
}

impl Default for Store {
    fn default() -> Self {
        let snapshot = Snapshot::default();
        Self { tables: snapshot.0.clone(), waiting: Waiting::default(), published: watch::Sender::new(snapshot) }
    }
}

/// A mesh that begins as a snapshot.
impl From<Snapshot> for Store {
    fn from(snapshot: Snapshot) -> Self {
        Self { tables: snapshot.0.clone(), waiting: Waiting::default(), published: watch::Sender::new(snapshot) }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("workloads", &self.tables.workloads.len())
            .field("services", &self.tables.services.len())
            .field("policies", &self.tables.policies.len())
            .field("waiting", &self.waiting.resources.len())
            .finish()
    }
}
