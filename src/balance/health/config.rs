//! When an endpoint is ejected, and for how long.

use std::time::Duration;

use tokio::time::Instant;

use super::Admitted;

/// The settings of [`Outliers`](super::Outliers). Names and defaults are those of Envoy's
/// `envoy.config.cluster.v3.OutlierDetection` where it has the setting; of its ways to detect an outlier only
/// consecutive failures are here, with locally originated ones counted as any other (its `consecutive_5xx` without
/// `split_external_local_origin_errors`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    pub(super) consecutive_failures: u32,
    pub(super) base_ejection_time: Duration,
    pub(super) max_ejection_time: Duration,
    pub(super) max_ejection_percent: u32,
    pub(super) interval: Duration,
    pub(super) probe_timeout: Duration,
    pub(super) retention: Duration,
}

impl OutlierConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
            interval: Duration::from_secs(10),
            probe_timeout: Duration::from_secs(60),
            retention: Duration::from_secs(300),
        }
    }

    /// How many failures in a row eject an endpoint. Default 5; 0 never ejects. Raising it bears more failed attempts
    /// before an endpoint is left out; lowering it lets an unlucky streak cost capacity.
    pub fn with_consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = failures;
        self
    }

    /// What [`with_consecutive_failures`](Self::with_consecutive_failures) says.
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// How long the first ejection lasts; the `n`th in a row lasts `n` times as long. Default 30 s, at least 1 ms.
    /// Raising it leaves a recovered endpoint idle for longer; lowering it probes a broken one more often.
    pub fn with_base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time.max(Duration::from_millis(1));
        self
    }

    /// What [`with_base_ejection_time`](Self::with_base_ejection_time) says.
    pub fn base_ejection_time(&self) -> Duration {
        self.base_ejection_time
    }

    /// What no ejection lasts longer than. Default 300 s; at least the base ejection time, which counts when it is
    /// longer.
    pub fn with_max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// What [`with_max_ejection_time`](Self::with_max_ejection_time) says.
    pub fn max_ejection_time(&self) -> Duration {
        self.max_ejection_time
    }

    /// How many of the endpoints to choose from may be left out, in percent, rounded down, but always one. Default 10;
    /// more than 100 counts as 100. Raising it leaves more broken endpoints out, and lets less be left over for the
    /// load.
    ///
    /// Envoy ejected at least one host regardless up to 1.30; later ones do so with `always_eject_one_host` only, so
    /// that of fewer than ten hosts none is ever ejected by default. Meshes have services of two pods, and networks of
    /// two gateways.
    pub fn with_max_ejection_percent(mut self, percent: u32) -> Self {
        self.max_ejection_percent = percent.min(100);
        self
    }

    /// What [`with_max_ejection_percent`](Self::with_max_ejection_percent) says.
    pub fn max_ejection_percent(&self) -> u32 {
        self.max_ejection_percent
    }

    /// After how long in service one ejection is no longer counted: an endpoint that was ejected `n` times in a row
    /// needs `n` of these to have the next ejection last for the base time again. Default 10 s. Raising it makes a
    /// relapse cost more. (Envoy also looks for what to eject at this interval; nothing here needs that.)
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// What [`with_interval`](Self::with_interval) says.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// How long a probe keeps others out when it neither reports nor is dropped. Default 60 s: more than dialing, TLS,
    /// HTTP/2 and CONNECT may take together by the defaults of [`Config`](crate::Config). Envoy has no probes: there
    /// the ejection ends for all at once.
    pub fn with_probe_timeout(mut self, timeout: Duration) -> Self {
        self.probe_timeout = timeout;
        self
    }

    /// What [`with_probe_timeout`](Self::with_probe_timeout) says.
    pub fn probe_timeout(&self) -> Duration {
        self.probe_timeout
    }

    /// After how long without any event an endpoint is forgotten: a streak of failures after the last of them, an
    /// ejection after it is over. Default 300 s. Nobody says that an endpoint is gone, so this bounds the memory.
    /// Raising it remembers rarely used endpoints for longer.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// What [`with_retention`](Self::with_retention) says.
    pub fn retention(&self) -> Duration {
        self.retention
    }

    /// Which of several endpoints may be used, given since when each has been ejected: what
    /// [`Outliers::admit`](super::Outliers::admit) decides for its keys, for endpoints that depend on several keys.
    pub fn admit(&self, ejected_since: &[Option<Instant>]) -> Admitted {
        let of = ejected_since.len();
        let mut ejected: Vec<(Instant, usize)> =
            ejected_since.iter().enumerate().filter_map(|(index, since)| Some(((*since)?, index))).collect();
        ejected.sort_unstable();
        let left_out = ejected.len().min(self.max_ejected(of));
        if left_out == of {
            return Admitted { indices: (0..of).collect(), overflow: 0, panic: of > 0 };
        }
        let mut admitted = vec![true; of];
        ejected[..left_out].iter().for_each(|(_, index)| admitted[*index] = false);
        let indices = (0..of).filter(|index| admitted[*index]).collect();
        Admitted { indices, overflow: ejected.len() - left_out, panic: false }
    }

    /// How long the `nth` ejection in a row lasts.
    pub(super) fn ejection_time(&self, nth: u32) -> Duration {
        let max = self.max_ejection_time.max(self.base_ejection_time);
        self.base_ejection_time.saturating_mul(nth).min(max)
    }

    /// From which ejection on they all last equally long; more are not counted.
    pub(super) fn longest_ejection(&self) -> u32 {
        let max = self.max_ejection_time.max(self.base_ejection_time);
        let nth = max.as_nanos().div_ceil(self.base_ejection_time.as_nanos());
        u32::try_from(nth).unwrap_or(u32::MAX)
    }

    /// How many of so many endpoints may be left out.
    pub(super) fn max_ejected(&self, of: usize) -> usize {
        // Whole hundreds apart, so that nothing overflows.
        let percent = self.max_ejection_percent as usize;
        (of / 100 * percent + of % 100 * percent / 100).max(1)
    }
}

impl Default for OutlierConfig {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(10, 0, 1)]
    #[case(10, 1, 1)]
    #[case(10, 19, 1)]
    #[case(10, 20, 2)]
    #[case(10, 999, 99)]
    #[case(0, 50, 1)]
    #[case(100, 7, 7)]
    #[case(150, 7, 7)]
    #[case(33, 10, 3)]
    #[case(100, usize::MAX, usize::MAX)]
    fn at_least_one_may_be_left_out(#[case] percent: u32, #[case] of: usize, #[case] expected: usize) {
        assert_eq!(OutlierConfig::new().with_max_ejection_percent(percent).max_ejected(of), expected);
    }

    #[rstest]
    #[case(30, 300, &[30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300], 10)]
    #[case(30, 100, &[30, 60, 90, 100, 100], 4)]
    #[case(30, 10, &[30, 30], 1)]
    #[case(1, u64::MAX, &[1, 2, 3], u32::MAX)]
    fn ejections_in_a_row_last_longer_up_to_a_limit(
        #[case] base: u64,
        #[case] max: u64,
        #[case] expected: &[u64],
        #[case] longest: u32,
    ) {
        let config = OutlierConfig::new()
            .with_base_ejection_time(Duration::from_secs(base))
            .with_max_ejection_time(Duration::from_secs(max));
        let times: Vec<_> = (1..).take(expected.len()).map(|nth| config.ejection_time(nth).as_secs()).collect();
        assert_eq!(times, expected);
        assert_eq!(config.longest_ejection(), longest);
    }
}
