//! One more hop: a connection of its own inside a tunnel.

use std::sync::Arc;

use crate::client::{Builder, Client, Driver};
use crate::config::Config;
use crate::error::Result;
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::tls::{Connector, TlsStream};
use crate::tunnel::TunnelStream;

/// Puts one more hop on a connection: opens a tunnel to the hop's authority, does TLS inside it, and starts HTTP/2 inside
/// that. What runs through the new connection is opaque to the peer of `client`.
///
/// Depth is not limited: the client returned can be extended again. Each hop has the timeouts of its
/// [`Config`]. Spawn the [`Driver`]; the tunnel below is held open until it ends.
///
/// Cancel safe: when dropped, the tunnel is reset and nothing is left.
///
/// # Errors
///
/// As [`Client::connect`] (with the hop of `client`) and [`Connector::connect`] (with the new hop).
pub async fn extend(
    client: &Client,
    hop: &TunnelledHop,
    tls: &Connector,
    metadata: &Metadata,
) -> Result<(Client, Driver<TlsStream<TunnelStream>>)> {
    let tunnel = client.connect(&hop.authority, metadata).await?;
    over(tunnel, client.config(), client.hop() + 1, hop, tls).await
}

/// The session of a hop inside the tunnel that was opened for it.
pub(crate) async fn over(
    tunnel: TunnelStream,
    config: &Arc<Config>,
    index: usize,
    hop: &TunnelledHop,
    tls: &Connector,
) -> Result<(Client, Driver<TlsStream<TunnelStream>>)> {
    let stream = tls
        .connect(tunnel, &hop.accept)
        .await
        .map_err(|e| if e.hop().is_some() { e } else { e.with_peer(&hop.authority).with_hop(index) })?;
    let peer = stream.peer_identity().clone();
    Builder::new().config(config.clone()).peer(peer).hop(index).handshake(stream).await
}
