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
use crate::path::{DirectHop, TunnelledHop};

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
            return Err(gone());
        };
        let hop = key.path.depth() - 1;
        let dialled = async {
            match key.path.parent() {
                None => direct(&*dialer, &source, key.path.first(), &config).await,
                Some((_, hop)) => tunnelled(&pool, &source, &key, hop, &covered, &config).await,
            }
        };
        match timeout_at(deadline, dialled).await {
            Ok(result) => result,
            Err(_) => {
                let error = Error::new(ErrorKind::Timeout, Layer::Dial, Side::Remote, "opening a connection");
                Err(error.with_peer(key.path.first().address).with_hop(hop))
            }
        }
    })
}

async fn direct(dialer: &dyn Dial, source: &SourceShared, hop: &DirectHop, config: &Arc<Config>) -> Result<Dialled> {
    let opening = async {
        let stream = io::dial(dialer, hop.address, config.dial_timeout).await?;
        let stream = source.tls.connect(ReadAhead::new(stream), &hop.accept).await?;
        let peer = stream.peer_identity().clone();
        let (client, driver) = Builder::new().config(config.clone()).peer(peer.clone()).handshake(stream).await?;
        Ok(Dialled { client, driver: Box::pin(driver), identities: vec![peer], parent: None, backend: None })
    };
    opening.await.map_err(|e: Error| if e.hop().is_some() { e } else { e.with_peer(hop.address).with_hop(0) })
}

async fn tunnelled(
    pool: &Weak<Inner>,
    source: &Arc<SourceShared>,
    key: &Key,
    hop: &TunnelledHop,
    covered: &[Backend],
    config: &Arc<Config>,
) -> Result<Dialled> {
    let Some((parent, _)) = key.path.parent() else { return Err(gone()) };
    let lease = Inner::checkout(pool, source, Key { source: source.id, path: parent }, true).await?;
    let connection = lease.connection().clone();
    let metadata = source.metadata.clone().with_known_backends(covered.iter().filter_map(Backend::token).cloned());
    let tunnel = lease.connect(&hop.authority, &metadata).await?;
    let backend = tunnel.metadata().backend().cloned().map(Backend::Token);
    let depth = key.path.depth() - 1;
    let (client, driver) = nested::over(tunnel, config, depth, hop, &source.tls).await?;
    let identities = connection.identities.iter().chain(client.peer_identity()).cloned().collect();
    Ok(Dialled { client, driver: Box::pin(driver), identities, parent: Some(connection.id), backend })
}

pub(super) fn gone() -> Error {
    Error::new(ErrorKind::Closed, Layer::Dial, Side::Local, "opening a connection").with_source("the pool is gone")
}
