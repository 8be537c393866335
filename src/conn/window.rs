//! How large the tunnels' windows are to be: the measured bandwidth-delay product of the path.
//!
//! In rounds of one PING each, the driver measures how much the fastest reader takes in a round trip. A window of `w`
//! bytes carries at most about that much per round trip; HTTP/2 here returns it in thirds, so that a path is filled
//! from one and a half times its bandwidth-delay product on. So a window of which a reader takes two thirds per round
//! trip is the bottleneck and is doubled. A reader that does not keep up never takes that much.

use std::time::Duration;

use tokio::time::Instant;

/// Decides. Pure: time and bytes are arguments.
#[derive(Debug)]
pub(super) struct Window {
    base: u32,
    max: u32,
    now: u32,
    round: Option<Instant>,
    /// What had been read when the last round ended.
    read: u64,
    round_trip: MinFilter,
    /// When at least a third of the window was needed last.
    needed: Option<Instant>,
}

/// After this long a window that nobody needed shrinks.
const UNUSED: Duration = Duration::from_secs(10);

/// The shortest round trip of the last one to two of these counts: longer ones have waited in queues.
const MEMORY: Duration = Duration::from_secs(30);

impl Window {
    /// From `base`, with which the connection begins, up to `max`.
    pub(super) fn new(base: u32, max: u32) -> Self {
        Self {
            base,
            max: max.max(base),
            now: base,
            round: None,
            read: 0,
            round_trip: MinFilter::default(),
            needed: None,
        }
    }

    /// Whether a round is to begin, now that `read` bytes have been read since the connection began. Seldom on a
    /// connection with little traffic.
    pub(super) fn wants_round(&self, read: u64) -> bool {
        self.max > self.base && self.round.is_none() && read.saturating_sub(self.read) >= u64::from(self.now / 3)
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.round = Some(now);
    }

    pub(super) fn is_in_round(&self) -> bool {
        self.round.is_some()
    }

    /// The PING has been answered; `best` is what the fastest reader took meanwhile, `held` what nobody has read yet.
    /// Says how large the window is to be.
    pub(super) fn end(&mut self, now: Instant, read: u64, best: u64, held: u64) -> u32 {
        let Some(began) = self.round.take() else { return self.now };
        self.read = read;
        let took = now.saturating_duration_since(began);
        let round_trip = self.round_trip.add(now, took);
        let needed = scale(best, round_trip, took);
        if needed >= u64::from(self.now / 3) {
            self.needed = Some(now);
        }
        if needed >= u64::from(self.now) * 2 / 3 && held <= u64::from(self.max / 4) {
            return self.now.saturating_mul(2).min(self.max);
        }
        self.look(now, held)
    }

    /// How large it is to be between rounds: as at first when too much is unread, or when it has not been needed for
    /// long.
    pub(super) fn look(&self, now: Instant, held: u64) -> u32 {
        let unused = self.needed.is_none_or(|needed| now.saturating_duration_since(needed) >= UNUSED);
        if held > u64::from(self.max / 2) || unused { self.base } else { self.now }
    }

    /// This size is being announced to the peer.
    pub(super) fn set(&mut self, size: u32) {
        self.now = size;
    }

    pub(super) fn is_grown(&self) -> bool {
        self.now > self.base
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> u32 {
        self.now
    }
}

/// `bytes` per `took`, over `round_trip`.
fn scale(bytes: u64, round_trip: Duration, took: Duration) -> u64 {
    let scaled = (u128::from(bytes) * round_trip.as_nanos()).checked_div(took.as_nanos());
    scaled.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

#[derive(Debug, Default)]
struct MinFilter {
    since: Option<Instant>,
    before: Option<Duration>,
    current: Option<Duration>,
}

impl MinFilter {
    fn add(&mut self, now: Instant, value: Duration) -> Duration {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= MEMORY) {
            (self.since, self.before) = (Some(now), self.current.take());
        }
        let current = self.current.map_or(value, |current| current.min(value));
        self.current = Some(current);
        self.before.map_or(current, |before| before.min(current))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads at a rate, as far as the window lets it, for some rounds.
    fn run(window: &mut Window, start: Instant, rounds: u64, round_trip: Duration, link: u64, held: u64) -> Instant {
        let (mut now, mut read) = (start, window.read);
        for _ in 0..rounds {
            let bdp = link * round_trip.as_millis() as u64 / 1000;
            let w = u64::from(window.size());
            // The window comes back in thirds.
            let best = bdp.min(w * bdp / (bdp + w / 3).max(1));
            read += u64::from(window.size());
            assert!(window.wants_round(read));
            window.begin(now);
            now += round_trip;
            let size = window.end(now, read, best, held);
            window.set(size);
        }
        now
    }

    #[tokio::test(start_paused = true)]
    async fn it_follows_the_bandwidth_delay_product_and_comes_back() {
        let mut window = Window::new(4 << 20, 32 << 20);
        let now = run(&mut window, Instant::now(), 10, Duration::from_millis(100), 125_000_000, 0);
        assert_eq!(window.size(), 32 << 20);
        assert_eq!(window.look(now + UNUSED / 2, 0), 32 << 20);
        assert_eq!(window.look(now + UNUSED, 0), 4 << 20, "nobody needs it");
        assert_eq!(window.look(now, 17 * MIB), 4 << 20, "somebody does not read");
    }

    #[tokio::test(start_paused = true)]
    async fn short_paths_slow_readers_and_queues_do_not_make_it_grow() {
        let start = Instant::now();
        let mut window = Window::new(4 << 20, 32 << 20);
        run(&mut window, start, 100, Duration::from_millis(1), 625_000_000, 0);
        assert_eq!(window.size(), 4 << 20, "a short path");
        // The same path with a queue of 50 ms on it: more is read while the PING waits.
        run(&mut window, start + Duration::from_secs(1), 100, Duration::from_millis(50), 625_000_000, 0);
        assert_eq!(window.size(), 4 << 20, "a queue");
        let mut window = Window::new(4 << 20, 32 << 20);
        run(&mut window, start, 100, Duration::from_millis(100), 10_000_000, 0);
        assert_eq!(window.size(), 4 << 20, "a slow reader");
        run(&mut window, start, 100, Duration::from_millis(100), 125_000_000, 9 * MIB);
        assert_eq!(window.size(), 4 << 20, "much is unread");
    }

    #[test]
    fn no_room_to_grow_needs_no_rounds() {
        assert!(!Window::new(4 << 20, 4 << 20).wants_round(u64::MAX));
        assert!(!Window::new(4 << 20, 1).wants_round(u64::MAX));
    }

    proptest! {
        #[test]
        fn it_stays_within_bounds_and_grows_only_for_readers_that_need_it(
            base in 1u32..1 << 28,
            max in 1u32..1 << 28,
            steps in prop::collection::vec((0u64..1 << 40, 0u64..1 << 30, 0u64..3_000_000, any::<bool>()), 1..50),
        ) {
            let mut now = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async { Instant::now() });
            let mut window = Window::new(base, max);
            let mut read = 0;
            for (best, held, micros, ends) in steps {
                let before = window.size();
                read += best;
                if window.wants_round(read) {
                    window.begin(now);
                }
                now += Duration::from_micros(micros);
                let size = if ends { window.end(now, read, best, held) } else { window.look(now, held) };
                prop_assert!(size >= base && size <= max.max(base));
                prop_assert!(size <= before.saturating_mul(2));
                if size > before {
                    prop_assert!(ends && best >= u64::from(before) * 2 / 3 && held <= u64::from(max / 4));
                }
                if held > u64::from(max.max(base) / 2) {
                    prop_assert_eq!(size, base);
                }
                window.set(size);
            }
        }
    }
}
