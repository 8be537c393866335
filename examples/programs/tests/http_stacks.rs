//! axum and tonic, as servers and as clients, on HBONE.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request as AxumRequest;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::routing::get;
use axum::{Extension, Json, Router};
use hbone::connector::Connector;
use hbone::drain::{self, Drain};
use hbone::mesh::Snapshot;
use hbone::pool::{Pool, PoolConfig};
use hbone::server::ConnectionServer;
use hbone::service::{self, Listener, Peer};
use hbone::testing::{Ca, Network, NetworkListener};
use hbone::tls::Acceptor;
use hbone::{Config, SpiffeId, TrustDomains, TunnelStream};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;
use tonic::transport::server::{Connected, Server};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

const URI: &str = "http://cart.shop.svc.cluster.local";

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

fn id(service_account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{service_account}").parse().unwrap()
}

/// The listener of the workload `cart`, and the way out of the workload `web`.
fn mesh() -> (Listener<NetworkListener>, Connector) {
    let (ca, config, network) = (Ca::new(), Arc::new(Config::new()), Network::new());
    let trusted = TrustDomains::new("cluster.local".parse().unwrap());
    let acceptor = Acceptor::new(Arc::new(ca.issue(&id("cart"))), trusted, config.clone());
    let server = ConnectionServer::new(acceptor, config.clone());
    let listener = Listener::new(network.listen("10.0.0.2:15008".parse().unwrap()), server);
    let (_, mesh) = tokio::sync::watch::channel(Snapshot::parse("mesh", MESH).unwrap());
    let pool = Pool::new(Arc::new(network), config, PoolConfig::new());
    (listener, Connector::builder(mesh, "shop", "web").build(&pool, Arc::new(ca.issue(&id("web")))).unwrap())
}

/// Says how the peer is called.
struct Greeter;

fn caller<T>(request: &Request<T>) -> Result<String, Status> {
    let peer = request.extensions().get::<Peer>().ok_or_else(|| Status::unauthenticated("nobody"))?;
    Ok(peer.identity().to_string())
}

#[tonic::async_trait]
impl Health for Greeter {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let mut response = Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() });
        response.metadata_mut().insert("x-caller", caller(&request)?.parse().unwrap());
        Ok(response)
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        caller(&request)?;
        let response = HealthCheckResponse { status: ServingStatus::NotServing.into() };
        Ok(Response::new(Box::pin(tokio_stream::iter(vec![Ok(response); 100]))))
    }
}

/// A tunnel as tonic's own server wants it.
struct Tunnel(TunnelStream, Peer);

impl Connected for Tunnel {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.1.clone()
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn calls(connector: Connector) -> HealthClient<Channel> {
    let channel = Endpoint::from_static(URI).connect_with_connector(connector).await.unwrap();
    let mut client = HealthClient::new(channel);
    for _ in 0..10 {
        let response = client.check(HealthCheckRequest::default()).await.unwrap();
        assert_eq!(response.metadata().get("x-caller").unwrap(), &id("web").to_string());
        assert_eq!(response.get_ref().status(), ServingStatus::Serving);
    }
    let watched: Vec<_> = client.watch(HealthCheckRequest::default()).await.unwrap().into_inner().collect().await;
    assert_eq!(watched.len(), 100);
    assert!(watched.iter().all(|response| response.as_ref().unwrap().status() == ServingStatus::NotServing));
    client
}

async fn drained(drain: Drain, serving: impl Future<Output = ()>) {
    assert!(drain.drain(Duration::from_secs(10)).await.completed);
    serving.await;
}

#[tokio::test]
async fn a_tonic_service_is_served_in_tunnels() {
    let (listener, connector) = mesh();
    let (drain, watch) = drain::channel();
    let serving = tokio::spawn(service::serve(listener, Routes::new(HealthServer::new(Greeter)), watch));
    let mut client = calls(connector).await;
    drained(drain, async { serving.await.unwrap() }).await;
    client.check(HealthCheckRequest::default()).await.unwrap_err();
}

#[tokio::test]
async fn tonics_own_server_takes_tunnels() {
    let (listener, connector) = mesh();
    let (drain, watch) = drain::channel();
    let tunnels = listener.with_drain(watch).map(|(tunnel, peer)| Ok::<_, Infallible>(Tunnel(tunnel, peer)));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder().add_service(HealthServer::new(Greeter));
    let serving = tokio::spawn(server.serve_with_incoming_shutdown(tunnels, async move { drop(stopped.await) }));
    let mut client = calls(connector).await;
    stop.send(()).unwrap();
    drained(drain, async { serving.await.unwrap().unwrap() }).await;
    client.check(HealthCheckRequest::default()).await.unwrap_err();
}

#[tokio::test]
async fn an_axum_router_with_layers_is_served_in_tunnels() {
    async fn only_web(Extension(peer): Extension<Peer>, request: AxumRequest, next: Next) -> axum::response::Response {
        if *peer.identity() == id("web") && request.uri().path() != "/forbidden" {
            return next.run(request).await;
        }
        axum::response::IntoResponse::into_response(StatusCode::FORBIDDEN)
    }
    let (listener, connector) = mesh();
    let (drain, watch) = drain::channel();
    let who = async |Extension(peer): Extension<Peer>| Json(vec![peer.identity().to_string()]);
    let app = Router::new().route("/", get(who)).layer(from_fn(only_web));
    let serving = tokio::spawn(service::serve(listener, app, watch));
    let client: Client<_, Empty<_>> = Client::builder(TokioExecutor::new()).build::<_, Empty<&[u8]>>(connector);
    for (path, status, body) in [
        ("/", StatusCode::OK, r#"["spiffe://cluster.local/ns/shop/sa/web"]"#),
        ("/forbidden", StatusCode::FORBIDDEN, ""),
    ] {
        let response = client.get(format!("{URI}{path}").parse().unwrap()).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(response.extensions().get::<Peer>().unwrap().identity(), &id("cart"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    drained(drain, async { serving.await.unwrap() }).await;
}
