//! The contract of [`Balance`], held by every policy, and what the tests of the single policies share.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

pub(super) fn workload(uid: &str) -> Workload {
    Workload::new(uid, uid, "spiffe://td/ns/a/sa/b".parse().unwrap())
}

pub(super) fn workloads(count: usize) -> Vec<Workload> {
    (0..count).map(|n| workload(&format!("w{n}"))).collect()
}

pub(super) fn candidates<'a>(workloads: &'a [Workload], weights: &[u32]) -> Vec<Candidate<'a>> {
    workloads.iter().zip(weights).map(|(workload, weight)| Candidate::new(workload, *weight)).collect()
}

/// How often each is picked, where work ends at once.
pub(super) fn counts(balance: &dyn Balance, weights: &[u32], times: usize) -> Vec<usize> {
    let workloads = workloads(weights.len());
    let candidates = candidates(&workloads, weights);
    let mut counts = vec![0; weights.len()];
    for _ in 0..times {
        if let Some(pick) = balance.pick(&candidates) {
            counts[pick.index] += 1;
        }
    }
    counts
}

/// Independent draws in proportion to `weights` would leave counts like these: within five standard deviations of a
/// binomial distribution.
pub(super) fn assert_shares(counts: &[usize], weights: &[u32]) {
    let times = counts.iter().sum::<usize>() as f64;
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    for (count, weight) in counts.iter().zip(weights) {
        let expected = times * f64::from(*weight) / total;
        let tolerance = 5.0 * (expected * (1.0 - f64::from(*weight) / total)).sqrt();
        assert!((*count as f64 - expected).abs() <= tolerance, "{counts:?} for {weights:?}");
    }
}

fn policies(seed: u64) -> Vec<Box<dyn Balance>> {
    vec![
        Box::new(WeightedRandom::with_seed(seed)),
        Box::new(RoundRobin::with_seed(seed)),
        Box::new(LeastRequests::with_seed(seed)),
        Box::new(LocalityTiers::new(RoundRobin::with_seed(seed))),
        Box::new(LocalityTiers::new(LeastRequests::with_seed(seed)).with_spill_over(1.0)),
    ]
}

#[rstest]
#[case(&[])]
#[case(&[0])]
#[case(&[0, 0])]
fn nobody_is_picked_when_nobody_has_weight(#[case] weights: &[u32]) {
    for balance in policies(7) {
        assert_eq!(counts(&balance, weights, 10).iter().sum::<usize>(), 0, "{balance:?}");
    }
}

/// A policy that can tell how many endpoints it remembers.
type Remembers<B> = (B, fn(&B) -> usize);

#[rstest]
#[case::round_robin((RoundRobin::with_seed(7), RoundRobin::remembered as fn(&_) -> _))]
#[case::least_requests((LeastRequests::with_seed(7), LeastRequests::remembered as fn(&_) -> _))]
#[case::tiers((
    LocalityTiers::new(WeightedRandom::with_seed(7)).with_spill_over(1.0),
    LocalityTiers::<WeightedRandom>::remembered as fn(&_) -> _
))]
fn what_is_remembered_does_not_grow_with_churn<B: Balance>(#[case] (balance, remembered): Remembers<B>) {
    let (mut mesh, mut held) = (VecDeque::new(), VecDeque::new());
    for n in 0..2000 {
        mesh.push_back(Arc::new(workload(&format!("w{n}"))));
        if mesh.len() > 5 {
            mesh.pop_front();
        }
        let list: Vec<_> = mesh.iter().map(|w| Candidate::new(w, 1)).collect();
        held.push_back(balance.pick(&list).unwrap().in_flight);
        if held.len() > 20 {
            held.pop_front();
        }
        assert!(remembered(&balance) <= 80, "{} after {n}", remembered(&balance));
    }
    held.clear();
    mesh.clear();
    let last = workload("last");
    (0..200).for_each(|_| drop(balance.pick(&[Candidate::new(&last, 1)])));
    assert!(remembered(&balance) <= 1);
}

proptest! {
    #[test]
    fn only_candidates_with_weight_are_picked_and_always_one_if_there_is_any(
        weights in prop::collection::vec(0u32..4, 0..8),
        ranks in prop::collection::vec(0u32..3, 8),
        holds: bool,
        seed: u64,
    ) {
        let workloads = workloads(weights.len());
        let candidates: Vec<_> = candidates(&workloads, &weights)
            .into_iter()
            .zip(&ranks)
            .map(|(candidate, rank)| candidate.with_rank(*rank))
            .collect();
        for balance in policies(seed) {
            let mut held = Vec::new();
            for _ in 0..20 {
                let pick = balance.pick(&candidates);
                prop_assert_eq!(pick.is_some(), weights.iter().any(|w| *w > 0), "{:?}", balance);
                if let Some(pick) = pick {
                    prop_assert!(weights[pick.index] > 0, "{:?}", balance);
                    if holds {
                        held.push(pick.in_flight);
                    }
                }
            }
            drop(balance);
        }
    }
}
