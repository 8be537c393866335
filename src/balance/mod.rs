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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn pick_many(balance: &WeightedRandom, weights: &[u32], times: usize) -> Vec<usize> {
        let workload = Workload::new("uid", "name", "spiffe://td/ns/a/sa/b".parse().unwrap());
        let candidates: Vec<_> = weights.iter().map(|w| Candidate::new(&workload, *w)).collect();
        let mut counts = vec![0; weights.len()];
        for _ in 0..times {
            if let Some(index) = balance.pick(&candidates) {
                counts[index] += 1;
            }
        }
        counts
    }

    #[rstest]
    #[case(&[1, 1, 1, 1])]
    #[case(&[9, 1])]
    #[case(&[1, 0, 3])]
    #[case(&[u32::MAX, u32::MAX, u32::MAX])]
    fn shares_follow_the_weights(#[case] weights: &[u32]) {
        const TIMES: usize = 20_000;
        let counts = pick_many(&WeightedRandom::with_seed(7), weights, TIMES);
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        for (count, weight) in counts.iter().zip(weights) {
            let expected = TIMES as f64 * f64::from(*weight) / total;
            // Five standard deviations of a binomial distribution.
            let tolerance = 5.0 * (expected * (1.0 - f64::from(*weight) / total)).sqrt();
            assert!((*count as f64 - expected).abs() <= tolerance, "{counts:?} for {weights:?}");
        }
    }

    #[rstest]
    #[case(&[])]
    #[case(&[0])]
    #[case(&[0, 0])]
    fn nobody_is_chosen_when_nobody_has_weight(#[case] weights: &[u32]) {
        assert_eq!(pick_many(&WeightedRandom::new(), weights, 10).iter().sum::<usize>(), 0);
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let runs = [7, 7, 8].map(|seed| {
            let balance = WeightedRandom::with_seed(seed);
            (0..50).map(|_| pick_many(&balance, &[1, 1, 1], 1)).collect::<Vec<_>>()
        });
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }

    proptest! {
        #[test]
        fn only_candidates_with_weight_are_chosen(weights in prop::collection::vec(0u32..4, 0..8), seed: u64) {
            let counts = pick_many(&WeightedRandom::with_seed(seed), &weights, 20);
            prop_assert!(counts.iter().zip(&weights).all(|(count, weight)| *count == 0 || *weight > 0));
            let chosen = counts.iter().sum::<usize>();
            prop_assert_eq!(chosen, if weights.iter().any(|w| *w > 0) { 20 } else { 0 });
        }
    }
}
