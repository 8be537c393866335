//! Every limit and timeout of a connection, in one place.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::io::Scheduler;

/// Limits and timeouts of the connections of one client or server.
///
/// The defaults suit both ends of a mesh; each setter says what raising its value costs. Values outside of what HTTP/2
/// allows are clamped.
///
/// # Memory
///
/// What a tunnel has received and its reader has not read is at most [`stream_window`](Self::with_stream_window), 4 MiB
/// by default, or up to [`max_stream_window`](Self::with_max_stream_window) on a long path with a fast reader. All
/// tunnels of a connection together hold at most [`max_connection_window`](Self::with_max_connection_window), 128 MiB.
/// That is less than the sum of the tunnels' windows, but readers that have stopped can't use it up and stop all
/// others: no window is more than a quarter of what is left of it, which makes a difference from 96 MiB on. An eighth
/// of it is kept for when the rest is used up all the same, and all tunnels fit into that with their least windows (160
/// KiB with 100 tunnels). A tunnel that is read goes on meanwhile, with one such window in each round trip.
///
/// All connections of a config, its clones among them, share [`max_total_window`](Self::with_max_total_window), 384
/// MiB: each may hold half of what is left of that, and has smaller windows as it comes near. A connection that holds
/// little is not affected.
///
/// What waits to be sent comes on top: up to [`send_buffer`](Self::with_send_buffer) for each tunnel, 512 KiB, and for
/// all of a connection's together what it may hold unread (50 MiB by default; with more than 256 tunnels each has
/// less). So do unread small frames, with what [`small_frame_budget`](Self::with_small_frame_budget) says.
///
/// Times longer than a year count as a year.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) stream_window: u32,
    pub(crate) max_stream_window: Option<u32>,
    pub(crate) max_connection_window: u32,
    pub(crate) total: TotalUnread,
    pub(crate) max_tunnels: u32,
    pub(crate) initial_tunnels: u32,
    pub(crate) max_frame_size: u32,
    pub(crate) max_header_list_size: u32,
    pub(crate) send_buffer: usize,
    pub(crate) small_frame_budget: usize,
    pub(crate) early_data: bool,
    pub(crate) keepalive_interval: Option<Duration>,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) tls_timeout: Duration,
    pub(crate) http2_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) linger_timeout: Duration,
    pub(crate) scheduler: Scheduler,
}

/// The windows of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Of each tunnel at first, and what it may grow to.
    pub(crate) stream: u32,
    pub(crate) max_stream: u32,
    /// Of the connection.
    pub(crate) connection: u32,
    /// What is added to that when it is used up; 0 where it can't be, as all tunnels' windows fit.
    pub(crate) reserve: u32,
    /// Of each tunnel when it is used up. As many as there may be fit into the reserve.
    pub(crate) least_stream: u32,
}

/// What the connections of a config, and of its clones, hold unread together. Two are equal when their limits are.
#[derive(Clone, Debug)]
pub(crate) struct TotalUnread {
    limit: u64,
    held: Arc<AtomicU64>,
}

impl TotalUnread {
    fn new(limit: u64) -> Self {
        Self { limit, held: Arc::default() }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// How much more there may be.
    pub(crate) fn left(&self) -> u64 {
        self.limit.saturating_sub(self.held.load(Relaxed))
    }

    /// A connection holds `now` instead of `before`.
    pub(crate) fn update(&self, before: u64, now: u64) {
        self.held.fetch_add(now.wrapping_sub(before), Relaxed);
    }
}

impl PartialEq for TotalUnread {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit
    }
}

impl Eq for TotalUnread {}

/// HTTP/2's largest window and, at once, setting (RFC 9113, section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

const LEAST_SEND_BUFFER: usize = 16 << 10;

/// Longer waits are the same as none, and would overflow the clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Config {
    /// The defaults.
    pub fn new() -> Self {
        Self {
            stream_window: 4 << 20,
            max_stream_window: None,
            max_connection_window: 128 << 20,
            total: TotalUnread::new(384 << 20),
            max_tunnels: 100,
            initial_tunnels: 10,
            max_frame_size: 64 << 10,
            max_header_list_size: 16 << 10,
            send_buffer: 512 << 10,
            small_frame_budget: 64 << 20,
            early_data: true,
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(20),
            dial_timeout: Duration::from_secs(10),
            tls_timeout: Duration::from_secs(10),
            http2_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(20),
            linger_timeout: Duration::from_secs(2),
            scheduler: Scheduler::default(),
        }
    }

    /// How many bytes a peer may send on one tunnel before its reader takes any. Default 4 MiB, as ztunnel: enough for
    /// 300 Mbit/s at 100 ms. Raising it costs memory for each tunnel with a slow reader.
    pub fn with_stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes.clamp(1 << 10, MAX_WINDOW);
        self
    }

    /// What [`stream_window`](Self::with_stream_window) grows to where a tunnel's reader takes two thirds of it in each
    /// round trip, so that the window is what limits it. Default eight times that window, so 32 MiB: enough for 1
    /// Gbit/s at 200 ms. At most 256 MiB; one that is not above the stream window turns growing off.
    ///
    /// It is measured with a PING for each third of a window that is read, over the shortest recent round trip. The
    /// windows shrink again when nobody has needed more for 10 s, or while over a half of this is unread on the
    /// connection. Raising it costs memory where many readers stop at once: see [Memory](Self#memory).
    pub fn with_max_stream_window(mut self, bytes: u32) -> Self {
        self.max_stream_window = Some(bytes);
        self
    }

    /// How many bytes one connection holds unread at most, of all its tunnels together. Default 128 MiB; at least 256
    /// KiB. Raising it lets more readers stop before the others of the connection have smaller windows: see
    /// [Memory](Self#memory).
    pub fn with_max_connection_window(mut self, bytes: u32) -> Self {
        self.max_connection_window = bytes.clamp(256 << 10, MAX_WINDOW);
        self
    }

    /// How many bytes all connections of this config and its clones are to hold unread together. Default 384 MiB; at
    /// least 1 MiB. It is approached, not hit: each connection has the smaller windows the less is left, and what is on
    /// its way to it then still comes. Raising it costs memory while many readers stop at once: see
    /// [Memory](Self#memory).
    pub fn with_max_total_window(mut self, bytes: u64) -> Self {
        self.total = TotalUnread::new(bytes.max(1 << 20));
        self
    }

    /// How many tunnels one connection carries at once. Default 100, as Envoy and ztunnel's pool. A server advertises
    /// it; a client keeps to the smaller of this and what its peer advertises. Raising it lets more tunnels share one
    /// thread.
    pub fn with_max_tunnels(mut self, tunnels: u32) -> Self {
        self.max_tunnels = tunnels.clamp(1, 1 << 20);
        self
    }

    /// How many tunnels a client opens before the server has advertised its limit. Default 10: below what any known
    /// peer allows, so that none of the first is refused. Raising it risks refusals by a stricter peer.
    pub fn with_initial_tunnels(mut self, tunnels: u32) -> Self {
        self.initial_tunnels = tunnels.max(1);
        self
    }

    /// The largest DATA frame that a peer may send, from 16 KiB to 16 MiB. Default 64 KiB: ztunnel's 1 MiB makes a
    /// small message wait behind a whole megabyte and is buffered whole before its first byte is seen, Envoy's 16 KiB
    /// doubles the number of TLS records.
    pub fn with_max_frame_size(mut self, bytes: u32) -> Self {
        self.max_frame_size = bytes.clamp(16 << 10, (1 << 24) - 1);
        self
    }

    /// The largest header list that is accepted, in the sense of RFC 9113, section 6.5.2. Default 16 KiB; a larger
    /// request is answered with 431, and one of over four times this size costs the connection.
    pub fn with_max_header_list_size(mut self, bytes: u32) -> Self {
        self.max_header_list_size = bytes.max(1 << 10);
        self
    }

    /// How much of what was written on one tunnel waits for the network. Default 512 KiB; less where all tunnels
    /// together would exceed [`max_connection_window`](Self::with_max_connection_window), but at least 16 KiB. Raising
    /// it costs memory for each tunnel with a slow peer and buys nothing below a bandwidth-delay product of that size.
    pub fn with_send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = bytes.max(LEAST_SEND_BUFFER);
        self
    }

    /// How much overhead of small DATA frames that nobody has read yet is tolerated before the connection is closed
    /// with ENHANCE_YOUR_CALM (RUSTSEC-2026-0258); a frame of `n` < 256 bytes costs `256 - n`. Default 64 MiB, which is
    /// room for 260,000 one-byte frames or about 25 MiB of bookkeeping. h2's own default follows the window and would
    /// allow less on a small one, where one paused reader kills every tunnel of the connection.
    pub fn with_small_frame_budget(mut self, bytes: usize) -> Self {
        self.small_frame_budget = bytes;
        self
    }

    /// Whether the TLS handshake inside a tunnel begins before the peer's 200. Default true, which saves a round trip
    /// for each nested connection. A peer that rejects it is detected and waited for, at the cost of one more attempt;
    /// turn this off where all peers are known to reject it. See [`nested`](crate::nested).
    pub fn with_early_data(mut self, early: bool) -> Self {
        self.early_data = early;
        self
    }

    /// After how long without a byte from the peer a PING is sent. Default 10 s; with `None` never, and then a driver
    /// waits for as long as a silent peer's transport does.
    pub fn with_keepalive_interval(mut self, interval: Option<Duration>) -> Self {
        self.keepalive_interval = interval.map(|interval| interval.min(LONGEST));
        self
    }

    /// How long the peer has to send something after that, before the connection is closed. Default 20 s. Any byte
    /// counts.
    pub fn with_keepalive_timeout(mut self, timeout: Duration) -> Self {
        self.keepalive_timeout = timeout.min(LONGEST);
        self
    }

    /// How long opening the byte stream under the first hop may take. Default 10 s.
    pub fn with_dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout.min(LONGEST);
        self
    }

    /// How long a TLS handshake may take, on both sides. Default 10 s (ztunnel has no limit here).
    pub fn with_tls_timeout(mut self, timeout: Duration) -> Self {
        self.tls_timeout = timeout.min(LONGEST);
        self
    }

    /// How long the peer's HTTP/2 preface may take after that, on both sides. Default 10 s (ztunnel has no limit here).
    pub fn with_http2_timeout(mut self, timeout: Duration) -> Self {
        self.http2_timeout = timeout.min(LONGEST);
        self
    }

    /// How long opening a tunnel may take: waiting for a permit on the connection, and for the answer to the CONNECT.
    /// Default 20 s, more than a dial of the far side takes.
    pub fn with_connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(LONGEST);
        self
    }

    /// How long a tunnel or connection that this side has finished waits for the peer to finish too, before it is
    /// reset. Default 2 s. Raising it keeps the permits of unresponsive peers for longer.
    pub fn with_linger_timeout(mut self, timeout: Duration) -> Self {
        self.linger_timeout = timeout.min(LONGEST);
        self
    }

    /// Keeps small messages fast beside bulk on the scheduler's threads: in all connections of this config, and in the
    /// relays of the roles between their tunnels and other streams. Default: off.
    pub fn with_scheduler(mut self, scheduler: Scheduler) -> Self {
        self.scheduler = scheduler;
        self
    }

    /// The window of each tunnel in bytes, at first. Smaller than what was [set](Self::with_stream_window) where the
    /// connection's window is.
    pub fn stream_window(&self) -> u32 {
        self.windows().stream
    }

    /// What a tunnel's [window](Self::with_max_stream_window) may grow to, in bytes:
    /// [`stream_window`](Self::stream_window) where it may not grow.
    pub fn max_stream_window(&self) -> u32 {
        self.windows().max_stream
    }

    /// See [`with_max_connection_window`](Self::with_max_connection_window).
    pub fn max_connection_window(&self) -> u32 {
        self.max_connection_window
    }

    /// See [`with_max_total_window`](Self::with_max_total_window).
    pub fn max_total_window(&self) -> u64 {
        self.total.limit()
    }

    /// See [`with_max_tunnels`](Self::with_max_tunnels).
    pub fn max_tunnels(&self) -> u32 {
        self.max_tunnels
    }

    /// See [`with_initial_tunnels`](Self::with_initial_tunnels).
    pub fn initial_tunnels(&self) -> u32 {
        self.initial_tunnels
    }

    /// See [`with_max_frame_size`](Self::with_max_frame_size).
    pub fn max_frame_size(&self) -> u32 {
        self.max_frame_size
    }

    /// See [`with_max_header_list_size`](Self::with_max_header_list_size).
    pub fn max_header_list_size(&self) -> u32 {
        self.max_header_list_size
    }

    /// See [`with_send_buffer`](Self::with_send_buffer).
    pub fn send_buffer(&self) -> usize {
        self.send_buffer
    }

    /// See [`with_small_frame_budget`](Self::with_small_frame_budget).
    pub fn small_frame_budget(&self) -> usize {
        self.small_frame_budget
    }

    /// See [`with_early_data`](Self::with_early_data).
    pub fn early_data(&self) -> bool {
        self.early_data
    }

    /// See [`with_keepalive_interval`](Self::with_keepalive_interval).
    pub fn keepalive_interval(&self) -> Option<Duration> {
        self.keepalive_interval
    }

    /// See [`with_keepalive_timeout`](Self::with_keepalive_timeout).
    pub fn keepalive_timeout(&self) -> Duration {
        self.keepalive_timeout
    }

    /// See [`with_dial_timeout`](Self::with_dial_timeout).
    pub fn dial_timeout(&self) -> Duration {
        self.dial_timeout
    }

    /// See [`with_tls_timeout`](Self::with_tls_timeout).
    pub fn tls_timeout(&self) -> Duration {
        self.tls_timeout
    }

    /// See [`with_http2_timeout`](Self::with_http2_timeout).
    pub fn http2_timeout(&self) -> Duration {
        self.http2_timeout
    }

    /// See [`with_connect_timeout`](Self::with_connect_timeout).
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// See [`with_linger_timeout`](Self::with_linger_timeout).
    pub fn linger_timeout(&self) -> Duration {
        self.linger_timeout
    }

    /// See [`with_scheduler`](Self::with_scheduler).
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    pub(crate) fn windows(&self) -> Windows {
        let tunnels = u64::from(self.max_tunnels);
        let grown = self.max_stream_window.unwrap_or(self.stream_window.saturating_mul(8)).min(256 << 20);
        // Room for two that have grown.
        let headroom = if grown > self.stream_window { 2 * u64::from(grown) } else { 0 };
        let all = u64::from(self.stream_window) * tunnels + headroom;
        if let Ok(all) = u32::try_from(all)
            && all <= self.max_connection_window
        {
            let (stream, max_stream) = (self.stream_window, grown.max(self.stream_window));
            let connection = all.max(64 << 10);
            return Windows { stream, max_stream, connection, reserve: 0, least_stream: stream };
        }
        let reserve = self.max_connection_window / 8;
        let connection = self.max_connection_window - reserve;
        let stream = self.stream_window.min(connection);
        let least_stream = (reserve / self.max_tunnels).clamp(1, stream);
        Windows { stream, max_stream: grown.clamp(stream, connection), connection, reserve, least_stream }
    }

    /// What waits to be sent on one tunnel at most.
    pub(crate) fn tunnel_send_buffer(&self) -> usize {
        let share = (self.max_connection_window / self.max_tunnels) as usize;
        self.send_buffer.min(share.max(LEAST_SEND_BUFFER))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::as_it_comes(Config::new())]
    #[case::many_tunnels(Config::new().with_max_tunnels(1000))]
    #[case::as_many_as_can_be(Config::new().with_max_tunnels(u32::MAX))]
    #[case::little_in_all(Config::new().with_max_connection_window(0))]
    #[case::all_there_is(Config::new().with_max_connection_window(u32::MAX))]
    #[case::large(Config::new().with_stream_window(u32::MAX).with_max_stream_window(u32::MAX))]
    #[case::small(Config::new().with_stream_window(0).with_max_tunnels(0))]
    fn the_least_windows_of_all_tunnels_fit_into_the_reserve(#[case] config: Config) {
        let Windows { stream, max_stream, connection, reserve, least_stream } = config.windows();
        assert!(connection + reserve <= config.max_connection_window);
        assert!(0 < least_stream && least_stream <= stream && stream <= max_stream && max_stream <= connection);
        let tunnels = u64::from(config.max_tunnels);
        // HTTP/2 has no less than one byte.
        assert!(reserve == 0 || u64::from(least_stream) * tunnels <= u64::from(reserve).max(tunnels));
    }

    #[test]
    fn there_is_no_reserve_where_all_windows_fit() {
        let config = Config::new().with_stream_window(100_000).with_max_stream_window(0).with_max_tunnels(10);
        let expected =
            Windows { stream: 100_000, max_stream: 100_000, connection: 1_000_000, reserve: 0, least_stream: 100_000 };
        assert_eq!(config.windows(), expected);
    }

    #[rstest]
    #[case::as_it_comes(100, 512 << 10)]
    #[case::many(512, 256 << 10)]
    #[case::most(1 << 20, LEAST_SEND_BUFFER)]
    fn what_waits_to_be_sent_is_bounded_for_a_connection(#[case] tunnels: u32, #[case] expected: usize) {
        assert_eq!(Config::new().with_max_tunnels(tunnels).tunnel_send_buffer(), expected);
    }

    #[test]
    fn a_config_and_its_clones_share_what_they_hold_in_all() {
        let config = Config::new().with_max_total_window(10 << 20);
        config.clone().total.update(0, 3 << 20);
        config.total.update(3 << 20, 1 << 20);
        assert_eq!(config.total.left(), 9 << 20);
        assert_eq!(Config::new().with_max_total_window(10 << 20).total.left(), 10 << 20);
        config.total.update(0, 10 << 20);
        assert_eq!(config.total.left(), 0);
    }

    #[test]
    fn a_time_for_ever_does_not_overflow_the_clock() {
        let config = Config::new().with_keepalive_interval(Some(Duration::MAX)).with_linger_timeout(Duration::MAX);
        assert_eq!((config.keepalive_interval, config.linger_timeout), (Some(LONGEST), LONGEST));
    }
}
