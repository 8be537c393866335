//! How long a change of a large mesh takes, and a look-up in it.

use std::hint::black_box;
use std::net::Ipv4Addr;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use hbone::mesh::{Network, Resource, ResourceName, Service, Store, Workload};

/// The address of a workload, of 100,000.
fn ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + n as u32)
}

fn workload(n: usize, service: usize, capacity: u32) -> Workload {
    let namespace = service % 100;
    let identity = format!("spiffe://cluster.local/ns/ns{namespace}/sa/s{service}").parse().expect("an identity");
    let name = format!("s{service}-7d9c5b6f4-{n}");
    let mut workload = Workload::new(format!("east//Pod/ns{namespace}/{name}"), name, identity);
    workload.network = Network::new("east");
    workload.addresses = vec![ip(n).into()];
    workload.capacity = capacity;
    workload.services.insert(key(service), [(80, 8080)].into_iter().collect());
    workload
}

fn key(service: usize) -> hbone::mesh::NamespacedHostname {
    let namespace = service % 100;
    format!("ns{namespace}/s{service}.ns{namespace}.svc.cluster.local").parse().expect("a key")
}

/// So many workloads, each in one of so many services.
fn resources(workloads: usize, services: usize) -> Vec<Resource> {
    let service = |n: usize| {
        let mut service = Service::new(format!("s{n}"), key(n));
        let vip = format!("east/{}", Ipv4Addr::from_bits(0x0b00_0000 + n as u32));
        service.vips = vec![vip.parse().expect("an address")];
        service.ports = [(80, 8080)].into_iter().collect();
        Resource::from(service)
    };
    let workloads = (0..workloads).map(|n| Resource::from(workload(n, n % services, 1)));
    (0..services).map(service).chain(workloads).collect()
}

fn store(workloads: usize, services: usize) -> Store {
    let mut store = Store::new();
    let applied = store.replace(resources(workloads, services), []);
    assert!(applied.rejected.is_empty() && applied.changed.len() == workloads + services);
    store
}

fn changes(c: &mut Criterion) {
    let mut group = c.benchmark_group("store");
    for (workloads, services) in [(1_000, 100), (100_000, 10_000), (100_000, 10)] {
        let mut store = store(workloads, services);
        // As a proxy does: it reads the newest, and lets go of the one before.
        let mesh = store.subscribe();
        let mut held = store.snapshot();
        let size = format!("{workloads} workloads, {services} services");
        let mut n = 0;
        group.bench_function(BenchmarkId::new("upsert and publish", &size), |b| {
            b.iter_batched(
                || {
                    // Far from the one before, and different from what is there.
                    n += 1;
                    let at = n * 7_919 % workloads;
                    workload(at, at % services, 2 + n as u32)
                },
                |workload| {
                    store.upsert(workload).expect("no conflict");
                    held = mesh.borrow().clone();
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new("remove, add and publish", &size), |b| {
            b.iter_batched(
                || {
                    n += 1;
                    let at = n * 7_919 % workloads;
                    workload(at, at % services, 1)
                },
                |workload| {
                    assert!(store.remove(&ResourceName::Workload(workload.uid.clone())));
                    store.upsert(workload).expect("no conflict");
                    held = mesh.borrow().clone();
                },
                BatchSize::PerIteration,
            );
        });
        black_box(&held);
    }
    group.finish();
}

fn from_nothing(c: &mut Criterion) {
    let resources = resources(100_000, 10_000);
    let mut group = c.benchmark_group("store");
    group.sample_size(10);
    group.bench_function("from nothing, 100000 workloads, 10000 services", |b| {
        b.iter_batched(
            || resources.clone(),
            |resources| {
                let mut store = Store::new();
                let applied = store.replace(resources, []);
                assert!(applied.rejected.is_empty());
                store
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn look_ups(c: &mut Criterion) {
    let mesh = store(100_000, 10_000).snapshot();
    let network = Network::new("east");
    let mut group = c.benchmark_group("snapshot, 100000 workloads");
    let mut n = 0;
    group.bench_function("workload by address", |b| {
        b.iter(|| {
            n = (n + 7_919) % 100_000;
            mesh.workload_at(&network, ip(n).into()).expect("a workload")
        });
    });
    let hostnames: Vec<String> = (0..10_000).map(|n| key(n).hostname.as_str().to_owned()).collect();
    group.bench_function("service by hostname, and its endpoints", |b| {
        b.iter(|| {
            n = (n + 7_919) % 10_000;
            let service = mesh.service_by_hostname(&hostnames[n], "ns5").expect("a service");
            mesh.endpoints(service).iter().map(|endpoint| endpoint.workload.capacity).sum::<u32>()
        });
    });
    group.finish();
}

criterion_group!(benches, changes, from_nothing, look_ups);
criterion_main!(benches);
