//! Which of several endpoints a connection goes to.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

use crate::mesh::Workload;

/// One of the endpoints to choose from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The endpoint.
    pub workload: &'a Workload,
    /// How much of the traffic it should get, relative to the others: its capacity. 0 is none.
    pub weight: u32,
}

/// A way to choose among endpoints. All candidates are as good as each other: health, locality and failover have been
/// seen to before.
pub trait Balance: Send + Sync + Debug {
    /// The index of the choice. `None` when there is nobody to choose.
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<usize>;
}

/// Chooses at random, each candidate in proportion to its weight, as ztunnel does.
///
/// Every call is independent of those before: the shares are right on average, and a few connections can all go to one
/// endpoint.
#[derive(Debug)]
pub struct WeightedRandom(Mutex<fastrand::Rng>);

impl<'a> Candidate<'a> {
    /// A candidate with a weight of its own.
    pub fn new(workload: &'a Workload, weight: u32) -> Self {
        Self { workload, weight }
    }
}

impl WeightedRandom {
    /// With a random seed.
    pub fn new() -> Self {
        Self(Mutex::new(fastrand::Rng::new()))
    }

    /// With this seed, for the same choices on each run.
    pub fn with_seed(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }
}

impl Default for WeightedRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Balance for WeightedRandom {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<usize> {
        let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner).u64(..total);
        candidates.iter().position(|c| match at.checked_sub(u64::from(c.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }
}
