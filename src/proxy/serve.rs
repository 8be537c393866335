//! The server's side that inbound and gateway share: TLS, HTTP/2, and a task for each tunnel.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::config::Config;
use crate::drain::Watch;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{BoxStream, ReadAhead};
use crate::refusal::{Refusal, RefusalReason};
use crate::server::{Builder, Incoming};
use crate::tls::Acceptor;

/// Serves one connection until it ends, or until the drain does.
///
/// When the drain starts, the peer is told to open no more tunnels, those it had already asked for are served, and the
/// running ones finish; by force the connection is broken.
pub(super) async fn serve<F, T>(
    stream: BoxStream,
    from: Option<SocketAddr>,
    acceptor: &Acceptor,
    config: &Arc<Config>,
    drain: &Watch,
    tunnel: F,
) -> Result<()>
where
    F: Fn(Incoming) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let named = |e: Error| match from {
        Some(from) => e.with_peer(from),
        None => e,
    };
    let handshake = async {
        let stream = acceptor.accept(ReadAhead::new(stream)).await.map_err(named)?;
        let peer = stream.peer_identity().clone();
        Builder::new().config(config.clone()).peer(peer).handshake(stream).await
    };
    // A connection that is not up yet has nothing to finish.
    let mut server = tokio::select! {
        server = handshake => server?,
        () = drain.graceful() => return Ok(()),
    };
    // Dropped with this future, so that no tunnel outlives its connection.
    let mut tunnels = JoinSet::new();
    let mut draining = false;
    let result = loop {
        tokio::select! {
            incoming = server.accept() => match incoming {
                Some(Ok(incoming)) => { tunnels.spawn(tunnel(incoming)); }
                Some(Err(e)) => break Err(e),
                None => break Ok(()),
            },
            Some(_) = tunnels.join_next(), if !tunnels.is_empty() => {}
            () = drain.graceful(), if !draining => {
                draining = true;
                server.graceful_shutdown();
            }
            () = drain.forced() => return Ok(()),
        }
    };
    // An application may take its time with what has arrived for it.
    tokio::select! {
        () = async { while tunnels.join_next().await.is_some() {} } => {}
        () = drain.forced() => {}
    }
    result
}

/// The refusal for a destination that could not be reached. Its address and the whole story stay on this side: the peer may
/// be in another network.
pub(super) fn unreachable(error: &Error, what: &str) -> Refusal {
    use std::io::ErrorKind as Io;
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let reason = match (error.kind(), cause.map(std::io::Error::kind)) {
        (ErrorKind::Timeout, _) => RefusalReason::ConnectionTimeout,
        (_, Some(Io::ConnectionRefused)) => RefusalReason::ConnectionRefused,
        (_, Some(Io::ConnectionReset | Io::ConnectionAborted)) => RefusalReason::ConnectionTerminated,
        _ => RefusalReason::DestinationUnavailable,
    };
    Refusal::new(reason).with_details(format!("the {what} could not be reached"))
}
