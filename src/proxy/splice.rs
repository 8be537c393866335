//! A tunnel and a byte stream, joined until both have ended.

use super::{BoxStream, Stream};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{Plain, RelayEnd, RelayStats, relay};
use crate::tunnel::{ResetReason, TunnelStream};

/// Joins them: `a_to_b` counts what left the tunnel. A failure of one ends the other as a failure too.
pub(super) async fn splice(mut tunnel: TunnelStream, stream: BoxStream) -> Result<RelayStats> {
    let mut stream = Plain::new(stream);
    let error = match relay(&mut tunnel, &mut stream).await {
        Ok(stats) => return Ok(stats),
        Err(error) => error,
    };
    stream.into_inner().fail();
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
