use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;

use crate::error::ErrorKind;
use crate::mesh::{
    ApplicationProtocol, HealthPolicy, LeftOut, LoadBalancingMode, LoadBalancingScope, MeshFile, Network, Protocol,
    ServiceScope, Snapshot, Status, Store, WorkloadType,
};
use crate::policy::{Action, ConnectionInfo, Scope, StringMatch, authorize};

const WORKLOAD: &str = "workloads:\n- uid: u\n  name: n\n  namespace: ns\n";
const SERVICE: &str = "services:\n- name: n\n  namespace: ns\n  hostname: n.ns\n";
const POLICY: &str = "policies:\n- name: p\n  namespace: ns\n  scope: Namespace\n  action: Deny\n";

#[rstest]
#[case("mesh-east.yaml", 3)]
#[case("mesh-west.yaml", 2)]
fn the_example_files_load(#[case] file: &str, #[case] workloads: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fixtures").join(file);
    let mesh = Snapshot::load(&path).unwrap();
    assert_eq!((mesh.workloads().count(), mesh.services().count()), (workloads, 1));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Snapshot::load(Path::new("/nowhere/mesh.yaml")).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidInput);
    assert!(error.to_string().contains("/nowhere/mesh.yaml: the mesh can't be read: No such file"), "{error}");
}

#[test]
fn all_fields_of_a_workload_arrive() {
    let mesh = Snapshot::parse(
        "mesh.yaml",
        r#"
workloads:
- uid: west//Pod/shop/cart-1
  name: cart-1
  namespace: shop
  workloadIps: ["10.0.0.1", "2001:db8::1"]
  hostname: Cart-1.example.
  network: west
  protocol: HBONE
  trustDomain: west.example
  serviceAccount: cart
  node: n1
  clusterId: c1
  locality: {region: r, zone: z, subzone: s}
  services: {"shop/cart.shop": {80: 8080}}
  networkGateway: {destination: west/10.0.0.9, hboneMtlsPort: 0}
  waypoint: {destination: shop/waypoint.shop, hboneMtlsPort: 15009}
  authorizationPolicies: [shop/deny]
  status: Unhealthy
  capacity: 7
  canonicalName: cart
  canonicalRevision: "2"
  workloadType: cronjob
  workloadName: cart
  nativeTunnel: true
  networkMode: Standard
  applicationTunnel: {protocol: PROXY, port: 15088}
  extensions: []
"#,
    )
    .unwrap();
    let w = mesh.workload("west//Pod/shop/cart-1").unwrap();
    assert_eq!(w.identity().to_string(), "spiffe://west.example/ns/shop/sa/cart");
    assert_eq!(w.addresses.len(), 2);
    assert_eq!(w.hostname.as_ref().unwrap().as_str(), "cart-1.example");
    assert_eq!((&w.network, w.protocol, w.status), (&Network::new("west"), Protocol::Hbone, Status::Unhealthy));
    assert_eq!((&*w.node, &*w.cluster, &*w.locality.subzone), ("n1", "c1", "s"));
    assert_eq!(w.services.values().next().unwrap().target(80), Some(8080));
    assert_eq!(w.network_gateway.as_ref().unwrap().to_string(), "west/10.0.0.9, port 15008");
    assert_eq!(w.waypoint.as_ref().unwrap().to_string(), "shop/waypoint.shop, port 15009");
    assert_eq!(w.authorization_policies[0].to_string(), "shop/deny");
    assert_eq!((w.capacity, w.workload_type), (7, WorkloadType::CronJob));
    let tunnel = w.application_tunnel.unwrap();
    assert_eq!((tunnel.protocol, tunnel.port), (ApplicationProtocol::Proxy, 15088));
    assert_eq!((&*w.canonical_name, &*w.canonical_revision, &*w.workload_name), ("cart", "2", "cart"));
}

#[test]
fn what_is_left_out_has_the_defaults_of_wds() {
    let mesh = Snapshot::parse("mesh.yaml", &format!("{WORKLOAD}  trustDomain: \"\"\n{SERVICE}")).unwrap();
    let workload = mesh.workload("u").unwrap();
    assert_eq!(workload.identity().to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((workload.protocol, workload.capacity), (Protocol::None, 1));
    let service = mesh.services().next().unwrap();
    assert_eq!((service.scope, service.load_balancing.mode), (ServiceScope::Global, LoadBalancingMode::Standard));
    assert!(service.subject_alt_names.is_empty());
}

#[rstest]
#[case("loadBalancing: {mode: FAILOVER, routingPreference: [NETWORK, REGION], healthPolicy: ALLOW_ALL}")]
#[case("loadBalancer: {mode: Failover, routingPreferences: [Network, Region], healthPolicy: AllowAll}")]
fn both_spellings_of_load_balancing_are_read(#[case] text: &str) {
    let mesh = Snapshot::parse("mesh.yaml", &format!("{SERVICE}  {text}\n  scope: LOCAL")).unwrap();
    let service = mesh.services().next().unwrap();
    assert_eq!(service.load_balancing.mode, LoadBalancingMode::Failover);
    assert_eq!(service.load_balancing.preferences, [LoadBalancingScope::Network, LoadBalancingScope::Region]);
    assert_eq!(service.load_balancing.health_policy, HealthPolicy::AllowAll);
    assert_eq!(service.scope, ServiceScope::Local);
}

#[test]
fn ports_may_be_in_quotes() {
    let mesh = Snapshot::parse("mesh.yaml", &format!("{SERVICE}  ports: {{'80': '8080'}}\n")).unwrap();
    assert_eq!(mesh.services().next().unwrap().ports.target(80), Some(8080));
}

#[test]
fn a_weighted_waypoint_counts_as_a_waypoint() {
    let text = format!("{SERVICE}  weightedWaypoints: [{{destination: {{destination: ns/w.ns}}, weight: 1}}]");
    let mesh = Snapshot::parse("mesh.yaml", &text).unwrap();
    assert!(mesh.services().next().unwrap().waypoint.is_some());
}

#[rstest]
#[case::ztunnel("- - - {principals: [{Exact: td/a}], notDestinationPorts: [9999]}")]
#[case::tags("- - - {principals: [!Exact td/a], notDestinationPorts: [9999]}")]
#[case::wds("- clauses: [{matches: [{principals: [{exact: td/a}], notDestinationPorts: [9999]}]}]")]
fn rules_are_read_in_each_form(#[case] rule: &str) {
    let mesh = Snapshot::parse("mesh.yaml", &format!("{POLICY}  dryRun: true\n  rules:\n  {rule}\n")).unwrap();
    let policy = mesh.policies().next().unwrap();
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::Namespace, Action::Deny, true));
    let found = &policy.rules[0].clauses[0].matches[0];
    assert_eq!(found.principals.any_of, [StringMatch::Exact("td/a".into())]);
    assert_eq!(found.destination_ports.none_of, [9999]);
}

#[rstest]
#[case("{Presence: []}")]
#[case("{presence: {}}")]
#[case("Presence")]
#[case("!Presence []")]
#[case("!Presence")]
fn presence_is_read_in_each_form(#[case] text: &str) {
    let text = format!("{POLICY}  rules: [[[{{namespaces: [{text}]}}]]]\n");
    let mesh = Snapshot::parse("mesh.yaml", &text).unwrap();
    let found = &mesh.policies().next().unwrap().rules[0].clauses[0].matches[0];
    assert_eq!(found.namespaces.any_of, [StringMatch::Presence]);
}

#[rstest]
#[case(
    WORKLOAD,
    "workloadIps:\n  - 10.0.0.1\n  - \"10.0.0\"",
    "mesh.yaml:7: workloads[0].workloadIps[1]: \"10.0.0\" is not an IP address"
)]
#[case(WORKLOAD, "workloadIp: []", "mesh.yaml:5: workloads[0].workloadIp: no such field")]
#[case(WORKLOAD, "workloadIps: 10.0.0.1", "mesh.yaml:5: workloads[0].workloadIps: \"10.0.0.1\" is not a list")]
#[case(WORKLOAD, "uid: again", "mesh.yaml:5: workloads[0].uid: is set twice")]
#[case(WORKLOAD, "node: 5", "mesh.yaml:5: workloads[0].node: 5 is not a text; write it in quotes")]
#[case(WORKLOAD, "capacity: -1", "mesh.yaml:5: workloads[0].capacity: -1 is not a number from 0 to 4294967295")]
#[case(WORKLOAD, "capacity: 1.5", "mesh.yaml:5: workloads[0].capacity: 1.5 is not a number")]
#[case(WORKLOAD, "status: Ill", "mesh.yaml:5: workloads[0].status: \"Ill\" is not one of HEALTHY, UNHEALTHY")]
#[case(
    WORKLOAD,
    "protocol: LEGACY_ISTIO_MTLS",
    "mesh.yaml:5: workloads[0].protocol: LEGACY_ISTIO_MTLS is not supported"
)]
#[case(WORKLOAD, "protocol: HBON", "mesh.yaml:5: workloads[0].protocol: \"HBON\" is not one of HBONE, NONE, TCP")]
#[case(
    WORKLOAD,
    "applicationTunnel: {protocol: SOCKS}",
    "mesh.yaml:5: workloads[0].applicationTunnel.protocol: \"SOCKS\" is not one of NONE, PROXY"
)]
#[case(WORKLOAD, "trustDomain: A B", "mesh.yaml:5: workloads[0].trustDomain: the trust domain")]
#[case(
    WORKLOAD,
    "serviceAccount: a/b",
    "mesh.yaml:4: workloads[0].namespace: \"ns\" and service account \"a/b\" make no valid SPIFFE ID"
)]
#[case(
    WORKLOAD,
    "services:\n    cart: {80: 80}",
    "mesh.yaml:6: workloads[0].services[cart]: the key \"cart\" is not of the form namespace/hostname"
)]
#[case(
    WORKLOAD,
    "services:\n    a/b:\n      80: 80\n      0: 1",
    "mesh.yaml:8: workloads[0].services[a/b][0]: \"0\" is not a port from 1 to 65535"
)]
#[case(
    WORKLOAD,
    "services: {a/b: {80: 65536}}",
    "mesh.yaml:5: workloads[0].services[a/b][80]: 65536 is not a number from 0 to 65535"
)]
#[case(
    WORKLOAD,
    "networkGateway: {destination: west}",
    "mesh.yaml:5: workloads[0].networkGateway.destination: \"west\" is not of the form network/IP or namespace/hostname"
)]
#[case(
    WORKLOAD,
    "networkGateway: {hboneMtlsPort: 1}",
    "mesh.yaml:5: workloads[0].networkGateway.destination: is missing"
)]
#[case(
    WORKLOAD,
    "authorizationPolicies: [deny]",
    "mesh.yaml:5: workloads[0].authorizationPolicies[0]: \"deny\" is not of the form namespace/name"
)]
#[case(
    WORKLOAD,
    "addresses: []\n  workloadIps: []",
    "mesh.yaml:5: workloads[0].addresses: means the same as workloadIps"
)]
#[case(SERVICE, "vips: [10.0.0.1]", "mesh.yaml:5: services[0].vips[0]: \"10.0.0.1\" is not of the form network/IP")]
#[case(
    SERVICE,
    "subjectAltNames:\n  - spiffe://td",
    "mesh.yaml:6: services[0].subjectAltNames[0]: the SPIFFE ID is not of the form"
)]
#[case(SERVICE, "scope: WORLD", "mesh.yaml:5: services[0].scope: \"WORLD\" is not one of LOCAL, GLOBAL")]
#[case(SERVICE, "ports: {http: 80}", "mesh.yaml:5: services[0].ports[http]: \"http\" is not a port from 1 to 65535")]
#[case(SERVICE, "loadBalancing: {mode: BEST}", "mesh.yaml:5: services[0].loadBalancing.mode: \"BEST\" is not one of")]
#[case(
    POLICY,
    "rules:\n  - - - namespace: [{Exact: a}]",
    "mesh.yaml:7: policies[0].rules[0][0][0].namespace: no such field"
)]
#[case(
    POLICY,
    "rules: [[[{namespaces: [a]}]]]",
    "mesh.yaml:6: policies[0].rules[0][0][0].namespaces[0]: \"a\" is not one of Exact"
)]
#[case(
    POLICY,
    "rules: [[[{namespaces: [{Regex: a}]}]]]",
    "policies[0].rules[0][0][0].namespaces[0][Regex]: \"Regex\" is not one of Exact"
)]
#[case(
    POLICY,
    "rules: [[[{sourceIps: [10.0.0.0/33]}]]]",
    "rules[0][0][0].sourceIps[0]: \"10.0.0.0/33\" is not an IP address with"
)]
#[case(POLICY, "rules: [[[{destinationPorts: [-1]}]]]", "destinationPorts[0]: -1 is not a number from 0 to 65535")]
#[case(POLICY, "rules: [[{namespaces: []}]]", "rules[0][0].namespaces: no such field")]
#[case(POLICY, "dryRun: maybe", "mesh.yaml:6: policies[0].dryRun: \"maybe\" is not true or false")]
fn errors_name_file_line_and_field(#[case] before: &str, #[case] field: &str, #[case] expected: &str) {
    let error = Snapshot::parse("mesh.yaml", &format!("{before}  {field}\n")).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}\ndoes not have\n{expected}");
}

#[rstest]
#[case("", "mesh.yaml:1: the file is empty")]
#[case("# nothing\n", "mesh.yaml:1: the file is empty")]
#[case("---\n", "mesh.yaml:1: the file is empty")]
#[case("{}\n---\n{}\n", "mesh.yaml:3: multiple YAML documents")]
#[case("a: &a [*a]\n", "mesh.yaml:1: ")]
#[case("- a\n", "mesh.yaml:1: the file: a list is not a map")]
#[case("services: [\n", "mesh.yaml:1: unclosed bracket '['")]
#[case("a: b\n", "mesh.yaml:1: a: no such field")]
#[case("workloads:\n- name: n\n  namespace: x\n", "mesh.yaml:2: workloads[0].uid: is missing")]
#[case("services:\n- namespace: x\n", "mesh.yaml:2: services[0].name: is missing")]
#[case("policies:\n- {name: p, namespace: x, action: Deny}\n", "mesh.yaml:2: policies[0].scope: is missing")]
#[case(
    "workloads:\n- {uid: a, name: a, namespace: x, workloadIps: [10.0.0.1]}\n- {uid: b, name: b, namespace: x,\n  workloadIps: [10.0.0.2,\n  10.0.0.1]}\n",
    "mesh.yaml:5: workloads[1].workloadIps[1]: workload x/a (a) has the address /10.0.0.1 too"
)]
#[case(
    "workloads:\n- {uid: a, name: a, namespace: x}\n- name: b\n  uid: a\n  namespace: x\n",
    "mesh.yaml:4: workloads[1].uid: another workload has the uid a"
)]
fn errors_of_the_whole_file_name_the_line_too(#[case] text: &str, #[case] expected: &str) {
    let error = Snapshot::parse("mesh.yaml", text).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}\ndoes not have\n{expected}");
}

#[test]
fn an_empty_map_is_an_empty_mesh() {
    assert_eq!(Snapshot::parse("mesh.yaml", "{}").unwrap().workloads().count(), 0);
}

#[test]
fn a_big_mesh_is_not_held_to_the_yaml_librarys_limits() {
    let text = format!("{WORKLOAD}  extensions: [{}]\n", "1, ".repeat(300_000));
    assert_eq!(Snapshot::parse("mesh.yaml", &text).unwrap().workloads().count(), 1);
}

/// What is right in each file below.
const GOOD: &str = "workloads:
- {uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1]}
";

fn left_out(file: &MeshFile) -> Vec<String> {
    file.left_out().iter().map(ToString::to_string).collect()
}

#[rstest]
#[case::wildcard_host(
    "services:\n- {name: s, namespace: ns, hostname: '*.example.com'}",
    "mesh.yaml:4: services[0].hostname: \"*.example.com\" is not a valid DNS name; the service is left out"
)]
#[case::field_of_a_later_version(
    "- {uid: b, name: b, namespace: ns, quantumTunnel: true}",
    "mesh.yaml:3: workloads[1].quantumTunnel: no such field; the workload is left out"
)]
#[case::trust_domain(
    "- {uid: b, name: b, namespace: ns, trustDomain: Corp.Example}",
    "mesh.yaml:3: workloads[1].trustDomain: the trust domain"
)]
#[case::no_uid("- {name: b, namespace: ns}", "mesh.yaml:3: workloads[1].uid: is missing; the workload is left out")]
#[case::not_even_a_map("- 5", "mesh.yaml:3: workloads[1]: 5 is not a map; the workload is left out")]
#[case::same_uid(
    "- {uid: a, name: b, namespace: ns}",
    "mesh.yaml:3: workloads[1].uid: another workload has the uid a; the workload is left out"
)]
#[case::same_address(
    "- uid: b\n  name: b\n  namespace: ns\n  workloadIps:\n  - 10.0.0.2\n  - 10.0.0.1",
    "mesh.yaml:8: workloads[1].workloadIps[1]: workload ns/a (a) has the address /10.0.0.1 too; the workload is left out"
)]
#[case::empty_target_port(
    "services:\n- {name: s, namespace: ns, hostname: s.ns, ports: {80: }}",
    "mesh.yaml:4: services[0].ports[80]: nothing is not a number from 0 to 65535; the service is left out"
)]
#[case::load_balancing(
    "services:\n- {name: s, namespace: ns, hostname: s.ns, loadBalancing: {mode: CONSISTENT_HASH}}",
    "mesh.yaml:4: services[0].loadBalancing.mode: \"CONSISTENT_HASH\" is not one of"
)]
fn one_odd_entry_is_left_out_by_itself(#[case] odd: &str, #[case] expected: &str) {
    let file = MeshFile::parse("mesh.yaml", &format!("{GOOD}{odd}\n")).unwrap();
    let left_out = left_out(&file);
    assert!(left_out.len() == 1 && left_out[0].starts_with(expected), "{left_out:?}\nis not\n{expected}");
    assert_eq!(file.resources().len(), 1);
    assert_eq!((file.left_out()[0].file(), file.left_out()[0].line() > 2), ("mesh.yaml", true));
    let mut store = Store::new();
    assert!(file.apply_to(&mut store).rejected.is_empty());
    assert!(store.snapshot().workload("a").is_some());
}

#[test]
fn names_of_other_forms_are_left_out_of_a_service_that_stays() {
    let names = "[x.example.com, spiffe://td/ns/shop/sa/, spiffe://example.org/k8s/cluster-1/payments]";
    let file = MeshFile::parse("mesh.yaml", &format!("{SERVICE}  subjectAltNames: {names}\n")).unwrap();
    let fields: Vec<&str> = file.left_out().iter().map(LeftOut::field).collect();
    assert_eq!(fields, ["services[0].subjectAltNames[0]", "services[0].subjectAltNames[1]"]);
    assert!(left_out(&file)[0].ends_with("; the name is left out"), "{:?}", left_out(&file));
    let mut store = Store::new();
    let _ = file.apply_to(&mut store);
    let service = store.snapshot().service_by_hostname("n.ns", "ns").unwrap().clone();
    let accepted: Vec<String> = service.subject_alt_names.iter().map(ToString::to_string).collect();
    assert_eq!(accepted, ["spiffe://example.org/k8s/cluster-1/payments"]);
}

#[rstest]
#[case::nothing_usable("workloads:\n- {uid: a}\n- {uid: b}\n", "mesh.yaml:2: workloads[0].name: is missing")]
#[case::not_a_list("workloads: 5\n", "mesh.yaml:1: workloads: 5 is not a list")]
#[case::an_unknown_list("workload: []\n", "mesh.yaml:1: workload: no such field")]
#[case::a_policy_that_could_be_about_anybody(
    "workloads:\n- {uid: a, name: a, namespace: ns}\npolicies:\n- {name: p, namespace: ns, scop: Namespace, action: Deny}\n",
    "mesh.yaml:4: policies[0].scop: no such field"
)]
fn errors_of_the_whole_file_take_nothing(#[case] text: &str, #[case] expected: &str) {
    let error = MeshFile::parse("mesh.yaml", text).unwrap_err();
    assert!(error.to_string().contains(expected), "{error}");
}

/// Decides about a connection to workload `a`.
fn lets_in(store: &Store) -> bool {
    let mesh = store.snapshot();
    let peer = "spiffe://td/ns/web/sa/front".parse().unwrap();
    let connection = ConnectionInfo { peer: &peer, source_ip: None, destination: "10.0.0.1:80".parse().unwrap() };
    authorize(mesh.policies_for(mesh.workload("a").unwrap()), &connection).is_allowed()
}

#[rstest]
#[case::deny("action: Deny, rules: [[[{ports: [1]}]]]", false)]
#[case::allow("action: Allow, rules: [[[{ports: [1]}]]]", false)]
#[case::no_action("rules: []", false)]
#[case::only_tried("action: Deny, dryRun: true, rules: [[[{ports: [1]}]]]", true)]
fn a_policy_that_cannot_be_read_lets_nobody_in(#[case] bad: &str, #[case] allowed: bool) {
    let mut store = Store::new();
    let text = format!("{GOOD}policies:\n- {{name: p, namespace: ns, scope: Namespace, {bad}}}\n");
    let file = MeshFile::parse("mesh.yaml", &text).unwrap();
    assert_eq!(file.left_out().len(), 1);
    let _ = file.apply_to(&mut store);
    assert_eq!(lets_in(&store), allowed);

    // What was there before stays, as it says more.
    let good = "action: Allow, rules: [[[{namespaces: [{Exact: web}]}]]]";
    let _ = MeshFile::parse("mesh.yaml", &text.replace(bad, good)).unwrap().apply_to(&mut store);
    assert!(lets_in(&store));
    let _ = file.apply_to(&mut store);
    assert!(lets_in(&store));
}

#[test]
fn read_again_a_file_changes_what_differs_and_keeps_what_it_can_not_read() {
    let mut store = Store::new();
    let read = |text: &str, store: &mut Store| {
        let file = MeshFile::parse("mesh.yaml", text).unwrap();
        let mut changed: Vec<String> = file.apply_to(store).changed.iter().map(ToString::to_string).collect();
        changed.sort();
        changed
    };
    let b = "- {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2]}\n";
    let s = "services:\n- {name: s, namespace: ns, hostname: s.ns, ports: {80: 80}}\n";
    assert_eq!(read(&format!("{GOOD}{b}{s}"), &mut store), ["service ns/s.ns", "workload a", "workload b"]);
    assert_eq!(read(&format!("{GOOD}{b}{s}"), &mut store), [""; 0]);
    let broken = format!("{GOOD}{}{}", b.replace("10.0.0.2", "10.0.0"), s.replace("80: 80", "80: x"));
    assert_eq!(read(&broken, &mut store), [""; 0]);
    assert_eq!(read(GOOD, &mut store), ["service ns/s.ns", "workload b"]);
    assert_eq!(read("{}", &mut store), ["workload a"]);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[-a-z:{}\\[\\]&*!'\"0-9./ \n]{0,80}") {
        let _ = Snapshot::parse("mesh.yaml", &format!("{WORKLOAD}  {text}"));
        let _ = Snapshot::parse("mesh.yaml", &format!("{POLICY}  rules: [[[{text}]]]"));
        let _ = Snapshot::parse("mesh.yaml", &text);
        if let Ok(file) = MeshFile::parse("mesh.yaml", &format!("{GOOD}{text}")) {
            prop_assert!(file.apply_to(&mut Store::new()).rejected.is_empty());
        }
    }
}
