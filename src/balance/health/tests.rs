//! Sequences of events, by hand and generated.

use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

const A: &str = "a";
const B: &str = "b";

/// Outliers over texts, with a clock that the test sets.
struct World {
    outliers: Outliers<&'static str>,
    start: Instant,
    now: Instant,
}

impl World {
    fn new(config: OutlierConfig) -> Self {
        let now = Instant::now();
        Self { outliers: Outliers::new(config), start: now, now }
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = self.start + Duration::from_secs(seconds);
        self
    }

    fn begin(&mut self, key: &'static str) -> Attempt<&'static str> {
        self.outliers.begin(key, self.now)
    }

    fn succeed(&mut self, attempt: Attempt<&'static str>) {
        self.outliers.success(attempt, self.now);
    }

    fn fail(&mut self, attempt: Attempt<&'static str>) {
        self.outliers.failure(attempt, self.now);
    }

    fn fails(&mut self, key: &'static str, times: usize) -> &mut Self {
        for _ in 0..times {
            let attempt = self.begin(key);
            self.fail(attempt);
        }
        self
    }

    fn succeeds(&mut self, key: &'static str) -> &mut Self {
        let attempt = self.begin(key);
        self.succeed(attempt);
        self
    }

    fn standing(&self, key: &'static str) -> Standing {
        self.outliers.standing(&key, self.now)
    }

    fn admit(&self, keys: &[&'static str]) -> Admitted {
        self.outliers.admit(keys, self.now)
    }
}

#[rstest]
#[case::default(5, 4)]
#[case::one(1, 0)]
fn failures_in_a_row_eject(#[case] limit: u32, #[case] bearable: usize) {
    let mut world = World::new(OutlierConfig::new().with_consecutive_failures(limit));
    world.fails(A, bearable).succeeds(A).fails(A, bearable);
    assert_eq!(world.standing(A), Standing::InService);
    world.fails(A, 1);
    assert!(world.outliers.is_ejected(&A, world.now));
    assert_eq!(world.standing(B), Standing::InService);
    assert_eq!(world.outliers.ejected(world.now).collect::<Vec<_>>(), [&A]);
}

#[test]
fn zero_failures_never_eject() {
    let mut world = World::new(OutlierConfig::new().with_consecutive_failures(0));
    world.fails(A, 100);
    assert_eq!((world.standing(A), world.outliers.len()), (Standing::InService, 0));
}

#[test]
fn one_probe_is_let_through_when_the_time_is_over() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(29);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.at(30);
    assert_eq!(world.standing(A), Standing::HalfOpen);
    assert_eq!(world.admit(&[A, B]).indices, [0, 1]);
    let probe = world.begin(A);
    assert_eq!(probe.standing(), Standing::HalfOpen);
    assert_eq!(world.admit(&[A, B]).indices, [1]);
    assert_eq!(world.begin(A).standing(), Standing::Ejected);
    world.succeed(probe);
    assert_eq!(world.begin(A).standing(), Standing::InService);
}

#[test]
fn each_failed_probe_ejects_for_longer_up_to_the_maximum() {
    let mut world = World::new(OutlierConfig::new().with_max_ejection_time(Duration::from_secs(100)));
    world.fails(A, 5);
    let mut at = 0;
    for lasts in [30, 60, 90, 100, 100] {
        at += lasts;
        world.at(at - 1);
        assert_eq!(world.standing(A), Standing::Ejected, "{lasts} s are not over");
        world.at(at);
        assert_eq!(world.standing(A), Standing::HalfOpen, "{lasts} s are over");
        world.fails(A, 1);
    }
}

#[rstest]
#[case::at_once(0, 60)]
#[case::one_interval(10, 30)]
#[case::many(1000, 30)]
fn ejections_in_a_row_are_forgotten_one_for_each_interval_in_service(#[case] in_service: u64, #[case] lasts: u64) {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(30).succeeds(A).at(30 + in_service).fails(A, 5);
    world.at(30 + in_service + lasts - 1);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.at(30 + in_service + lasts);
    assert_eq!(world.standing(A), Standing::HalfOpen);
}

#[test]
fn a_relapse_takes_as_many_failures_as_the_first_time() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(30).succeeds(A).fails(A, 4);
    assert_eq!(world.standing(A), Standing::InService);
    world.fails(A, 1);
    assert_eq!(world.standing(A), Standing::Ejected);
}

#[test]
fn a_probe_whose_caller_went_away_leaves_its_place() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(30);
    drop(world.begin(A));
    let probe = world.begin(A);
    assert_eq!(probe.standing(), Standing::HalfOpen);
}

#[test]
fn a_probe_that_never_reports_is_given_up() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(30);
    let lost = world.begin(A);
    world.at(89);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.at(90);
    let next = world.begin(A);
    assert_eq!(next.standing(), Standing::HalfOpen);
    world.fail(lost);
    assert_eq!(world.standing(A), Standing::Ejected, "still the next probe's, whose failure would count");
    world.succeed(next);
    assert_eq!(world.standing(A), Standing::InService);
}

#[test]
fn a_late_failure_of_a_probe_counts_while_nobody_has_taken_its_place() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(30);
    let late = world.begin(A);
    world.at(100).fail(late);
    world.at(159);
    assert_eq!(world.standing(A), Standing::Ejected);
}

#[test]
fn attempts_side_by_side_all_count() {
    let mut world = World::new(OutlierConfig::new());
    let attempts: Vec<_> = (0..5).map(|_| world.begin(A)).collect();
    world.at(10);
    attempts.into_iter().for_each(|attempt| world.fail(attempt));
    assert_eq!(world.standing(A), Standing::Ejected);
}

#[test]
fn news_from_before_an_ejection_or_a_re_admission_counts_for_nothing() {
    let mut world = World::new(OutlierConfig::new());
    let [success, failure] = [world.begin(A), world.begin(A)];
    let stuck: Vec<_> = (0..5).map(|_| world.begin(A)).collect();
    world.at(1).fails(A, 5);
    world.succeed(success);
    world.fail(failure);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.at(31).succeeds(A);
    stuck.into_iter().for_each(|attempt| world.fail(attempt));
    assert_eq!(world.standing(A), Standing::InService);
    world.fails(A, 4);
    assert_eq!(world.standing(A), Standing::InService);
}

#[test]
fn an_ejected_endpoint_that_is_used_and_works_is_in_service_again() {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, 5).at(1);
    world.fails(A, 10);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.at(30);
    assert_eq!(world.standing(A), Standing::HalfOpen, "its failures do not make the ejection longer");
    world.fails(A, 1).at(31).succeeds(A);
    assert_eq!(world.standing(A), Standing::InService);
}

#[test]
fn nobody_left_means_everybody() {
    let mut world = World::new(OutlierConfig::new().with_max_ejection_percent(100));
    assert_eq!(world.admit(&[]), Admitted::default());
    world.fails(A, 5);
    assert_eq!(world.admit(&[A]), Admitted { indices: vec![0], overflow: 0, panic: true });
    assert_eq!(world.admit(&[A, B]), Admitted { indices: vec![1], overflow: 0, panic: false });
    world.fails(B, 5);
    assert_eq!(world.admit(&[A, B]), Admitted { indices: vec![0, 1], overflow: 0, panic: true });
}

#[test]
fn of_too_many_ejected_ones_the_first_stay_out() {
    let mut world = World::new(OutlierConfig::new());
    for (seconds, key) in [(0, "c"), (1, "a"), (2, "d")] {
        world.at(seconds).fails(key, 5);
    }
    let expected = Admitted { indices: vec![0, 1, 3], overflow: 2, panic: false };
    assert_eq!(world.admit(&["a", "b", "c", "d"]), expected);
    assert_eq!(world.admit(&["a", "b"]), Admitted { indices: vec![1], overflow: 0, panic: false });
}

#[test]
fn a_broken_service_does_not_condemn_its_gateway() {
    let service = NamespacedHostname::new("shop", "cart.shop".parse().unwrap());
    let other = NamespacedHostname::new("shop", "reviews.shop".parse().unwrap());
    let pair =
        |service: &NamespacedHostname| HealthKey::GatewayService { gateway: "g".into(), service: service.clone() };
    let mut outliers = Outliers::new(OutlierConfig::new());
    let now = Instant::now();
    for _ in 0..5 {
        let attempts = [HealthKey::Gateway("g".into()), pair(&service)].map(|key| outliers.begin(key, now));
        let [gateway, pair] = attempts;
        outliers.success(gateway, now);
        outliers.failure(pair, now);
    }
    let keys = [pair(&service), pair(&other), HealthKey::Gateway("g".into()), HealthKey::Workload("g".into())];
    assert_eq!(keys.map(|key| outliers.is_ejected(&key, now)), [true, false, false, false]);
}

#[test]
fn what_need_not_be_remembered_is_dropped() {
    let mut world = World::new(OutlierConfig::new());
    world.succeeds(A);
    assert_eq!(world.outliers.len(), 0);
    world.fails(A, 4);
    assert_eq!(world.outliers.len(), 1);
    world.succeeds(A);
    assert!(world.outliers.is_empty());

    world.fails(A, 5).at(30).succeeds(A);
    assert_eq!(world.outliers.len(), 1, "its ejection still counts");
    world.at(40).succeeds(A);
    assert!(world.outliers.is_empty());

    world.fails(A, 5).fails(B, 1);
    world.outliers.retain(|key| *key != A);
    assert_eq!((world.standing(A), world.outliers.len()), (Standing::InService, 1));
}

#[rstest]
#[case::a_streak(4, 300)]
#[case::an_ejection(5, 330)]
fn what_nobody_asks_for_any_more_expires(#[case] failures: usize, #[case] after: u64) {
    let mut world = World::new(OutlierConfig::new());
    world.fails(A, failures).at(after - 1);
    world.outliers.expire(world.now);
    assert_eq!(world.outliers.len(), 1);
    world.at(after);
    assert_eq!(world.standing(A), Standing::InService, "with or without a sweep");
    world.outliers.expire(world.now);
    assert!(world.outliers.is_empty());
}

#[test]
fn churn_does_not_grow_the_memory() {
    let mut outliers = Outliers::new(OutlierConfig::new());
    let start = Instant::now();
    for n in 0..5000_u32 {
        let now = start + Duration::from_secs(10) * n;
        for _ in 0..n % 7 {
            let attempt = outliers.begin(n, now);
            outliers.failure(attempt, now);
        }
        // 33 are remembered for their time, up to 33 more and a sweep's worth may wait for the sweep.
        assert!(outliers.len() <= 150, "{} after {n}", outliers.len());
    }
}

#[test]
fn extreme_settings_and_times_do_no_harm() {
    let config = OutlierConfig::new()
        .with_consecutive_failures(1)
        .with_base_ejection_time(Duration::MAX)
        .with_max_ejection_time(Duration::ZERO)
        .with_interval(Duration::ZERO)
        .with_probe_timeout(Duration::MAX)
        .with_retention(Duration::MAX);
    let mut world = World::new(config);
    world.fails(A, 2).at(1 << 30);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.succeeds(A);
    assert!(world.outliers.is_empty());

    let mut world =
        World::new(OutlierConfig::new().with_base_ejection_time(Duration::ZERO).with_retention(Duration::ZERO));
    world.fails(A, 100);
    assert!(world.outliers.is_empty());
}

#[test]
fn a_time_before_the_latest_counts_as_the_latest() {
    let mut world = World::new(OutlierConfig::new());
    world.at(100).fails(A, 5);
    world.at(0);
    assert_eq!(world.standing(A), Standing::Ejected);
    world.fails(A, 1).at(130);
    assert_eq!(world.standing(A), Standing::HalfOpen);
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u8),
    Succeed(prop::sample::Index),
    Fail(prop::sample::Index),
    Drop(prop::sample::Index),
    /// In milliseconds; backwards is allowed.
    Pass(i32),
    Expire,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..4).prop_map(Step::Begin),
        3 => any::<prop::sample::Index>().prop_map(Step::Succeed),
        8 => any::<prop::sample::Index>().prop_map(Step::Fail),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
        3 => (-1_000..40_000).prop_map(Step::Pass),
        1 => (100_000..1_000_000).prop_map(Step::Pass),
        1 => Just(Step::Expire),
    ]
}

fn config() -> impl Strategy<Value = OutlierConfig> {
    (1u32..4, 1u64..60, 0u64..400, 0u32..120, 0u64..20, 0u64..100, 0u64..400).prop_map(
        |(failures, base, max, percent, interval, probe, retention)| {
            OutlierConfig::new()
                .with_consecutive_failures(failures)
                .with_base_ejection_time(Duration::from_secs(base))
                .with_max_ejection_time(Duration::from_secs(max))
                .with_max_ejection_percent(percent)
                .with_interval(Duration::from_secs(interval))
                .with_probe_timeout(Duration::from_secs(probe))
                .with_retention(Duration::from_secs(retention))
        },
    )
}

proptest! {
    // Each event also checks the invariants of all entries.
    #[test]
    fn whatever_happens(config in config(), steps in prop::collection::vec(step(), 0..120)) {
        let start = Instant::now();
        let mut outliers = Outliers::new(config.clone());
        let (mut open, mut now) = (Vec::<Attempt<u8>>::new(), start);
        let mut failed = [false; 4];
        for step in steps {
            match step {
                Step::Begin(key) => {
                    let attempt = outliers.begin(key, now);
                    if attempt.standing() == Standing::HalfOpen {
                        let ejected = outliers.entries[&key].changed().unwrap();
                        let rivals = open.iter().filter(|other: &&Attempt<u8>| {
                            let age = attempt.began.saturating_duration_since(other.began);
                            let is_probe = *other.key() == key && other.probe.is_some() && other.began > ejected;
                            is_probe && age < config.probe_timeout
                        });
                        prop_assert_eq!(rivals.count(), 0, "one probe at a time");
                    }
                    open.push(attempt);
                }
                Step::Succeed(which) if !open.is_empty() => {
                    outliers.success(open.swap_remove(which.index(open.len())), now);
                }
                Step::Fail(which) if !open.is_empty() => {
                    let attempt = open.swap_remove(which.index(open.len()));
                    failed[usize::from(*attempt.key())] = true;
                    outliers.failure(attempt, now);
                }
                Step::Drop(which) if !open.is_empty() => drop(open.swap_remove(which.index(open.len()))),
                Step::Pass(by) if by < 0 => now -= Duration::from_millis(by.unsigned_abs().into()).min(now - start),
                Step::Pass(by) => now += Duration::from_millis(by.unsigned_abs().into()),
                Step::Expire => outliers.expire(now),
                Step::Succeed(_) | Step::Fail(_) | Step::Drop(_) => {}
            }
            let keys = [0, 1, 2, 3];
            let admitted = outliers.admit(&keys, now);
            let ejected = keys.iter().filter(|key| outliers.is_ejected(key, now)).count();
            let left_out = keys.len() - admitted.indices.len();
            prop_assert!(left_out <= config.max_ejected(keys.len()) && !admitted.indices.is_empty());
            prop_assert_eq!(ejected, if admitted.panic { 4 } else { left_out + admitted.overflow });
            prop_assert_eq!(ejected, outliers.ejected(now).count());
            for key in keys {
                prop_assert!(failed[usize::from(key)] || !outliers.entries.contains_key(&key));
            }
        }

        // Nobody stays out for good, and nothing is remembered for ever.
        open.clear();
        now = outliers.at(now) + config.ejection_time(u32::MAX);
        for key in 0..4 {
            prop_assert!(!outliers.is_ejected(&key, now));
            let probe = outliers.begin(key, now);
            outliers.success(probe, now);
            prop_assert_eq!(outliers.standing(&key, now), Standing::InService);
        }
        let forgotten = config.retention.max(config.interval * config.longest_ejection()) + config.probe_timeout;
        outliers.expire(now + forgotten + Duration::from_secs(1));
        prop_assert!(outliers.is_empty());
    }

    #[test]
    fn admission_is_what_the_documentation_says(
        standing in prop::collection::vec(prop::option::of(0u64..20), 0..30),
        percent in 0u32..=100,
    ) {
        let config = OutlierConfig::new().with_consecutive_failures(1).with_max_ejection_percent(percent);
        let (mut outliers, start) = (Outliers::new(config), Instant::now());
        let mut order: Vec<(u64, usize)> =
            standing.iter().enumerate().filter_map(|(key, at)| at.map(|at| (at, key))).collect();
        order.sort_unstable();
        for (at, key) in &order {
            let now = start + Duration::from_secs(*at);
            let attempt = outliers.begin(*key, now);
            outliers.failure(attempt, now);
        }
        let keys: Vec<usize> = (0..standing.len()).collect();
        let admitted = outliers.admit(&keys, start + Duration::from_secs(20));
        let allowed = (keys.len() * percent as usize / 100).max(1);
        let mut out: Vec<usize> = order.iter().take(allowed).map(|(_, key)| *key).collect();
        if out.len() == keys.len() {
            out.clear();
        }
        let expected: Vec<usize> = keys.iter().copied().filter(|key| !out.contains(key)).collect();
        prop_assert_eq!(admitted.indices, expected);
    }
}
