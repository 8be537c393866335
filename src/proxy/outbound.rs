//! Where tunnels begin: at a workload.

use std::future::Future;
use std::net::SocketAddr;

use super::reset_on_drop::ResetOnDrop;
use super::splice::splice;
use crate::authority::Authority;
use crate::balance::InFlight;
use crate::connector::{Connected, Connector};
use crate::error::{Error, Result};
use crate::identity::SpiffeId;
use crate::io::{RelayStats, Stream};
use crate::tunnel::TunnelStream;

/// Serves one workload: carries each of its applications' connections through a tunnel of its [`Connector`].
#[derive(Clone, Debug)]
pub struct Outbound(Connector);

impl Outbound {
    /// Serves the workload of this connector.
    pub fn new(connector: Connector) -> Self {
        Self(connector)
    }

    /// [`Connector::connect`].
    ///
    /// # Errors
    ///
    /// As [`Connector::connect`].
    pub async fn connect(&self, target: &Authority, from: Option<SocketAddr>) -> Result<Connected> {
        self.0.connect(target, from).await
    }

    /// Carries one application's connection to `target` until it ends. When that fails, or the future is dropped, the
    /// application sees its connection fail, not end.
    ///
    /// What was sent last may still be on its way in the [`Pool`](crate::pool::Pool)'s connection:
    /// [`Pool::close`](crate::pool::Pool::close) before the process ends.
    ///
    /// # Errors
    ///
    /// As [`Connector::connect`], or why the connection broke later.
    pub fn serve<'a, S>(
        &'a self,
        stream: S,
        target: &'a Authority,
        from: Option<SocketAddr>,
    ) -> impl Future<Output = Result<RelayStats>> + Send + use<'a, S>
    where
        S: Stream + 'static,
    {
        let stream = ResetOnDrop::new(Box::new(stream));
        // Boxed, so that its memory is free again while bytes flow, or don't.
        let connecting = Box::pin(async move {
            let connected = self.connect(target, from).await?;
            Ok::<_, Error>(Carried::new(connected, stream))
        });
        async move { Carried::carry(connecting.await?).await }
    }

    /// Joins an application's connection with the tunnel opened for it, until both have ended. When dropped, the
    /// connection fails.
    ///
    /// # Errors
    ///
    /// Why the connection broke, on whichever side. The other side then sees it fail, not end.
    pub async fn carry(&self, connected: Connected, stream: impl Stream + 'static) -> Result<RelayStats> {
        Carried::new(connected, ResetOnDrop::new(Box::new(stream))).carry().await
    }
}

/// A connection that is being carried. Of its route it keeps only what is still needed: the rest would double its size.
pub(super) struct Carried {
    tunnel: TunnelStream,
    stream: ResetOnDrop,
    target: Authority,
    identities: Vec<SpiffeId>,
    _in_flight: InFlight,
}

impl Carried {
    pub(super) fn new(connected: Connected, stream: ResetOnDrop) -> Box<Self> {
        let Connected { tunnel, route, identities } = connected;
        Box::new(Self { tunnel, stream, target: route.authority, identities, _in_flight: route.in_flight })
    }

    pub(super) async fn carry(mut self: Box<Self>) -> Result<RelayStats> {
        let result = splice(&mut self.tunnel, &mut self.stream).await;
        if let Ok(stats) = &result {
            let Self { target, identities, .. } = &*self;
            let (received, sent) = (stats.a_to_b, stats.b_to_a);
            tracing::debug!(%target, ?identities, received, sent, "connection ended");
        }
        result
    }
}
