//! A tunnel and a byte stream, joined until both have ended.

use super::unfinished::Unfinished;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{RelayEnd, RelayStats, relay_in_turns};
use crate::pool::GiveWay;
use crate::tunnel::{ResetReason, TunnelStream};

/// Joins them: `a_to_b` counts what left the tunnel. A failure of one ends the other as a failure too.
///
/// Both are borrowed: a future keeps an argument of its own twice.
pub(super) async fn splice(tunnel: &mut TunnelStream, stream: &mut Unfinished) -> Result<RelayStats> {
    tunnel.forget_metadata();
    let error = match relay_in_turns(tunnel, stream, GiveWay::default()).await {
        Ok(stats) => {
            stream.finish();
            return Ok(stats);
        }
        Err(error) => error,
    };
    let (layer, side) = match error.end() {
        RelayEnd::A => (Layer::Tunnel, Side::Remote),
        RelayEnd::B => {
            tunnel.reset(ResetReason::ConnectError);
            (Layer::Application, Side::Remote)
        }
    };
    Err(match Error::from_io(error.io_error()) {
        Some(inner) => inner.clone(),
        None => Error::new(ErrorKind::Closed, layer, side, "relaying").with_source(error),
    })
}
