//! A tunnel inside a tunnel, over an in-memory pipe: the shortest program that shows the whole of HBONE.

use std::error::Error;
use std::sync::Arc;

use hbone::metadata::Metadata;
use hbone::testing::Ca;
use hbone::tls::{Acceptor, Connector};
use hbone::{Config, SpiffeId, TrustDomains, TunnelStream, TunnelledHop, client, nested, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let (ca, config) = (Ca::new(), Arc::new(Config::new()));
    let id = |sa| format!("spiffe://cluster.local/ns/default/sa/{sa}").parse::<SpiffeId>();
    let (alice, gateway, bob) = (id("alice")?, id("gateway")?, id("bob")?);
    let trusted = TrustDomains::new("cluster.local".parse()?);
    let doors = [&gateway, &bob].map(|id| Acceptor::new(Arc::new(ca.issue(id)), trusted.clone(), config.clone()));
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(answer(far, doors));

    // The outer hop: TLS to the gateway, HTTP/2 inside it.
    let tls = Connector::new(Arc::new(ca.issue(&alice)), config);
    let stream = tls.connect(near, &gateway.into()).await?;
    let (outer, driver) = client::handshake(stream).await?;
    tokio::spawn(driver);

    // The inner hop: the same again, inside a tunnel. What runs in it is opaque to the gateway.
    let hop = TunnelledHop::new("bob.example:80".parse()?, bob.into());
    let (inner, driver) = nested::extend(&outer, &hop, &tls, &Metadata::default()).await?;
    tokio::spawn(driver);

    let mut tunnel = inner.connect(&hop.authority, &Metadata::default()).await?;
    tunnel.write_all(b"hello through two tunnels").await?;
    tunnel.shutdown().await?;
    let mut echoed = String::new();
    tunnel.read_to_string(&mut echoed).await?;
    println!("{echoed}");
    Ok(())
}

/// The gateway takes tunnels, and bob answers inside them.
async fn answer(io: DuplexStream, [gateway, bob]: [Acceptor; 2]) -> hbone::Result<()> {
    let mut outer = server::handshake(gateway.accept(io).await?).await?;
    while let Some(incoming) = outer.accept().await {
        tokio::spawn(echo(incoming?.accept(&Metadata::default())?, bob.clone()));
    }
    Ok(())
}

async fn echo(io: TunnelStream, bob: Acceptor) -> hbone::Result<()> {
    let mut inner = server::handshake(bob.accept(io).await?).await?;
    while let Some(incoming) = inner.accept().await {
        let (mut from, mut to) = tokio::io::split(incoming?.accept(&Metadata::default())?);
        tokio::spawn(async move {
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await
        });
    }
    Ok(())
}
