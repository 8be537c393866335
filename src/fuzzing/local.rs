//! Our end of the tunnels, controlled by a script.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::script::Act;
use crate::error::Error;
use crate::io::{read_bytes, write_bytes};
use crate::tunnel::{ResetReason, TunnelRecv, TunnelSend, TunnelStream};

/// How long a tunnel is read from after the script.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most bytes that one tunnel sends.
const MOST_SENT: usize = 1 << 20;

/// The bytes of one tunnel.
#[derive(Debug)]
pub(super) struct Transfer {
    /// The id of its HTTP/2 stream.
    pub(super) stream: u32,
    pub(super) sent: usize,
    pub(super) received: Vec<u8>,
}

/// The bytes that our end sends on a stream. They differ between streams.
pub(super) fn pattern(stream: u32, from: usize, len: usize) -> Bytes {
    let byte = |at: usize| (at.wrapping_mul(7) ^ at >> 8 ^ (stream as usize).wrapping_mul(29)) as u8;
    (from..from + len).map(byte).collect()
}

/// Applies acts to a tunnel until the channel closes.
pub(super) async fn drive(mut tunnel: TunnelStream, early: bool, acts: mpsc::UnboundedReceiver<Act>) -> Transfer {
    let stream = tunnel.stream_id();
    let mut sent = 0;
    if early && let Ok(n) = tunnel.write(&pattern(stream, 0, 100)).await {
        sent += n;
    }
    if let Err(error) = tunnel.opened().await {
        check_error(&error);
        return Transfer { stream, sent, received: Vec::new() };
    }
    let (recv, send) = tunnel.into_split();
    let (stall, stalled) = watch::channel(false);
    let received = Arc::new(Mutex::new(Vec::new()));
    let mut reading = tokio::spawn(read(recv, stalled, received.clone()));
    let mut sending = Sending { stream, send, sent, stall };
    if sending.run(acts).await {
        let _ = timeout(PATIENCE, &mut reading).await;
    }
    reading.abort();
    let received = std::mem::take(&mut *received.lock().unwrap_or_else(PoisonError::into_inner));
    Transfer { stream, sent: sending.sent, received }
}

async fn read(mut recv: TunnelRecv, mut stalled: watch::Receiver<bool>, received: Arc<Mutex<Vec<u8>>>) {
    loop {
        let _ = stalled.wait_for(|stalled| !stalled).await;
        match read_bytes(&mut recv).await {
            Ok(data) if data.is_empty() => return,
            Ok(data) => received.lock().unwrap_or_else(PoisonError::into_inner).extend(&*data),
            Err(error) => return check_error(Error::from_io(&error).expect("an error of this crate")),
        }
    }
}

struct Sending {
    stream: u32,
    send: TunnelSend,
    sent: usize,
    stall: watch::Sender<bool>,
}

impl Sending {
    /// Returns false if the tunnel is to be dropped.
    async fn run(&mut self, mut acts: mpsc::UnboundedReceiver<Act>) -> bool {
        while let Some(act) = acts.recv().await {
            match act {
                Act::Write(len) if self.sent < MOST_SENT => {
                    let data = pattern(self.stream, self.sent, len.into());
                    // An upper bound: a write may fail half-way.
                    self.sent += data.len();
                    if let Err(error) = write_bytes(&mut self.send, data).await {
                        check_error(Error::from_io(&error).expect("an error of this crate"));
                    }
                }
                Act::ShutDown => drop(self.send.shutdown().await),
                Act::Reset => self.send.reset(ResetReason::Cancel),
                Act::Drop => return false,
                Act::Stall => self.stall.send_modify(|stall| *stall = !*stall),
                Act::Write(_) | Act::Open | Act::OpenEarly => {}
            }
        }
        self.stall.send_replace(false);
        let _ = self.send.shutdown().await;
        true
    }
}

/// Checks that an error says what was being done.
pub(super) fn check_error(error: &Error) {
    assert!(!error.doing().is_empty() && error.to_string().contains(error.doing()), "{error:?}");
}
