//! Decisions over meshes written as in a file.

#![cfg(feature = "mesh-file")]

mod balance;
mod blame;
mod choice;

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use proptest::prelude::*;
use rstest::rstest;

use super::{Backend, Choice, Route, gateway, inbound, outbound};
use crate::authority::Authority;
use crate::balance::WeightedRandom;
use crate::error::{Error, ErrorKind, Layer};
use crate::mesh::{Network, Snapshot, Workload};
use crate::path::Reuse;
use crate::refusal::{Refusal, RefusalReason};

const SANS: &str = "  subjectAltNames: [spiffe://cluster.local/ns/shop/sa/cart]\n";
const FAR: &str = "networkGateway: {destination: west/192.0.2.1}";

fn fixture(name: &str) -> Snapshot {
    Snapshot::load(&FilePath::new(env!("CARGO_MANIFEST_DIR")).join("examples/fixtures").join(name)).unwrap()
}

/// A client in network east, a gateway of network west, a service and the given endpoints of it.
fn mesh(service: &str, endpoints: &[&str]) -> Snapshot {
    let mut text = String::from(
        "workloads:\n\
         - {uid: client, name: client, namespace: web, network: east, workloadIps: [10.0.0.1], protocol: HBONE,\n\
         \x20  node: n1, clusterId: c1, locality: {region: r1, zone: z1}}\n\
         - {uid: gateway, name: gateway, namespace: gw, network: west, workloadIps: [192.0.2.1], protocol: HBONE}\n",
    );
    for (i, endpoint) in endpoints.iter().enumerate() {
        text += &format!(
            "- {{uid: e{i}, name: e{i}, namespace: shop, serviceAccount: cart, services: {{shop/cart.shop: {{80: 8080}}}}, {endpoint}}}\n"
        );
    }
    text += &format!(
        "services:\n- name: cart\n  namespace: shop\n  hostname: cart.shop\n  vips: [east/10.1.0.1, west/10.1.0.2]\n  ports: {{80: 8000}}\n{service}"
    );
    Snapshot::parse("mesh.yaml", &text).unwrap()
}

fn near(n: u8, more: &str) -> String {
    format!("network: east, workloadIps: [10.0.1.{n}], protocol: HBONE{more}")
}

fn client(mesh: &Snapshot) -> Arc<Workload> {
    mesh.workload("client").unwrap().clone()
}

fn route(mesh: &Snapshot, target: &str) -> Result<Route, Error> {
    outbound(mesh, &client(mesh), &target.parse().unwrap(), &Choice::new(&WeightedRandom::with_seed(1)))
}

fn no_route(mesh: &Snapshot, target: &str) -> String {
    let error = route(mesh, target).unwrap_err();
    assert_eq!((error.kind(), error.layer()), (&ErrorKind::NoRoute, Layer::Route));
    let text = error.to_string();
    for named in [target, "web/client (client)", "network \"east\""] {
        assert!(text.contains(named), "{text} does not name {named}");
    }
    text
}

/// Picks by uid over many draws.
fn shares(mesh: &Snapshot, target: &str) -> BTreeMap<String, usize> {
    let balance = WeightedRandom::with_seed(1);
    let mut counts = BTreeMap::new();
    for _ in 0..1000 {
        let route = outbound(mesh, &client(mesh), &target.parse().unwrap(), &Choice::new(&balance)).unwrap();
        *counts.entry(route.picked.uid.to_string()).or_default() += 1;
    }
    counts
}

fn uids(mesh: &Snapshot, target: &str) -> Vec<String> {
    shares(mesh, target).into_keys().collect()
}

#[rstest]
#[case("10.88.0.2:80")]
#[case("[::ffff:10.88.0.2]:80")]
#[case("global.default.svc.cluster.local:80")]
fn to_another_network_the_path_is_nested_and_both_authorities_are_the_service(#[case] target: &str) {
    let mesh = fixture("mesh-east.yaml");
    let source = mesh.workload_named("default", "client").unwrap();
    let route = outbound(&mesh, source, &target.parse().unwrap(), &Choice::new(&WeightedRandom::new())).unwrap();
    let service: Authority = "global.default.svc.cluster.local:80".parse().unwrap();

    let outer = route.path.first();
    assert_eq!(outer.address, "10.77.0.2:15008".parse().unwrap());
    assert_eq!(outer.accept.to_string(), "spiffe://cluster.local/ns/istio-gateways/sa/eastwest");
    assert_eq!(outer.reuse, Reuse::Shared);

    let [inner] = route.path.tunnelled() else { panic!("one hop inside") };
    assert_eq!(inner.authority, service);
    assert_eq!(inner.accept.to_string(), "spiffe://cluster.local/ns/default/sa/server");
    assert_eq!(inner.reuse, Reuse::Spread(2));

    assert_eq!(route.authority, service);
    assert_eq!(route.gateway.unwrap().name, "eastwest".into());
    assert_eq!(route.service.unwrap().hostname(), "global.default.svc.cluster.local");
    assert_eq!(route.picked.capacity, 2);
}

#[test]
fn in_the_own_network_the_path_has_one_hop_to_the_endpoint_and_its_target_port() {
    let mesh = mesh("  subjectAltNames: [spiffe://td/ns/x/sa/y]\n", &[&near(1, "")]);
    for target in ["10.1.0.1:80", "cart.shop:80", "CART.shop.:80"] {
        let route = route(&mesh, target).unwrap();
        assert_eq!(route.path.depth(), 1);
        assert_eq!(route.path.first().address, "10.0.1.1:15008".parse().unwrap());
        let accept = "spiffe://cluster.local/ns/shop/sa/cart, spiffe://td/ns/x/sa/y";
        assert_eq!(route.path.first().accept.to_string(), accept);
        assert_eq!(route.path.first().reuse, Reuse::Shared);
        assert_eq!(route.authority, "10.0.1.1:8080".parse().unwrap());
        assert!(route.gateway.is_none());
    }
}

#[test]
fn a_workload_dialled_by_its_own_address_or_name_keeps_the_port() {
    let mesh = mesh(SANS, &[&near(1, ", hostname: db.example")]);
    for target in ["10.0.1.1:5432", "db.example:5432"] {
        let route = route(&mesh, target).unwrap();
        assert_eq!(route.authority, "10.0.1.1:5432".parse().unwrap());
        assert_eq!(route.path.first().accept.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert!(route.service.is_none());
    }
}

#[rstest]
#[case("10.1.0.2:80", "it is an address in network \"west\"")]
#[case("192.0.2.1:80", "it is an address in network \"west\"")]
#[case("10.9.9.9:80", "no service or workload in network \"east\" has this address")]
#[case("other.shop:80", "no service or workload has this hostname")]
#[case("cart.shop:81", "service shop/cart.shop has no port 81")]
#[case("10.0.1.1:15008", "port 15008 is 0 or one of the mesh's own proxies")]
#[case("10.0.1.1:15001", "port 15001 is 0 or one of")]
#[case("10.0.1.2:80", "workload shop/e1 (e1) is not reached by HBONE, and plaintext is not sent")]
#[case("10.0.1.3:80", "workload shop/e2 (e2) has a waypoint")]
#[case("far.example:80", "only services are reached in other networks")]
fn what_has_no_way_says_why(#[case] target: &str, #[case] expected: &str) {
    let plain = "network: east, workloadIps: [10.0.1.2], protocol: TCP";
    let far = "network: west, workloadIps: [10.0.2.1], protocol: HBONE, hostname: far.example";
    let mesh = mesh(SANS, &[&near(1, ""), plain, &near(3, ", waypoint: {destination: a/b}"), far]);
    let text = no_route(&mesh, target);
    assert!(text.contains(expected), "{text}\ndoes not have\n{expected}");
}

#[rstest]
#[case::unhealthy(SANS, &near(1, ", status: Unhealthy"), "1 unhealthy")]
#[case::no_capacity(SANS, &near(1, ", capacity: 0"), "1 with capacity 0")]
#[case::plaintext(SANS, "network: east, workloadIps: [10.0.1.1]", "1 not reached by HBONE")]
#[case::no_address(SANS, "network: east, protocol: HBONE", "1 without an address")]
#[case::far_without_names("", &format!("network: west, protocol: HBONE, {FAR}"), "the service has no subjectAltNames")]
#[case::far_without_gateway(
    SANS,
    "network: north, protocol: HBONE, workloadIps: [10.0.1.1]",
    "without a usable gateway"
)]
#[case::far_no_capacity(SANS, &format!("network: west, protocol: HBONE, capacity: 0, {FAR}"), "1 with capacity 0")]
#[case::unknown_gateway(
    SANS,
    "network: west, protocol: HBONE, networkGateway: {destination: west/192.0.2.9}",
    "without a usable gateway"
)]
fn a_service_whose_endpoints_are_all_unusable_says_why(
    #[case] service: &str,
    #[case] endpoint: &str,
    #[case] expected: &str,
) {
    let text = no_route(&mesh(service, &[endpoint]), "cart.shop:80");
    assert!(text.contains("no endpoint of service shop/cart.shop can be used: 1 "), "{text}");
    assert!(text.contains(expected), "{text}\ndoes not have\n{expected}");
}

#[rstest]
#[case(
    "  waypoint: {destination: shop/w.shop}\n",
    "service shop/cart.shop has a waypoint, and waypoints are not supported yet"
)]
#[case("  loadBalancing: {mode: PASSTHROUGH}\n", "has mode PASSTHROUGH, which is not supported")]
fn a_service_that_asks_for_more_than_there_is_has_no_route(#[case] service: &str, #[case] expected: &str) {
    let text = no_route(&mesh(service, &[&near(1, "")]), "cart.shop:80");
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_service_without_endpoints_says_so() {
    assert!(no_route(&mesh(SANS, &[]), "cart.shop:80").contains("it has no endpoints"));
}

#[test]
fn unhealthy_endpoints_are_used_where_the_service_allows_all() {
    let service = "  loadBalancing: {healthPolicy: ALLOW_ALL}\n";
    assert!(route(&mesh(service, &[&near(1, ", status: Unhealthy")]), "cart.shop:80").is_ok());
}

#[test]
fn unusable_endpoints_do_not_keep_the_others_from_being_used() {
    let far = format!("network: west, protocol: HBONE, {FAR}");
    let mesh = mesh("", &[&near(1, ""), &near(2, ", status: Unhealthy"), &far]);
    assert_eq!(uids(&mesh, "cart.shop:80"), ["e0"]);
}

#[test]
fn traffic_is_spread_by_capacity_over_all_networks() {
    let far = format!("network: west, protocol: HBONE, capacity: 9, {FAR}");
    let shares = shares(&mesh(SANS, &[&near(1, ""), &far]), "cart.shop:80");
    assert!((60..140).contains(&shares["e0"]), "{shares:?}");
}

#[test]
fn the_spread_is_over_all_ready_endpoints_of_the_service_in_that_network() {
    let far = |capacity| format!("network: west, protocol: HBONE, capacity: {capacity}, {FAR}");
    let ill = format!("{}, status: Unhealthy", far(100));
    let mesh = mesh(SANS, &[&far(3), &far(4), &ill]);
    let route = route(&mesh, "cart.shop:80").unwrap();
    assert_eq!(route.path.tunnelled()[0].reuse, Reuse::Spread(7));
}

#[test]
fn a_far_workload_without_a_gateway_of_its_own_uses_one_of_its_network() {
    let other = format!("network: west, protocol: HBONE, status: Unhealthy, {FAR}");
    let mesh = mesh(SANS, &["network: west, protocol: HBONE, workloadIps: [10.0.1.1]", &other]);
    let route = route(&mesh, "cart.shop:80").unwrap();
    assert_eq!(route.path.first().address, "192.0.2.1:15008".parse().unwrap());
    assert_eq!(&*route.picked.uid, "e0");
}

#[test]
fn a_gateway_reached_by_hostname_maps_its_port_and_may_have_the_names_of_its_service() {
    let text = r#"
workloads:
- {uid: client, name: client, namespace: web, network: east, workloadIps: [10.0.0.1], protocol: HBONE}
- {uid: g1, name: g1, namespace: gw, network: west, workloadIps: [192.0.2.1], protocol: HBONE, services: {gw/ew.gw: {15009: 15108}}}
- {uid: g2, name: g2, namespace: gw, network: west, workloadIps: [192.0.2.2], protocol: HBONE, services: {gw/ew.gw: {}}}
- {uid: g3, name: g3, namespace: gw, network: west, workloadIps: [192.0.2.3], status: Unhealthy, protocol: HBONE, services: {gw/ew.gw: {}}}
- uid: far
  name: far
  namespace: shop
  network: west
  protocol: HBONE
  networkGateway: {destination: gw/ew.gw, hboneMtlsPort: 15009}
  services: {shop/cart.shop: {80: 80}}
services:
- {name: ew, namespace: gw, hostname: ew.gw, ports: {15009: 15008}, subjectAltNames: [spiffe://td/ns/gw/sa/ew]}
- {name: cart, namespace: shop, hostname: cart.shop, ports: {80: 80}, subjectAltNames: [spiffe://td/ns/shop/sa/cart]}
"#;
    let mesh = Snapshot::parse("mesh.yaml", text).unwrap();
    let balance = WeightedRandom::with_seed(1);
    let mut seen = BTreeMap::new();
    for _ in 0..50 {
        let route = outbound(&mesh, &client(&mesh), &"cart.shop:80".parse().unwrap(), &Choice::new(&balance)).unwrap();
        let hop = route.path.first();
        assert_eq!(hop.accept.to_string(), "spiffe://cluster.local/ns/gw/sa/default, spiffe://td/ns/gw/sa/ew");
        seen.insert(hop.address.to_string(), route.gateway.unwrap().uid.to_string());
    }
    let expected = [("192.0.2.1:15108", "g1"), ("192.0.2.2:15008", "g2")];
    assert_eq!(seen, expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
}

#[test]
fn the_address_of_the_family_that_was_asked_for_is_taken() {
    let endpoint = "network: east, protocol: HBONE, workloadIps: [\"2001:db8::1\", 10.0.1.1]";
    let mesh = mesh(SANS, &[endpoint]);
    for (target, expected) in
        [("10.1.0.1:80", "10.0.1.1:8080"), ("cart.shop:80", "10.0.1.1:8080"), ("[2001:db8::1]:81", "[2001:db8::1]:81")]
    {
        assert_eq!(route(&mesh, target).unwrap().authority, expected.parse().unwrap(), "{target}");
    }
}

const ZONES: &[&str] = &[
    "network: east, workloadIps: [10.0.1.1], protocol: HBONE, locality: {region: r1, zone: z1}, node: n1",
    "network: east, workloadIps: [10.0.1.2], protocol: HBONE, locality: {region: r1, zone: z2}, clusterId: c1",
    "network: east, workloadIps: [10.0.1.3], protocol: HBONE, locality: {region: r2, zone: z1}",
    "network: west, protocol: HBONE, networkGateway: {destination: west/192.0.2.1}, locality: {region: r1, zone: z1}",
    "network: west, protocol: HBONE, networkGateway: {destination: west/192.0.2.1}",
];

#[rstest]
#[case("STANDARD", "NETWORK", &[0, 1, 2, 3, 4])]
#[case("FAILOVER", "", &[0, 1, 2, 3, 4])]
#[case("FAILOVER", "NETWORK", &[0, 1, 2])]
#[case("FAILOVER", "NETWORK, REGION, ZONE", &[0])]
#[case("FAILOVER", "REGION", &[0, 1, 3])]
#[case("FAILOVER", "REGION, ZONE", &[0, 3])]
#[case("FAILOVER", "SUBZONE", &[0, 1, 2, 3, 4])]
#[case("FAILOVER", "CLUSTER", &[1])]
#[case("STRICT", "NODE", &[0])]
#[case("STRICT", "NETWORK, REGION", &[0, 1])]
fn preferences_thin_out_the_endpoints(#[case] mode: &str, #[case] preferences: &str, #[case] expected: &[usize]) {
    let service = format!("{SANS}  loadBalancing: {{mode: {mode}, routingPreference: [{preferences}]}}\n");
    let expected: Vec<String> = expected.iter().map(|i| format!("e{i}")).collect();
    assert_eq!(uids(&mesh(&service, ZONES), "cart.shop:80"), expected);
}

#[test]
fn failover_orders_other_networks_by_region_once_the_own_has_nobody() {
    let service = format!("{SANS}  loadBalancing: {{mode: FAILOVER, routingPreference: [NETWORK, REGION]}}\n");
    assert_eq!(uids(&mesh(&service, &ZONES[3..]), "cart.shop:80"), ["e0"]);
}

#[test]
fn strict_with_nobody_left_says_so() {
    let service = format!("{SANS}  loadBalancing: {{mode: STRICT, routingPreference: [NODE]}}\n");
    let text = no_route(&mesh(&service, &ZONES[1..3]), "cart.shop:80");
    assert!(text.contains("2 excluded by the service's STRICT load balancing"), "{text}");
}

#[test]
fn the_services_namespace_is_the_sources_before_others() {
    let text = r#"
workloads:
- {uid: client, name: client, namespace: web, workloadIps: [10.0.0.1], protocol: HBONE}
- {uid: a, name: a, namespace: web, workloadIps: [10.0.0.2], protocol: HBONE, services: {web/x: {80: 1}}}
- {uid: b, name: b, namespace: shop, workloadIps: [10.0.0.3], protocol: HBONE, services: {shop/x: {80: 2}}}
services:
- {name: x, namespace: shop, hostname: x, ports: {80: 2}}
- {name: x, namespace: web, hostname: x, ports: {80: 1}}
"#;
    let mesh = Snapshot::parse("mesh.yaml", text).unwrap();
    assert_eq!(route(&mesh, "x:80").unwrap().authority, "10.0.0.2:1".parse().unwrap());
}

fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, reason: RefusalReason, status: u16, details: &str) {
    let refusal = result.unwrap_err();
    assert_eq!((refusal.reason(), refusal.status().as_u16()), (&reason, status), "{refusal}");
    assert!(refusal.details().unwrap().contains(details), "{refusal} does not have {details}");
}

#[rstest]
#[case("10.77.0.11:9999", "10.77.0.11:9999")]
#[case("[::ffff:10.77.0.11]:9999", "10.77.0.11:9999")]
#[case("global.default.svc.cluster.local:80", "10.77.0.11:8080")]
#[case("GLOBAL.default.svc.cluster.local.:5201", "10.77.0.11:5201")]
fn inbound_leads_to_the_workloads_own_address_and_target_port(#[case] authority: &str, #[case] expected: &str) {
    let mesh = fixture("mesh-west.yaml");
    let workload = mesh.workload_named("default", "b1").unwrap();
    let address = inbound(&mesh, workload, &authority.parse().unwrap()).unwrap();
    assert_eq!(address, expected.parse().unwrap());
}

#[rstest]
#[case("10.77.0.12:8080", RefusalReason::DestinationProhibited, 400, "not an address of workload default/b1")]
#[case("127.0.0.1:8080", RefusalReason::DestinationProhibited, 400, "127.0.0.1")]
#[case("10.77.0.11:15008", RefusalReason::LoopDetected, 503, "15008")]
#[case("10.77.0.11:15006", RefusalReason::LoopDetected, 503, "15006")]
#[case("10.77.0.11:15001", RefusalReason::LoopDetected, 503, "15001")]
#[case("other.default:80", RefusalReason::DestinationNotFound, 503, "no service has the hostname other.default")]
#[case("global.default.svc.cluster.local:81", RefusalReason::DestinationNotFound, 503, "nothing behind port 81")]
fn inbound_refuses_what_is_not_the_workloads(
    #[case] authority: &str,
    #[case] reason: RefusalReason,
    #[case] status: u16,
    #[case] details: &str,
) {
    let mesh = fixture("mesh-west.yaml");
    let workload = mesh.workload_named("default", "b1").unwrap();
    refused(inbound(&mesh, workload, &authority.parse().unwrap()), reason, status, details);
}

#[test]
fn inbound_refuses_a_service_of_others_and_a_mapped_proxy_port() {
    let mesh = mesh(SANS, &["network: east, workloadIps: [10.0.1.1], hostname: a.b"]);
    let authority = "cart.shop:80".parse().unwrap();
    refused(inbound(&mesh, &client(&mesh), &authority), RefusalReason::DestinationNotFound, 503, "does not serve");

    let text = "workloads:\n- {uid: a, name: a, namespace: x, workloadIps: [10.0.0.1], services: {x/x: {80: 15008}}}\n\
                services:\n- {name: x, namespace: x, hostname: x, ports: {80: 80}}\n";
    let mesh = Snapshot::parse("mesh.yaml", text).unwrap();
    let workload = mesh.workload("a").unwrap();
    refused(inbound(&mesh, workload, &"x:80".parse().unwrap()), RefusalReason::LoopDetected, 503, "15008");
}

fn through_gateway(mesh: &Snapshot, network: &str, authority: &str, seed: u64) -> Result<Backend, Refusal> {
    let balance = WeightedRandom::with_seed(seed);
    gateway(mesh, &Network::new(network), &authority.parse().unwrap(), &Choice::new(&balance))
}

#[test]
fn a_gateway_spreads_over_the_endpoints_of_its_network() {
    let mesh = fixture("mesh-west.yaml");
    let mut counts = BTreeMap::new();
    for seed in 0..1000 {
        let backend = through_gateway(&mesh, "west", "global.default.svc.cluster.local:80", seed).unwrap();
        assert!(backend.workload.has_address(backend.address.ip()));
        *counts.entry(backend.address.to_string()).or_insert(0) += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["10.77.0.11:15008", "10.77.0.12:15008"]);
    assert!(counts.values().all(|n| (400..600).contains(n)), "{counts:?}");
}

#[rstest]
#[case("west", "10.77.0.11:8080", RefusalReason::DestinationProhibited, 400, "is an address")]
#[case("west", "10.88.0.2:80", RefusalReason::DestinationProhibited, 400, "is an address")]
#[case("west", "default.svc.cluster.local:80", RefusalReason::DestinationNotFound, 503, "no service has the hostname")]
#[case("west", "global.default.svc.cluster.local:8080", RefusalReason::DestinationNotFound, 503, "has no port 8080")]
#[case(
    "east",
    "global.default.svc.cluster.local:80",
    RefusalReason::DestinationUnavailable,
    503,
    "2 in another network"
)]
fn a_gateway_refuses_what_it_does_not_serve(
    #[case] network: &str,
    #[case] authority: &str,
    #[case] reason: RefusalReason,
    #[case] status: u16,
    #[case] details: &str,
) {
    refused(through_gateway(&fixture("mesh-west.yaml"), network, authority, 1), reason, status, details);
}

#[rstest]
#[case("  scope: LOCAL\n", "", RefusalReason::DestinationNotFound, "service cart.shop is local to this cluster")]
#[case("", ", status: Unhealthy", RefusalReason::DestinationUnavailable, "1 unhealthy")]
#[case("", ", capacity: 0", RefusalReason::DestinationUnavailable, "1 with capacity 0")]
#[case("  waypoint: {destination: a/b}\n", "", RefusalReason::Configuration, "waypoints are not supported")]
fn a_gateway_says_what_a_service_lacks(
    #[case] service: &str,
    #[case] endpoint: &str,
    #[case] reason: RefusalReason,
    #[case] details: &str,
) {
    let mesh = mesh(service, &[&near(1, endpoint)]);
    refused(through_gateway(&mesh, "east", "cart.shop:80", 1), reason, 503, details);
}

#[test]
fn a_gateway_never_forwards_to_a_workload_outside_of_the_mesh() {
    let mesh = mesh("", &["network: east, workloadIps: [10.0.1.1], protocol: NONE"]);
    let result = through_gateway(&mesh, "east", "cart.shop:80", 1);
    refused(result, RefusalReason::DestinationUnavailable, 503, "plaintext is not sent");
}

proptest! {
    #[test]
    fn an_address_never_leads_out_of_the_sources_network(
        placed in prop::collection::btree_map((0usize..3, 0u8..6), any::<bool>(), 0..12),
        target in 0u8..6,
    ) {
        let names = ["east", "west", "north"];
        let mut workloads = String::from(
            "workloads:\n- {uid: client, name: client, namespace: x, network: east, workloadIps: [10.0.0.99], protocol: HBONE}\n",
        );
        let mut services = String::from("services:\n");
        for ((network, ip), is_vip) in &placed {
            let network = names[*network];
            let of = if *is_vip { format!("services: {{x/{network}-{ip}: {{}}}}, workloadIps: [10.9.0.{ip}]") } else { format!("workloadIps: [10.0.0.{ip}]") };
            workloads += &format!("- {{uid: {network}-{ip}, name: a, namespace: x, network: {network}, protocol: HBONE, {of}}}\n");
            if *is_vip {
                services += &format!("- {{name: a, namespace: x, hostname: {network}-{ip}, vips: [{network}/10.0.0.{ip}], ports: {{80: 80}}}}\n");
            }
        }
        let mesh = Snapshot::parse("mesh.yaml", &(workloads + &services)).unwrap();
        let route = route(&mesh, &format!("10.0.0.{target}:80"));
        prop_assert_eq!(route.is_ok(), placed.contains_key(&(0, target)));
        if let Ok(route) = route {
            prop_assert_eq!(route.picked.network.as_str(), "east");
            prop_assert_eq!(&*route.picked.uid, &format!("east-{target}"));
            prop_assert_eq!(route.path.depth(), 1);
        }
    }
}
