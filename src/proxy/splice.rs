//! A tunnel and a byte stream, joined until both have ended.

use super::reset_on_drop::ResetOnDrop;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{RelayEnd, RelayStats, relay_in_turns};
use crate::tunnel::{ResetReason, TunnelStream};

/// Joins them: `a_to_b` counts what left the tunnel. A failure of one ends the other as a failure too.
///
/// Both are borrowed: a future keeps an argument of its own twice.
pub(super) async fn splice(tunnel: &mut TunnelStream, stream: &mut ResetOnDrop) -> Result<RelayStats> {
    tunnel.forget_metadata();
    let turns = tunnel.turns();
    let error = match relay_in_turns(tunnel, stream, turns).await {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;
    use crate::client;
    use crate::metadata::Metadata;
    use crate::tests::raw::{self, Raw};

    #[tokio::test]
    async fn what_an_application_says_before_it_closes_leaves_in_one_frame_with_the_end() {
        let (near, far) = duplex(1 << 16);
        let (client, driver) = client::handshake(near).await.unwrap();
        tokio::spawn(driver);
        let peer = tokio::spawn(async move {
            let (mut peer, stream) = Raw::taking(Box::new(far)).await;
            let frame = peer.expect(raw::DATA).await;
            peer.send(raw::DATA, raw::END_STREAM, stream, b"answer").await;
            frame
        });
        let mut tunnel = client.connect(&"pod.test:80".parse().unwrap(), &Metadata::default()).await.unwrap();
        let (mut application, stream) = duplex(1 << 16);
        application.write_all(b"question").await.unwrap();
        application.shutdown().await.unwrap();
        let stats = splice(&mut tunnel, &mut ResetOnDrop::new(Box::new(stream))).await.unwrap();
        assert_eq!((stats.a_to_b, stats.b_to_a), (6, 8));
        let frame = peer.await.unwrap();
        assert_eq!((&frame.payload[..], frame.flags), (&b"question"[..], raw::END_STREAM));
    }
}
