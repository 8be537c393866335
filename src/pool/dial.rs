//! Opening a connection: the first hop from a byte stream, each further one through a lease on the hop before it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use tokio::time::{Instant, timeout_at};

use super::source::SourceShared;
use super::state::{ConnId, Key};
use super::{Backend, Inner};
use crate::client::{Builder, Client};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{self, Dial, ReadAhead};
use crate::nested;
use crate::path::{DirectHop, Path, TunnelledHop};

pub(super) type BoxDriver = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A connection whose driver has not been started.
pub(super) struct Dialled {
    pub(super) client: Client,
    pub(super) driver: BoxDriver,
    pub(super) identities: Vec<SpiffeId>,
    pub(super) parent: Option<ConnId>,
    pub(super) backend: Option<Backend>,
}

/// Opens the last hop of a key's path, all of it by the deadline.
///
/// Boxed, since a dial may have to wait for another one.
pub(super) fn dial(
    pool: Weak<Inner>,
    source: Arc<SourceShared>,
    key: Key,
    covered: Vec<Backend>,
    deadline: Instant,
) -> Pin<Box<dyn Future<Output = Result<Dialled>> + Send>> {
    Box::pin(async move {
        let Some((config, dialer)) = pool.upgrade().map(|pool| (pool.config.clone(), pool.dialer.clone())) else {
            return Err(gone("the pool is gone"));
        };
        match key.path.parent() {
            None => direct(&*dialer, &source, key.path.first(), &config, deadline).await,
            Some((parent, hop)) => tunnelled(&pool, &source, &parent, hop, &covered, &config, deadline).await,
        }
    })
}

/// Does one part of it. Who is late says with what.
async fn by<T>(
    deadline: Instant,
    layer: Layer,
    doing: &'static str,
    part: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = |_| Err(Error::new(ErrorKind::Timeout, layer, Side::Remote, doing));
    timeout_at(deadline, part).await.unwrap_or_else(late)
}

async fn direct(
    dialer: &dyn Dial,
    source: &SourceShared,
    hop: &DirectHop,
    config: &Arc<Config>,
    deadline: Instant,
) -> Result<Dialled> {
    let opening = async {
        let stream = io::dial(dialer, hop.address, config.dial_timeout);
        let stream = by(deadline, Layer::Dial, "opening a byte stream", stream).await?;
        let stream = source.tls.connect(ReadAhead::new(stream), &hop.accept);
        let stream = by(deadline, Layer::Tls, "the TLS handshake", stream).await?;
        let peer = stream.peer_identity().clone();
        let starting = Builder::new().config(config.clone()).peer(peer.clone()).handshake(stream);
        let (client, driver) = by(deadline, Layer::Http2, "sending the HTTP/2 preface", starting).await?;
        Ok(Dialled { client, driver: Box::pin(driver), identities: vec![peer], parent: None, backend: None })
    };
    opening.await.map_err(|e: Error| if e.hop().is_some() { e } else { e.with_peer(hop.address).with_hop(0) })
}

async fn tunnelled(
    pool: &Weak<Inner>,
    source: &Arc<SourceShared>,
    parent: &Path,
    hop: &TunnelledHop,
    covered: &[Backend],
    config: &Arc<Config>,
    deadline: Instant,
) -> Result<Dialled> {
    let depth = parent.depth();
    let key = Key { source: source.id, path: parent.clone() };
    let lease = match timeout_at(deadline, Inner::checkout(pool, source, key, true)).await {
        Ok(lease) => lease?,
        Err(_) => {
            let full = || Error::new(ErrorKind::Timeout, Layer::Http2, Side::Local, "waiting for room on a connection");
            let stalled = pool.upgrade().and_then(|pool| pool.stalled(source.id, parent));
            return Err(stalled.unwrap_or_else(|| full().with_peer(parent.first().address).with_hop(depth - 1)));
        }
    };
    let connection = lease.connection().clone();
    let metadata = source.metadata.clone().with_known_backends(covered.iter().filter_map(Backend::token).cloned());
    let connecting = async { Ok(lease.connect(&hop.authority, &metadata).await?) };
    let tunnel = by(deadline, Layer::Connect, "opening a tunnel", connecting).await;
    let tunnel = tunnel.map_err(|e| if e.hop().is_some() { e } else { e.with_hop(depth - 1) })?;
    let backend = tunnel.metadata().backend().cloned().map(Backend::Token);
    let nesting = nested::over(tunnel, config, depth, hop, &source.tls);
    let nested = by(deadline, Layer::Tls, "opening a connection inside another", nesting).await;
    let (client, driver) =
        nested.map_err(|e| if e.hop().is_some() { e } else { e.with_peer(&hop.authority).with_hop(depth) })?;
    let identities = connection.identities.iter().chain(client.peer_identity()).cloned().collect();
    Ok(Dialled { client, driver: Box::pin(driver), identities, parent: Some(connection.id), backend })
}

pub(super) fn gone(what: &'static str) -> Error {
    Error::new(ErrorKind::Closed, Layer::Dial, Side::Local, "opening a connection").with_source(what)
}
