//! A path in, a tunnel out. The seam behind which connections will be pooled.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::client::{Builder, Client};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::identity::SpiffeId;
use crate::io::{BoxStream, Dial, ReadAhead};
use crate::metadata::Metadata;
use crate::nested;
use crate::path::{DirectHop, Path};
use crate::tls::{Connector, CredentialSource};
use crate::tunnel::TunnelStream;

/// Opens tunnels along paths, with one source identity. Each tunnel has connections of its own.
#[derive(Clone, Debug)]
pub struct Opener {
    dialer: Arc<dyn Dial>,
    tls: Connector,
    config: Arc<Config>,
}

/// An open tunnel, and who is at the far end of each hop.
#[derive(Debug)]
#[non_exhaustive]
pub struct Opened {
    /// The tunnel.
    pub tunnel: TunnelStream,
    /// The verified identities, from the outer hop to the inner one.
    pub identities: Vec<SpiffeId>,
    pub(super) drivers: Drivers,
}

/// The tasks that move the frames of a path. Dropped, they go on.
#[derive(Debug, Default)]
pub(super) struct Drivers(Vec<JoinHandle<Result<()>>>);

impl Drivers {
    /// Waits until everything is sent. The tunnel must be gone: that is what the tasks end after.
    pub(super) async fn ended(self) {
        for driver in self.0 {
            // Why a connection failed its tunnel has been told.
            let _ = driver.await;
        }
    }
}

impl Opener {
    /// An opener that dials with `dialer` and shows the certificate of `credentials`.
    pub fn new(dialer: Arc<dyn Dial>, credentials: Arc<dyn CredentialSource>, config: Arc<Config>) -> Self {
        Self { dialer, tls: Connector::new(credentials, config.clone()), config }
    }

    /// Opens a tunnel to `authority` along `path`. The CONNECTs of the path's own tunnels carry `outer`, the last one
    /// `inner`: what `inner` says only the far end sees.
    ///
    /// Must be called on a tokio runtime: it spawns the drivers of the hops, which end after the tunnel. Cancel safe: when
    /// dropped, what was opened is closed.
    ///
    /// # Errors
    ///
    /// Whatever failed first; [`Error::hop`] says at which hop.
    pub async fn open(&self, path: &Path, authority: &Authority, outer: &Metadata, inner: &Metadata) -> Result<Opened> {
        let mut drivers = Drivers::default();
        let mut client = self.first_hop(path.first(), &mut drivers).await.map_err(|e| match e.hop() {
            Some(_) => e,
            None => e.with_peer(path.first().address).with_hop(0),
        })?;
        let mut identities = Vec::with_capacity(path.depth());
        identities.extend(client.peer_identity().cloned());
        for hop in path.tunnelled() {
            let (next, driver) = nested::extend(&client, hop, &self.tls, outer).await?;
            drivers.0.push(tokio::spawn(driver));
            identities.extend(next.peer_identity().cloned());
            client = next;
        }
        let tunnel = client.connect(authority, inner).await?;
        Ok(Opened { tunnel, identities, drivers })
    }

    async fn first_hop(&self, hop: &DirectHop, drivers: &mut Drivers) -> Result<Client> {
        let stream = dial(&*self.dialer, hop.address, &self.config).await?;
        let stream = self.tls.connect(ReadAhead::new(stream), &hop.accept).await?;
        let peer = stream.peer_identity().clone();
        let (client, driver) = Builder::new().config(self.config.clone()).peer(peer).handshake(stream).await?;
        drivers.0.push(tokio::spawn(driver));
        Ok(client)
    }
}

/// Dials within the time that the configuration gives.
pub(super) async fn dial(dialer: &dyn Dial, address: SocketAddr, config: &Config) -> Result<BoxStream> {
    let failed = |kind| Error::new(kind, Layer::Dial, Side::Remote, "connecting").with_peer(address);
    match timeout(config.dial_timeout, dialer.dial(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::TimedOut => Err(failed(ErrorKind::Timeout).with_source(e)),
        Ok(Err(e)) => Err(failed(ErrorKind::Unreachable).with_source(e)),
        Err(_) => Err(failed(ErrorKind::Timeout)),
    }
}
