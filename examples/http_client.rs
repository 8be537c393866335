//! An HTTP client that dials through the mesh: it asks for services by name, and each connection is a tunnel.

use std::error::Error;
use std::sync::Arc;

use axum::routing::get;
use axum::{Extension, Router};
use hbone::connector::Connector;
use hbone::mesh::Snapshot;
use hbone::pool::{Pool, PoolConfig};
use hbone::server::ConnectionServer;
use hbone::service::{self, Listener, Peer};
use hbone::testing::{Ca, Network};
use hbone::tls::Acceptor;
use hbone::{Config, SpiffeId, TrustDomains, drain};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

const MESH: &str = "
workloads:
- {uid: web, name: web, namespace: shop, serviceAccount: web, protocol: HBONE, workloadIps: [10.0.0.1]}
- uid: cart
  name: cart
  namespace: shop
  serviceAccount: cart
  protocol: HBONE
  workloadIps: [10.0.0.2]
  services: {shop/cart.shop.svc.cluster.local: {80: 8080}}
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, ports: {80: 8080}}
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (ca, config, network) = (Ca::new(), Arc::new(Config::new()), Network::new());
    let id = |sa| format!("spiffe://cluster.local/ns/shop/sa/{sa}").parse::<SpiffeId>();
    let (_drain, watch) = drain::channel();

    // The workload `cart`, on a network in memory.
    let trusted = TrustDomains::new("cluster.local".parse()?);
    let acceptor = Acceptor::new(Arc::new(ca.issue(&id("cart")?)), trusted, config.clone());
    let server = ConnectionServer::new(acceptor, config.clone());
    let listener = Listener::new(network.listen("10.0.0.2:15008".parse()?), server);
    let hello = async |Extension(peer): Extension<Peer>| format!("hello {}", peer.identity());
    let app = Router::new().route("/", get(hello));
    tokio::spawn(service::serve(listener, app, watch));

    // The workload `web`: what it needs to know of the mesh, and its way out.
    let (_mesh, mesh) = tokio::sync::watch::channel(Snapshot::parse("the mesh", MESH)?);
    let pool = Pool::new(Arc::new(network), config, PoolConfig::new());
    let connector = Connector::builder(mesh, "shop", "web").build(&pool, Arc::new(ca.issue(&id("web")?)))?;

    let http: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let response = http.get("http://cart.shop.svc.cluster.local/".parse()?).await?;
    if let Some(peer) = response.extensions().get::<Peer>() {
        println!("answered by {}, at {}", peer.identity(), peer.authority());
    }
    println!("{}", String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()));

    if let Err(error) = http.get("http://ledger.bank.svc.cluster.local/".parse()?).await {
        println!("{}", error.source().map(ToString::to_string).unwrap_or_default());
    }
    Ok(())
}
