//! In turn, by weight.

use std::collections::HashMap;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Balance, Candidate, InFlight, Pick};

/// Gives each candidate its turn, in proportion to its weight and as evenly in between as can be: nginx's smooth
/// weighted round robin (`ngx_http_upstream_round_robin.c`). Weights of 5, 1 and 1 make `a a b a c a a`, not `a a a a a
/// b c`.
///
/// On each pick every candidate is owed its share of it, `weight / sum of the weights`; the one that is owed most is
/// taken, and has had one. So over any number of picks nobody is ahead of its share by a whole one. nginx counts in
/// weights; shares mean the same and do not go out of scale when weights change.
///
/// Candidates may come and go. A new one starts at a random place in the rotation, so that neither many clients that
/// start together nor those that learn of a new endpoint together all take the same first one. What an endpoint is owed
/// is kept by uid for as long as a snapshot of the mesh has it.
///
/// Services with endpoints in common have the turns of these in common as well: each endpoint gets its share of the
/// whole. Give services with the same endpoints a balancer each where one may be called in step with the other.
///
/// A pick takes time in proportion to the number of candidates.
#[derive(Debug)]
pub struct RoundRobin(Mutex<Rotation>);

#[derive(Debug)]
struct Rotation {
    turns: HashMap<Box<str>, Turn>,
    /// Where newcomers start. `None`: where everybody is owed nothing.
    random: Option<fastrand::Rng>,
    until_sweep: usize,
}

/// Where one endpoint is in the rotation.
#[derive(Debug)]
struct Turn {
    /// Dead once no snapshot has the endpoint. Not an `Arc`, which other balancers could hold in turn, for ever.
    uid: Weak<str>,
    owed: i128,
}

/// One pick, as the unit of what is owed: fine enough for every ratio of weights.
const ONE: i128 = 1 << 64;

/// Endpoints that are gone are looked for after this many picks, or as many as there are endpoints.
const SWEEP: usize = 64;

impl RoundRobin {
    /// Starts at a random place.
    pub fn new() -> Self {
        Self::starting(Some(fastrand::Rng::new()))
    }

    /// Starts at a place that depends on the seed, for the same choices on each run.
    pub fn with_seed(seed: u64) -> Self {
        Self::starting(Some(fastrand::Rng::with_seed(seed)))
    }

    /// Starts at the beginning: with the same sequence as nginx, and with the strongest endpoint or the first. Clients
    /// that start together then all begin with that one.
    pub fn from_start() -> Self {
        Self::starting(None)
    }

    fn starting(random: Option<fastrand::Rng>) -> Self {
        Self(Mutex::new(Rotation { turns: HashMap::new(), random, until_sweep: SWEEP }))
    }

    /// How many endpoints are known.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).turns.len()
    }
}

impl Default for RoundRobin {
    fn default() -> Self {
        Self::new()
    }
}

impl Balance for RoundRobin {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        let total: u64 = candidates.iter().map(|c| u64::from(c.weight)).sum();
        let mut rotation = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rotation.sweep();
        let (mut given, mut most) = (0, None);
        for (index, candidate) in candidates.iter().enumerate().filter(|(_, c)| c.weight > 0) {
            let share = ONE * i128::from(candidate.weight) / i128::from(total);
            let owed = rotation.owe(&candidate.workload.uid, share);
            given += share;
            if most.is_none_or(|(_, most)| owed > most) {
                most = Some((index, owed));
            }
        }
        let (index, _) = most?;
        rotation.owe(&candidates[index].workload.uid, -given);
        Some(Pick::new(index, InFlight::none()))
    }
}

impl Rotation {
    /// Changes what an endpoint is owed, and says how much that is then.
    fn owe(&mut self, uid: &Arc<str>, change: i128) -> i128 {
        if let Some(turn) = self.turns.get_mut(&**uid) {
            turn.owed += change;
            if !ptr::eq(turn.uid.as_ptr(), Arc::as_ptr(uid)) {
                turn.uid = Arc::downgrade(uid);
            }
            return turn.owed;
        }
        let start = self.random.as_mut().map_or(0, |random| random.i128(-ONE / 2..ONE / 2));
        let owed = start + change;
        self.turns.insert((**uid).into(), Turn { uid: Arc::downgrade(uid), owed });
        owed
    }

    fn sweep(&mut self) {
        match self.until_sweep.checked_sub(1) {
            Some(rest) => self.until_sweep = rest,
            None => {
                self.turns.retain(|_, turn| turn.uid.strong_count() > 0);
                self.until_sweep = self.turns.len().max(SWEEP);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::tests::{assert_shares, candidates, counts, workload, workloads};
    use super::*;

    fn sequence(balance: &RoundRobin, weights: &[u32], times: usize) -> Vec<usize> {
        let workloads = workloads(weights.len());
        let candidates = candidates(&workloads, weights);
        (0..times).map(|_| balance.pick(&candidates).unwrap().index).collect()
    }

    #[rstest]
    #[case::nginx(&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0])]
    #[case::equal(&[3, 3, 3], &[0, 1, 2, 0, 1, 2])]
    #[case::one(&[2], &[0, 0, 0])]
    #[case::no_weight(&[0, 1, 0, 1], &[1, 3, 1, 3])]
    #[case::one_in_three(&[2, 1], &[0, 1, 0, 0, 1, 0])]
    #[case::huge(&[u32::MAX, u32::MAX], &[0, 1, 0, 1])]
    fn turns_are_interleaved_as_by_nginx(#[case] weights: &[u32], #[case] expected: &[usize]) {
        assert_eq!(sequence(&RoundRobin::from_start(), weights, expected.len()), expected);
    }

    #[test]
    fn many_clients_do_not_all_start_with_the_same_endpoint() {
        let mut counts = vec![0; 5];
        for seed in 0..10_000 {
            counts[sequence(&RoundRobin::with_seed(seed), &[1; 5], 1)[0]] += 1;
        }
        assert_shares(&counts, &[1; 5]);
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let runs = [7, 7, 8].map(|seed| sequence(&RoundRobin::with_seed(seed), &[1; 8], 8));
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }

    #[test]
    fn threads_share_one_rotation() {
        let (balance, workloads) = (RoundRobin::from_start(), workloads(3));
        let counts = Mutex::new([0; 3]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..700 {
                        let index = balance.pick(&candidates(&workloads, &[5, 1, 1])).unwrap().index;
                        counts.lock().unwrap()[index] += 1;
                    }
                });
            }
        });
        assert_eq!(counts.into_inner().unwrap(), [4000, 800, 800]);
    }

    #[test]
    fn a_newcomer_gets_its_share_at_once_and_is_not_overwhelmed() {
        let workloads = workloads(4);
        for seed in 0..200 {
            let balance = RoundRobin::with_seed(seed);
            for _ in 0..10 {
                balance.pick(&candidates(&workloads[..3], &[1; 3])).unwrap();
            }
            let candidates = candidates(&workloads, &[1; 4]);
            let picks: Vec<_> = (0..12).map(|_| balance.pick(&candidates).unwrap().index).collect();
            let turns = picks.iter().filter(|index| **index == 3).count();
            assert!((2..=4).contains(&turns), "{picks:?}");
        }
    }

    #[test]
    fn the_place_in_the_rotation_survives_a_new_snapshot_and_new_weights() {
        let balance = RoundRobin::from_start();
        let (before, after) = (workloads(2), workloads(2));
        assert_eq!(balance.pick(&candidates(&before, &[1_000_000, 1_000_000])).unwrap().index, 0);
        drop(before);
        (0..2 * SWEEP).for_each(|_| drop(balance.pick(&candidates(&after[..1], &[1]))));
        assert_eq!(balance.pick(&candidates(&after, &[1, 1])).unwrap().index, 1);
        assert_eq!(balance.remembered(), 2);
    }

    #[test]
    fn endpoints_that_are_gone_are_forgotten_also_where_two_balancers_knew_them() {
        let [a, b] = [RoundRobin::from_start(), RoundRobin::from_start()];
        for n in 0..1000 {
            let passing = workload(&format!("passing-{n}"));
            for balance in [&a, &b] {
                balance.pick(&[Candidate::new(&passing, 1)]).unwrap();
                assert!(balance.remembered() <= SWEEP + 1, "{n}");
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_is_a_whole_pick_ahead_and_a_period_is_exact(weights in prop::collection::vec(0u32..20, 1..12)) {
            let total: u32 = weights.iter().sum();
            prop_assume!(total > 0);
            let mut counts = vec![0; weights.len()];
            for (time, index) in (1u32..).zip(sequence(&RoundRobin::from_start(), &weights, total as usize)) {
                counts[index] += 1;
                prop_assert!(counts[index] * total < time * weights[index] + total);
            }
            prop_assert_eq!(counts, weights);
        }

        #[test]
        fn shares_hold_wherever_the_rotation_starts(weights in prop::collection::vec(1u32..20, 1..8), seed: u64) {
            let total: u32 = weights.iter().sum();
            let counts = counts(&RoundRobin::with_seed(seed), &weights, 10 * total as usize);
            for (count, weight) in counts.iter().zip(&weights) {
                prop_assert!(count.abs_diff(10 * *weight as usize) <= 2, "{:?} for {:?}", counts, weights);
            }
        }
    }
}
