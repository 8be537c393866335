//! Compares `mesh::Store` after each batch to a snapshot built from scratch.

use std::collections::HashMap;

use arbitrary::{Arbitrary, Unstructured};

use crate::mesh::{
    Batch, GatewayAddress, GatewayDestination, Network, Resource, ResourceName, Service, Snapshot, Store, Workload,
};
use crate::policy::{Action, Policy, PolicyName, Scope};

type Input<'a, 'b> = &'b mut Unstructured<'a>;

/// Batches of upserts and removals, of few names and addresses so that many collide.
pub fn mesh_store(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut batches = Vec::new();
    while !u.is_empty()
        && batches.len() < 60
        && let Ok(batch) = batch(&mut u)
    {
        batches.push(batch);
    }
    changes(batches);
}

/// Resources, each with whether it is upserted or removed.
fn batch(u: Input<'_, '_>) -> arbitrary::Result<Vec<(bool, Resource)>> {
    let count = 1 + u8::arbitrary(u)? % 5;
    (0..count).map(|_| Ok((u8::arbitrary(u)? % 4 != 0, resource(u)?))).collect()
}

fn resource(u: Input<'_, '_>) -> arbitrary::Result<Resource> {
    Ok(match u8::arbitrary(u)? % 7 {
        0..4 => workload(u)?.into(),
        4 | 5 => service(u)?.into(),
        _ => {
            let (name, scope) = (u8::arbitrary(u)? % 5, u8::arbitrary(u)? % 3);
            // One has no name, which is rejected.
            let name = if name == 4 { String::new() } else { format!("p{name}") };
            let scope = [Scope::Global, Scope::Namespace, Scope::WorkloadSelector][usize::from(scope)];
            Policy::new(PolicyName::new("shop", name), scope, Action::Allow).into()
        }
    })
}

fn parsed<T: std::str::FromStr>(text: &str) -> T {
    text.parse().ok().expect("a valid text")
}

fn workload(u: Input<'_, '_>) -> arbitrary::Result<Workload> {
    let [uid, network, flags, services, gateway] = u.arbitrary::<[u8; 5]>()?;
    let (uid, services) = (uid % 9, services % 4);
    let name = format!("pod{}", uid / 2);
    let id = if uid == 8 { String::new() } else { format!("w{uid}") };
    let mut workload = Workload::new(id, name, parsed("spiffe://td/ns/shop/sa/cart"));
    workload.network = Network::new(format!("n{}", network % 2));
    for _ in 0..flags & 3 {
        workload.addresses.push([10, 0, 0, u8::arbitrary(u)? % 12].into());
    }
    workload.host_network = flags & 0x30 == 0x30;
    workload.hostname = uid.is_multiple_of(3).then(|| parsed(&format!("w{services}.example")));
    for n in 0..services {
        workload.services.insert(parsed(&format!("shop/s{n}.shop")), [(80, 8080)].into_iter().collect());
    }
    workload.network_gateway = (gateway % 3 > 0)
        .then(|| GatewayAddress::new(GatewayDestination::Address(parsed(&format!("n0/10.9.0.{}", gateway % 3))), 0));
    Ok(workload)
}

fn service(u: Input<'_, '_>) -> arbitrary::Result<Service> {
    let [name, vips] = u.arbitrary::<[u8; 2]>()?;
    let mut service = Service::new("cart", parsed(&format!("shop/s{}.shop", name % 5)));
    for _ in 0..vips % 3 {
        let vip = u8::arbitrary(u)? % 6;
        service.vips.push(parsed(&format!("n{}/10.1.0.{vip}", vip % 2)));
    }
    service.ports = [(80, 8080)].into_iter().collect();
    Ok(service)
}

/// A snapshot built from scratch of the same resources.
fn rebuilt(mesh: &Snapshot) -> Snapshot {
    Snapshot::new(
        mesh.workloads().map(|workload| (**workload).clone()),
        mesh.services().map(|service| (**service).clone()),
        mesh.policies().map(|policy| (**policy).clone()),
    )
    .expect("resources that stand in one mesh already")
}

/// After each batch the mesh equals one built from scratch of the same resources, and the last version of each resource
/// is in it, or waits for an address, or has no name. Snapshots never change.
pub(crate) fn changes(batches: Vec<Vec<(bool, Resource)>>) {
    let by_name = |mesh: &Snapshot| mesh.resources().map(|r| (r.name(), r)).collect::<HashMap<_, _>>();
    let mut store = Store::new();
    let mut sent: HashMap<ResourceName, Resource> = HashMap::new();
    let mut earlier = Vec::new();
    for changes in batches {
        let mut batch = Batch::new();
        for (upsert, resource) in changes {
            if upsert {
                sent.insert(resource.name(), resource.clone());
                batch.upsert(resource);
            } else {
                sent.remove(&resource.name());
                batch.remove(resource.name());
            }
        }
        let before = by_name(&store.snapshot());
        let applied = store.apply(batch);
        let mesh = store.snapshot();
        let fresh = rebuilt(&mesh);
        assert_eq!(mesh, fresh);
        assert_eq!(*store.subscribe().borrow(), mesh, "what is published");

        let after = by_name(&mesh);
        for name in before.keys().chain(after.keys()) {
            assert_eq!(applied.changed.contains(name), before.get(name) != after.get(name), "{name}");
        }
        let waiting: HashMap<_, _> = store.rejected().map(|r| (r.resource.name(), r.resource)).collect();
        for (name, resource) in &sent {
            let is_there = after.get(name) == Some(resource) || waiting.get(name) == Some(resource);
            assert_ne!(is_there, is_unnamed(name), "{name}");
        }
        for (name, resource) in after.iter().chain(&waiting) {
            assert!(sent.contains_key(name), "{name} was removed");
            assert!(
                !(after.get(name) == Some(resource) && waiting.get(name) == Some(resource)),
                "{name} is there and waits"
            );
        }
        earlier.push((mesh, fresh));
    }
    for (snapshot, then) in earlier {
        assert_eq!(snapshot, then, "a snapshot never changes");
    }
}

fn is_unnamed(name: &ResourceName) -> bool {
    match name {
        ResourceName::Workload(uid) => uid.is_empty(),
        ResourceName::Policy(policy) => policy.name.is_empty(),
        ResourceName::Service(_) => false,
    }
}
