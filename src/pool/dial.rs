//! Opening a connection: the first hop over a byte stream, each further one through a lease on the hop before it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use tokio::time::{Instant, timeout_at};

use super::connect::is_undone;
use super::lease::{Lease, SILENCE};
use super::source::SourceShared;
use super::state::{ConnId, Key, Purpose};
use super::{BackendId, Inner};
use crate::client::{Builder, Client};
use crate::config::Config;
use crate::conn::{ConnectionOpening, Description};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{self, Dial, DialRequest, ReadAhead};
use crate::nested::{self, Carrier, Failed, Retry, Start};
use crate::observe::{ConnectionRole, Observer};
use crate::path::{DirectHop, Path, TunnelledHop};
use crate::tunnel::Stage;

pub(super) type BoxDriver = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A connection whose driver has not been started.
pub(super) struct NewConnection {
    pub(super) client: Client,
    pub(super) driver: BoxDriver,
    pub(super) identities: Vec<SpiffeId>,
    pub(super) parent: Option<ConnId>,
    pub(super) backend: Option<BackendId>,
}

/// Opens the last hop of a key's path, all of it by the deadline.
///
/// Boxed, since a dial may have to wait for another one.
pub(super) fn dial(
    pool: Weak<Inner>,
    source: Arc<SourceShared>,
    key: Key,
    known_backends: Vec<BackendId>,
    deadline: Instant,
) -> Pin<Box<dyn Future<Output = Result<NewConnection>> + Send>> {
    Box::pin(async move {
        let settings =
            pool.upgrade().map(|pool| (pool.config.clone(), pool.dialer.clone(), pool.settings.observer.clone()));
        let Some((config, dialer, observer)) = settings else { return Err(gone("the pool is gone")) };
        match key.path.parent() {
            None => {
                let (hop, about) = (key.path.first(), Description::new(ConnectionRole::Client));
                let address = hop.address.socket_addr();
                let mut opening = ConnectionOpening::begin(Description { hop: Some(0), address, observer, ..about });
                let result = direct(&*dialer, &source, hop, &config, deadline, &mut opening).await;
                opening.end(result.as_ref().err());
                result
            }
            Some((parent, hop)) => {
                let source = &*source;
                let (pool, parent, config) = (&pool, &parent, &config);
                let mut through = Through { pool, source, parent, hop, known_backends, config, observer, deadline };
                nested::open(&mut through, config).await
            }
        }
    })
}

/// Does one step of it, and says which one took too long.
async fn by<T>(
    deadline: Instant,
    layer: Layer,
    doing: &'static str,
    step: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = |_| Err(Error::new(ErrorKind::Timeout, layer, Side::Remote, doing));
    timeout_at(deadline, step).await.unwrap_or_else(late)
}

async fn direct(
    dialer: &dyn Dial,
    source: &SourceShared,
    hop: &DirectHop,
    config: &Arc<Config>,
    deadline: Instant,
    opening: &mut ConnectionOpening,
) -> Result<NewConnection> {
    let connecting = async {
        let identity = source.identity();
        let request = DialRequest::new(&hop.address).with_source(identity.as_ref()).with_hop(hop);
        let stream = io::dial(dialer, &request, config.dial_timeout);
        let stream = by(deadline, Layer::Dial, "opening a byte stream", stream).await?;
        opening.dialed();
        let stream = source.tls.connect(ReadAhead::new(stream), &hop.accept);
        let stream = by(deadline, Layer::Tls, "the TLS handshake", stream).await?;
        opening.tls_done(&stream);
        source.note_shown(stream.local_certificate());
        let peer = stream.peer_identity().clone();
        let starting = Builder::new().with_config(config.clone()).described(opening.about.clone()).handshake(stream);
        let (client, driver) = by(deadline, Layer::Http2, "sending the HTTP/2 preface", starting).await?;
        Ok(NewConnection { client, driver: Box::pin(driver), identities: vec![peer], parent: None, backend: None })
    };
    connecting.await.map_err(|e: Error| if e.hop().is_some() { e } else { e.with_peer(&hop.address).with_hop(0) })
}

/// A hop that runs through a tunnel of the pool.
struct Through<'a> {
    pool: &'a Weak<Inner>,
    source: &'a SourceShared,
    parent: &'a Path,
    hop: &'a TunnelledHop,
    known_backends: Vec<BackendId>,
    config: &'a Arc<Config>,
    observer: Option<Arc<dyn Observer>>,
    deadline: Instant,
}

impl Carrier for Through<'_> {
    type Lease = Lease;
    type Nested = NewConnection;

    async fn lease(&mut self) -> Result<(Lease, Client)> {
        let key = Key { source: self.source.id, path: self.parent.clone() };
        let lease = Inner::checkout(self.pool, self.source, key, Purpose::Nested, self.deadline).await?;
        let client = lease.connection().client.clone();
        Ok((lease, client))
    }

    async fn attempt(&mut self, lease: Lease, start: Start) -> Result<NewConnection, Failed> {
        const OPENING: &str = "opening a tunnel";
        let Self { source, parent, hop, config, .. } = *self;
        let (connection, index) = (lease.connection().clone(), parent.depth());
        let in_outer = |e: Error| if e.hop().is_some() { e } else { e.with_hop(index - 1) };
        let late = |layer, doing| Error::new(ErrorKind::Timeout, layer, Side::Remote, doing);
        let known_backends = self.known_backends.iter().filter_map(BackendId::token).cloned();
        let metadata = hop.metadata.as_deref().unwrap_or(&source.metadata).clone();
        let metadata = metadata.with_known_backends(known_backends);
        let unopened = |error: Error, retry: Option<Retry>| {
            let replay = is_undone(&error).then_some(Retry::OnAnotherConnection);
            Failed { error: in_outer(error), retry: retry.or(replay) }
        };
        let sent = lease.send_connect(&hop.authority, &metadata, SILENCE);
        let (tunnel, pending) = sent.map_err(|e| unopened(e.error, None))?;
        let progress = tunnel.progress();
        let opening = nested::carried(&tunnel, index, self.observer.as_ref());
        let nesting = nested::over(tunnel, start, opening, config, hop, &source.tls);
        match timeout_at(self.deadline, nesting).await {
            Ok(Ok(nested)) => {
                pending.opened(|| &nested.answer);
                let identities = connection.identities.iter().chain(nested.client.peer_identity()).cloned().collect();
                Ok(NewConnection {
                    client: nested.client,
                    driver: Box::pin(nested.driver),
                    identities,
                    parent: Some(connection.id),
                    backend: nested.answer.backend().cloned().map(BackendId::Token),
                })
            }
            Ok(Err(failed)) if progress.is(Stage::Open) => Err(failed),
            Ok(Err(failed)) => Err(unopened(pending.failed(failed.error).error, failed.retry)),
            Err(_) if progress.is(Stage::Open) => {
                let error = late(Layer::Tls, "opening a connection inside another");
                Err(error.with_peer(&hop.authority).with_hop(index).into())
            }
            Err(_) => Err(in_outer(pending.failed(late(Layer::Connect, OPENING)).error).into()),
        }
    }

    fn is_denied(&self) -> bool {
        self.pool.upgrade().is_some_and(|pool| pool.early_data_denylist().contains(self.parent, Instant::now()))
    }

    fn deny(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.early_data_denylist().insert(self.parent.clone(), Instant::now());
        }
    }
}

pub(super) fn gone(what: &'static str) -> Error {
    Error::new(ErrorKind::Closed, Layer::Dial, Side::Local, "opening a connection").with_source(what)
}
