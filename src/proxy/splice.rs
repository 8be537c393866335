//! A tunnel and a byte stream, joined until both have ended.

use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{BoxStream, Plain, RelayEnd, RelayStats, Stream, relay_in_turns};
use crate::pool::GiveWay;
use crate::tunnel::{ResetReason, TunnelStream};

/// A byte stream that is not at its end. Dropped like this, for whatever reason, it fails: what was cut off must not look
/// whole.
pub(super) struct Unfinished {
    stream: Plain<BoxStream>,
    finished: bool,
}

impl Unfinished {
    pub(super) fn new(stream: BoxStream) -> Self {
        Self { stream: Plain::new(stream), finished: false }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.get_mut().fail();
        }
    }
}

/// Joins them: `a_to_b` counts what left the tunnel. A failure of one ends the other as a failure too.
///
/// Both are borrowed: a future keeps an argument of its own twice.
pub(super) async fn splice(tunnel: &mut TunnelStream, stream: &mut Unfinished) -> Result<RelayStats> {
    tunnel.forget_metadata();
    let error = match relay_in_turns(tunnel, &mut stream.stream, GiveWay::default()).await {
        Ok(stats) => {
            stream.finished = true;
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
