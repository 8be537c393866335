//! Many connections: opened when needed, shared by tunnels, replaced before they fail.
//!
//! A [`Pool`] opens a connection along each hop of a [`Path`] and keeps it for later tunnels of the same [`Source`]. A
//! nested hop runs through a tunnel of the hop before it, whose connection is pooled in the same way.
//!
//! ```text
//!  checkout(source, path) ─▶ a connection with room? ── yes ─▶ Lease ─▶ connect(authority) ─▶ TunnelStream
//!                                    │ no                        ▲
//!                                    ▼                           │
//!                            wait, and dial ──▶ TCP, TLS, HTTP/2, or a Lease on the hop before and the same inside it
//! ```
//!
//! [`Pool::connect`] does both, and again where a connection goes away in between.
//!
//! The decisions are a state machine that is stepped under one short lock, so that a caller for whom there is room
//! never waits for a task. Tasks do what takes time: one for each connection and each dial, and one for all timers.
//! They run on the runtime of the last caller that had to wait, and a connection stays on the runtime on which it was
//! opened. When a runtime is shut down, its connections end, and callers on other runtimes open new ones. The task of a
//! connection ends with the connection, the others end with the pool.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use hbone::metadata::Metadata;
//! use hbone::pool::{Pool, PoolConfig};
//! use hbone::testing::{Ca, Network};
//! # use hbone::tls::Acceptor;
//! use hbone::{Authority, Config, DirectHop, Path, SpiffeId};
//! # use hbone::{TrustDomains, server};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! # let (ca, network, config) = (Ca::new(), Network::new(), Arc::new(Config::new()));
//! # let id = |sa| format!("spiffe://cluster.local/ns/shop/sa/{sa}").parse::<SpiffeId>();
//! # let (web, cart) = (id("web")?, id("cart")?);
//! # let trusted = TrustDomains::new("cluster.local".parse()?);
//! # let acceptor = Acceptor::new(Arc::new(ca.issue(&cart)), trusted, config.clone());
//! # let mut listener = network.listen("10.0.0.2:15008".parse()?);
//! # tokio::spawn(async move {
//! #     while let Some(stream) = listener.accept().await {
//! #         let mut server = server::handshake(acceptor.accept(stream).await?).await?;
//! #         tokio::spawn(async move {
//! #             while let Some(Ok(incoming)) = server.accept().await {
//! #                 let mut tunnel = incoming.accept(&Metadata::default()).expect("a client that waits");
//! #                 tokio::spawn(async move {
//! #                     let (mut from, mut to) = tokio::io::split(&mut tunnel);
//! #                     drop(tokio::io::copy(&mut from, &mut to).await);
//! #                     drop(tokio::io::AsyncWriteExt::shutdown(&mut to).await);
//! #                 });
//! #             }
//! #         });
//! #     }
//! #     Ok::<_, hbone::Error>(())
//! # });
//! // `ca`, `network` and `config` are at hand, and `cart` listens at 10.0.0.2.
//! let pool = Pool::new(Arc::new(network), config, PoolConfig::new());
//! let source = pool.source(Arc::new(ca.issue(&web)), Metadata::default())?;
//! let path = Path::direct(DirectHop::new("10.0.0.2:15008".parse()?, cart.into()));
//!
//! let target: Authority = "cart.shop:80".parse()?;
//! let mut tunnels = Vec::new();
//! for _ in 0..10 {
//!     tunnels.push(pool.connect(&source, &path, &target, &Metadata::default()).await?);
//! }
//! let stats = pool.stats();
//! assert_eq!((stats.connections, stats.tunnels), (1, 10));
//!
//! drop(tunnels);
//! let report = pool.close(Duration::from_secs(1)).await;
//! assert_eq!(report.cut, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Where a name stands for many
//!
//! Behind a gateway a service's name stands for many backends, and which one a connection leads to is the gateway's
//! choice. Sharing one connection would pin every tunnel to one backend. For a hop with
//! [`Reuse::Spread`](crate::Reuse::Spread) the pool keeps a connection to each backend and puts a new tunnel where the
//! fewest are open. It opens them while there is traffic, one at a time and with no caller waiting for it, and
//! identifies the backend of each: by the gateway's token ([`Metadata::backend`](crate::metadata::Metadata::backend)),
//! else by the pod's name in the baggage of the first 200. Where there is neither, each connection counts as a backend
//! of its own, and twice as many are kept.
//!
//! # What ends a connection
//!
//! GOAWAY, silence, ENHANCE_YOUR_CALM, a replaced certificate and a dropped [`Source`] drain a connection: neither it
//! nor the connections inside it take new tunnels, and open tunnels run to their ends. Age drains it too, but only once
//! it has a successor, and leaves the connections inside it alone. An idle connection is closed after a while.

mod backend_id;
mod config;
mod connect;
mod dial;
mod driver;
mod inner;
mod lease;
mod source;
mod state;
mod tasks;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use self::backend_id::BackendId;
pub use self::config::PoolConfig;
pub(crate) use self::connect::{ConnectRequest, PooledTunnel};
use self::inner::Inner;
pub use self::lease::{Lease, LeaseError};
pub use self::source::Source;
#[cfg(any(fuzzing, test))]
pub use self::state::fuzz;
use self::state::{Key, Purpose};
use crate::config::Config;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::error::Result;
use crate::io::Dial;
use crate::metadata::Metadata;
use crate::path::Path;
use crate::tls::{Connector, CredentialSource};

/// Opens, keeps and shares connections. Clones are the same pool.
///
/// When the last clone is gone, its connections close as their tunnels end; [`Pool::close`] waits for that.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

/// The size of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Pairs of source and path about which something is known: a connection, a waiter or a recent failure.
    pub keys: usize,
    /// Connections, including draining ones.
    pub connections: usize,
    /// Connections being opened.
    pub dials: usize,
    /// Callers that wait for a connection, or for room on one.
    pub waiting: usize,
    /// Tunnels of callers that are open or being opened. Those that carry a nested connection don't count.
    pub tunnels: usize,
}

/// How a pool was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReport {
    /// Tunnels that were open and ended in time.
    pub finished: usize,
    /// Tunnels that were cut after that.
    pub cut: usize,
}

impl Pool {
    /// An empty pool. Byte streams are opened by `dialer`; `config` applies to each connection.
    pub fn new(dialer: Arc<dyn Dial>, config: Arc<Config>, settings: PoolConfig) -> Self {
        Self(Inner::new(dialer, config, settings))
    }

    /// An identity that connects through this pool. The tunnels that carry nested connections are opened with
    /// `metadata`, which the peers on the way see. There need not be credentials yet: a dial waits for them.
    ///
    /// # Errors
    ///
    /// None for now.
    pub fn source(&self, credentials: Arc<dyn CredentialSource>, metadata: Metadata) -> Result<Source> {
        Ok(self.source_with(Connector::new(credentials, self.0.config.clone()), metadata))
    }

    /// [`Pool::source`] with TLS of your own: a key log, or another stack than rustls.
    pub fn source_with(&self, tls: Connector, metadata: Metadata) -> Source {
        self.0.add_source(tls, metadata)
    }

    /// Gets a permit on a connection of `source` along `path`: at once where one has room, else when a connection has
    /// been opened or a tunnel has ended. Waiting callers are served in order.
    ///
    /// Must be called on a tokio runtime. Cancel safe: a caller that gives up leaves the dial to the others and to
    /// later ones.
    ///
    /// # Errors
    ///
    /// Why the connection could not be opened, the same for all of its waiters, after the [open
    /// timeout](PoolConfig::with_open_timeout) at the latest. During the [back-off](PoolConfig::with_back_off) after
    /// that, later callers get the same error at once. [`ErrorKind::Closed`] when the pool is closed or gone, and
    /// [`ErrorKind::Timeout`] after the [checkout timeout](PoolConfig::with_checkout_timeout), when all connections are
    /// full and no further one is allowed.
    pub async fn checkout(&self, source: &Source, path: &Path) -> Result<Lease> {
        self.checkout_by(source, path, Instant::now() + self.0.settings.checkout_timeout).await
    }

    async fn checkout_by(&self, source: &Source, path: &Path, deadline: Instant) -> Result<Lease> {
        let key = Key { source: source.shared.id, path: path.clone() };
        let pool = Arc::downgrade(&self.0);
        let deadline = deadline.min(Instant::now() + self.0.settings.checkout_timeout);
        Inner::checkout(&pool, &source.shared, key, Purpose::Tunnel, deadline).await
    }

    /// Counts what there is. Looks at every connection.
    pub fn stats(&self) -> PoolStats {
        self.0.stats()
    }

    /// Takes no more tunnels and waits up to `grace` for the open ones to end; connections inside others end before
    /// those. Then cuts what is left, and says how many tunnels that were.
    ///
    /// Waiting and later callers get [`ErrorKind::Closed`]. When this is cancelled, the pool stays closed and nothing
    /// is cut.
    pub async fn close(&self, grace: Duration) -> CloseReport {
        let open = self.0.close();
        if timeout(grace, self.0.all_ended()).await.is_ok() {
            return CloseReport { finished: open, cut: 0 };
        }
        // None were opened in between: a closed pool issues no permits.
        let cut = self.0.tunnels();
        self.0.cut().await;
        CloseReport { finished: open - cut.min(open), cut }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
