//! Who is left when some have failed.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use rstest::rstest;
use tokio::time::Instant;

use super::super::{Backend, Choice, Route, gateway, outbound};
use super::client;
use crate::balance::health::{HealthKey, OutlierConfig, Outliers, Standing};
use crate::balance::{LocalityTiers, WeightedRandom};
use crate::mesh::{Network, Snapshot, Workload};

/// A client, two endpoints in its network, and one each in `west`, behind two gateways, and in `north`.
fn mesh(load_balancing: &str) -> Snapshot {
    let text = format!(
        "
workloads:
- {{uid: client, name: client, namespace: web, network: east, workloadIps: [10.0.0.1], protocol: HBONE, locality: {{region: r1, zone: z1}}}}
- {{uid: g1, name: g1, namespace: gw, network: west, workloadIps: [192.0.2.1], protocol: HBONE, services: {{gw/west.gw: {{}}}}}}
- {{uid: g2, name: g2, namespace: gw, network: west, workloadIps: [192.0.2.2], protocol: HBONE, services: {{gw/west.gw: {{}}}}}}
- {{uid: g3, name: g3, namespace: gw, network: north, workloadIps: [192.0.2.3], protocol: HBONE}}
- {{uid: e0, name: e0, namespace: shop, network: east, workloadIps: [10.0.1.1], protocol: HBONE, locality: {{region: r1, zone: z1}}, services: {{shop/cart.shop: {{}}}}}}
- {{uid: e1, name: e1, namespace: shop, network: east, workloadIps: [10.0.1.2], protocol: HBONE, locality: {{region: r1, zone: z2}}, services: {{shop/cart.shop: {{}}}}}}
- {{uid: w, name: w, namespace: shop, network: west, protocol: HBONE, locality: {{region: r1}}, networkGateway: {{destination: gw/west.gw}}, services: {{shop/cart.shop: {{}}}}}}
- {{uid: n, name: n, namespace: shop, network: north, protocol: HBONE, locality: {{region: r2}}, networkGateway: {{destination: north/192.0.2.3}}, services: {{shop/cart.shop: {{}}}}}}
services:
- {{name: west, namespace: gw, hostname: west.gw, ports: {{15008: 15008}}}}
- {{name: cart, namespace: shop, hostname: cart.shop, ports: {{80: 8080}}, subjectAltNames: [spiffe://td/ns/shop/sa/cart], loadBalancing: {{{load_balancing}}}}}
"
    );
    Snapshot::parse("mesh.yaml", &text).unwrap()
}

/// `e0` is a workload, `g1` a gateway, `g1/cart.shop` a service seen through it.
fn key(text: &str) -> HealthKey {
    match text.split_once('/') {
        Some((gateway, host)) => {
            HealthKey::GatewayService { gateway: gateway.into(), service: format!("shop/{host}").parse().unwrap() }
        }
        None if text.starts_with('g') => HealthKey::Gateway(text.into()),
        None => HealthKey::Workload(text.into()),
    }
}

fn keys(text: &str) -> Vec<HealthKey> {
    text.split_whitespace().map(key).collect()
}

const EJECTION: Duration = Duration::from_secs(30);

/// Ejects these, one after the other in no time.
fn ejected(text: &str, percent: u32, now: Instant) -> Outliers<HealthKey> {
    let config = OutlierConfig::new()
        .with_consecutive_failures(1)
        .with_base_ejection_time(EJECTION)
        .with_max_ejection_percent(percent);
    let mut outliers = Outliers::new(config);
    for (n, key) in (0..).zip(keys(text)) {
        let now = now + Duration::from_millis(n);
        let attempt = outliers.begin(key, now);
        outliers.failure(attempt, now);
    }
    outliers
}

fn name(route: &Route) -> String {
    let through = route.gateway.as_ref().map(|gateway| format!("/{}", gateway.uid)).unwrap_or_default();
    format!("{}{through}", route.picked.uid)
}

/// All that is chosen in many draws.
fn chosen(mesh: &Snapshot, choice: Choice<'_>) -> String {
    let target = "cart.shop:80".parse().unwrap();
    let routes = (0..200).map(|_| outbound(mesh, &client(mesh), &target, &choice).unwrap());
    routes.map(|route| name(&route)).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
}

const ALL: &str = "e0 e1 n/g3 w/g1 w/g2";
const FAILOVER: &str = "mode: FAILOVER, routingPreference: [NETWORK, REGION, ZONE]";
const STRICT: &str = "mode: STRICT, routingPreference: [ZONE]";

#[rstest]
#[case::nobody("", "", "", ALL)]
#[case::an_endpoint("", "e0", "", "e1 n/g3 w/g1 w/g2")]
#[case::a_gateway("", "g1", "", "e0 e1 n/g3 w/g2")]
#[case::a_service_through_a_gateway("", "g1/cart.shop", "", "e0 e1 n/g3 w/g2")]
#[case::another_service_through_a_gateway("", "g1/other.shop g3/other.shop", "", ALL)]
#[case::a_gateway_is_no_endpoint("", "e0/cart.shop client", "", ALL)]
#[case::a_network("", "g1 g2/cart.shop", "", "e0 e1 n/g3")]
#[case::everybody("", "e0 e1 g1 g2 g3", "", ALL)]
#[case::tried_endpoint("", "", "e0", "e1 n/g3 w/g1 w/g2")]
#[case::tried_gateway("", "", "g1", "e0 e1 n/g3 w/g2")]
#[case::tried_service_through_a_gateway("", "", "g1/cart.shop g3/cart.shop", "e0 e1 w/g2")]
#[case::tried_everybody("", "", "e0 e1 g1 g2 g3", ALL)]
#[case::tried_everybody_and_some_ejected("", "e0 g1", "e0 e1 g1 g2 g3", "e1 n/g3 w/g2")]
#[case::untried_and_healthy_first("", "e1 g1 g2", "e0", "n/g3")]
#[case::untried_before_healthy("", "e1", "e0 g1 g2 g3", "e1")]
#[case::a_way_that_is_left_is_worth_no_more_than_it_is("", "g1", "g2", "e0 e1 n/g3")]
#[case::untried_before_healthy_among_gateways("", "e0 e1 g1 g3", "e0 e1 g2 g3", "w/g1")]
#[case::failover(FAILOVER, "", "", "e0")]
#[case::failover_to_the_next_zone(FAILOVER, "e0", "", "e1")]
#[case::failover_to_the_next_network(FAILOVER, "e0 e1", "", "w/g1 w/g2")]
#[case::failover_to_the_last_network(FAILOVER, "e0 e1 g1/cart.shop g2", "", "n/g3")]
#[case::failover_with_nobody_left(FAILOVER, "e0 e1 g1 g2 g3", "", "e0")]
#[case::failover_of_a_caller(FAILOVER, "", "e0", "e1")]
#[case::failover_of_a_caller_to_a_network(FAILOVER, "", "e0 e1 g1", "w/g2")]
#[case::failover_of_a_caller_who_tried_all(FAILOVER, "", "e0 e1 g1 g2 g3", "e0")]
#[case::strict_has_no_others(STRICT, "e0", "", "e0")]
#[case::strict_has_no_others_for_a_caller(STRICT, "", "e0", "e0")]
fn what_has_failed_is_left_out_while_others_are_left(
    #[case] load_balancing: &str,
    #[case] out: &str,
    #[case] tried: &str,
    #[case] expected: &str,
) {
    let (mesh, now) = (mesh(load_balancing), Instant::now());
    let (outliers, tried) = (ejected(out, 100, now), keys(tried));
    let balance = WeightedRandom::with_seed(1);
    let choice = Choice::new(&balance).with_health(&outliers, now).with_tried(&tried);
    assert_eq!(chosen(&mesh, choice), expected);
    let tiers = LocalityTiers::new(WeightedRandom::with_seed(1));
    let choice = Choice::new(&tiers).with_health(&outliers, now).with_tried(&tried);
    assert_eq!(chosen(&mesh, choice), expected, "by a balancer that is given all tiers");
}

#[rstest]
#[case::of_four_endpoints_one("e0 e1", "e1 n/g3 w/g1 w/g2")]
#[case::those_before("e1 e0", "e0 n/g3 w/g1 w/g2")]
#[case::a_network("g1 g2", "e0 e1 n/g3")]
#[case::a_network_when_the_last_of_its_gateways_is("g1 e0 g2", "e1 n/g3 w/g2")]
#[case::of_two_gateways_one("e0 g2 g1", "e1 n/g3 w/g1")]
fn no_more_are_left_out_than_may_be(#[case] out: &str, #[case] expected: &str) {
    let (now, balance) = (Instant::now(), WeightedRandom::with_seed(1));
    let outliers = ejected(out, 10, now);
    assert_eq!(chosen(&mesh(""), Choice::new(&balance).with_health(&outliers, now)), expected);
}

proptest! {
    #[test]
    fn a_caller_comes_to_every_way_before_it_takes_one_again(
        out in prop::collection::vec(prop::sample::select(vec!["e0", "e1", "g1", "g2", "g3", "g1/cart.shop"]), 0..6),
        (percent, pass, seed) in (0u32..=100, prop::sample::select(vec!["", "e0", "g1", "w", "n"]), any::<u64>()),
        failover: bool,
        of_pairs: bool,
    ) {
        let (mesh, now) = (mesh(if failover { FAILOVER } else { "" }), Instant::now());
        let (outliers, balance) = (ejected(&out.join(" "), percent, now), WeightedRandom::with_seed(seed));
        let pass = |workload: &Workload| *workload.uid == *pass;
        let (mut tried, mut ways) = (Vec::new(), BTreeSet::new());
        for _ in 0..5 {
            let choice = Choice::new(&balance).with_health(&outliers, now).with_tried(&tried).with_passed_over(&pass);
            let route = outbound(&mesh, &client(&mesh), &"cart.shop:80".parse().unwrap(), &choice).unwrap();
            prop_assert!(ways.insert(name(&route)), "{} again after {:?}", name(&route), ways);
            let failed = if of_pairs { route.health_keys().last() } else { route.health_keys().next() };
            tried.extend(failed);
        }
    }
}

#[test]
fn a_half_open_way_is_for_one_probe() {
    let (mesh, start, balance) = (mesh(FAILOVER), Instant::now(), WeightedRandom::with_seed(1));
    let (mut outliers, later) = (ejected("e0 e1 g1 g2/cart.shop g3", 100, start), start + EJECTION * 2);
    let route = |outliers: &Outliers<HealthKey>, tried: &str| {
        let tried = keys(tried);
        let choice = Choice::new(&balance).with_health(outliers, later).with_tried(&tried);
        outbound(&mesh, &client(&mesh), &"cart.shop:80".parse().unwrap(), &choice).unwrap()
    };
    let near = route(&outliers, "e1 g2");
    assert_eq!(name(&near), "e0");
    let probe: Vec<_> = near.health_keys().map(|key| outliers.begin(key, later)).collect();
    assert_eq!(probe[0].standing(), Standing::HalfOpen);
    let far = route(&outliers, "e1 g2");
    assert_eq!(name(&far), "w/g1");
    let probes: Vec<_> = far.health_keys().map(|key| outliers.begin(key, later)).collect();
    let standings: Vec<_> = probes.iter().map(|attempt| attempt.standing()).collect();
    assert_eq!(standings, [Standing::HalfOpen, Standing::InService]);
    assert_eq!(name(&route(&outliers, "e1 g2")), "n/g3");
    drop(probes);
    assert_eq!(name(&route(&outliers, "e1 g2")), "w/g1");
}

#[rstest]
#[case::some("", "e0 g1", "e1 n/g3 w/g2")]
#[case::all("", "e0 e1 w n", ALL)]
#[case::healthy_ones_before_ejected_ones("e1 g1 g2 g3", "e0", "e0")]
fn what_is_passed_over_is_chosen_when_nothing_else_is_as_healthy(
    #[case] out: &str,
    #[case] pass: &str,
    #[case] expected: &str,
) {
    let (now, balance) = (Instant::now(), WeightedRandom::with_seed(1));
    let outliers = ejected(out, 100, now);
    let pass = |workload: &Workload| pass.split_whitespace().any(|uid| *workload.uid == *uid);
    let choice = Choice::new(&balance).with_health(&outliers, now).with_passed_over(&pass);
    assert_eq!(chosen(&mesh(""), choice), expected);
}

#[rstest]
#[case::nobody("", "", "", "e0 e1", 1)]
#[case::ejected("e0", "", "", "e1", 1)]
#[case::tried("", "e0", "", "e1", 0)]
#[case::tried_and_the_other_ejected("e1", "e0", "", "e1", 0)]
#[case::everybody_tried("", "e0 e1", "", "e0 e1", 0)]
#[case::everybody_tried_and_one_ejected("e0", "e0 e1", "", "e1", 0)]
#[case::passed_over("", "", "e0", "e1", 1)]
#[case::everybody_passed_over("", "", "e0 e1", "e0 e1", 1)]
#[case::healthy_and_passed_over("e1", "", "e0", "e0", 1)]
#[case::keys_of_gateways_do_not_matter("g1 e0/cart.shop", "g2", "", "e0 e1", 1)]
fn a_gateway_chooses_among_its_pods_alike(
    #[case] out: &str,
    #[case] tried: &str,
    #[case] pass: &str,
    #[case] expected: &str,
    #[case] others: usize,
) {
    let (mesh, now, balance) = (mesh(""), Instant::now(), WeightedRandom::with_seed(1));
    let (outliers, tried) = (ejected(out, 100, now), keys(tried));
    let pass = |workload: &Workload| pass.split_whitespace().any(|uid| *workload.uid == *uid);
    let choice = Choice::new(&balance).with_health(&outliers, now).with_tried(&tried).with_passed_over(&pass);
    let backend = || gateway(&mesh, &Network::new("east"), &"cart.shop:80".parse().unwrap(), &choice).unwrap();
    let backends: Vec<Backend> = (0..100).map(|_| backend()).collect();
    let chosen: BTreeSet<&str> = backends.iter().map(|backend| &*backend.workload.uid).collect();
    assert_eq!(chosen.into_iter().collect::<Vec<_>>().join(" "), expected);
    assert!(backends.iter().all(|backend| backend.others == others), "{others}");
    assert!(backends.iter().all(|backend| backend.health_key() == key(&backend.workload.uid)));
}
