//! Two clusters in one process: pods with their proxies, a gateway, one certificate authority.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hbone::connector::Connector;
use hbone::drain::{self, Drain, Watch};
use hbone::mesh::{Network, Snapshot};
use hbone::pool::{Pool, PoolConfig};
use hbone::proxy::{Gateway, Inbound, Outbound, socks5, tcp};
use hbone::server::ConnectionServer;
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Credentials};
use hbone::{Config, SpiffeId, TrustDomains};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::Failure;
use crate::app::{self, Count};
use crate::wire::{Fabric, Tap};

const GATEWAYS: [&str; 2] = ["10.99.0.2:15008", "10.99.0.3:15008"];
const GATEWAY_EAST: &str = "10.99.0.1:15008";
pub(crate) const REVIEWS: &str = "reviews.shop.svc.cluster.local";
pub(crate) const RATINGS: &str = "ratings.shop.svc.cluster.local";

/// A pod: what happened to it, for the steps to look at.
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    /// Connections that reached its proxy.
    pub(crate) connections: Count,
    /// Requests that reached its application.
    pub(crate) hits: Count,
    proxy: AbortHandle,
}

/// A gateway of cluster west.
pub(crate) struct GatewayProcess {
    /// Connections that reached it.
    pub(crate) connections: Count,
    /// Where it really listens.
    pub(crate) address: SocketAddr,
    process: AbortHandle,
}

pub(crate) struct World {
    pub(crate) ca: Ca,
    pub(crate) pods: Vec<Pod>,
    /// The proxy of the client pod in east.
    pub(crate) outbound: Outbound,
    /// The proxy of a client pod in west.
    pub(crate) outbound_west: Outbound,
    /// Where the client pod's proxy takes SOCKS5.
    pub(crate) socks5: SocketAddr,
    /// The two gateways of west.
    pub(crate) gateways: Vec<GatewayProcess>,
    /// Between the clusters.
    pub(crate) link: Tap,
    /// What the gateway has in its hands: what it passes on to pods.
    pub(crate) in_gateway: Tap,
    /// Between the proxies and their applications, where everything is plain.
    pub(crate) plain: Tap,
    /// Why the gateway refused connections.
    pub(crate) refusals: Refusals,
    east: Cluster,
    west: Cluster,
    /// Never started: the demo ends with its process.
    _drain: Drain,
}

/// Errors by which a gateway turns connections away, as they come.
pub(crate) struct Refusals(Mutex<mpsc::UnboundedReceiver<String>>);

impl Refusals {
    /// Waits for the next one; not for ever, since none may come.
    pub(crate) async fn next(&self) -> Option<String> {
        timeout(Duration::from_secs(10), self.0.lock().await.recv()).await.ok().flatten()
    }
}

/// What the proxies of one cluster share.
struct Cluster {
    /// The file that the mesh is read from, and its text.
    file: (&'static str, String),
    mesh: tokio::sync::watch::Sender<Snapshot>,
    fabric: Fabric,
    trusted: TrustDomains,
    config: Arc<Config>,
    watch: Watch,
}

impl World {
    pub(crate) async fn start() -> Result<Self, Failure> {
        let ca = Ca::new();
        let (drain, watch) = drain::channel();
        let (link, in_gateway, plain) = (Tap::default(), Tap::default(), Tap::default());
        let (refused, refusals) = mpsc::unbounded_channel();
        let cluster = |name, file, text: &str| -> Result<Cluster, Failure> {
            Ok(Cluster {
                file: (file, text.to_owned()),
                mesh: tokio::sync::watch::channel(Snapshot::parse(file, text)?).0,
                fabric: Fabric::new(name),
                trusted: TrustDomains::new("cluster.local".parse()?),
                config: Arc::new(Config::new()),
                watch: watch.clone(),
            })
        };
        let east = cluster("east", "east.yaml", include_str!("east.yaml"))?;
        let west = cluster("west", "west.yaml", include_str!("west.yaml"))?;

        let mut pods = vec![east.pod("reviews-e1", "reviews", &ca, None, &plain)?];
        for name in ["reviews-w1", "reviews-w2", "reviews-w3"] {
            pods.push(west.pod(name, "reviews", &ca, Some(&in_gateway), &plain)?);
        }
        for name in ["ratings-w1", "ratings-w2", "ratings-w3"] {
            pods.push(west.pod(name, "ratings", &ca, Some(&in_gateway), &plain)?);
        }
        // Somebody runs a pod of the payments service under another service account.
        pods.push(west.pod("payments", "mallory", &ca, Some(&in_gateway), &plain)?);
        pods.push(west.pod("ledger", "ledger", &ca, Some(&in_gateway), &plain)?);

        let mut gateways = Vec::new();
        for address in GATEWAYS {
            let gateway = west.gateway("west", issue(&ca, "istio-gateways", "gateway-west")?, refused.clone())?;
            east.fabric.place_tapped(address.parse()?, gateway.address, &link);
            gateways.push(gateway);
        }
        let back = east.gateway("east", issue(&ca, "istio-gateways", "gateway-east")?, refused)?;
        west.fabric.place(GATEWAY_EAST.parse()?, back.address);

        let outbound = east.client("client", issue(&ca, "shop", "client")?)?;
        let outbound_west = west.client("client-w", issue(&ca, "shop", "client")?)?;
        let socks5 = listen_socks5(outbound.clone(), watch)?;
        let refusals = Refusals(Mutex::new(refusals));
        Ok(Self {
            ca,
            pods,
            outbound,
            outbound_west,
            socks5,
            gateways,
            link,
            in_gateway,
            plain,
            refusals,
            east,
            west,
            _drain: drain,
        })
    }

    /// How often any pod was reached, at its proxy or its application.
    pub(crate) fn touched(&self) -> usize {
        self.pods.iter().map(|pod| pod.connections.get() + pod.hits.get()).sum()
    }

    /// Starts one more pod of the ratings service, and has both control planes tell of it.
    pub(crate) fn add_ratings_pod(&mut self) -> Result<(), Failure> {
        let pod = self.west.pod("ratings-w4", "ratings", &self.ca, Some(&self.in_gateway), &self.plain)?;
        self.pods.push(pod);
        self.west.change("  status: UNHEALTHY\n", "")?;
        let (three, four) = ("  capacity: 3\n", "  capacity: 4\n");
        let at = "name: ratings-in-west\n  namespace: shop\n  serviceAccount: ratings\n  network: west\n  clusterId: west\n  protocol: HBONE\n";
        self.east.change(&format!("{at}{three}"), &format!("{at}{four}"))
    }

    pub(crate) fn pod(&self, name: &str) -> Result<&Pod, Failure> {
        Ok(self.pods.iter().find(|pod| pod.name == name).ok_or_else(|| format!("no pod {name}"))?)
    }
}

impl Pod {
    /// As `kill -9` does: the proxy's connections break off, and its port is closed.
    pub(crate) fn kill(&self) {
        self.proxy.abort();
    }
}

impl GatewayProcess {
    /// As `kill -9` does.
    pub(crate) fn kill(&self) {
        self.process.abort();
    }
}

impl Cluster {
    /// What the control plane says from now on: the same with one change.
    fn change(&mut self, from: &str, to: &str) -> Result<(), Failure> {
        let (file, text) = &mut self.file;
        if !text.contains(from) {
            return Err(format!("{file} has no {from:?}").into());
        }
        *text = text.replace(from, to);
        self.mesh.send_replace(Snapshot::parse(file, text)?);
        Ok(())
    }

    /// Starts a pod's application and its proxy, at the pod's address in this cluster.
    fn pod(
        &self,
        name: &'static str,
        service_account: &str,
        ca: &Ca,
        tap: Option<&Tap>,
        plain: &Tap,
    ) -> Result<Pod, Failure> {
        let ip = self.address(name)?;
        let (connections, hits) = (Count::default(), Count::default());
        self.fabric.place_tapped((ip, 8080).into(), app::serve(name, hits.clone())?, plain);
        let server = self.server(issue(ca, "shop", service_account)?);
        let inbound =
            Inbound::new(server, self.mesh.subscribe(), "shop", name).with_dialer(Arc::new(self.fabric.clone()));
        let listener = tcp::listen(([127, 0, 0, 1], 0).into())?;
        let hbone = ((ip, 15008).into(), listener.local_addr()?);
        match tap {
            Some(tap) => self.fabric.place_tapped(hbone.0, hbone.1, tap),
            None => self.fabric.place(hbone.0, hbone.1),
        }
        let accepted = connections.clone();
        let proxy = tokio::spawn(tcp::accept_each(listener, self.watch.clone(), move |stream, peer, drain| {
            accepted.add();
            let inbound = inbound.clone();
            async move {
                // The client says what went wrong.
                let _ = inbound.serve(stream, Some(peer), &drain).await;
            }
        }));
        Ok(Pod { name, connections, hits, proxy: proxy.abort_handle() })
    }

    /// What serves the connections of a proxy.
    fn server(&self, credentials: Credentials) -> ConnectionServer {
        let acceptor = Acceptor::new(Arc::new(credentials), self.trusted.clone(), self.config.clone());
        ConnectionServer::new(acceptor, self.config.clone())
    }

    /// The proxy of a client pod.
    fn client(&self, name: &str, credentials: Credentials) -> Result<Outbound, Failure> {
        let pool = Pool::new(Arc::new(self.fabric.clone()), self.config.clone(), PoolConfig::new());
        let builder = Connector::builder(self.mesh.subscribe(), "shop", name);
        Ok(Outbound::new(builder.build(&pool, Arc::new(credentials))?))
    }

    /// Starts the gateway of this cluster, and says where it listens.
    fn gateway(
        &self,
        network: &str,
        credentials: Credentials,
        refused: mpsc::UnboundedSender<String>,
    ) -> Result<GatewayProcess, Failure> {
        let gateway = Gateway::new(self.server(credentials), self.mesh.subscribe(), Network::new(network))
            .with_dialer(Arc::new(self.fabric.clone()));
        let listener = tcp::listen(([127, 0, 0, 1], 0).into())?;
        let address = listener.local_addr()?;
        let connections = Count::default();
        let count = connections.clone();
        let process = tokio::spawn(tcp::accept_each(listener, self.watch.clone(), move |stream, peer, drain| {
            count.add();
            let (gateway, refused) = (gateway.clone(), refused.clone());
            async move {
                if let Err(error) = gateway.serve(stream, Some(peer), &drain).await {
                    // Nobody listens any more once the steps are over.
                    let _ = refused.send(error.to_string());
                }
            }
        }));
        Ok(GatewayProcess { connections, address, process: process.abort_handle() })
    }

    fn address(&self, name: &str) -> Result<IpAddr, Failure> {
        let mesh = self.mesh.borrow();
        let workload = mesh.workload_named("shop", name).ok_or_else(|| format!("no workload {name}"))?;
        Ok(*workload.addresses.first().ok_or_else(|| format!("{name} has no address"))?)
    }
}

fn issue(ca: &Ca, namespace: &str, service_account: &str) -> Result<Credentials, Failure> {
    Ok(ca.issue(&SpiffeId::new("cluster.local".parse()?, namespace, service_account)?))
}

fn listen_socks5(outbound: Outbound, watch: Watch) -> Result<SocketAddr, Failure> {
    let listener = tcp::listen(([127, 0, 0, 1], 0).into())?;
    let address = listener.local_addr()?;
    tokio::spawn(tcp::accept_each(listener, watch, move |stream, peer, _| {
        let outbound = outbound.clone();
        async move {
            // The client gets the reason as a SOCKS5 reply.
            let _ = socks5::serve(&outbound, stream, Some(peer)).await;
        }
    }));
    Ok(address)
}
