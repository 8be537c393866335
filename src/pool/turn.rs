//! Long turns at moving bytes, and what waits for them to end.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::Instant;

use crate::io::Turns;

/// After so many bytes in one turn.
const MUCH: u64 = 128 << 10;

/// Fewer are a small message.
const LITTLE: u64 = 16 << 10;

/// How long after a turn of one kind there may be more.
const EXPECTED: Duration = Duration::from_millis(100);

/// The turns of all tasks that moved small messages, but for those of tasks that move bulk.
static SHORT: AtomicU64 = AtomicU64::new(0);

/// Gives way after each turn that moved much: to what has come for other tasks of this thread, and to other threads while there are
/// tasks that move small messages.
///
/// The tasks of a bulk transfer wake each other, so that the runtime never runs out of tasks: it would look for events only after
/// so many of these turns, of a tenth of a millisecond each. And a thread that moves bulk always has something to do. Where there
/// are fewer cores than such threads, the system lets each go on for some milliseconds; small messages pass through several
/// threads, and would wait as long at each. Without any, giving way would cost a tenth of the bulk for nothing.
#[derive(Debug, Default)]
pub(crate) struct GiveWay {
    much: bool,
    /// Until when more bulk is expected.
    bulk: Option<Instant>,
    others: Others,
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
            let now = Instant::now();
            self.bulk = Some(now + EXPECTED);
            if self.others.are_expected(SHORT.load(Relaxed), now) {
                thread::yield_now();
            }
        } else if self.is_small_message(moved) {
            SHORT.fetch_add(1, Relaxed);
        }
    }
}

impl GiveWay {
    /// Whether a turn that moved so much is one with small messages, rather than the rest of bulk.
    fn is_small_message(&self, moved: u64) -> bool {
        (1..LITTLE).contains(&moved) && self.bulk.is_none_or(|until| Instant::now() >= until)
    }
}

/// The short turns of other tasks.
#[derive(Debug, Default)]
struct Others {
    seen: u64,
    until: Option<Instant>,
}

impl Others {
    /// Whether there may be more of them soon, when there have been so many by now.
    fn are_expected(&mut self, short: u64, now: Instant) -> bool {
        if short != self.seen {
            *self = Self { seen: short, until: Some(now + EXPECTED) };
        }
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
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

    #[tokio::test(start_paused = true)]
    async fn what_little_comes_between_bulk_is_no_small_message() {
        let mut turns = GiveWay::default();
        assert_eq!([0, 1, LITTLE - 1, LITTLE].map(|moved| turns.is_small_message(moved)), [false, true, true, false]);
        turns.end(MUCH);
        tokio::time::advance(EXPECTED / 2).await;
        assert!(!turns.is_small_message(1));
        tokio::time::advance(EXPECTED / 2).await;
        assert!(turns.is_small_message(1));
    }

    #[tokio::test(start_paused = true)]
    async fn threads_give_way_for_as_long_as_others_move_small_messages() {
        let (mut others, start) = (Others::default(), Instant::now());
        assert!(!others.are_expected(0, start));
        assert!(others.are_expected(1, start));
        assert!(others.are_expected(1, start + EXPECTED / 2));
        assert!(!others.are_expected(1, start + EXPECTED));
        assert!(others.are_expected(5, start + EXPECTED));
    }
}
