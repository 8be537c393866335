//! At random, by weight.

use std::sync::{Mutex, PoisonError};

use super::{Balance, Candidate, InFlight, Pick};

/// Chooses at random, each candidate in proportion to its weight, as ztunnel does.
///
/// Every call is independent of those before: the shares are right on average, and a few connections can all go to one
/// endpoint.
#[derive(Debug)]
pub struct WeightedRandom(Random);

/// A source of randomness that many threads share.
#[derive(Debug)]
pub(super) struct Random(Mutex<fastrand::Rng>);

impl WeightedRandom {
    /// With a random seed.
    pub fn new() -> Self {
        Self(Random::new())
    }

    /// With this seed, for the same choices on each run.
    pub fn with_seed(seed: u64) -> Self {
        Self(Random::with_seed(seed))
    }
}

impl Default for WeightedRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Balance for WeightedRandom {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        Some(Pick::new(self.0.draw(candidates, None)?, InFlight::none()))
    }
}

impl Random {
    pub(super) fn new() -> Self {
        Self(Mutex::new(fastrand::Rng::new()))
    }

    pub(super) fn with_seed(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// Draws one candidate, each in proportion to its weight, and not the one at `except`.
    pub(super) fn draw(&self, candidates: &[Candidate<'_>], except: Option<usize>) -> Option<usize> {
        let weight = |index: usize| if Some(index) == except { 0 } else { u64::from(candidates[index].weight) };
        let total: u64 = (0..candidates.len()).map(weight).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner).u64(..total);
        (0..candidates.len()).find(|index| match at.checked_sub(weight(*index)) {
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
    use rstest::rstest;

    use super::super::tests::{assert_shares, candidates, counts, workloads};
    use super::*;

    #[rstest]
    #[case(&[1, 1, 1, 1])]
    #[case(&[9, 1])]
    #[case(&[1, 0, 3])]
    #[case(&[u32::MAX, u32::MAX, u32::MAX])]
    fn shares_follow_the_weights(#[case] weights: &[u32]) {
        let counts = counts(&WeightedRandom::with_seed(7), weights, 20_000);
        assert_shares(&counts, weights);
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let runs = [7, 7, 8].map(|seed| {
            let balance = WeightedRandom::with_seed(seed);
            (0..50).map(|_| counts(&balance, &[1, 1, 1], 1)).collect::<Vec<_>>()
        });
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }

    #[test]
    fn the_excepted_one_is_not_drawn_and_the_others_keep_their_proportions() {
        let workloads = workloads(3);
        let candidates = candidates(&workloads, &[1, 7, 3]);
        let random = Random::with_seed(7);
        let mut counts = vec![0; 3];
        for _ in 0..20_000 {
            counts[random.draw(&candidates, Some(1)).unwrap()] += 1;
        }
        assert_shares(&counts, &[1, 0, 3]);
        assert_eq!(random.draw(&candidates[1..2], Some(0)), None);
    }
}
