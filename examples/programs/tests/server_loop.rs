//! A server of one's own, by the public interface alone: a decision that takes time before the 200, counts while it
//! runs, single connections cut, and a drain that ends whatever happens.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::sync::Arc;
use std::time::Duration;

use hbone::metadata::Metadata;
use hbone::server::{ConnectionServer, Connections, Incoming, Listener};
use hbone::testing::{Ca, Network};
use hbone::tls::{Acceptor, Connector};
use hbone::{Authority, Config, Refusal, RefusalReason, SpiffeId, TrustDomains, TunnelStream, client, drain};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const SERVER: &str = "10.0.0.2:15008";

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

/// Asks somebody who takes his time, then echoes.
async fn tunnel(incoming: Incoming) {
    sleep(Duration::from_secs(1)).await;
    if incoming.peer_identity() != Some(&id("web")) {
        return incoming.reject(&Refusal::new(RefusalReason::Denied));
    }
    if let Ok(tunnel) = incoming.accept(&Metadata::default()) {
        let (mut read, mut write) = split(tunnel);
        if copy(&mut read, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
    }
}

struct Site {
    ca: Ca,
    network: Network,
    config: Arc<Config>,
    connections: Connections,
    drain: drain::Drain,
    serving: JoinHandle<()>,
}

impl Site {
    fn start() -> Self {
        let (ca, network, config) = (Ca::new(), Network::new(), Arc::new(Config::new()));
        let trusted = TrustDomains::new("cluster.local".parse().unwrap());
        let acceptor = Acceptor::new(Arc::new(ca.issue(&id("cart"))), trusted, config.clone());
        let server = ConnectionServer::new(acceptor, config.clone());
        let connections = server.connections().clone();
        let (drain, watch) = drain::channel();
        let listener = Listener::new(network.listen(SERVER.parse().unwrap()), server).with_drain(watch);
        let serving = tokio::spawn(listener.serve(tunnel));
        Self { ca, network, config, connections, drain, serving }
    }

    async fn connect(&self, account: &str) -> client::Client {
        let connector = Connector::new(Arc::new(self.ca.issue(&id(account))), self.config.clone());
        let stream = self.network.connect(SERVER.parse().unwrap()).unwrap();
        let (client, driver) =
            client::handshake(connector.connect(stream, &id("cart").into()).await.unwrap()).await.unwrap();
        tokio::spawn(driver);
        client
    }
}

async fn open(client: &client::Client) -> hbone::Result<TunnelStream> {
    let authority: Authority = "cart.shop:80".parse().unwrap();
    client.connect(&authority, &Metadata::default()).await
}

#[tokio::test(start_paused = true)]
async fn decisions_take_time_and_connections_are_seen_cut_and_drained() {
    let site = Site::start();
    let (web, thief) = (site.connect("web").await, site.connect("thief").await);
    let mut echo = open(&web).await.unwrap();
    assert_eq!(open(&thief).await.unwrap_err().refusal().unwrap().reason(), &RefusalReason::Denied);
    assert_eq!((site.connections.len(), site.connections.tunnels()), (2, 1));

    let stolen = site.connections.iter().find(|live| live.peer_identity() == Some(&id("thief"))).unwrap();
    stolen.cut();
    open(&thief).await.unwrap_err();
    echo.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    echo.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");

    let report = site.drain.drain(Duration::from_secs(5)).await;
    assert_eq!((report.completed, report.forced, report.left), (false, 1, 0));
    echo.read_u8().await.unwrap_err();
    site.serving.await.unwrap();
    assert!(site.connections.is_empty());
}
