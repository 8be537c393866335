use std::sync::atomic::AtomicUsize;

use rstest::rstest;
use tokio_test::task;

use super::*;

/// Two threads, of which this is the second; and what has been asked of them.
#[derive(Clone, Default)]
struct Asked(Arc<(AtomicUsize, AtomicUsize)>);

impl Threads for Asked {
    fn current(&self) -> Option<usize> {
        Some(1)
    }

    fn wake_after_events(&self, cx: &mut Context<'_>) {
        self.0.0.fetch_add(1, Relaxed);
        cx.waker().wake_by_ref();
    }

    fn yield_core(&self) {
        self.0.1.fetch_add(1, Relaxed);
    }
}

impl Asked {
    fn events(&self) -> usize {
        self.0.0.load(Relaxed)
    }

    fn yields(&self) -> usize {
        self.0.1.load(Relaxed)
    }
}

fn scheduler() -> (Scheduler, Asked) {
    let asked = Asked::default();
    (Scheduler::new(2, asked.clone()), asked)
}

fn may_begin(turns: &mut Turns) -> bool {
    task::spawn(std::future::poll_fn(|cx| turns.poll_begin(cx))).poll().is_ready()
}

#[rstest]
#[case::bulk(BULK, true)]
#[case::less(BULK - 1, false)]
#[tokio::test(start_paused = true)]
async fn events_are_looked_for_once_after_a_bulk_turn(#[case] moved: u64, #[case] looks: bool) {
    let (scheduler, asked) = scheduler();
    let mut turns = Turns::new(&scheduler);
    assert!(may_begin(&mut turns), "the first turn waits for nothing");
    turns.end(moved);
    assert_eq!(may_begin(&mut turns), !looks);
    assert!(may_begin(&mut turns));
    assert_eq!(asked.events(), usize::from(looks));
}

#[tokio::test(start_paused = true)]
async fn a_core_is_yielded_by_bulk_for_as_long_as_any_task_has_small_turns() {
    let (scheduler, asked) = scheduler();
    let (mut bulk, mut small) = (Turns::new(&scheduler), Turns::new(&scheduler));
    bulk.end(BULK);
    assert_eq!(asked.yields(), 0, "there is nobody to yield to");
    small.end(1);
    bulk.end(BULK);
    tokio::time::advance(EXPECTED / 2).await;
    bulk.end(BULK);
    assert_eq!(asked.yields(), 2);
    tokio::time::advance(EXPECTED / 2).await;
    bulk.end(BULK);
    assert_eq!(asked.yields(), 2, "small turns have ended");
    small.end(SMALL - 1);
    bulk.end(BULK);
    assert_eq!(asked.yields(), 3);
}

#[rstest]
#[case::nothing(0)]
#[case::neither(SMALL)]
#[tokio::test(start_paused = true)]
async fn turns_of_other_sizes_are_not_small(#[case] moved: u64) {
    let (scheduler, asked) = scheduler();
    Turns::new(&scheduler).end(moved);
    Turns::new(&scheduler).end(BULK);
    assert_eq!(asked.yields(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_short_turns_between_bulk_turns_are_not_small() {
    let (scheduler, asked) = scheduler();
    let mut turns = Turns::new(&scheduler);
    turns.end(BULK);
    tokio::time::advance(EXPECTED / 2).await;
    turns.end(1);
    turns.end(BULK);
    assert_eq!(asked.yields(), 0);
    tokio::time::advance(EXPECTED).await;
    turns.end(1);
    turns.end(BULK);
    assert_eq!(asked.yields(), 1);
}

#[tokio::test(start_paused = true)]
async fn bulk_counts_for_its_thread() {
    let (scheduler, _) = scheduler();
    let mut turns = Turns::new(&scheduler);
    [BULK, 1, BULK + 5].into_iter().for_each(|moved| turns.end(moved));
    assert_eq!([0, 1, 2].map(|thread| scheduler.bulk_moved(thread)), [0, 2 * BULK + 5, 0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_scheduled_unless_it_is_asked_for() {
    let mut turns = Turns::new(&Scheduler::default());
    for moved in [BULK, 1, BULK] {
        turns.end(moved);
        assert!(may_begin(&mut turns));
    }
}

#[test]
fn schedulers_are_equal_when_they_are_the_same() {
    let (one, other) = (scheduler().0, scheduler().0);
    assert_eq!(one, one.clone());
    assert_ne!(one, other);
    assert_ne!(one, Scheduler::default());
    assert_eq!(Scheduler::default(), Scheduler::default());
}
