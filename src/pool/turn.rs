//! Long turns at moving bytes, and what waits for them to end.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};
use std::thread;

use tokio::task::yield_now;

use crate::io::Turns;

/// After so many bytes in one turn.
const MUCH: u64 = 128 << 10;

/// Gives way after each turn that moved much: to other threads, and to what has come for other tasks of this one.
///
/// A thread that moves bulk always has something to do. Where there are fewer cores than such threads, the system lets each go
/// on for some milliseconds; small messages pass through several threads, and would wait as long at each. And the tasks of a
/// bulk transfer wake each other, so that the runtime never runs out of tasks: it would look for events only after so many of
/// these turns, of a tenth of a millisecond each.
#[derive(Debug, Default)]
pub(crate) struct GiveWay {
    much: bool,
}

impl Turns for GiveWay {
    fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.much) {
            // Wakes the task when the runtime has looked for events.
            return pin!(yield_now()).poll(cx);
        }
        Poll::Ready(())
    }

    fn end(&mut self, moved: u64) {
        self.much = moved >= MUCH;
        if self.much {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use std::task::ready;

    use rstest::rstest;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[rstest]
    #[case::much(MUCH, true)]
    #[case::little(MUCH - 1, false)]
    #[tokio::test]
    async fn what_comes_for_others_waits_for_one_long_turn_at_most(#[case] moved: u64, #[case] gives_way: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut near = listener.accept().await.unwrap().0;
        let (turn, counted) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let mut turns = GiveWay::default();
        let (turn_of, at) = (turn.clone(), counted.clone());
        // Something comes for the other task in every hundredth turn.
        let busy = tokio::spawn(poll_fn(move |cx| {
            ready!(turns.poll_begin(cx));
            let turn = turn_of.fetch_add(1, Relaxed) + 1;
            if turn % 100 == 0 {
                at.store(turn, Relaxed);
                far.write_all(b"x").unwrap();
            }
            turns.end(moved);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let mut longest = 0;
        for _ in 0..20 {
            near.read_u8().await.unwrap();
            longest = longest.max(turn.load(Relaxed) - counted.load(Relaxed));
        }
        busy.abort();
        assert_eq!(longest <= 1, gives_way, "{longest} turns");
    }
}
