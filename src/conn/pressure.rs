//! Smaller windows, while much is unread.
//!
//! Where a connection's window is less than those of its tunnels together, readers that have stopped could use it up
//! and stop all others. So a tunnel's window is at most a quarter of what is left of it: however many stop reading one
//! after the other, something stays for those who go on. The connections of a config share a total in the same way:
//! each may hold half of what is left of that, so the sum stays below it, and a connection that holds little is not
//! affected (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998).
//!
//! Many that stop at once, before the peer has heard of the smaller windows, can use up a connection's window all the
//! same. Then the windows are the least; and once the peer keeps to that, the connection gets a reserve into which the
//! least windows of all tunnels fit.

use crate::config::Windows;

/// Decides. Pure: bytes are arguments.
#[derive(Debug)]
pub(super) struct Pressure {
    /// Less is little, whatever others hold.
    little: u64,
    /// What the connection may hold, the reserve left out. `None` where all windows fit.
    most: Option<u64>,
    stream: u32,
    least_stream: u32,
    level: Option<u32>,
    used_up: bool,
}

/// The part of what is left of a connection's window that a tunnel gets.
const PART: u64 = 4;

/// Smaller windows make frames that cost more than they carry.
const SMALLEST: u32 = 4 << 10;

/// Less is not worth counting.
const LEAST: u64 = 64 << 10;

impl Pressure {
    pub(super) fn new(windows: &Windows) -> Self {
        Self {
            little: u64::from(windows.connection / 32).max(LEAST),
            most: (windows.reserve > 0).then_some(windows.connection.into()),
            stream: windows.stream,
            least_stream: windows.least_stream,
            level: None,
            used_up: false,
        }
    }

    /// Whether so many bytes may make a difference.
    pub(super) fn is_much(&self, bytes: u64) -> bool {
        bytes >= self.little
    }

    /// The connection holds so much unread, and all connections may hold so much more of the total.
    pub(super) fn update(&mut self, held: u64, left: u64, total: u64) {
        // What comes until it is counted again could use it up.
        self.used_up = self.most.is_some_and(|most| held + self.little >= most);
        let least = self.least(left, total);
        let allowed = self.most.unwrap_or(u64::MAX).min(left / 2).max(self.little);
        let level = match u32::try_from(allowed.saturating_sub(held) / PART) {
            _ if self.used_up => least,
            Ok(part) => settle(self.level, part).max(least),
            Err(_) => u32::MAX,
        };
        self.level = (level < self.stream).then_some(level);
    }

    /// How large the tunnels' windows may be, while there is pressure.
    pub(super) fn level(&self) -> Option<u32> {
        self.level
    }

    /// Whether the connection's window is used up, or nearly so.
    pub(super) fn is_used_up(&self) -> bool {
        self.used_up
    }

    /// Half as large with each half of the total that is gone.
    fn least(&self, left: u64, total: u64) -> u32 {
        let halvings = (total / left.max(1)).max(1).ilog2();
        let smallest = SMALLEST.min(self.least_stream);
        self.least_stream.checked_shr(halvings).unwrap_or(0).max(smallest)
    }
}

/// The level before, where another one is not worth a frame.
fn settle(before: Option<u32>, level: u32) -> u32 {
    before.filter(|before| level.abs_diff(*before) <= before / 8).unwrap_or(level)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::config::Config;

    const MIB: u64 = 1 << 20;
    const TOTAL: u64 = 384 * MIB;
    /// A connection's window without the reserve.
    const MOST: u64 = 112 * MIB;
    const LITTLE: u64 = MOST / 32;

    fn pressure() -> Pressure {
        Pressure::new(&Config::new().windows())
    }

    #[rstest]
    #[case::nothing(0, TOTAL, None)]
    #[case::little(96 * MIB, TOTAL, None)]
    #[case::much(104 * MIB, TOTAL, Some(2 * MIB))]
    #[case::nearly_all(MOST - LITTLE, TOTAL, Some(16 * MIB / 100))]
    #[case::all(MOST, TOTAL, Some(16 * MIB / 100))]
    #[case::little_of_what_is_left_of_the_total(8 * MIB, 80 * MIB, None)]
    #[case::much_of_what_is_left_of_the_total(32 * MIB, 80 * MIB, Some(2 * MIB))]
    #[case::little_while_nothing_is_left(0, 0, Some(LITTLE / 4))]
    fn a_window_is_a_part_of_what_is_left(#[case] held: u64, #[case] left: u64, #[case] level: Option<u64>) {
        let mut pressure = pressure();
        pressure.update(held, left, TOTAL);
        assert_eq!(pressure.level().map(u64::from), level);
    }

    #[test]
    fn a_level_changes_only_where_that_makes_a_difference() {
        let mut pressure = pressure();
        let mut level = |held| {
            pressure.update(held * MIB, TOTAL, TOTAL);
            pressure.level().map(u64::from)
        };
        let expected = [2, 2, 2, 3].map(|mib| Some(mib * MIB));
        assert_eq!([104, 105, 103, 100].map(&mut level), expected);
        assert_eq!(level(95), None);
    }

    #[rstest]
    #[case::not_nearly(MOST - LITTLE - 1, false)]
    #[case::until_it_is_counted_again(MOST - LITTLE, true)]
    #[case::wholly(MOST, true)]
    fn the_reserve_is_for_when_the_window_is_used_up(#[case] held: u64, #[case] used_up: bool) {
        let mut pressure = pressure();
        pressure.update(held, TOTAL, TOTAL);
        assert_eq!(pressure.is_used_up(), used_up);
    }

    #[rstest]
    #[case::much_is_left(TOTAL, None)]
    #[case::nothing_is_left(0, Some(SMALLEST))]
    fn where_all_windows_fit_only_the_total_makes_them_smaller(#[case] left: u64, #[case] expected: Option<u32>) {
        let windows = Config::new().with_max_tunnels(10).with_max_stream_window(0).windows();
        let mut pressure = Pressure::new(&windows);
        pressure.update(windows.connection.into(), left, TOTAL);
        assert_eq!(pressure.level(), expected);
        assert!(!pressure.is_used_up());
    }

    #[rstest]
    #[case::all(TOTAL, 1)]
    #[case::a_half(TOTAL / 2, 2)]
    #[case::a_little_more(TOTAL / 2 + 1, 1)]
    #[case::an_eighth(TOTAL / 8, 8)]
    fn the_least_windows_follow_what_is_left_of_the_total(#[case] left: u64, #[case] divided: u32) {
        let mut pressure = pressure();
        pressure.update(MOST, left, TOTAL);
        assert_eq!(pressure.level(), Some(Config::new().windows().least_stream / divided));
    }

    proptest! {
        /// Each tunnel is as full as it may be, and the next one comes to stop.
        #[test]
        fn however_many_stop_reading_one_after_the_other_there_is_room_for_one_more(tunnels in 1u64..1000) {
            let config = Config::new().with_max_tunnels(1000);
            let windows = config.windows();
            let mut pressure = Pressure::new(&windows);
            let mut held = 0;
            for _ in 0..tunnels {
                pressure.update(held, TOTAL, TOTAL);
                held += u64::from(pressure.level().unwrap_or(windows.stream));
            }
            let all = u64::from(windows.connection + if pressure.is_used_up() { windows.reserve } else { 0 });
            prop_assert!(held <= all, "{} MiB", held / MIB);
        }

        /// Tunnels that nobody reads take all they may, on connections that are looked at in turns.
        #[test]
        fn however_many_stop_reading_the_total_is_kept(connections in 1usize..40, step in 1u64..4) {
            let mut all: Vec<_> = (0..connections).map(|_| (pressure(), 0)).collect();
            for _ in 0..200 {
                for n in 0..connections {
                    let held: u64 = all.iter().map(|(_, held)| held).sum();
                    let (pressure, own) = &mut all[n];
                    pressure.update(*own, TOTAL.saturating_sub(held), TOTAL);
                    if pressure.level().is_none_or(|level| u64::from(level) > *own / 100) {
                        *own += step * MIB;
                    }
                }
            }
            let held: u64 = all.iter().map(|(_, held)| held).sum();
            prop_assert!(held <= TOTAL + connections as u64 * LITTLE.max(step * MIB), "{} MiB", held / MIB);
            for (_, own) in &all {
                prop_assert!(*own <= MOST + step * MIB);
            }
        }
    }
}
