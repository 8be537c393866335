//! Lists in the order of a key that are cheap to copy.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::address::NamespacedHostname;
use super::service::Service;
use super::workload::Workload;
use crate::policy::{Policy, PolicyName};

/// What lists are ordered by.
pub(super) trait Keyed {
    type Key: Ord + ?Sized;

    fn key(&self) -> &Self::Key;
}

impl Keyed for Workload {
    type Key = str;

    fn key(&self) -> &str {
        &self.uid
    }
}

impl Keyed for Service {
    type Key = NamespacedHostname;

    fn key(&self) -> &NamespacedHostname {
        &self.key
    }
}

impl Keyed for Policy {
    type Key = PolicyName;

    fn key(&self) -> &PolicyName {
        &self.name
    }
}

/// For few items: a change copies all of them.
pub(super) struct ShortList<T>(Arc<[Arc<T>]>);

impl<T: Keyed> ShortList<T> {
    pub(super) fn as_slice(&self) -> &[Arc<T>] {
        &self.0
    }

    /// Adds an item, or puts it in the place of that of the same key.
    pub(super) fn insert(&mut self, item: &Arc<T>) {
        match self.position(item.key()) {
            Ok(found) => Arc::make_mut(&mut self.0)[found] = item.clone(),
            Err(before) => {
                let (head, tail) = self.0.split_at(before);
                self.0 = head.iter().chain([item]).chain(tail).cloned().collect();
            }
        }
    }

    pub(super) fn remove(&mut self, key: &T::Key) {
        if let Ok(found) = self.position(key) {
            self.0 = self.0[..found].iter().chain(&self.0[found + 1..]).cloned().collect();
        }
    }

    fn position(&self, key: &T::Key) -> Result<usize, usize> {
        self.0.binary_search_by(|item| item.key().cmp(key))
    }
}

/// A workload as an endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
}

/// A chunk with more endpoints is split.
const MAX_CHUNK: usize = 64;

/// For thousands of endpoints: a change copies one chunk of them and the list of chunks. No chunk is empty.
#[derive(Clone, Default)]
pub(super) struct EndpointList {
    chunks: Arc<[Arc<[Endpoint]>]>,
    len: usize,
}

/// The endpoints of a service, in the order of the workloads' uids.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoints<'a> {
    chunks: &'a [Arc<[Endpoint]>],
    len: usize,
}

/// Goes through [`Endpoints`].
#[derive(Clone, Debug)]
pub struct EndpointsIter<'a> {
    chunk: slice::Iter<'a, Endpoint>,
    chunks: slice::Iter<'a, Arc<[Endpoint]>>,
}

impl EndpointList {
    pub(super) fn insert(&mut self, workload: &Arc<Workload>) {
        let new = Endpoint { workload: workload.clone() };
        let Some(at) = self.chunk(&workload.uid) else {
            self.chunks = Arc::new([Arc::new([new])]);
            self.len = 1;
            return;
        };
        let chunk = &mut Arc::make_mut(&mut self.chunks)[at];
        match position(chunk, &workload.uid) {
            Ok(found) => return Arc::make_mut(chunk)[found] = new,
            Err(before) => {
                let (head, tail) = chunk.split_at(before);
                *chunk = head.iter().cloned().chain([new]).chain(tail.iter().cloned()).collect();
            }
        }
        self.len += 1;
        if chunk.len() > MAX_CHUNK {
            let (head, tail) = chunk.split_at(MAX_CHUNK / 2);
            let halves = [Arc::from(head), Arc::from(tail)];
            let (before, after) = (&self.chunks[..at], &self.chunks[at + 1..]);
            self.chunks = before.iter().chain(&halves).chain(after).cloned().collect();
        }
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(at) = self.chunk(uid) else { return };
        let Ok(found) = position(&self.chunks[at], uid) else { return };
        self.len -= 1;
        if self.chunks[at].len() == 1 {
            self.chunks = self.chunks[..at].iter().chain(&self.chunks[at + 1..]).cloned().collect();
        } else {
            let chunk = &mut Arc::make_mut(&mut self.chunks)[at];
            *chunk = chunk[..found].iter().chain(&chunk[found + 1..]).cloned().collect();
        }
    }

    /// The chunk that has the uid, if one does. `None` without any chunk.
    fn chunk(&self, uid: &str) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|first| &*first.workload.uid <= uid));
        if self.chunks.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }

    pub(super) fn all(&self) -> Endpoints<'_> {
        Endpoints { chunks: &self.chunks, len: self.len }
    }
}

fn position(chunk: &[Endpoint], uid: &str) -> Result<usize, usize> {
    chunk.binary_search_by(|endpoint| (*endpoint.workload.uid).cmp(uid))
}

impl<'a> Endpoints<'a> {
    /// How many there are.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Goes through them.
    pub fn iter(self) -> EndpointsIter<'a> {
        EndpointsIter { chunk: [].iter(), chunks: self.chunks.iter() }
    }
}

impl<'a> IntoIterator for Endpoints<'a> {
    type Item = &'a Endpoint;
    type IntoIter = EndpointsIter<'a>;

    fn into_iter(self) -> EndpointsIter<'a> {
        self.iter()
    }
}

impl<'a> Iterator for EndpointsIter<'a> {
    type Item = &'a Endpoint;

    fn next(&mut self) -> Option<&'a Endpoint> {
        loop {
            if let Some(endpoint) = self.chunk.next() {
                return Some(endpoint);
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }
}

impl Endpoint {
    /// The port of the workload behind a port of the service: the endpoint's own mapping first, then the service's.
    /// `None` where neither has it.
    pub fn target_port(&self, service: &Service, service_port: u16) -> Option<u16> {
        let own = self.workload.services.get(&service.key)?;
        own.target(service_port).or_else(|| service.ports.target(service_port))
    }
}

impl<T> Clone for ShortList<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for ShortList<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: PartialEq> PartialEq for ShortList<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T: fmt::Debug> fmt::Debug for ShortList<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// However the endpoints are cut into chunks.
impl PartialEq for EndpointList {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.all().iter().eq(other.all())
    }
}

impl fmt::Debug for EndpointList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn endpoints_are_in_order_whatever_came_when(ops in prop::collection::vec((0_u8..3, 0_u16..300), 0..900)) {
            let (mut list, mut model) = (EndpointList::default(), BTreeMap::new());
            for (op, uid) in ops {
                let uid = format!("uid-{uid}");
                let identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
                match op {
                    0 => {
                        list.remove(&uid);
                        model.remove(&uid);
                    }
                    _ => {
                        let workload = Arc::new(Workload::new(uid.as_str(), "name", identity));
                        list.insert(&workload);
                        model.insert(uid, workload);
                    }
                }
                prop_assert!(list.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&chunk.len())));
            }
            prop_assert_eq!(list.all().len(), model.len());
            prop_assert!(list.all().iter().map(|e| &e.workload).zip(model.values()).all(|(a, b)| Arc::ptr_eq(a, b)));
            prop_assert_eq!(list.all().iter().count(), model.len());
        }
    }
}
