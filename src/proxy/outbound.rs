//! Where tunnels begin: at a workload.

use std::net::SocketAddr;

use super::splice::{Unfinished, splice};
use crate::authority::Authority;
use crate::connector::{Connected, Connector};
use crate::error::Result;
use crate::io::{RelayStats, Stream};

/// Serves one workload: sends each of its connections through a tunnel of its [`Connector`].
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
    pub async fn serve(
        &self,
        stream: impl Stream + 'static,
        target: &Authority,
        from: Option<SocketAddr>,
    ) -> Result<RelayStats> {
        let stream = Box::new(Unfinished::new(Box::new(stream)));
        // Boxed, so that its memory is free again while bytes flow, or don't.
        let connected = Box::pin(self.connect(target, from)).await?;
        Self::join(Box::new(connected), stream).await
    }

    /// Joins an application's connection with the tunnel opened for it, until both have ended. When dropped, the connection
    /// fails.
    ///
    /// # Errors
    ///
    /// Why the connection broke, on whichever side. The other side then sees it fail, not end.
    pub async fn carry(&self, connected: Connected, stream: impl Stream + 'static) -> Result<RelayStats> {
        Self::join(Box::new(connected), Box::new(Unfinished::new(Box::new(stream)))).await
    }

    async fn join(mut connected: Box<Connected>, mut stream: Box<Unfinished>) -> Result<RelayStats> {
        let result = splice(&mut connected.tunnel, &mut stream).await;
        if let Ok(stats) = &result {
            let Connected { route, identities, .. } = &*connected;
            let (target, received, sent) = (&route.authority, stats.a_to_b, stats.b_to_a);
            tracing::debug!(%target, ?identities, received, sent, "connection ended");
        }
        result
    }
}
