use proptest::prelude::*;
use rstest::rstest;

use super::{policy, service, workload};
use crate::mesh::{
    Applied, Batch, GatewayAddress, GatewayDestination, Network, RejectReason, Resource, ResourceName, Snapshot, Store,
    Workload,
};
use crate::policy::{Action, Policy, PolicyName, Scope};

/// A snapshot of the same resources that has never been another one.
fn rebuilt(mesh: &Snapshot) -> Snapshot {
    let (workloads, services, policies) = (mesh.workloads(), mesh.services(), mesh.policies());
    Snapshot::new(workloads.map(|w| (**w).clone()), services.map(|s| (**s).clone()), policies.map(|p| (**p).clone()))
        .unwrap()
}

fn batch(resources: impl IntoIterator<Item = Resource>) -> Batch {
    let mut batch = Batch::new();
    resources.into_iter().for_each(|resource| batch.upsert(resource));
    batch
}

fn at(uid: &str, ip: &str) -> Resource {
    workload(uid, "n", ip).into()
}

fn uid(uid: &str) -> ResourceName {
    ResourceName::Workload(uid.into())
}

fn addresses(store: &Store) -> Vec<String> {
    let mesh = store.snapshot();
    let mut found: Vec<String> = mesh.workloads().map(|w| format!("{} {}", w.uid, w.addresses[0])).collect();
    found.sort();
    found
}

fn rejected(applied: &Applied) -> Vec<String> {
    applied.rejected.iter().map(ToString::to_string).collect()
}

#[test]
fn a_rejected_resource_is_named_with_its_reason_and_the_rest_is_taken() {
    let mut store = Store::new();
    let applied = store.apply(batch([
        at("a", "10.0.0.1"),
        at("b", "10.0.0.1"),
        at("", "10.0.0.9"),
        at("c", "10.0.0.2"),
        service("shop/cart.shop", "n/10.1.0.1").into(),
        service("shop/twin.shop", "n/10.1.0.1").into(),
        service("shop/web.shop", "n/10.1.0.2").into(),
        Policy::new(PolicyName::new("shop", ""), Scope::Namespace, Action::Allow).into(),
        policy("shop/deny", Scope::Namespace).into(),
    ]));
    assert_eq!(
        rejected(&applied),
        [
            "workload shop/b (b): workload shop/a (a) has the address n/10.0.0.1 too",
            "workload shop/ (): it has no name",
            "service shop/twin.shop: service shop/cart.shop has the virtual address n/10.1.0.1 too",
            "policy shop/: it has no name",
        ]
    );
    assert_eq!(applied.changed.len(), 5);
    assert_eq!(addresses(&store), ["a 10.0.0.1", "c 10.0.0.2"]);
    let mesh = store.snapshot();
    assert_eq!((mesh.services().count(), mesh.policies().count()), (2, 1));
    let waiting: Vec<ResourceName> = store.rejected().map(|r| r.resource.name()).collect();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.contains(&uid("b")), "{waiting:?}");
}

#[rstest]
// An address that becomes free goes to whoever waits for it, the least name first.
#[case(&["+b 1", "+c 1", "-a"], &["b 10.0.0.1"])]
#[case(&["+b 1", "+c 1", "-a", "-b"], &["c 10.0.0.1"])]
#[case(&["+b 1", "+a 2"], &["a 10.0.0.2", "b 10.0.0.1"])]
// Whoever waits can be withdrawn, by removal or by a new version.
#[case(&["+b 1", "-b", "-a"], &[])]
#[case(&["+b 1", "+b 2", "-a"], &["b 10.0.0.2"])]
// A rejected version leaves the one before it, and replaces it once it can.
#[case(&["+b 2", "+b 1"], &["a 10.0.0.1", "b 10.0.0.2"])]
#[case(&["+b 2", "+b 1", "-a"], &["b 10.0.0.1"])]
#[case(&["+b 2", "+b 1", "+c 2", "-a"], &["b 10.0.0.1", "c 10.0.0.2"])]
#[case(&["+b 2", "+b 1", "+b 2", "-a"], &["b 10.0.0.2"])]
fn an_address_goes_to_the_first_and_then_to_who_waits(#[case] changes: &[&str], #[case] expected: &[&str]) {
    let mut store = Store::new();
    for change in ["+a 1"].iter().chain(changes) {
        let _ = match change.split_once(' ') {
            Some((name, ip)) => store.upsert(at(&name[1..], &format!("10.0.0.{ip}"))).is_ok(),
            None => store.remove(&uid(&change[1..])),
        };
    }
    assert_eq!(addresses(&store), expected);
    assert_eq!(store.snapshot(), rebuilt(&store.snapshot()));
}

#[test]
fn in_one_batch_addresses_may_pass_around() {
    let mut store = Store::new();
    assert!(store.apply(batch([at("a", "10.0.0.1"), at("b", "10.0.0.2"), at("c", "10.0.0.3")])).rejected.is_empty());
    let mut swap = batch([at("d", "10.0.0.3"), at("a", "10.0.0.2"), at("b", "10.0.0.1")]);
    swap.remove(uid("c"));
    let applied = store.apply(swap);
    assert!(applied.rejected.is_empty(), "{:?}", rejected(&applied));
    assert_eq!(addresses(&store), ["a 10.0.0.2", "b 10.0.0.1", "d 10.0.0.3"]);
    let mut changed = applied.changed;
    changed.sort();
    assert_eq!(changed, ["a", "b", "c", "d"].map(uid));
}

#[test]
fn the_last_change_to_a_name_counts() {
    let mut store = Store::new();
    let mut changes = batch([at("a", "10.0.0.1"), at("b", "10.0.0.2")]);
    changes.remove(uid("a"));
    changes.remove(uid("b"));
    changes.upsert(at("b", "10.0.0.3"));
    assert_eq!(store.apply(changes).changed, [uid("b")]);
    assert_eq!(addresses(&store), ["b 10.0.0.3"]);
}

#[test]
fn only_a_change_is_published() {
    let mut store = Store::new();
    let mut mesh = store.subscribe();
    assert!(store.upsert(at("a", "10.0.0.1")).is_ok());
    assert!(mesh.has_changed().unwrap());
    assert_eq!(*mesh.borrow_and_update(), store.snapshot());
    assert!(store.upsert(at("a", "10.0.0.1")).is_ok());
    assert!(store.upsert(at("b", "10.0.0.1")).is_err());
    assert!(!store.remove(&uid("c")));
    assert!(!mesh.has_changed().unwrap());
    assert!(store.remove(&uid("b")), "it was kept aside");
    assert!(!mesh.has_changed().unwrap());
    assert!(store.remove(&uid("a")));
    assert!(mesh.has_changed().unwrap());
    drop(store);
    assert_eq!(*mesh.borrow(), Snapshot::default());
}

#[test]
fn to_replace_everything_changes_only_what_differs() {
    let mut store = Store::new();
    let _ = store.replace([at("a", "10.0.0.1"), at("b", "10.0.0.2"), at("c", "10.0.0.3"), at("d", "10.0.0.3")], []);
    let applied = store.replace([at("a", "10.0.0.1"), at("e", "10.0.0.5")], [uid("b")]);
    let mut changed = applied.changed;
    changed.sort();
    assert_eq!(changed, [uid("c"), uid("e")], "d only waited");
    assert_eq!(addresses(&store), ["a 10.0.0.1", "b 10.0.0.2", "e 10.0.0.5"]);
    assert_eq!(store.rejected().count(), 0);
}

#[test]
fn what_a_service_has_may_come_before_it_and_outlast_it() {
    let mut store = Store::new();
    let cart = service("shop/cart.shop", "n/10.1.0.1");
    assert!(store.upsert(at("a", "10.0.0.1")).is_ok());
    assert!(store.snapshot().endpoints(&cart).is_empty());
    assert!(store.upsert(cart.clone()).is_ok());
    assert_eq!(store.snapshot().endpoints(&cart).len(), 1);
    assert!(store.remove(&ResourceName::Service(cart.key.clone())));
    assert!(store.snapshot().endpoints(&cart).is_empty());
    assert_eq!(store.snapshot().services().count(), 0);
    assert!(store.upsert(cart.clone()).is_ok());
    assert_eq!(store.snapshot().endpoints(&cart).len(), 1);
}

#[test]
fn a_gateway_is_there_as_long_as_a_workload_names_it() {
    let mut store = Store::new();
    let gateway = |ip: &str| GatewayAddress::new(GatewayDestination::Address(format!("n/{ip}").parse().unwrap()), 0);
    for (uid, ip) in [("a", "10.9.0.2"), ("b", "10.9.0.1"), ("c", "10.9.0.2")] {
        let mut workload = workload(uid, "n", &format!("10.0.0.{}", uid.as_bytes()[0]));
        workload.network_gateway = Some(gateway(ip));
        assert!(store.upsert(workload).is_ok());
    }
    let gateways = |store: &Store| store.snapshot().gateways(&Network::new("n")).to_vec();
    assert_eq!(gateways(&store), [gateway("10.9.0.1"), gateway("10.9.0.2")]);
    store.remove(&uid("a"));
    assert_eq!(gateways(&store).len(), 2);
    store.remove(&uid("c"));
    assert_eq!(gateways(&store), [gateway("10.9.0.1")]);
}

#[test]
fn a_reject_says_what_is_in_the_way() {
    let mut store = Store::new();
    assert!(store.upsert(at("a", "10.0.0.1")).is_ok());
    let reject = store.upsert(at("b", "::ffff:10.0.0.1")).unwrap_err();
    let RejectReason::AddressTaken { address, by } = reject.reason else { panic!("{:?}", reject.reason) };
    assert_eq!((address.to_string(), by.name(), reject.resource.name()), ("n/10.0.0.1".into(), uid("a"), uid("b")));
}

/// A workload of a small world, in which much collides.
fn any_workload() -> impl Strategy<Value = Workload> {
    let choices = (0..8_u8, 0..2_u8, prop::collection::vec(0..12_u8, 0..3), any::<bool>(), 0..4_u8, 0..3_u8);
    choices.prop_map(|(uid, network, ips, host_network, services, gateway)| {
        let mut workload = workload(&format!("w{uid}"), &format!("n{network}"), "10.0.0.1");
        workload.addresses = ips.iter().map(|ip| [10, 0, 0, *ip].into()).collect();
        workload.host_network = host_network;
        workload.name = format!("pod{}", uid / 2).into();
        workload.hostname = (uid % 3 == 0).then(|| format!("w{services}.example").parse().unwrap());
        workload.services.clear();
        for n in 0..services {
            workload.services.insert(format!("shop/s{n}.shop").parse().unwrap(), [(80, 8080)].into_iter().collect());
        }
        workload.network_gateway = (gateway > 0).then(|| {
            GatewayAddress::new(GatewayDestination::Address(format!("n0/10.9.0.{gateway}").parse().unwrap()), 0)
        });
        workload
    })
}

fn any_resource() -> impl Strategy<Value = Resource> {
    let service = (0..5_u8, prop::collection::vec(0..6_u8, 0..3)).prop_map(|(name, vips)| {
        let mut service = service(&format!("shop/s{name}.shop"), "n0/10.1.0.1");
        service.vips = vips.iter().map(|vip| format!("n{}/10.1.0.{vip}", vip % 2).parse().unwrap()).collect();
        Resource::from(service)
    });
    let scopes = prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let policy = (0..4_u8, scopes).prop_map(|(name, scope)| Resource::from(policy(&format!("shop/p{name}"), scope)));
    prop_oneof![4 => any_workload().prop_map(Resource::from), 2 => service, 1 => policy]
}

proptest! {
    #[test]
    fn after_any_changes_the_mesh_is_as_one_made_afresh(
        batches in prop::collection::vec(prop::collection::vec((any::<bool>(), any_resource()), 1..6), 1..40),
    ) {
        crate::fuzzing::mesh_store::changes(batches);
    }
}

#[test]
fn a_policy_moves_with_its_scope() {
    let mut store = Store::new();
    let cart = workload("a", "n", "10.0.0.1");
    let holds = |store: &Store| store.snapshot().policies_for(&cart).len();
    for (scope, expected) in [(Scope::Namespace, 1), (Scope::WorkloadSelector, 0), (Scope::Global, 1)] {
        assert!(store.upsert(policy("shop/p", scope)).is_ok());
        assert_eq!(holds(&store), expected, "{scope:?}");
    }
    assert!(store.remove(&ResourceName::Policy(PolicyName::new("shop", "p"))));
    assert_eq!(holds(&store), 0);
}
