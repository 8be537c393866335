//! This side's tunnels, which do what a script says, and what came of them.

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

/// How long a tunnel is read from when all else is done.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one tunnel is given to send at most.
const MOST_SENT: usize = 1 << 20;

/// What a tunnel has moved.
#[derive(Debug)]
pub(super) struct Moved {
    /// The HTTP/2 stream.
    pub(super) stream: u32,
    pub(super) sent: usize,
    pub(super) received: Vec<u8>,
}

/// What this side sends on a stream: no two streams the same.
pub(super) fn pattern(stream: u32, from: usize, len: usize) -> Bytes {
    let byte = |at: usize| (at.wrapping_mul(7) ^ at >> 8 ^ (stream as usize).wrapping_mul(29)) as u8;
    (from..from + len).map(byte).collect()
}

/// Does with a tunnel what is asked for, until there is nobody to ask.
pub(super) async fn drive(mut tunnel: TunnelStream, early: bool, acts: mpsc::UnboundedReceiver<Act>) -> Moved {
    let stream = tunnel.stream_id();
    let mut sent = 0;
    if early && let Ok(n) = tunnel.write(&pattern(stream, 0, 100)).await {
        sent += n;
    }
    if let Err(error) = tunnel.opened().await {
        explains_itself(&error);
        return Moved { stream, sent, received: Vec::new() };
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
    Moved { stream, sent: sending.sent, received }
}

async fn read(mut recv: TunnelRecv, mut stalled: watch::Receiver<bool>, received: Arc<Mutex<Vec<u8>>>) {
    loop {
        let _ = stalled.wait_for(|stalled| !stalled).await;
        match read_bytes(&mut recv).await {
            Ok(data) if data.is_empty() => return,
            Ok(data) => received.lock().unwrap_or_else(PoisonError::into_inner).extend(&*data),
            Err(error) => return explains_itself(Error::from_io(&error).expect("an error of this crate")),
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
    /// Returns whether there may be more to read.
    async fn run(&mut self, mut acts: mpsc::UnboundedReceiver<Act>) -> bool {
        while let Some(act) = acts.recv().await {
            match act {
                Act::Write(len) if self.sent < MOST_SENT => {
                    let data = pattern(self.stream, self.sent, len.into());
                    // What of it leaves is seen by the peer.
                    self.sent += data.len();
                    if let Err(error) = write_bytes(&mut self.send, data).await {
                        explains_itself(Error::from_io(&error).expect("an error of this crate"));
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

/// An error says what was being done.
pub(super) fn explains_itself(error: &Error) {
    assert!(!error.doing().is_empty() && error.to_string().contains(error.doing()), "{error:?}");
}
