//! The nearest tier first.

use std::collections::BTreeMap;

use super::in_flight::Loads;
use super::{Balance, Candidate, Pick};

/// Takes the tier with the best [rank](Candidate::rank) that has somebody with weight, and lets another policy choose
/// inside of it.
///
/// # Spilling over
///
/// With [`with_spill_over`](Self::with_spill_over), a tier that is full hands what is too much for it to the next one.
/// The *load* of a tier is what it would have after this pick, by weight:
///
/// ```text
/// load = (in flight at its candidates + 1) / sum of their weights
/// ```
///
/// The best tier whose load is not above the limit is taken; when all are above, the one with the lowest load, and of
/// equals the best. So when `n` pieces of work are in flight, a tier of weight `w` keeps `limit × w` of them, and the
/// share `1 - limit × w / n` goes on to the next.
///
/// What is in flight is what this balancer has placed at these endpoints, over all services, and what has not ended
/// yet. Picks that are made at the very same time don't see each other, so a tier may get a few more than the limit.
#[derive(Debug)]
pub struct LocalityTiers<B> {
    inner: B,
    spill_over: Option<SpillOver>,
}

#[derive(Debug)]
struct SpillOver {
    limit: f64,
    loads: Loads,
}

/// The candidates of one rank, and their places among all.
#[derive(Default)]
struct Tier<'a> {
    candidates: Vec<Candidate<'a>>,
    places: Vec<usize>,
}

impl<B: Balance> LocalityTiers<B> {
    /// Chooses inside of a tier by `inner`. Without spilling over: a tier is used as long as it has anybody.
    pub fn new(inner: B) -> Self {
        Self { inner, spill_over: None }
    }

    /// Fills a tier only up to `limit` pieces of work (tunnels) in flight for each unit of weight. Default: no limit. A
    /// workload's weight is its capacity, 1 where nothing else is said, so that a limit of 100 is 100 tunnels for a
    /// pod. Raising the limit keeps more traffic near; lowering it keeps near endpoints idler.
    ///
    /// # Panics
    ///
    /// When `limit` is negative or not a number.
    pub fn with_spill_over(mut self, limit: f64) -> Self {
        assert!(limit >= 0.0, "a limit of {limit} pieces of work");
        self.spill_over = Some(SpillOver { limit, loads: Loads::default() });
        self
    }

    /// How many endpoints have something in flight.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.spill_over.as_ref().map_or(0, |spill_over| spill_over.loads.lock().len())
    }
}

impl<B: Balance> Balance for LocalityTiers<B> {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        let mut tiers: BTreeMap<u32, Tier<'_>> = BTreeMap::new();
        for (place, candidate) in candidates.iter().enumerate().filter(|(_, c)| c.weight > 0) {
            let tier = tiers.entry(candidate.rank).or_default();
            tier.candidates.push(*candidate);
            tier.places.push(place);
        }
        let Some(spill_over) = &self.spill_over else {
            let (_, best) = tiers.pop_first()?;
            return self.pick_in(&best);
        };
        let tier = spill_over.tier(tiers.into_values())?;
        // Not under the lock: `inner` may be anybody's.
        let mut pick = self.pick_in(&tier)?;
        let uid = &candidates[pick.index].workload.uid;
        let held = spill_over.loads.add(&mut spill_over.loads.lock(), uid);
        pick.in_flight = pick.in_flight.and(held);
        Some(pick)
    }

    fn heeds_rank(&self) -> bool {
        true
    }
}

impl<B: Balance> LocalityTiers<B> {
    fn pick_in(&self, tier: &Tier<'_>) -> Option<Pick> {
        let pick = self.inner.pick(&tier.candidates)?;
        Some(Pick { index: tier.places[pick.index], ..pick })
    }
}

impl SpillOver {
    /// The tier to use, of those given in the order of their ranks.
    fn tier<'a>(&self, tiers: impl Iterator<Item = Tier<'a>>) -> Option<Tier<'a>> {
        let counts = self.loads.lock();
        let mut lowest: Option<(f64, Tier<'a>)> = None;
        for tier in tiers {
            let in_flight: u64 = tier.candidates.iter().map(|c| counts.of(&c.workload.uid)).sum();
            let weight: u64 = tier.candidates.iter().map(|c| u64::from(c.weight)).sum();
            let load = (in_flight + 1) as f64 / weight as f64;
            if load <= self.limit {
                return Some(tier);
            }
            if lowest.as_ref().is_none_or(|(lowest, _)| load < *lowest) {
                lowest = Some((load, tier));
            }
        }
        lowest.map(|(_, tier)| tier)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::tests::{assert_shares, candidates, workloads};
    use super::super::{LeastRequests, RoundRobin, WeightedRandom};
    use super::*;
    use crate::mesh::Workload;

    fn ranked<'a>(workloads: &'a [Workload], tiers: &[(u32, u32)]) -> Vec<Candidate<'a>> {
        workloads.iter().zip(tiers).map(|(w, (rank, weight))| Candidate::new(w, *weight).with_rank(*rank)).collect()
    }

    #[rstest]
    #[case::best_only(&[(1, 9), (0, 1), (0, 3)], &[0, 1, 3])]
    #[case::ranks_need_not_start_at_0(&[(7, 1), (9, 9)], &[1, 0])]
    #[case::failover_when_the_best_has_no_weight(&[(0, 0), (1, 1), (1, 2), (2, 5)], &[0, 1, 2, 0])]
    #[case::over_several_empty_tiers(&[(0, 0), (1, 0), (u32::MAX, 2)], &[0, 0, 1])]
    fn the_best_tier_with_weight_is_used_alone(#[case] tiers: &[(u32, u32)], #[case] shares: &[u32]) {
        let workloads = workloads(tiers.len());
        let inner: Arc<dyn Balance> = Arc::new(WeightedRandom::with_seed(7));
        let balance = LocalityTiers::new(inner);
        let mut counts = vec![0; tiers.len()];
        for _ in 0..20_000 {
            counts[balance.pick(&ranked(&workloads, tiers)).unwrap().index] += 1;
        }
        assert_shares(&counts, shares);
    }

    #[test]
    fn what_is_too_much_for_a_tier_spills_over_and_comes_back() {
        let workloads = workloads(3);
        let candidates = ranked(&workloads, &[(0, 1), (0, 1), (1, 1)]);
        let balance = LocalityTiers::new(RoundRobin::from_start()).with_spill_over(2.0);
        let mut held: Vec<_> = (0..7).map(|_| balance.pick(&candidates).unwrap()).collect();
        let places = |picks: &[Pick]| picks.iter().map(|p| p.index).collect::<Vec<_>>();
        // Both tiers are full after six; the near one then has a load of 5/2, the far one of 3/1.
        assert_eq!(places(&held), [0, 1, 0, 1, 2, 2, 0]);
        held.truncate(3);
        assert_eq!(balance.pick(&candidates).unwrap().index, 1);
        drop(held);
        assert_eq!(balance.remembered(), 0);
    }

    #[test]
    fn the_share_that_spills_over_is_what_the_documentation_says() {
        let workloads = workloads(5);
        let candidates = ranked(&workloads, &[(0, 1), (0, 2), (1, 5), (1, 5), (2, 9)]);
        let balance = LocalityTiers::new(LeastRequests::with_seed(7)).with_spill_over(10.0);
        let held: Vec<_> = (0..100).map(|_| balance.pick(&candidates).unwrap()).collect();
        let near = held.iter().filter(|pick| pick.index < 2).count();
        assert_eq!(near, 30);
        assert!(held.iter().all(|pick| pick.index < 4));
    }

    #[test]
    fn tiers_may_be_nested_and_hold_both_tokens() {
        let workloads = workloads(1);
        let inner = Arc::new(LeastRequests::with_seed(7));
        let balance = LocalityTiers::new(inner.clone()).with_spill_over(1.0);
        let pick = balance.pick(&candidates(&workloads, &[1])).unwrap();
        assert_eq!((balance.remembered(), inner.remembered()), (1, 1));
        drop(pick);
        assert_eq!((balance.remembered(), inner.remembered()), (0, 0));
    }

    #[test]
    #[should_panic = "a limit of NaN"]
    fn a_limit_has_to_be_a_number() {
        let _ = LocalityTiers::new(WeightedRandom::new()).with_spill_over(f64::NAN);
    }

    /// The rank to use, by going through all ranks that there could be. `quarters` is four times the limit.
    fn reference(candidates: &[Candidate<'_>], in_flight: &[usize], quarters: Option<u64>) -> Option<u32> {
        let sum = |rank: u32, of: &dyn Fn(usize) -> u64| -> u64 {
            (0..candidates.len()).filter(|i| candidates[*i].rank == rank && candidates[*i].weight > 0).map(of).sum()
        };
        let weight = |rank| sum(rank, &|i| u64::from(candidates[i].weight));
        let work = |rank| sum(rank, &|i| in_flight[i] as u64) + 1;
        let usable: Vec<u32> = (0..=4).filter(|rank| weight(*rank) > 0).collect();
        let Some(quarters) = quarters else {
            return usable.first().copied();
        };
        let full = |rank: &u32| 4 * work(*rank) > quarters * weight(*rank);
        usable.iter().find(|rank| !full(rank)).copied().or_else(|| {
            let lower = |a: u32, b: u32| work(a) * weight(b) < work(b) * weight(a);
            usable
                .iter()
                .find(|a| usable.iter().all(|b| *a == b || lower(**a, *b) || (!lower(*b, **a) && *a < b)))
                .copied()
        })
    }

    proptest! {
        #[test]
        fn the_tier_is_the_one_of_a_brute_force_reference(
            tiers in prop::collection::vec((0u32..=4, 0u32..6), 0..8),
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..60),
            quarters in prop::option::of(0u64..20),
            seed: u64,
        ) {
            let workloads = workloads(tiers.len());
            let candidates = ranked(&workloads, &tiers);
            let mut balance = LocalityTiers::new(WeightedRandom::with_seed(seed));
            if let Some(quarters) = quarters {
                balance = balance.with_spill_over(quarters as f64 / 4.0);
            }
            let (mut held, mut in_flight) = (Vec::<Pick>::new(), vec![0; tiers.len()]);
            for (ends, which) in steps {
                if ends && !held.is_empty() {
                    let ended = held.swap_remove(which.index(held.len()));
                    in_flight[ended.index] -= 1;
                    continue;
                }
                let expected = reference(&candidates, &in_flight, quarters);
                let pick = balance.pick(&candidates);
                prop_assert_eq!(pick.as_ref().map(|pick| candidates[pick.index].rank), expected);
                if let Some(pick) = pick {
                    prop_assert!(candidates[pick.index].weight > 0);
                    in_flight[pick.index] += 1;
                    held.push(pick);
                }
            }
        }
    }
}
