//! Reaching the destination of a tunnel by plain bytes.

use std::net::SocketAddr;

use tokio::time::timeout;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::io::{BoxStream, Dial};

/// Dials within the time that the configuration gives.
pub(super) async fn dial(dialer: &dyn Dial, address: SocketAddr, config: &Config) -> Result<BoxStream> {
    let failed = |kind| Error::new(kind, Layer::Dial, Side::Remote, "connecting").with_peer(address);
    match timeout(config.dial_timeout, dialer.dial(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(e)) if e.kind() == std::io::ErrorKind::TimedOut => Err(failed(ErrorKind::Timeout).with_source(e)),
        Ok(Err(e)) => Err(failed(ErrorKind::Unreachable).with_source(e)),
        Err(_) => Err(failed(ErrorKind::Timeout)),
    }
}
