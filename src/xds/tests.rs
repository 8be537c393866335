//! A client of ours at a server of ours, without a socket between them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::delta::{Interest, Subscriptions};
use super::proto::{
    self, ADDRESS_TYPE, AUTHORIZATION_TYPE, Node, PortList, TunnelProtocol, UInt32Value, WorkloadStatus,
};
use super::view::{Change, ClusterConfig, ClusterService, GatewayHost, NetworkGateway, Options, Views};
use super::{Client, ClientConfig, DiscoveryServer, Publisher};
use crate::mesh::{Snapshot, Store};

const CART: &str = "shop/cart.shop.svc.cluster.local";

fn workload(cluster: &str, name: &str, ip: [u8; 4]) -> proto::Workload {
    proto::Workload {
        uid: format!("{cluster}//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![bytes::Bytes::copy_from_slice(&ip)],
        network: cluster.into(),
        node: format!("{cluster}-node"),
        tunnel_protocol: TunnelProtocol::Hbone as i32,
        service_account: "cart".into(),
        cluster_id: cluster.into(),
        services: BTreeMap::from([(
            CART.to_owned(),
            PortList { ports: vec![proto::Port { service_port: 80, target_port: 8080, app_protocol: 0 }] },
        )]),
        ..Default::default()
    }
}

fn service(cluster: &str, vip: [u8; 4]) -> ClusterService {
    let mut service = ClusterService::new(proto::Service {
        name: "cart".into(),
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
        addresses: vec![proto::NetworkAddress {
            network: cluster.into(),
            address: bytes::Bytes::copy_from_slice(&vip),
            length: None,
        }],
        ports: vec![proto::Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        ..Default::default()
    });
    service.labels.insert("istio.io/global".into(), "true".into());
    service
}

/// East and west, each with a cart, and west with a gateway.
fn mesh() -> Publisher {
    let publisher = Publisher::new(Views::new(Options::new()));
    for (cluster, n) in [("east", 1), ("west", 2)] {
        let gateway = NetworkGateway::new(("gateways", "eastwest"), cluster, GatewayHost::Ip([192, 0, 2, n].into()));
        publisher.apply(
            cluster,
            [
                Change::Config(ClusterConfig::new(cluster)),
                Change::Gateways([gateway].into()),
                Change::Service(Box::new(service(cluster, [10, 100, n, 1]))),
                Change::Workload(Box::new(workload(cluster, "cart-1", [10, n, 0, 1]))),
            ],
        );
    }
    publisher
}

fn node(cluster: &str) -> Node {
    Node { id: "ztunnel~10.0.0.1~z.istio-system~istio-system.svc.cluster.local".into(), ..Default::default() }
        .with_metadata_text("CLUSTER_ID", cluster)
        .with_metadata_text("NODE_NAME", format!("{cluster}-node"))
}

struct Proxy {
    store: Arc<Mutex<Store>>,
    snapshots: watch::Receiver<Snapshot>,
    status: watch::Receiver<super::ClientStatus>,
    demand: super::Demand,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Proxy {
    fn start(publisher: &Publisher, interest: Interest) -> Self {
        let subscriptions = Subscriptions::new(node("east"))
            .with_type(ADDRESS_TYPE, interest)
            .with_type(AUTHORIZATION_TYPE, Interest::Wildcard);
        let store = Arc::new(Mutex::new(Store::new()));
        let snapshots = store.lock().unwrap().subscribe();
        let server = DiscoveryServer::new(publisher.clone());
        let client = Client::new(server, subscriptions, store.clone(), ClientConfig::new());
        let (status, demand) = (client.status(), client.demand());
        Self { store, snapshots, status, demand, running: tokio::spawn(client.run()) }
    }

    async fn until(&mut self, holds: impl Fn(&Snapshot) -> bool) {
        self.snapshots.wait_for(holds).await.unwrap();
    }
}

/// The endpoints of a service in west, as east sees them.
fn capacity(snapshot: &Snapshot) -> Option<u32> {
    let uid = format!("west/SplitHorizonWorkload/gateways/eastwest/192.0.2.2/{CART}");
    snapshot.workload(&uid).map(|workload| workload.capacity)
}

#[tokio::test(start_paused = true)]
async fn a_proxy_follows_its_clusters_view() {
    let publisher = mesh();
    let mut proxy = Proxy::start(&publisher, Interest::Wildcard);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    let snapshot = proxy.snapshots.borrow().clone();
    assert!(snapshot.workload("east//Pod/shop/cart-1").is_some());
    assert!(snapshot.workload("west//Pod/shop/cart-1").is_none(), "not one remote pod");
    let cart = snapshot.service(&CART.parse().unwrap()).unwrap();
    assert!(cart.subject_alt_names.contains(&"spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()));
    assert_eq!(cart.vips.len(), 2);

    publisher.apply("west", [Change::Workload(Box::new(workload("west", "cart-2", [10, 2, 0, 2])))]);
    proxy.until(|snapshot| capacity(snapshot) == Some(2)).await;
    let unready =
        proto::Workload { status: WorkloadStatus::Unhealthy as i32, ..workload("west", "cart-2", [10, 2, 0, 2]) };
    publisher.apply("west", [Change::Workload(Box::new(unready))]);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    publisher.apply("west", [Change::WorkloadRemoved("west//Pod/shop/cart-1".into())]);
    proxy.until(|snapshot| capacity(snapshot).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn the_label_makes_a_service_global_and_its_removal_ends_that() {
    let publisher = mesh();
    let mut proxy = Proxy::start(&publisher, Interest::Wildcard);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    let mut local = service("east", [10, 100, 1, 1]);
    local.labels.clear();
    publisher.apply("east", [Change::Service(Box::new(local))]);
    proxy.until(|snapshot| capacity(snapshot).is_none()).await;
    publisher.apply("east", [Change::Service(Box::new(service("east", [10, 100, 1, 1])))]);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
}

#[tokio::test(start_paused = true)]
async fn on_demand_a_proxy_has_its_nodes_pods_and_what_it_asks_for() {
    let publisher = mesh();
    publisher.apply(
        "east",
        [Change::Workload(Box::new(proto::Workload {
            node: "elsewhere".into(),
            services: BTreeMap::new(),
            ..workload("east", "other", [10, 1, 0, 9])
        }))],
    );
    let mut proxy = Proxy::start(&publisher, Interest::OnDemand);
    proxy.until(|snapshot| snapshot.workload("east//Pod/shop/cart-1").is_some()).await;
    assert!(capacity(&proxy.snapshots.borrow()).is_none());
    proxy.demand.ask(ADDRESS_TYPE, "east/10.100.1.1");
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    assert!(proxy.snapshots.borrow().workload("east//Pod/shop/other").is_none());
    proxy.demand.ask(ADDRESS_TYPE, "east/10.1.0.9");
    proxy.until(|snapshot| snapshot.workload("east//Pod/shop/other").is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn what_cant_be_used_is_rejected_by_name_and_its_last_good_version_stays() {
    let publisher = mesh();
    let mut proxy = Proxy::start(&publisher, Interest::Wildcard);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    let bad = proto::Workload {
        addresses: vec![bytes::Bytes::from_static(&[1, 2, 3])],
        capacity: Some(UInt32Value { value: 7 }),
        ..workload("east", "cart-1", [10, 1, 0, 1])
    };
    publisher.apply(
        "east",
        [Change::Workload(Box::new(bad)), Change::Workload(Box::new(workload("east", "cart-9", [10, 1, 0, 9])))],
    );
    proxy.until(|snapshot| snapshot.workload("east//Pod/shop/cart-9").is_some()).await;
    assert_eq!(proxy.snapshots.borrow().workload("east//Pod/shop/cart-1").unwrap().capacity, 1);
    let status = proxy.status.wait_for(|status| !status.rejected.is_empty()).await.unwrap().clone();
    let rejected: Vec<_> = status.rejected.iter().collect();
    let expected = ("east//Pod/shop/cart-1".to_owned(), "addresses[0]: an address has 4 or 16 bytes".to_owned());
    assert_eq!(rejected, [(&expected.0, &expected.1)]);
    publisher.apply("east", [Change::Workload(Box::new(workload("east", "cart-1", [10, 1, 0, 1])))]);
    proxy.status.wait_for(|status| status.rejected.is_empty()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_no_cluster_keeps_what_it_has_and_tries_again() {
    let publisher = mesh();
    let store = Arc::new(Mutex::new(Store::new()));
    let subscriptions = Subscriptions::new(Node::default()).with_type(ADDRESS_TYPE, Interest::Wildcard);
    let client = Client::new(DiscoveryServer::new(publisher), subscriptions, store, ClientConfig::new());
    let mut status = client.status();
    let running = tokio::spawn(client.run());
    let failed = status.wait_for(|status| status.error.is_some()).await.unwrap().clone();
    assert!(failed.error.unwrap().contains("CLUSTER_ID"));
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn policies_are_told_to_their_own_cluster_only() {
    let publisher = mesh();
    let mut proxy = Proxy::start(&publisher, Interest::Wildcard);
    proxy.until(|snapshot| capacity(snapshot) == Some(1)).await;
    let policy =
        |name: &str| proto::Authorization { name: name.into(), namespace: "shop".into(), ..Default::default() };
    publisher.apply("west", [Change::Policy(Box::new(policy("theirs")))]);
    publisher.apply("east", [Change::Policy(Box::new(policy("ours")))]);
    let has = |snapshot: &Snapshot, name: &str| {
        snapshot.policies().any(|policy| policy.name.to_string() == format!("shop/{name}"))
    };
    proxy.until(|snapshot| has(snapshot, "ours")).await;
    assert!(!has(&proxy.snapshots.borrow(), "theirs"));
    assert_eq!(proxy.store.lock().unwrap().rejected().count(), 0);
}
