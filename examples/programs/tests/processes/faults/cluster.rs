//! The processes that a scenario is about: a client's proxy, two gateways of another network, three pods behind them.

use std::net::{Ipv4Addr, SocketAddr};

use hbone::testing::Ca;
use tokio::net::TcpListener;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::load::{Load, answer};
use crate::mesh::{GLOBAL, Mesh, strings};
use crate::process::Proxy;

pub(super) const PODS: [&str; 3] = ["w1", "w2", "w3"];

/// One scenario at a time: they measure, and each wants both cores.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a pod's proxy logs is not needed; of a client it is what failed, of a gateway which tunnels it opens.
const QUIET: &str = "error";
const FAILURES: &str = "warn";
const TUNNELS: &str = "error,hbone::proxy::gateway=debug";

/// A mesh, without any process so far, and applications in the pods.
pub(super) struct Cluster {
    mesh: Mesh,
    gateways: usize,
    east: String,
    west: String,
    _alone: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `number` is that of [`Mesh::new`].
    pub(super) async fn new(number: u8, gateways: usize) -> Self {
        let alone = ALONE.lock().await;
        let mesh = Mesh::new(number);
        let mut ports = Vec::new();
        for (n, pod) in PODS.into_iter().enumerate() {
            let application = TcpListener::bind((ip(&mesh, Kind::Pod, n), 0)).await.unwrap();
            ports.push(application.local_addr().unwrap().port());
            answer(application, pod);
        }
        let (east, west) = (east(&mesh, gateways), west(&mesh, &ports));
        Self { mesh, gateways, east, west, _alone: alone }
    }

    pub(super) fn ca(&self) -> &Ca {
        &self.mesh.ca
    }

    /// Where a gateway takes tunnels.
    pub(super) fn gateway_address(&self, n: usize) -> SocketAddr {
        (ip(&self.mesh, Kind::Gateway, n), 15008).into()
    }

    /// Where the mesh says that a pod takes tunnels.
    pub(super) fn pod_address(&self, n: usize) -> SocketAddr {
        (ip(&self.mesh, Kind::Pod, n), 15008).into()
    }

    /// A place for a pod's proxy behind something that takes its tunnels for it.
    pub(super) fn hidden_address(&self, n: usize) -> SocketAddr {
        (ip(&self.mesh, Kind::Hidden, n), 15008).into()
    }

    pub(super) async fn start_gateway(&self, n: usize) -> Proxy {
        let mut args = self.mesh.certificate("istio/gateway");
        args.extend(strings(&["--mesh", &self.west, "--network", "west", "--drain", "60"]));
        args.extend(strings(&["--ejection-time", "0.5", "--listen", &self.gateway_address(n).to_string()]));
        Proxy::start_logging("gateway", &args, TUNNELS).await
    }

    pub(super) async fn start_gateways(&self) -> Vec<Proxy> {
        let mut gateways = Vec::new();
        for n in 0..self.gateways {
            gateways.push(self.start_gateway(n).await);
        }
        gateways
    }

    pub(super) async fn start_pod(&self, n: usize) -> Proxy {
        self.start_pod_at(n, self.pod_address(n)).await
    }

    pub(super) async fn start_pod_at(&self, n: usize, inbound: SocketAddr) -> Proxy {
        let mut args = self.mesh.certificate("default/server");
        let workload = format!("default/{}", PODS[n]);
        args.extend(strings(&["--mesh", &self.west, "--workload", &workload, "--drain", "60"]));
        args.extend(strings(&["--inbound", &inbound.to_string()]));
        Proxy::start_logging("ztunnel", &args, QUIET).await
    }

    pub(super) async fn start_pods(&self) -> Vec<Proxy> {
        let mut pods = Vec::new();
        for n in 0..PODS.len() {
            pods.push(self.start_pod(n).await);
        }
        pods
    }

    /// The client's proxy, with SOCKS5 at [`proxy`](Self::proxy). Its patience is that of a test.
    pub(super) async fn start_client(&self) -> Proxy {
        let mut args = self.mesh.certificate("default/client");
        args.extend(strings(&["--mesh", &self.east, "--workload", "default/client"]));
        args.extend(strings(&["--ejection-time", "0.5", "--attempt-timeout", "1"]));
        args.extend(strings(&["--socks5", &self.proxy().to_string()]));
        Proxy::start_logging("ztunnel", &args, FAILURES).await
    }

    pub(super) fn proxy(&self) -> SocketAddr {
        self.mesh.client(1080)
    }

    /// 64 connections at a time, from now on until the end.
    pub(super) fn load(&self) -> Load {
        Load::start(self.proxy(), 64)
    }

    /// Likewise, and waits until all pods have answered.
    pub(super) async fn warm_load(&self) -> Load {
        let (load, start) = (self.load(), Instant::now());
        load.reaches(&PODS, start).await;
        load
    }
}

enum Kind {
    Gateway,
    Pod,
    Hidden,
}

fn ip(mesh: &Mesh, kind: Kind, n: usize) -> Ipv4Addr {
    let first = match kind {
        Kind::Gateway => 2,
        Kind::Pod => 11,
        Kind::Hidden => 21,
    };
    mesh.ip(first + u8::try_from(n).unwrap())
}

/// What the client's cluster knows: the gateways, as endpoints of a service of their own, and how many pods there are.
fn east(mesh: &Mesh, gateways: usize) -> String {
    const GATEWAYS: &str = "gateway.istio.svc.cluster.local";
    let mut text = format!(
        "workloads:\n- {{uid: east/client, name: client, namespace: default, serviceAccount: client, network: east, \
         clusterId: east, protocol: HBONE, workloadIps: [{}]}}\n",
        mesh.ip(1)
    );
    for n in 0..gateways {
        text += &format!(
            "- {{uid: west/gateway-{n}, name: gateway-{n}, namespace: istio, serviceAccount: gateway, network: west, \
             protocol: HBONE, workloadIps: [{}], services: {{istio/{GATEWAYS}: {{15008: 15008}}}}}}\n",
            ip(mesh, Kind::Gateway, n)
        );
    }
    text += &format!(
        "- {{uid: west/all, name: all, namespace: default, network: west, protocol: HBONE, capacity: {}, networkGateway: \
         {{destination: istio/{GATEWAYS}, hboneMtlsPort: 15008}}, services: {{default/{GLOBAL}: {{}}}}}}\n\
         services:\n\
         - {{name: gateway, namespace: istio, hostname: {GATEWAYS}, ports: {{15008: 15008}}}}\n\
         - {{name: global, namespace: default, hostname: {GLOBAL}, ports: {{80: 8080}}, \
         subjectAltNames: [\"spiffe://cluster.local/ns/default/sa/server\"]}}\n",
        PODS.len()
    );
    mesh.file("east.yaml", &text)
}

/// What the other cluster knows: its pods, with their applications' ports.
fn west(mesh: &Mesh, ports: &[u16]) -> String {
    let mut text = "workloads:\n".to_owned();
    for (n, (pod, port)) in PODS.iter().zip(ports).enumerate() {
        text += &format!(
            "- {{uid: west/{pod}, name: {pod}, namespace: default, serviceAccount: server, network: west, protocol: HBONE, \
             workloadIps: [{}], services: {{default/{GLOBAL}: {{80: {port}}}}}}}\n",
            ip(mesh, Kind::Pod, n)
        );
    }
    text += &format!("services:\n- {{name: global, namespace: default, hostname: {GLOBAL}, ports: {{80: 8080}}}}\n");
    mesh.file("west.yaml", &text)
}
