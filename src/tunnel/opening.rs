//! A tunnel whose CONNECT has no answer yet.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use h2::client::ResponseFuture;
use http::response;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::authority::Authority;
use crate::conn::Shared;
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::metadata::{Received, proxy_status};
use crate::refusal::MAX_BODY;

/// Waits for the answer, up to a deadline.
#[derive(Debug)]
pub(crate) struct Opening {
    response: ResponseFuture,
    deadline: Pin<Box<Sleep>>,
    authority: Authority,
    /// An answer that is not 200, and what has come of its body.
    refused: Option<Box<Refused>>,
}

#[derive(Debug)]
struct Refused {
    head: response::Parts,
    recv: h2::RecvStream,
    body: BytesMut,
}

/// How long the body of a refusal is waited for.
const BODY_TIME: Duration = Duration::from_secs(1);

/// What came of it. A refusal, too, has a stream to end in order.
pub(super) struct Opened {
    pub(super) recv: h2::RecvStream,
    pub(super) result: Result<Box<Received>>,
}

impl Opening {
    pub(crate) fn new(response: ResponseFuture, deadline: Instant, authority: Authority) -> Self {
        Self { response, deadline: Box::pin(sleep_until(deadline)), authority, refused: None }
    }

    /// Must not be polled again once it is ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Result<Opened>> {
        if self.refused.is_some() {
            return self.poll_refused(cx, shared).map(Ok);
        }
        let response = match Pin::new(&mut self.response).poll(cx) {
            Poll::Ready(Ok(response)) => response,
            Poll::Ready(Err(e)) => return Poll::Ready(Err(shared.explain(e, Layer::Connect, "opening a tunnel"))),
            Poll::Pending => {
                ready!(self.deadline.as_mut().poll(cx));
                return Poll::Ready(Err(self.failed(shared, ErrorKind::Timeout)));
            }
        };
        let (head, recv) = response.into_parts();
        if head.status.is_success() {
            return Poll::Ready(Ok(Opened { recv, result: Ok(Box::new(Received::new(head.headers))) }));
        }
        let by = self.deadline.deadline().min(Instant::now() + BODY_TIME);
        self.deadline.as_mut().reset(by);
        self.refused = Some(Box::new(Refused { head, recv, body: BytesMut::new() }));
        self.poll_refused(cx, shared).map(Ok)
    }

    /// Reads the body of a refusal: what comes of it in time, and is not too long.
    fn poll_refused(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Opened> {
        let Some(mut refused) = self.refused.take() else { return Poll::Pending };
        while refused.body.len() < MAX_BODY {
            match refused.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    // Fails only once the stream is gone.
                    let _ = refused.recv.flow_control().release_capacity(data.len());
                    let room = MAX_BODY - refused.body.len();
                    refused.body.extend_from_slice(&data[..data.len().min(room)]);
                }
                Poll::Ready(Some(Err(_)) | None) => break,
                Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => break,
                Poll::Pending => {
                    self.refused = Some(refused);
                    return Poll::Pending;
                }
            }
        }
        let Refused { head, recv, body } = *refused;
        let refusal = proxy_status::decode(head.status, &head.headers).with_content(&head.headers, body.freeze());
        Poll::Ready(Opened { recv, result: Err(self.failed(shared, ErrorKind::Refused(refusal))) })
    }

    fn failed(&self, shared: &Shared, kind: ErrorKind) -> Error {
        let doing = format!("opening a tunnel to {}", self.authority);
        shared.describe(Error::new(kind, Layer::Connect, Side::Remote, doing))
    }
}

/// How far a tunnel has come, for a task that does not read it.
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
