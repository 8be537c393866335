//! The less busy of two.

use super::in_flight::Loads;
use super::random::Random;
use super::{Balance, Candidate, Pick};

/// Draws two candidates at random, each in proportion to its weight, and takes the less busy of them: the one with the
/// lower `(in flight + 1) / weight`. When neither has anything in flight the first drawn is taken, so that an idle
/// client spreads by weight.
///
/// This is the power of two choices (Mitzenmacher), as in Envoy's *weighted least request* and tower's `p2c`: nearly as
/// even as comparing all, and many clients with the same view do not all rush to the same endpoint. Envoy changes to
/// another algorithm where weights differ; here they count in both the draw and the comparison.
///
/// What is in flight is what this balancer has placed and what has not ended yet, over all services. Clients don't know
/// of each other's.
#[derive(Debug)]
pub struct LeastRequests {
    random: Random,
    loads: Loads,
}

impl LeastRequests {
    /// With a random seed.
    pub fn new() -> Self {
        Self { random: Random::new(), loads: Loads::default() }
    }

    /// With this seed, for the same choices on each run.
    pub fn with_seed(seed: u64) -> Self {
        Self { random: Random::with_seed(seed), loads: Loads::default() }
    }

    /// How many endpoints have something in flight.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.loads.lock().len()
    }
}

impl Default for LeastRequests {
    fn default() -> Self {
        Self::new()
    }
}

impl Balance for LeastRequests {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        let first = self.random.draw(candidates, None)?;
        let second = self.random.draw(candidates, Some(first));
        let mut counts = self.loads.lock();
        let index = match second {
            Some(second) => {
                let [a, b] = [first, second].map(|index| &candidates[index]);
                let [in_a, in_b] = [a, b].map(|c| u128::from(counts.of(&c.workload.uid)));
                let busier = (in_a + 1) * u128::from(b.weight) > (in_b + 1) * u128::from(a.weight);
                if (in_a, in_b) != (0, 0) && busier { second } else { first }
            }
            None => first,
        };
        let in_flight = self.loads.add(&mut counts, &candidates[index].workload.uid);
        Some(Pick::new(index, in_flight))
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
    fn without_load_shares_follow_the_weights(#[case] weights: &[u32]) {
        let counts = counts(&LeastRequests::with_seed(7), weights, 20_000);
        assert_shares(&counts, weights);
    }

    /// Two candidates are always both drawn, so the comparison is all there is.
    #[rstest]
    #[case::idle_one([0, 1], [1, 1], 0)]
    #[case::fewer([3, 2], [1, 1], 1)]
    #[case::more_but_stronger([3, 1], [3, 1], 0)]
    #[case::stronger_but_too_busy([6, 1], [3, 1], 1)]
    #[case::weak_but_idle([3, 0], [3, 1], 1)]
    #[case::weak_and_idle_while_the_stronger_has_room([1, 0], [3, 1], 0)]
    #[case::no_weight([9, 0], [1, 0], 0)]
    fn the_lower_load_by_weight_is_taken(
        #[case] in_flight: [usize; 2],
        #[case] weights: [u32; 2],
        #[case] expected: usize,
    ) {
        let workloads = workloads(2);
        for seed in 0..20 {
            let balance = LeastRequests::with_seed(seed);
            let only = |index: usize| candidates(&workloads[index..=index], &[1]);
            let held: Vec<_> = (0..2)
                .flat_map(|index| (0..in_flight[index]).map(move |_| index))
                .map(|index| balance.pick(&only(index)).unwrap())
                .collect();
            assert_eq!(balance.pick(&candidates(&workloads, &weights)).unwrap().index, expected);
            drop(held);
        }
    }

    #[rstest]
    #[case(&[1; 10])]
    #[case(&[1, 2, 3, 4])]
    fn what_stays_in_flight_is_spread_by_weight(#[case] weights: &[u32]) {
        let (balance, workloads) = (LeastRequests::with_seed(7), workloads(weights.len()));
        let candidates = candidates(&workloads, weights);
        let held: Vec<_> = (0..1000).map(|_| balance.pick(&candidates).unwrap()).collect();
        let total: u32 = weights.iter().sum();
        for (index, weight) in weights.iter().enumerate() {
            let count = held.iter().filter(|pick| pick.index == index).count() as f64;
            let fair = 1000.0 * f64::from(*weight) / f64::from(total);
            // Far within what chance alone would leave: its standard deviation is about 10.
            assert!((count - fair).abs() <= 6.0, "{count} at {index}, {fair} would be fair");
        }
    }

    #[test]
    fn an_endpoint_that_holds_on_to_its_work_gets_no_more_than_the_others() {
        let (balance, workloads) = (LeastRequests::with_seed(7), workloads(3));
        let candidates = candidates(&workloads, &[1, 1, 1]);
        let mut stuck = Vec::new();
        let mut counts = [0; 3];
        for _ in 0..300 {
            let pick = balance.pick(&candidates).unwrap();
            counts[pick.index] += 1;
            if pick.index == 0 {
                stuck.push(pick);
            }
        }
        assert!(stuck.len() <= 5, "{counts:?}");
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let runs = [7, 7, 8].map(|seed| {
            let balance = LeastRequests::with_seed(seed);
            (0..50).map(|_| counts(&balance, &[1, 1, 1], 1)).collect::<Vec<_>>()
        });
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }
}
