//! When the session inside a tunnel begins: before the 200 or with it, and once more where that was the wrong guess.

use std::future::Future;
use std::time::Duration;

use crate::client::Client;
use crate::config::Config;
use crate::conn::EarlyData;
use crate::error::{Error, ErrorKind, Result};

/// When the session inside a tunnel begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At once: the peer is known to accept early data.
    Early,
    /// At once, to see what the peer does.
    Probe,
    /// With the 200.
    Opened,
    /// With the 200, after a failed probe that has used up this much of the handshake's time.
    Retry(Duration),
}

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) retry: Option<Retry>,
}

/// How another attempt may succeed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Retry {
    /// After the 200, as early data may be the reason. So much of the handshake's time is used up.
    WithoutEarlyData(Duration),
    /// On another connection, as the end of this one undid the CONNECT.
    OnAnotherConnection,
}

/// How many CONNECTs are sent again because the end of their connections undid them.
const REPLAYS: usize = 8;

/// What opens the tunnels under a nested connection: a client, or a pool.
pub(crate) trait Carrier: Send {
    /// The right to open one tunnel.
    type Lease: Send;
    /// The nested connection.
    type Nested: Send;

    /// Gets a lease for the next attempt, and the client that it is on.
    fn lease(&mut self) -> impl Future<Output = Result<(Self::Lease, Client)>> + Send;

    /// Opens the tunnel and the session inside it.
    fn attempt(
        &mut self,
        lease: Self::Lease,
        start: Start,
    ) -> impl Future<Output = Result<Self::Nested, Failed>> + Send;

    /// Whether the peer is known from earlier connections to reject early data.
    fn is_denied(&self) -> bool {
        false
    }

    /// Remembers for later connections that the peer rejects early data.
    fn deny(&self) {}
}

/// Opens a nested connection, with a second attempt after the 200 where early data may be why the first one failed.
pub(crate) async fn open<C: Carrier>(carrier: &mut C, config: &Config) -> Result<C::Nested> {
    let (mut probe_spent, mut replays_left) = (None, REPLAYS);
    loop {
        let (lease, client) = carrier.lease().await?;
        let start = match probe_spent {
            Some(spent) => Start::Retry(spent),
            None if carrier.is_denied() => Start::Opened,
            None => Start::first(config, client.early_data().get()),
        };
        match carrier.attempt(lease, start).await {
            Ok(nested) => {
                if let Some(proven) = start.proves() {
                    client.early_data().set(proven);
                    if proven == EarlyData::Rejected {
                        carrier.deny();
                    }
                }
                return Ok(nested);
            }
            Err(Failed { error, retry: Some(Retry::WithoutEarlyData(spent)) }) => {
                tracing::debug!(%error, "trying again after the 200");
                if client.is_closed() {
                    // All its tunnels went with it. That must not happen again, proven or not.
                    carrier.deny();
                }
                probe_spent = Some(spent);
            }
            Err(Failed { error, retry: Some(Retry::OnAnotherConnection) }) if replays_left > 0 => {
                tracing::debug!(%error, replays_left, "undone by the end of a connection");
                replays_left -= 1;
            }
            Err(failed) => return Err(failed.error),
        }
    }
}

impl Start {
    fn first(config: &Config, early_data: EarlyData) -> Self {
        match early_data {
            _ if !config.early_data => Self::Opened,
            EarlyData::Unknown => Self::Probe,
            EarlyData::Accepted => Self::Early,
            EarlyData::Rejected => Self::Opened,
        }
    }

    /// What a success says about the peer.
    fn proves(self) -> Option<EarlyData> {
        match self {
            Self::Probe => Some(EarlyData::Accepted),
            Self::Retry(_) => Some(EarlyData::Rejected),
            Self::Early | Self::Opened => None,
        }
    }

    pub(super) fn waits_for_200(self) -> bool {
        matches!(self, Self::Opened | Self::Retry(_))
    }

    /// How much of the handshake's time is used up.
    pub(super) fn spent(self) -> Duration {
        if let Self::Retry(spent) = self { spent } else { Duration::ZERO }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, retry: None }
    }
}

/// Whether a peer may mean by this that it takes no data before its 200.
pub(super) fn may_be_the_reason(kind: &ErrorKind) -> bool {
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
