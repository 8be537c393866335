mod store;

use rstest::rstest;

use crate::mesh::{Network, Service, Snapshot, Workload};
use crate::policy::{Action, Policy, Scope};

pub(super) fn workload(uid: &str, network: &str, ip: &str) -> Workload {
    let identity = "spiffe://td/ns/shop/sa/cart".parse().unwrap();
    let mut workload = Workload::new(uid, uid, identity);
    workload.network = Network::new(network);
    workload.addresses = vec![ip.parse().unwrap()];
    workload.services.insert("shop/cart.shop".parse().unwrap(), [(80, 0)].into_iter().collect());
    workload
}

pub(super) fn service(key: &str, vip: &str) -> Service {
    let mut service = Service::new("cart", key.parse().unwrap());
    service.vips = vec![vip.parse().unwrap()];
    service.ports = [(80, 8080)].into_iter().collect();
    service
}

pub(super) fn policy(name: &str, scope: Scope) -> Policy {
    Policy::new(name.parse().unwrap(), scope, Action::Allow)
}

#[test]
fn the_same_address_in_two_networks_is_two_workloads() {
    let workloads = [workload("a", "east", "10.0.0.1"), workload("b", "west", "10.0.0.1")];
    let services = [service("shop/cart.shop", "east/10.1.0.1"), service("shop/web.shop", "west/10.1.0.1")];
    let mesh = Snapshot::new(workloads, services, []).unwrap();
    for (network, uid, host) in [("east", "a", "cart.shop"), ("west", "b", "web.shop")] {
        let network = Network::new(network);
        assert_eq!(&*mesh.workload_at(&network, "::ffff:10.0.0.1".parse().unwrap()).unwrap().uid, uid);
        assert_eq!(mesh.service_at(&network, "10.1.0.1".parse().unwrap()).unwrap().hostname(), host);
    }
    assert!(mesh.workload_at(&Network::default(), "10.0.0.1".parse().unwrap()).is_none());
}

#[rstest]
#[case(vec![workload("a", "n", "10.0.0.1"), workload("a", "n", "10.0.0.2")], vec![], "workloads[1].uid")]
#[case(vec![workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.1")], vec![], "workloads[1].workloadIps[0]")]
#[case(vec![], vec![service("a/x", "/10.0.0.1"), service("a/X", "/10.0.0.2")], "services[1].hostname")]
#[case(vec![], vec![service("a/x", "/10.0.0.1"), service("b/x", "/10.0.0.1")], "services[1].vips[0]")]
fn what_must_be_unique_is_checked(
    #[case] workloads: Vec<Workload>,
    #[case] services: Vec<Service>,
    #[case] place: &str,
) {
    let error = Snapshot::new(workloads, services, []).unwrap_err().to_string();
    assert!(error.contains(place), "{error}");
}

#[test]
fn workloads_on_their_nodes_address_may_share_it() {
    let (mut a, mut b) = (workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.1"));
    a.host_network = true;
    b.host_network = true;
    let mesh = Snapshot::new([a, b, workload("c", "n", "10.0.0.1")], [], []).unwrap();
    assert_eq!(&*mesh.workload_at(&Network::new("n"), "10.0.0.1".parse().unwrap()).unwrap().uid, "c");
}

#[test]
fn endpoints_of_a_service_that_is_not_there_are_kept_out() {
    let mesh = Snapshot::new([workload("a", "n", "10.0.0.1")], [], []).unwrap();
    assert!(mesh.endpoints(&service("shop/cart.shop", "/10.1.0.1")).is_empty());
}

#[test]
fn the_services_target_port_stands_in_for_the_endpoints() {
    let services = [service("shop/cart.shop", "/10.1.0.1")];
    let mesh = Snapshot::new([workload("a", "n", "10.0.0.1")], services, []).unwrap();
    let service = mesh.service_by_hostname("cart.shop", "").unwrap();
    let endpoint = mesh.endpoints(service).iter().next().unwrap();
    assert_eq!((endpoint.target_port(service, 80), endpoint.target_port(service, 81)), (Some(8080), None));
}

#[test]
fn a_hostname_is_looked_for_in_the_preferred_namespace_first() {
    let services = [service("a/x", "/10.0.0.1"), service("b/x", "/10.0.0.2")];
    let mesh = Snapshot::new([], services, []).unwrap();
    for (preferred, found) in [("a", "a"), ("b", "b"), ("c", "a")] {
        assert_eq!(mesh.service_by_hostname("x", preferred).unwrap().namespace(), found);
    }
}

#[test]
fn a_name_that_several_workloads_have_finds_none() {
    let (mut a, mut b) = (workload("a", "n", "10.0.0.1"), workload("b", "n", "10.0.0.2"));
    a.name = "same".into();
    b.name = "same".into();
    let mesh = Snapshot::new([a, b, workload("c", "n", "10.0.0.3")], [], []).unwrap();
    assert!(mesh.workload_named("shop", "same").is_none());
    assert!(mesh.workload_named("shop", "c").is_some());
    assert!(mesh.workload_named("else", "c").is_none());
}

#[test]
fn policies_of_mesh_and_namespace_and_those_named_hold_once_each() {
    let policies = [
        policy("root/mesh", Scope::Global),
        policy("shop/namespace", Scope::Namespace),
        policy("else/namespace", Scope::Namespace),
        policy("shop/named", Scope::WorkloadSelector),
        policy("shop/not-named", Scope::WorkloadSelector),
    ];
    let mut workload = workload("a", "n", "10.0.0.1");
    let named = ["shop/named", "shop/namespace", "shop/gone", "shop/named"];
    workload.authorization_policies = named.iter().map(|n| n.parse().unwrap()).collect();
    let mesh = Snapshot::new([workload.clone()], [], policies).unwrap();
    let found = mesh.policies_for(&workload);
    let names: Vec<String> = found.iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["shop/named", "shop/namespace", "shop/gone", "root/mesh"]);
    let missing: Vec<bool> = found.iter().map(|p| p.is_missing()).collect();
    assert_eq!(missing, [false, false, true, false]);
}

#[test]
fn two_policies_of_one_name_are_an_error() {
    let policies = [policy("a/b", Scope::Global), policy("a/b", Scope::Namespace)];
    let error = Snapshot::new([], [], policies).unwrap_err().to_string();
    assert!(error.contains("policies[1].name: another policy is called a/b"), "{error}");
}
