//! A tunnel that a peer asks for.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use http::{HeaderMap, Response};
use tokio::time::Instant;

use crate::authority::Authority;
use crate::conn::{Frame, LingeringTunnel, OpenTunnel, SendQueue, Shared, notify_unopened};
use crate::error::{Layer, Result};
use crate::identity::SpiffeId;
use crate::metadata::{Metadata, PROXY_STATUS, Received, proxy_status};
use crate::observe::{Event, Limit, LimitReached, TunnelId, notify};
use crate::refusal::Refusal;
use crate::tunnel::{ResetReason, TunnelStream};

/// A CONNECT with a valid authority, waiting for its answer: [`accept`](Incoming::accept) or
/// [`reject`](Incoming::reject).
///
/// Connect to the target first and accept then: the 200 promises that the far side is there. Dropping it unanswered
/// resets it with REFUSED_STREAM, which tells the peer that it may try again.
pub struct Incoming {
    authority: Authority,
    metadata: Box<Received>,
    shared: Arc<Shared>,
    since: Instant,
    stream: u32,
    /// `None` once answered.
    parts: Option<(h2::RecvStream, h2::server::SendResponse<Frame>)>,
}

impl Incoming {
    pub(super) fn new(
        authority: Authority,
        headers: HeaderMap,
        mut recv: h2::RecvStream,
        respond: h2::server::SendResponse<Frame>,
        shared: Arc<Shared>,
    ) -> Self {
        // What comes before the answer is unread as well.
        shared.flow().add(&mut recv);
        let (metadata, stream) = (Box::new(Received::new(headers)), respond.stream_id().into());
        Self { authority, metadata, shared, since: Instant::now(), stream, parts: Some((recv, respond)) }
    }

    /// Where the tunnel is to lead.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the peer says of itself. Only [`Incoming::peer_identity`] is verified.
    pub fn metadata(&self) -> &Metadata {
        self.metadata.get()
    }

    /// Who the peer has proved to be. `None` where the connection runs over a byte stream without one.
    pub fn peer_identity(&self) -> Option<&SpiffeId> {
        self.shared.peer()
    }

    /// The address that the connection came from, where its byte stream has one. It may be that of a gateway on the
    /// way.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.shared.address()
    }

    /// The tunnel's id in events and in the registry of connections.
    pub fn id(&self) -> TunnelId {
        TunnelId { connection: self.shared.id(), stream: self.stream }
    }

    /// Waits until the peer has given up the request, or the connection is gone: there is nobody left to answer. Cancel
    /// safe.
    pub async fn cancelled(&mut self) {
        poll_fn(|cx| match &mut self.parts {
            // An error, too, means that the stream is gone.
            Some((_, respond)) => respond.poll_reset(cx).map(drop),
            None => Poll::Ready(()),
        })
        .await;
    }

    /// Answers 200 with `metadata` and opens the tunnel. The tunnel keeps the metadata of the CONNECT.
    ///
    /// # Errors
    ///
    /// When the peer has canceled the request by now, or the connection is gone.
    pub fn accept(mut self, metadata: &Metadata) -> Result<TunnelStream> {
        let Some((recv, mut respond)) = self.parts.take() else {
            return Err(self.shared.gone("accepting a tunnel"));
        };
        let mut response = Response::new(());
        metadata.write_to(response.headers_mut());
        let send = respond.send_response(response, false).map_err(|e| {
            self.shared.flow().remove(&recv);
            notify_unopened(&self.shared, &self.authority, self.stream, None, self.since);
            self.shared.explain(e, Layer::Connect, "accepting a tunnel")
        })?;
        let metadata = std::mem::take(&mut self.metadata);
        let tunnel = OpenTunnel::answered(self.shared.clone(), self.authority.clone(), self.stream, respond);
        tunnel.notify_opened(|| metadata.get(), self.since.elapsed());
        Ok(TunnelStream::answered(recv, send, self.shared.clone(), tunnel, metadata))
    }

    /// Tells the observer that too many tunnels wait.
    pub(super) fn notify_backlog(&self, backlog: usize) {
        notify(self.shared.observer(), || {
            let connection = Some(self.shared.connection());
            Event::LimitReached(LimitReached { limit: Limit::Backlog, value: backlog as u64, connection })
        });
    }

    /// Turns it down: status, headers and body of the refusal, and a reason that a program can read (`proxy-status`,
    /// RFC 9209).
    pub fn reject(mut self, refusal: &Refusal) {
        if let Some((recv, respond)) = self.parts.take() {
            self.shared.flow().remove(&recv);
            notify_unopened(&self.shared, &self.authority, self.stream, Some(refusal), self.since);
            refuse(recv, respond, &self.shared, refusal);
        }
    }
}

/// Answers a request with a refusal.
pub(super) fn refuse(
    recv: h2::RecvStream,
    mut respond: h2::server::SendResponse<Frame>,
    shared: &Shared,
    refusal: &Refusal,
) {
    let mut response = Response::new(());
    *response.status_mut() = refusal.status();
    *response.headers_mut() = refusal.headers().clone();
    // Fails only where there is no room for one more header.
    let _ = response.headers_mut().try_insert(PROXY_STATUS, proxy_status::encode(refusal));
    let body = refusal.body();
    // Both fail only when the peer has given up meanwhile.
    let sent = respond.send_response(response, body.is_empty()).and_then(|mut send| match body.is_empty() {
        true => Ok(()),
        false => send.send_data(Arc::new(SendQueue::default()).frame(body.clone()), true),
    });
    if sent.is_ok() && !recv.is_end_stream() {
        shared.linger(LingeringTunnel { recv, _permit: None });
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some((recv, respond)) = &mut self.parts {
            self.shared.flow().remove(recv);
            respond.send_reset(ResetReason::Refused.code());
            notify_unopened(&self.shared, &self.authority, self.stream, None, self.since);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("authority", &self.authority)
            .field("peer", &self.shared.peer())
            .field("metadata", self.metadata())
            .finish_non_exhaustive()
    }
}
