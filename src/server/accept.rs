//! The accept loop.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep};

use crate::drain::Watch;
use crate::io::Accept;
use crate::observe::{Event, Observer, notify};

/// After a failed accept, mostly for lack of file descriptors, some have to be closed before the next can succeed.
const BACK_OFF: Duration = Duration::from_millis(50);

/// When a drain's time is over, tasks that listen for it say why they end, which takes no longer.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Accepts byte streams until there are no more, or a drain starts.
pub(crate) struct Accepting<A> {
    /// `None` when no more are accepted.
    accept: Option<A>,
    back_off: Option<Pin<Box<Sleep>>>,
    draining: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    observer: Option<Arc<dyn Observer>>,
}

impl<A: Accept> Accepting<A> {
    pub(crate) fn new(accept: A) -> Self {
        Self { accept: Some(accept), back_off: None, draining: None, observer: None }
    }

    pub(super) fn with_observer(mut self, observer: Option<Arc<dyn Observer>>) -> Self {
        self.observer = observer;
        self
    }

    /// Does not count in the drain's report.
    pub(crate) fn with_drain(mut self, drain: &Watch) -> Self {
        let watch = drain.uncounted();
        self.draining = Some(Box::pin(async move { watch.graceful().await }));
        self
    }

    /// What listens is closed as soon as this is `None`.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(A::Io, Option<SocketAddr>)>> {
        loop {
            let Some(accept) = &mut self.accept else { return Poll::Ready(None) };
            if self.draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
                self.accept = None;
                return Poll::Ready(None);
            }
            if let Some(back_off) = &mut self.back_off {
                if back_off.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.back_off = None;
            }
            match accept.poll_accept(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => self.accept = None,
                Poll::Ready(Some(Ok(accepted))) => return Poll::Ready(Some(accepted)),
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%error, "accepting a connection failed, going on");
                    notify(self.observer.as_ref(), || Event::AcceptFailed(&error));
                    self.back_off = Some(Box::pin(sleep(BACK_OFF)));
                }
            }
        }
    }
}

/// Has each byte stream served by a task that `spawn` puts into the set, with a watch that it is to hold. Returns when
/// the drain has ended, or no more can come and all tasks have ended.
///
/// Tasks that outlast the drain are dropped shortly after its time is over.
pub(crate) async fn accept_each<A: Accept>(
    mut accepting: Accepting<A>,
    drain: Option<Watch>,
    mut spawn: impl FnMut(&mut JoinSet<()>, A::Io, Option<SocketAddr>, Option<Watch>),
) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = poll_fn(|cx| accepting.poll_next(cx)) => match accepted {
                Some((stream, address)) => spawn(&mut tasks, stream, address, drain.clone()),
                None => break,
            },
            // At once, not with the next connection: what is left of an ended task is as large as the task was.
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
    // Does not count as something that has to finish.
    let over = drain.as_ref().map(Watch::uncounted);
    drop((accepting, drain));
    let cut = async {
        match over {
            Some(over) => over.forced().await,
            None => std::future::pending().await,
        }
        sleep(LAST_WORDS).await;
    };
    tokio::select! {
        () = async { while tasks.join_next().await.is_some() {} } => {}
        () = cut => tasks.shutdown().await,
    }
}
