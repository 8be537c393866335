//! The names that a gateway gives to its pods.

use std::hash::{BuildHasher, RandomState};

use crate::mesh::Workload;
use crate::metadata::{BackendToken, Metadata};

/// Names pods by salted hashes of their uids: nobody learns from these which or how many pods there are, and a client
/// can't name a pod that the gateway has not led it to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(RandomState);

/// The pods that a client says it is connected to.
#[derive(Debug)]
pub(super) struct KnownBackends<'a> {
    tokens: &'a Tokens,
    hashes: Vec<u64>,
}

impl Tokens {
    /// With a random salt.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The token of a pod.
    pub(super) fn of(&self, pod: &Workload) -> BackendToken {
        self.hash(pod).into()
    }

    /// The pods that the client has named. Tokens of other gateways name none of these.
    pub(super) fn known(&self, metadata: &Metadata) -> KnownBackends<'_> {
        let read = |token: &BackendToken| u64::from_str_radix(token.as_str(), 16).ok();
        let mut hashes: Vec<u64> = metadata.known_backends().iter().filter_map(read).collect();
        hashes.sort_unstable();
        KnownBackends { tokens: self, hashes }
    }

    fn hash(&self, pod: &Workload) -> u64 {
        self.0.hash_one(&pod.uid)
    }
}

impl KnownBackends<'_> {
    pub(super) fn contains(&self, pod: &Workload) -> bool {
        !self.hashes.is_empty() && self.hashes.binary_search(&self.tokens.hash(pod)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_known_by_their_tokens_and_by_no_others() {
        let pod = |uid: &str| Workload::new(uid, "same", "spiffe://td/ns/a/sa/b".parse().unwrap());
        let (ours, theirs) = (Tokens::new(), Tokens::new());
        let pods: Vec<_> = (0..100).map(|n| pod(&format!("pod-{n}"))).collect();
        let tokens: Vec<_> = pods.iter().map(|pod| ours.of(pod)).collect();
        assert_eq!(ours.clone().of(&pods[0]), tokens[0], "clones are the same");

        let others = pods.iter().map(|pod| theirs.of(pod));
        let named = tokens[..50].iter().cloned().chain(others.take(50)).chain(["no-digits".parse().unwrap()]);
        let metadata = Metadata::default().with_known_backends(named);
        let known = ours.known(&metadata);
        let found: Vec<bool> = pods.iter().map(|pod| known.contains(pod)).collect();
        assert_eq!(found, [[true; 50], [false; 50]].concat());
        assert!(!ours.known(&Metadata::default()).contains(&pods[0]));
    }
}
