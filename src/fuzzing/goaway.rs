//! Compares the GOAWAY scanner to what h2 reads in the same bytes.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::script::{self, Step};
use crate::conn::GoAwayScanner;

/// The transport under h2: reads what it is fed, never ends, and discards writes.
#[derive(Clone, Debug, Default)]
struct Feed(Arc<Mutex<VecDeque<u8>>>);

impl Feed {
    fn bytes(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Feed {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.bytes();
        if bytes.is_empty() {
            return Poll::Pending;
        }
        let taken = bytes.len().min(buf.remaining());
        let taken: Vec<u8> = bytes.drain(..taken).collect();
        buf.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Feed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// After each piece of the input, h2 and the scanner agree on whether there was a GOAWAY and on its code, until h2
/// rejects the bytes.
pub fn goaway(data: &[u8]) {
    let mut cx = Context::from_waker(Waker::noop());
    let feed = Feed::default();
    let handshake = pin!(h2::client::handshake(feed.clone()));
    let Poll::Ready(Ok((mut requests, mut connection))) = handshake.poll(&mut cx) else {
        panic!("h2 waits for nobody before it has sent its preface");
    };
    let (mut scanner, mut after_preface) = (GoAwayScanner::new(false), GoAwayScanner::new(true));
    assert_eq!(after_preface.scan(super::frames::PREFACE), None);
    let (mut found, mut size) = (None, usize::MAX);
    for step in script::decode(data) {
        if let Step::Cut(len) = step {
            size = if len == 0 { usize::MAX } else { len.into() };
        }
        for piece in step.pieces(size) {
            let code = scanner.scan(&piece);
            assert_eq!(after_preface.scan(&piece), code);
            found = code.or(found);
            feed.bytes().extend(piece);
            // A poll may return before all input is read.
            while !feed.bytes().is_empty() {
                if Pin::new(&mut connection).poll(&mut cx).is_ready() {
                    return;
                }
            }
            if Pin::new(&mut connection).poll(&mut cx).is_ready() {
                return;
            }
            let read = match requests.poll_ready(&mut cx) {
                Poll::Ready(Err(error)) if !(error.is_remote() && error.is_go_away()) => return,
                Poll::Ready(Err(error)) => error.reason().map(u32::from),
                Poll::Ready(Ok(())) | Poll::Pending => None,
            };
            assert_eq!(found, read, "the scanner's code, and h2's");
        }
    }
}
