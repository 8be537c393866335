//! A tunnel whose CONNECT has no answer yet.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use h2::client::ResponseFuture;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::authority::Authority;
use crate::conn::Shared;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::metadata::{Received, proxy_status};

/// Waits for the answer, up to a deadline.
#[derive(Debug)]
pub(crate) struct Opening {
    response: ResponseFuture,
    deadline: Pin<Box<Sleep>>,
    authority: Authority,
}

/// What came of it. A refusal, too, has a stream to end in order.
pub(super) struct Opened {
    pub(super) recv: h2::RecvStream,
    pub(super) result: Result<Box<Received>>,
}

impl Opening {
    pub(crate) fn new(response: ResponseFuture, deadline: Instant, authority: Authority) -> Self {
        Self { response, deadline: Box::pin(sleep_until(deadline)), authority }
    }

    /// Must not be polled again once it is ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Result<Opened>> {
        let doing = || format!("opening a tunnel to {}", self.authority);
        let response = match Pin::new(&mut self.response).poll(cx) {
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(shared.explain(e, Layer::Connect, "opening a tunnel"))),
            Poll::Pending => {
                return self.deadline.as_mut().poll(cx).map(|()| {
                    Err(shared.describe(Error::new(ErrorKind::Timeout, Layer::Connect, Side::Remote, doing())))
                });
            }
        };
        let (head, recv) = response.into_parts();
        let result = if head.status.is_success() {
            Ok(Box::new(Received::new(head.headers)))
        } else {
            let refusal = proxy_status::decode(head.status, &head.headers);
            Err(shared.describe(Error::new(ErrorKind::Refused(refusal), Layer::Connect, Side::Remote, doing())))
        };
        Poll::Ready(Ok(Opened { recv, result }))
    }
}

/// How far a tunnel has come, for somebody who does not read it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    stage: AtomicU8,
    changed: Notify,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The answer is here, and it is 200.
    Open = 1,
    /// Bytes have come through.
    Heard = 2,
}

impl Progress {
    pub(super) fn open() -> Arc<Self> {
        let progress = Self::default();
        progress.enter(Stage::Open);
        Arc::new(progress)
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    pub(crate) fn is(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::Acquire) >= stage as u8
    }

    /// Waits until it is there. Cancel safe.
    pub(crate) async fn reached(&self, stage: Stage) {
        loop {
            // Counts as waiting from here on, so that a step in between is not missed.
            let changed = self.changed.notified();
            if self.is(stage) {
                return;
            }
            changed.await;
        }
    }
}
