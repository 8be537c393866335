//! From a path to a tunnel, whatever happens to single connections on the way.

use tokio::time::{Instant, timeout_at};

use super::lease::SILENCE;
use super::{LeaseError, Pool, Source};
use crate::authority::Authority;
use crate::error::{Error, ErrorKind, Layer, Side};
use crate::identity::SpiffeId;
use crate::metadata::Metadata;
use crate::path::Path;
use crate::tunnel::TunnelStream;

/// What [`Pool::connect`] is asked for, with all that its callers in this crate set.
pub(crate) struct ConnectRequest<'a> {
    pub(crate) source: &'a Source,
    pub(crate) path: &'a Path,
    pub(crate) authority: &'a Authority,
    pub(crate) metadata: &'a Metadata,
    pub(crate) deadline: Instant,
    /// A connection on which the peer has sent nothing for this long when this fails gets no new tunnels; a second at
    /// most.
    pub(crate) silence: std::time::Duration,
}

/// A tunnel through the pool.
pub(crate) struct PooledTunnel {
    pub(crate) tunnel: TunnelStream,
    /// The verified identities of the peers, from the outer hop to the inner one.
    pub(crate) identities: Vec<SpiffeId>,
}

impl Pool {
    /// Opens a tunnel to `authority` along `path`: [`checkout`](Self::checkout) and
    /// [`Lease::connect`](super::Lease::connect), and the same again on another connection where the end of one undoes
    /// it before the 200.
    ///
    /// That is the case when the peer's GOAWAY comes first, when it answers with REFUSED_STREAM, or when the connection
    /// breaks. It does no harm to send such a CONNECT again: nothing of an application has been sent, and a peer that
    /// goes away has not answered. Any other failure is returned at once, since it says something of the peer or of
    /// `authority`.
    ///
    /// Takes the [`connect timeout`](super::PoolConfig::with_connect_timeout) and as many
    /// [attempts](super::PoolConfig::with_connect_attempts) at most. Must be called on a tokio runtime. Cancel safe:
    /// when dropped, the tunnel that was about to be opened is canceled.
    ///
    /// # Errors
    ///
    /// As [`checkout`](Self::checkout) and [`Client::connect`](crate::client::Client::connect), of the last attempt.
    pub async fn connect(
        &self,
        source: &Source,
        path: &Path,
        authority: &Authority,
        metadata: &Metadata,
    ) -> Result<TunnelStream, LeaseError> {
        let deadline = Instant::now() + self.0.settings.connect_timeout;
        let request = ConnectRequest { source, path, authority, metadata, deadline, silence: SILENCE };
        self.open(&request).await.map(|opened| opened.tunnel)
    }

    /// [`Pool::connect`] by a deadline of the caller's own.
    pub(crate) async fn open(&self, request: &ConnectRequest<'_>) -> Result<PooledTunnel, LeaseError> {
        let mut attempts_left = self.0.settings.connect_attempts;
        loop {
            attempts_left -= 1;
            let failed = match timeout_at(request.deadline, self.attempt(request)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(failed)) => failed,
                Err(_) => return Err(self.timed_out(request.source, request.path).into()),
            };
            if attempts_left == 0 || !is_undone(&failed.error) {
                return Err(failed);
            }
            tracing::debug!(error = %failed.error, attempts_left, "undone by the end of a connection");
        }
    }

    async fn attempt(&self, request: &ConnectRequest<'_>) -> Result<PooledTunnel, LeaseError> {
        let lease = self.checkout_by(request.source, request.path, request.deadline).await?;
        let identities = lease.identities().to_vec();
        let tunnel = lease.connect_within(request.authority, request.metadata, request.silence).await?;
        Ok(PooledTunnel { tunnel, identities })
    }

    /// Why waiting for a tunnel along `path` took too long: the first hop without a connection has stalled, else the
    /// far end has.
    fn timed_out(&self, source: &Source, path: &Path) -> Error {
        self.0.stalled(source.shared.id, path).unwrap_or_else(|| {
            let doing = "waiting for the answer to a CONNECT";
            let error = Error::new(ErrorKind::Timeout, Layer::Connect, Side::Remote, doing).with_hop(path.depth() - 1);
            match path.tunnelled().last() {
                None => error.with_peer(&path.first().address),
                Some(hop) => error.with_peer(&hop.authority),
            }
        })
    }
}

/// Whether a CONNECT failed by the end of its connection or unseen by the peer, so that it may be sent again elsewhere.
///
/// A stream that a peer has not looked at it may refuse with REFUSED_STREAM (RFC 9113, section 8.7).
pub(super) fn is_undone(error: &Error) -> bool {
    const REFUSED_STREAM: u32 = 7;
    match error.kind() {
        ErrorKind::GoAway(_) | ErrorKind::Reset(REFUSED_STREAM) => true,
        // A pool or runtime that is gone has no connection to offer either.
        ErrorKind::Closed => error.side() == Side::Remote,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::refusal::{Refusal, RefusalReason};

    #[rstest]
    #[case::goaway(ErrorKind::GoAway(0), Side::Remote, true)]
    #[case::goaway_with_an_error(ErrorKind::GoAway(11), Side::Remote, true)]
    #[case::unseen(ErrorKind::Reset(7), Side::Remote, true)]
    #[case::broken(ErrorKind::Closed, Side::Remote, true)]
    #[case::the_pool_is_closed(ErrorKind::Closed, Side::Local, false)]
    #[case::canceled(ErrorKind::Reset(8), Side::Remote, false)]
    #[case::refused(ErrorKind::Refused(Refusal::new(RefusalReason::ConnectionRefused)), Side::Remote, false)]
    #[case::no_answer(ErrorKind::Timeout, Side::Remote, false)]
    #[case::not_reached(ErrorKind::Unreachable, Side::Remote, false)]
    fn only_what_the_end_of_a_connection_undid_is_sent_again(
        #[case] kind: ErrorKind,
        #[case] side: Side,
        #[case] expected: bool,
    ) {
        assert_eq!(is_undone(&Error::new(kind, Layer::Connect, side, "opening a tunnel")), expected);
    }
}
