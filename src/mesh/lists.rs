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
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its number, by which lists of endpoints are ordered.
    number: u64,
}

/// A chunk with more endpoints is split.
const MAX_CHUNK: usize = 64;

/// For thousands of endpoints: a change copies one chunk of them and the list of chunks. No chunk is empty.
///
/// In the order in which workloads came, which is about that of their places in memory: going through all of them, as
/// each choice of an endpoint does, takes a third of the time that it takes in the order of their names.
#[derive(Clone, Default)]
pub(super) struct EndpointList {
    chunks: Arc<[Arc<[Endpoint]>]>,
    len: usize,
}

/// The endpoints of a service, in the order in which the workloads came.
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
    /// Adds a workload, or puts it in the place of that of the same number.
    pub(super) fn insert(&mut self, number: u64, workload: &Arc<Workload>) {
        let new = Endpoint { workload: workload.clone(), number };
        let Some(at) = self.chunk(number) else {
            self.chunks = Arc::new([Arc::new([new])]);
            self.len = 1;
            return;
        };
        let is_last = at + 1 == self.chunks.len();
        let chunk = &mut Arc::make_mut(&mut self.chunks)[at];
        match position(chunk, number) {
            Ok(found) => return Arc::make_mut(chunk)[found] = new,
            // What comes last mostly does so again and again: full chunks stay full.
            Err(MAX_CHUNK) if is_last => {
                self.chunks = self.chunks.iter().cloned().chain([Arc::from([new])]).collect();
                self.len += 1;
                return;
            }
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

    pub(super) fn remove(&mut self, number: u64) {
        let Some(at) = self.chunk(number) else { return };
        let Ok(found) = position(&self.chunks[at], number) else { return };
        self.len -= 1;
        if self.chunks[at].len() == 1 {
            self.chunks = self.chunks[..at].iter().chain(&self.chunks[at + 1..]).cloned().collect();
        } else {
            let chunk = &mut Arc::make_mut(&mut self.chunks)[at];
            *chunk = chunk[..found].iter().chain(&chunk[found + 1..]).cloned().collect();
        }
    }

    /// The chunk that has the number, if one does. `None` without any chunk.
    fn chunk(&self, number: u64) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| chunk.first().is_some_and(|first| first.number <= number));
        if self.chunks.is_empty() { None } else { Some(after.saturating_sub(1)) }
    }

    pub(super) fn all(&self) -> Endpoints<'_> {
        Endpoints { chunks: &self.chunks, len: self.len }
    }
}

fn position(chunk: &[Endpoint], number: u64) -> Result<usize, usize> {
    chunk.binary_search_by_key(&number, |endpoint| endpoint.number)
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

/// Whether the endpoints are the same, whatever came when.
impl PartialEq for EndpointList {
    fn eq(&self, other: &Self) -> bool {
        fn by_uid(list: &EndpointList) -> Vec<&Arc<Workload>> {
            let mut all: Vec<_> = list.all().iter().map(|endpoint| &endpoint.workload).collect();
            all.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
            all
        }
        self.len == other.len && (self.len == 0 || by_uid(self) == by_uid(other))
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
        fn endpoints_are_in_the_order_of_their_numbers(ops in prop::collection::vec((0_u8..4, 0_u64..300), 0..900)) {
            let (mut list, mut model) = (EndpointList::default(), BTreeMap::new());
            let mut last = 300;
            for (op, number) in ops {
                if op == 0 {
                    list.remove(number);
                    model.remove(&number);
                } else {
                    // Mostly a new one at the end, as they come.
                    last += 1;
                    let number = if op == 1 { number } else { last };
                    let identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
                    let workload = Arc::new(Workload::new(format!("uid-{number}"), "name", identity));
                    list.insert(number, &workload);
                    model.insert(number, workload);
                }
                prop_assert!(list.chunks.iter().all(|chunk| (1..=MAX_CHUNK).contains(&chunk.len())));
            }
            prop_assert_eq!(list.all().len(), model.len());
            prop_assert!(list.all().iter().map(|e| &e.workload).zip(model.values()).all(|(a, b)| Arc::ptr_eq(a, b)));
            prop_assert_eq!(list.all().iter().count(), model.len());
        }
    }
}
