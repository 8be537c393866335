//! What each connection costs beside moving bytes: its headers, its route, its place in the pool.

use std::fmt::Write;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hbone::balance::{LeastRequests, RoundRobin, WeightedRandom};
use hbone::mesh::{Network as MeshNetwork, Snapshot};
use hbone::metadata::{Baggage, Forwarded, Metadata, Traceparent, WorkloadType};
use hbone::pool::{Pool, PoolConfig};
use hbone::route::{self, Choice};
use hbone::testing::{Ca, Network};
use hbone::tls::Acceptor;
use hbone::{Authority, Config, DirectHop, Path, SpiffeId, TrustDomains, server};
use http::HeaderMap;
use tokio::runtime::Runtime;

fn metadata(c: &mut Criterion) {
    let baggage = Baggage::default().with_cluster("c1").with_namespace("shop").with_service_name("cart");
    let baggage = baggage.with_workload(WorkloadType::Pod, "cart-7d9c").with_service_version("v2").with_region("r1");
    let trace: Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse().expect("a traceparent");
    let forwarded = Forwarded::default().with_for("10.0.0.5:41234".parse().expect("an address"));
    let metadata = Metadata::default().with_baggage(baggage).with_traceparent(trace).with_forwarded(forwarded);
    let metadata = metadata.with_forwarded_network("east").expect("a network");
    let mut headers = HeaderMap::new();
    metadata.write_to(&mut headers);
    c.bench_function("metadata/write", |b| {
        b.iter(|| {
            let mut headers = HeaderMap::new();
            metadata.write_to(&mut headers);
            headers
        });
    });
    c.bench_function("metadata/read", |b| b.iter(|| Metadata::from_headers(&headers)));
}

/// A mesh with one service of so many pods.
fn mesh(pods: usize) -> Snapshot {
    let mut text = String::from("workloads:\n");
    let mut pod = |name: &str, rest: &str| {
        let _ =
            writeln!(text, "- {{uid: {name}, name: {name}, namespace: shop, protocol: HBONE, network: west, {rest}}}");
    };
    pod("web", "workloadIps: [10.0.0.1]");
    for n in 0..pods {
        let ip = format!("10.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, 1 + n % 250);
        pod(&format!("cart{n}"), &format!("workloadIps: [{ip}], services: {{shop/cart.shop: {{}}}}"));
    }
    text += "services:\n- {name: cart, namespace: shop, hostname: cart.shop, ports: {80: 8080}}\n";
    Snapshot::parse("the mesh", &text).expect("a mesh")
}

fn routes(c: &mut Criterion) {
    let target: Authority = "cart.shop:80".parse().expect("an authority");
    let mut group = c.benchmark_group("route");
    for pods in [3, 100, 10_000] {
        let mesh = mesh(pods);
        let web = mesh.workload_named("shop", "web").expect("a workload");
        let (random, turns, least) = (WeightedRandom::new(), RoundRobin::new(), LeastRequests::new());
        for (name, choice) in [("random", Choice::new(&random)), ("round robin", Choice::new(&turns))] {
            group.bench_function(BenchmarkId::new(format!("outbound, {name}"), format!("{pods} pods")), |b| {
                b.iter(|| route::outbound(&mesh, web, &target, &choice).expect("a route"));
            });
        }
        let (network, choice) = (MeshNetwork::new("west"), Choice::new(&least));
        group.bench_function(BenchmarkId::new("gateway, least requests", format!("{pods} pods")), |b| {
            b.iter(|| route::gateway(&mesh, &network, &target, &choice).expect("a pod"));
        });
    }
    group.finish();
}

/// A place on a connection that is there, and giving it back.
fn pool(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (ca, network, config) = (Ca::new(), Network::new(), Arc::new(Config::new()));
    let id = |sa: &str| format!("spiffe://cluster.local/ns/shop/sa/{sa}").parse::<SpiffeId>().expect("an identity");
    let trusted = TrustDomains::new("cluster.local".parse().expect("a trust domain"));
    let acceptor = Acceptor::new(Arc::new(ca.issue(&id("cart"))), trusted, config.clone());
    let mut listener = network.listen("10.0.0.2:15008".parse().expect("an address"));
    runtime.spawn(async move {
        while let Some(stream) = listener.accept().await {
            let tls = acceptor.accept(stream).await.expect("TLS");
            let mut server = server::handshake(tls).await.expect("HTTP/2");
            tokio::spawn(async move { while server.accept().await.is_some() {} });
        }
    });
    let pool = Pool::new(Arc::new(network), config, PoolConfig::new());
    let source = pool.source(Arc::new(ca.issue(&id("web"))), Metadata::default()).expect("a source");
    let path = Path::direct(DirectHop::new("10.0.0.2:15008".parse().expect("an address"), id("cart").into()));
    c.bench_function("pool/checkout", |b| {
        b.to_async(&runtime).iter(|| async { drop(pool.checkout(&source, &path).await.expect("a lease")) });
    });
}

criterion_group!(benches, metadata, routes, pool);
criterion_main!(benches);
