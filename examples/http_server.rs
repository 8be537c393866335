//! An axum application that is served on HBONE itself, and a client that calls it: the handler knows who asks.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use axum::{Extension, Router};
use hbone::metadata::Metadata;
use hbone::proxy::tcp;
use hbone::server::ConnectionServer;
use hbone::service::{self, Listener, Peer};
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Connector};
use hbone::{Authority, Config, Refusal, RefusalReason, SpiffeId, TrustDomains, client, drain};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (ca, config) = (Ca::new(), Arc::new(Config::new()));
    let id = |sa| format!("spiffe://cluster.local/ns/shop/sa/{sa}").parse::<SpiffeId>();
    let (cart, web) = (id("cart")?, id("web")?);
    let authority: Authority = "cart.shop.svc.cluster.local:80".parse()?;

    // The server. Its certificate, and whom it lets in.
    let trusted = TrustDomains::new("cluster.local".parse()?);
    let acceptor = Acceptor::new(Arc::new(ca.issue(&cart)), trusted, config.clone());
    let socket = tcp::listen(([127, 0, 0, 1], 0).into())?;
    let address = socket.local_addr()?;
    let own = authority.clone();
    let server = ConnectionServer::new(acceptor, config.clone());
    let listener = Listener::new(socket, server).with_decision(move |incoming| {
        if *incoming.authority() == own { Ok(()) } else { Err(Refusal::new(RefusalReason::DestinationProhibited)) }
    });
    let hello = async |Extension(peer): Extension<Peer>| format!("hello {}", peer.identity());
    let app = Router::new().route("/", get(hello));
    let (drain, watch) = drain::channel();
    let serving = tokio::spawn(service::serve(listener, app, watch));

    // The client: a tunnel, and HTTP in it.
    let tls = Connector::new(Arc::new(ca.issue(&web)), config);
    let stream = tls.connect(TcpStream::connect(address).await?, &cart.into()).await?;
    let (client, driver) = client::handshake(stream).await?;
    tokio::spawn(driver);
    let tunnel = client.connect(&authority, &Metadata::default()).await?;
    let (mut http, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tunnel)).await?;
    tokio::spawn(connection);
    let request = Request::get("/").header("host", authority.to_string()).body(Empty::<Bytes>::new())?;
    let answer = http.send_request(request).await?.into_body().collect().await?.to_bytes();
    println!("the server says: {}", String::from_utf8_lossy(&answer));

    let other = "ledger.bank.svc.cluster.local:80".parse()?;
    if let Err(error) = client.connect(&other, &Metadata::default()).await {
        println!("{error}");
    }

    println!("all requests finished: {}", drain.drain(Duration::from_secs(5)).await.completed);
    Ok(serving.await?)
}
