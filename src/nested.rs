//! One more hop: a connection of its own inside a tunnel.
//!
//! # What is sent before the 200
//!
//! The first message of the inner TLS handshake goes out together with the CONNECT of the tunnel that carries it, which saves
//! a round trip. Nothing of an application is in it, so it may be sent again. Most peers keep such bytes until they are
//! connected: this crate's own server, ztunnel, Envoy as it comes. RFC 9110 (section 9.3.6) does not oblige them to, so it is
//! found out for each connection to a peer:
//!
//! * Once an inner handshake that began early has finished, the peer is known to take early bytes, and nothing is blamed on
//!   them any more.
//! * Until then a second attempt, which waits for the 200, follows where early bytes may be what the peer disliked: it reset
//!   the tunnel (with NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, STREAM_CLOSED or CANCEL), answered 400 or 425, shut the
//!   connection down over a violation, or sent its 200 and then nothing at all for a second, or for twice as long as the 200
//!   took where that is more. The outcome of the second attempt counts; if it succeeds, the peer is known to need waiting for.
//!   Together they have the time of one TLS handshake.
//! * Other refusals, REFUSED_STREAM, ENHANCE_YOUR_CALM and CONNECT_ERROR have nothing to do with it and are returned at once.
//!
//! A [`Pool`](crate::pool::Pool) remembers peers that need waiting for, also for their next connections.
//! [`Config::with_early_bytes`](crate::Config::with_early_bytes) turns all of it off.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::client::{Builder, Client, Driver};
use crate::config::Config;
use crate::conn::Manner;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::Metadata;
use crate::path::TunnelledHop;
use crate::tls::{Connector, TlsStream};
use crate::tunnel::{Stage, TunnelStream};

/// Puts one more hop on a connection: opens a tunnel to the hop's authority, does TLS inside it, and starts HTTP/2 inside
/// that. What runs through the new connection is opaque to the peer of `client`.
///
/// Takes two round trips to the far end: the inner TLS handshake begins before the 200 is here (see the [module](self)), and
/// HTTP/2 waits for nothing. Depth is not limited: the client returned can be extended again. Each hop has the timeouts of
/// its [`Config`]. Spawn the [`Driver`]; the tunnel below is held open until it ends.
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
    let (config, index) = (client.config(), client.hop() + 1);
    let mut start = Start::of(config, client.early_bytes().get());
    loop {
        let attempt = async {
            let tunnel = client.connect_early(&hop.authority, metadata).await?;
            over(tunnel, start, config, index, hop, tls).await
        };
        match attempt.await {
            Ok(nested) => {
                if let Some(manner) = start.proves() {
                    client.early_bytes().set(manner);
                }
                return Ok((nested.client, nested.driver));
            }
            Err(Failed { doubt: Some(spent), .. }) => start = Start::Again(spent),
            Err(failed) => return Err(failed.error),
        }
    }
}

/// When the session inside a tunnel begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At once: the peer is known to take early bytes.
    Early,
    /// At once, to see what the peer does.
    Try,
    /// With the 200.
    Opened,
    /// With the 200, since a try has failed. It has taken this much of the handshake's time.
    Again(Duration),
}

impl Start {
    pub(crate) fn of(config: &Config, manner: Manner) -> Self {
        match manner {
            _ if !config.early_bytes => Self::Opened,
            Manner::Unknown => Self::Try,
            Manner::Takes => Self::Early,
            Manner::Waits => Self::Opened,
        }
    }

    /// What a success says about the peer.
    pub(crate) fn proves(self) -> Option<Manner> {
        match self {
            Self::Try => Some(Manner::Takes),
            Self::Again(_) => Some(Manner::Waits),
            Self::Early | Self::Opened => None,
        }
    }
}

/// A connection inside a tunnel, and what the 200 said.
pub(crate) struct Nested {
    pub(crate) client: Client,
    pub(crate) driver: Driver<TlsStream<TunnelStream>>,
    pub(crate) answer: Metadata,
}

/// Why there is none. Where that may be because it was begun before the 200, with how much time the handshake has had since.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) doubt: Option<Duration>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, doubt: None }
    }
}

/// The session of a hop inside the tunnel that is being opened for it.
pub(crate) async fn over(
    mut tunnel: TunnelStream,
    start: Start,
    config: &Arc<Config>,
    index: usize,
    hop: &TunnelledHop,
    tls: &Connector,
) -> Result<Nested, Failed> {
    if matches!(start, Start::Opened | Start::Again(_)) {
        tunnel.opened().await?;
    }
    let spent = if let Start::Again(spent) = start { spent } else { Duration::ZERO };
    let (progress, began, unheard) = (tunnel.progress(), Instant::now(), OnceLock::new());
    // Opening the tunnel has a deadline of its own; the handshake's time begins with the 200.
    let late = async {
        progress.reached(Stage::Open).await;
        let (opened, limit) = (Instant::now(), tls.time());
        let patience = UNHEARD.max(2 * began.elapsed());
        if start == Start::Try && patience < limit && timeout(patience, progress.reached(Stage::Heard)).await.is_err() {
            return unheard.set(patience).unwrap_or_default();
        }
        sleep(limit.saturating_sub(opened.elapsed() + spent)).await;
    };
    let (mut error, tunnel) = match tls.connect_unless(tunnel, &hop.accept, late).await {
        Ok(stream) => {
            let (peer, answer) = (stream.peer_identity().clone(), stream.get_ref().metadata().clone());
            let (client, driver) =
                Builder::new().config(config.clone()).peer(peer).hop(index).handshake(stream).await?;
            return Ok(Nested { client, driver, answer });
        }
        Err(failed) => failed,
    };
    // What became of the CONNECT says more than what that did to the session inside.
    if let Some(mut tunnel) = tunnel
        && let Some(Err(cause)) = poll_fn(|cx| match tunnel.poll_opened(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    {
        error = cause;
    }
    let disliked = start == Start::Try && !progress.is(Stage::Heard) && may_blame_early_bytes(error.kind());
    let doubt = unheard.into_inner().or_else(|| disliked.then_some(Duration::ZERO));
    let error = if error.hop().is_some() { error } else { error.with_peer(&hop.authority).with_hop(index) };
    Err(Failed { error, doubt })
}

/// After this long without a byte, a peer that has sent its 200 may have lost what came before that.
const UNHEARD: Duration = Duration::from_secs(1);

/// Whether a peer may mean by this that it takes no bytes before its 200.
fn may_blame_early_bytes(kind: &ErrorKind) -> bool {
    use h2::Reason as R;
    let is_one = |code: u32, of: &[R]| of.iter().any(|reason| u32::from(*reason) == code);
    match kind {
        ErrorKind::Refused(refusal) => matches!(refusal.status().as_u16(), 400 | 425),
        ErrorKind::Reset(code) => {
            is_one(*code, &[R::NO_ERROR, R::PROTOCOL_ERROR, R::INTERNAL_ERROR, R::STREAM_CLOSED, R::CANCEL])
        }
        ErrorKind::GoAway(code) => is_one(*code, &[R::PROTOCOL_ERROR, R::INTERNAL_ERROR, R::STREAM_CLOSED]),
        _ => false,
    }
}
