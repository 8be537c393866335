//! One more hop: a connection of its own inside a tunnel.
//!
//! # Early data
//!
//! The first message of the inner TLS handshake is sent together with the CONNECT of the tunnel that carries it, which
//! saves a round trip. It holds nothing of an application, so it may be sent again. Most peers keep such data until
//! they are connected: this crate's own server, ztunnel, Envoy by default. RFC 9110 (section 9.3.6) does not oblige
//! them to, so it is probed on each connection to a peer:
//!
//! * Once an inner handshake that began early has finished, the peer is known to accept early data, and no later
//!   failure is blamed on it.
//! * Until then, a second attempt that waits for the 200 follows where early data may be the reason: the peer reset the
//!   tunnel (with NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, STREAM_CLOSED or CANCEL), answered 400 or 425, shut the
//!   connection down over a violation, or sent its 200 and then nothing at all for a second, or for twice as long as
//!   the 200 took where that is more. The outcome of the second attempt counts; if it succeeds, the peer is known to
//!   reject early data. Both attempts share the time of one TLS handshake.
//! * Other refusals, REFUSED_STREAM, ENHANCE_YOUR_CALM and CONNECT_ERROR have other reasons.
//!
//! A [`Pool`](crate::pool::Pool) remembers peers that reject early data beyond their connections, and sends a CONNECT
//! again on another connection where the end of one undid it.
//! [`Config::with_early_data`](crate::Config::with_early_data) turns all of it off.

mod denylist;
mod early;

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

pub(crate) use self::denylist::EarlyDataDenylist;
pub(crate) use self::early::{Carrier, Failed, Retry, Start, open};
use crate::client::{Builder, Client, Driver};
use crate::config::Config;
use crate::conn::{ConnectionOpening, Description};
use crate::error::Result;
use crate::metadata::Metadata;
use crate::observe::{ConnectionRole, Observer};
use crate::path::TunnelledHop;
use crate::tls::{Connector, TlsStream};
use crate::tunnel::{Stage, TunnelStream};

/// Puts one more hop on a connection: opens a tunnel to the hop's authority, does TLS inside it, and starts HTTP/2
/// inside that. What runs through the new connection is opaque to the peer of `client`.
///
/// Takes two round trips to the far end: the inner TLS handshake begins before the 200 is here (see the
/// [module](self)), and HTTP/2 waits for nothing. Depth is not limited: the client returned can be extended again. Each
/// hop has the timeouts of its [`Config`]. Spawn the [`Driver`]; the tunnel below is held open until it ends.
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
    let nested = open(&mut Single { client, hop, tls, metadata }, client.config()).await?;
    Ok((nested.client, nested.driver))
}

/// One client carries the nested connection.
struct Single<'a> {
    client: &'a Client,
    hop: &'a TunnelledHop,
    tls: &'a Connector,
    metadata: &'a Metadata,
}

impl Carrier for Single<'_> {
    type Lease = ();
    type Nested = Nested;

    async fn lease(&mut self) -> Result<((), Client)> {
        Ok(((), self.client.clone()))
    }

    async fn attempt(&mut self, (): (), start: Start) -> Result<Nested, Failed> {
        let Self { client, hop, tls, metadata } = *self;
        let tunnel = client.connect_early(&hop.authority, metadata).await?;
        let opening = carried(&tunnel, client.hop() + 1, client.observer());
        over(tunnel, start, opening, client.config(), hop, tls).await
    }
}

/// A connection inside a tunnel, and what came with the 200.
pub(crate) struct Nested {
    pub(crate) client: Client,
    pub(crate) driver: Driver<TlsStream<TunnelStream>>,
    pub(crate) answer: Metadata,
}

/// The connection that begins inside a tunnel, as hop `index`.
pub(crate) fn carried(tunnel: &TunnelStream, index: usize, observer: Option<&Arc<dyn Observer>>) -> ConnectionOpening {
    let (hop, carrier, observer) = (Some(index), Some(tunnel.id()), observer.cloned());
    ConnectionOpening::begin(Description { hop, carrier, observer, ..Description::new(ConnectionRole::Client) })
}

/// Starts the session of a hop inside the tunnel that is being opened for it.
pub(crate) async fn over(
    tunnel: TunnelStream,
    start: Start,
    mut opening: ConnectionOpening,
    config: &Arc<Config>,
    hop: &TunnelledHop,
    tls: &Connector,
) -> Result<Nested, Failed> {
    let result = start_session(tunnel, start, &mut opening, config, hop, tls).await;
    opening.end(result.as_ref().err().map(|failed| &failed.error));
    result
}

async fn start_session(
    mut tunnel: TunnelStream,
    start: Start,
    opening: &mut ConnectionOpening,
    config: &Arc<Config>,
    hop: &TunnelledHop,
    tls: &Connector,
) -> Result<Nested, Failed> {
    let index = opening.about.hop.unwrap_or_default();
    if start.waits_for_200() {
        tunnel.opened().await?;
    }
    let (progress, began, silent) = (tunnel.progress(), Instant::now(), OnceLock::new());
    // Opening the tunnel has a deadline of its own; the handshake's time begins with the 200.
    let late = async {
        progress.reached(Stage::Open).await;
        let (opened, limit) = (Instant::now(), tls.time());
        let patience = SILENCE.max(2 * began.elapsed());
        if start == Start::Probe && patience < limit && timeout(patience, progress.reached(Stage::Heard)).await.is_err()
        {
            return silent.set(patience).unwrap_or_default();
        }
        sleep(limit.saturating_sub(opened.elapsed() + start.spent())).await;
    };
    let (mut error, tunnel) = match tls.connect_unless(tunnel, &hop.accept, late).await {
        Ok(stream) => {
            opening.tls_done(&stream);
            let answer = stream.inspect(|tunnel| tunnel.metadata().clone());
            let builder = Builder::new().with_config(config.clone()).described(opening.about.clone()).with_hop(index);
            let (client, driver) = builder.handshake(stream).await?;
            return Ok(Nested { client, driver, answer });
        }
        Err(failed) => failed,
    };
    // The answer to the CONNECT says more than what it did to the session inside.
    if let Some(mut tunnel) = tunnel
        && let Some(Err(cause)) = poll_fn(|cx| match tunnel.poll_opened(cx) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    {
        error = cause;
    }
    let suspected = start == Start::Probe && !progress.is(Stage::Heard) && early::may_be_the_reason(error.kind());
    let spent = silent.into_inner().or_else(|| suspected.then_some(Duration::ZERO));
    let error = if error.hop().is_some() { error } else { error.with_peer(&hop.authority).with_hop(index) };
    Err(Failed { error, retry: spent.map(Retry::WithoutEarlyData) })
}

/// After this long without a byte, a peer that has sent its 200 may have lost what came before that.
const SILENCE: Duration = Duration::from_secs(1);
