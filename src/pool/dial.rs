//! Opening a connection: the first hop from a byte stream, each further one through a lease on the hop before it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use tokio::time::{Instant, timeout_at};

use super::lease::{Lease, SILENCE};
use super::source::SourceShared;
use super::state::{ConnId, Key};
use super::{Backend, Inner};
use crate::client::{Builder, Client};
use crate::config::Config;
use crate::conn::Manner;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{self, Dial, ReadAhead};
use crate::nested::{self, Failed, Nested, Start};
use crate::path::{DirectHop, Path, TunnelledHop};
use crate::tunnel::Stage;

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
    let known = |pool: Arc<Inner>| pool.waiters().contains(parent, Instant::now());
    let mut start = pool.upgrade().is_some_and(known).then_some(Start::Opened);
    loop {
        let lease = place(pool, source, parent, deadline).await?;
        let connection = lease.connection().clone();
        let begins = start.unwrap_or_else(|| Start::of(config, connection.client.early_bytes().get()));
        match nest(lease, begins, source, parent.depth(), hop, covered, config, deadline).await {
            Ok(Nested { client, driver, answer }) => {
                if let Some(manner) = begins.proves() {
                    connection.client.early_bytes().set(manner);
                    if manner == Manner::Waits
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.waiters().note(parent.clone(), Instant::now());
                    }
                }
                let backend = answer.backend().cloned().map(Backend::Token);
                let identities = connection.identities.iter().chain(client.peer_identity()).cloned().collect();
                return Ok(Dialled {
                    client,
                    driver: Box::pin(driver),
                    identities,
                    parent: Some(connection.id),
                    backend,
                });
            }
            Err(Failed { error, doubt: Some(spent) }) => {
                tracing::debug!(%error, "trying again after the 200");
                if connection.client.is_closed()
                    && let Some(pool) = pool.upgrade()
                {
                    // All its tunnels went with it. That must not happen again, proved or not.
                    pool.waiters().note(parent.clone(), Instant::now());
                }
                start = Some(Start::Again(spent));
            }
            Err(failed) => return Err(failed.error),
        }
    }
}

/// A place for the tunnel to the next hop.
async fn place(pool: &Weak<Inner>, source: &Arc<SourceShared>, parent: &Path, deadline: Instant) -> Result<Lease> {
    let key = Key { source: source.id, path: parent.clone() };
    if let Ok(lease) = timeout_at(deadline, Inner::checkout(pool, source, key, true)).await {
        return lease;
    }
    let full = || Error::new(ErrorKind::Timeout, Layer::Http2, Side::Local, "waiting for room on a connection");
    let stalled = pool.upgrade().and_then(|pool| pool.stalled(source.id, parent));
    Err(stalled.unwrap_or_else(|| full().with_peer(parent.first().address).with_hop(parent.depth() - 1)))
}

/// Opens the tunnel and the session inside it.
#[expect(clippy::too_many_arguments, reason = "all of them are the dial's own")]
async fn nest(
    lease: Lease,
    start: Start,
    source: &SourceShared,
    depth: usize,
    hop: &TunnelledHop,
    covered: &[Backend],
    config: &Arc<Config>,
    deadline: Instant,
) -> Result<Nested, Failed> {
    const OPENING: &str = "opening a tunnel";
    let in_outer = |e: Error| if e.hop().is_some() { e } else { e.with_hop(depth - 1) };
    let late = |layer, doing| Error::new(ErrorKind::Timeout, layer, Side::Remote, doing);
    let metadata = source.metadata.clone().with_known_backends(covered.iter().filter_map(Backend::token).cloned());
    let asking = async { Ok(lease.ask(&hop.authority, &metadata, SILENCE).await?) };
    let (tunnel, asked) = by(deadline, Layer::Connect, OPENING, asking).await.map_err(in_outer)?;
    let progress = tunnel.progress();
    let nesting = nested::over(tunnel, start, config, depth, hop, &source.tls);
    let nested = timeout_at(deadline, nesting).await;
    match nested {
        Ok(Ok(nested)) => {
            asked.opened(|| &nested.answer);
            Ok(nested)
        }
        Ok(Err(failed)) if progress.is(Stage::Open) => Err(failed),
        Ok(Err(Failed { error, doubt })) => Err(Failed { error: in_outer(Error::from(asked.failed(error))), doubt }),
        Err(_) if progress.is(Stage::Open) => {
            let error = late(Layer::Tls, "opening a connection inside another");
            Err(error.with_peer(&hop.authority).with_hop(depth).into())
        }
        Err(_) => Err(in_outer(Error::from(asked.failed(late(Layer::Connect, OPENING)))).into()),
    }
}

pub(super) fn gone(what: &'static str) -> Error {
    Error::new(ErrorKind::Closed, Layer::Dial, Side::Local, "opening a connection").with_source(what)
}
