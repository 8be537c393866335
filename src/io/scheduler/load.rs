//! How busy a connection or a thread is.

use std::time::Duration;

use tokio::time::Instant;

/// How much a connection, or a thread, has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Load {
    #[default]
    Light,
    /// So many bytes that small messages would queue behind them.
    Bulk,
    /// It has no time left.
    Full,
}

/// What has been done up to some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) busy: Duration,
    /// Bytes.
    pub(crate) moved: u64,
}

impl Sample {
    /// Nothing has been done yet.
    pub(crate) fn start(at: Instant) -> Self {
        Self { at, busy: Duration::ZERO, moved: 0 }
    }
}

/// Over how long a load is measured, at least.
const WINDOW: Duration = Duration::from_millis(100);

/// So many bytes in that time are bulk: 340 Mbit/s.
const BULK: u64 = 4 << 20;

/// Measures a load, window by window.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    start: Sample,
    last: Sample,
    load: Load,
}

impl LoadMeter {
    pub(crate) fn new(at: Instant) -> Self {
        Self { start: Sample::start(at), last: Sample::start(at), load: Load::Light }
    }

    /// Work begins again. What was done before a long pause says nothing of what comes now.
    pub(crate) fn resume(&mut self, at: Instant) {
        if at.saturating_duration_since(self.last.at) >= WINDOW {
            self.last.at = at;
            self.start = self.last;
        }
    }

    /// The load, each time that a window is over.
    pub(crate) fn observe(&mut self, now: Sample) -> Option<Load> {
        self.last = now;
        let elapsed = now.at.saturating_duration_since(self.start.at);
        if elapsed < WINDOW {
            return None;
        }
        let busy = now.busy.saturating_sub(self.start.busy);
        let moved = u128::from(now.moved.saturating_sub(self.start.moved)) * WINDOW.as_nanos() / elapsed.as_nanos();
        self.start = now;
        // Full from four fifths of the time on, until it is less than a half; likewise with bulk.
        let full = busy * 10 >= elapsed * if self.load == Load::Full { 5 } else { 8 };
        let bulk = moved >= u128::from(if self.load == Load::Light { BULK } else { BULK / 2 });
        self.load = match (full, bulk) {
            (true, _) => Load::Full,
            (false, true) => Load::Bulk,
            (false, false) => Load::Light,
        };
        Some(self.load)
    }

    /// That of the last window.
    pub(crate) fn load(&self) -> Load {
        self.load
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TURN: Duration = Duration::from_millis(1);

    /// So many turns, one behind the other. The loads of their windows.
    fn turns(meter: &mut LoadMeter, now: &mut Sample, count: u32, busy: Duration, bytes: u64) -> Vec<Load> {
        let turn = |_| {
            meter.resume(now.at);
            *now = Sample { at: now.at + TURN, busy: now.busy + busy, moved: now.moved + bytes };
            meter.observe(*now)
        };
        (0..count).filter_map(turn).collect()
    }

    #[rstest]
    #[case::idle(Load::Light, 0, 0, Load::Light)]
    #[case::busy(Load::Light, 79, 0, Load::Light)]
    #[case::no_time_left(Load::Light, 80, 0, Load::Full)]
    #[case::still_no_time_left(Load::Full, 50, 0, Load::Full)]
    #[case::time_again(Load::Full, 49, 0, Load::Light)]
    #[case::little(Load::Light, 1, BULK - 1, Load::Light)]
    #[case::bulk(Load::Light, 1, BULK, Load::Bulk)]
    #[case::still_bulk(Load::Bulk, 1, BULK / 2, Load::Bulk)]
    #[case::little_again(Load::Bulk, 1, BULK / 2 - 1, Load::Light)]
    #[case::bulk_without_time_left(Load::Bulk, 80, BULK, Load::Full)]
    #[case::bulk_with_time_again(Load::Full, 10, BULK, Load::Bulk)]
    #[tokio::test(start_paused = true)]
    async fn a_load_follows_bytes_and_time_of_one_window(
        #[case] before: Load,
        #[case] busy_percent: u32,
        #[case] moved: u64,
        #[case] expected: Load,
    ) {
        let start = Sample::start(Instant::now());
        let mut meter = LoadMeter { load: before, ..LoadMeter::new(start.at) };
        let now = Sample { at: start.at + WINDOW, busy: WINDOW * busy_percent / 100, moved };
        assert_eq!(meter.observe(Sample { at: start.at + WINDOW / 2, ..now }), None, "too early to tell");
        assert_eq!(meter.observe(now), Some(expected));
        assert_eq!(meter.load(), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_window_counts_for_what_it_holds_on_average() {
        let start = Sample::start(Instant::now());
        let mut meter = LoadMeter::new(start.at);
        assert_eq!(
            meter.observe(Sample { at: start.at + 3 * WINDOW, moved: 3 * BULK - 1, ..start }),
            Some(Load::Light)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_window_of_bulk_is_reported() {
        let mut now = Sample::start(Instant::now());
        let mut meter = LoadMeter::new(now.at);
        assert_eq!(turns(&mut meter, &mut now, 330, TURN / 2, BULK / 50), [Load::Bulk; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_moved_before_a_pause_does_not_count_after_it() {
        let mut now = Sample::start(Instant::now());
        let mut meter = LoadMeter::new(now.at);
        assert_eq!(turns(&mut meter, &mut now, 190, TURN / 2, BULK / 50), [Load::Bulk]);
        now.at += 3 * WINDOW;
        assert_eq!(turns(&mut meter, &mut now, 150, TURN / 100, 1000), [Load::Light]);
    }
}
