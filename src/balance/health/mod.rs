//! Which endpoints to leave out because they have failed recently: passive outlier detection, in Envoy's terms.
//!
//! An endpoint that fails several times in a row is *ejected*: left out for a while, and for longer each time. When the
//! time is over it is *half-open*: one attempt is let through as a *probe*, and its result decides for all. See Envoy's
//! [outlier
//! detection](https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier#ejection-algorithm);
//! what differs here is that Envoy ends an ejection for all at once, without a probe.
//!
//! # What counts as a failure
//!
//! The caller decides. It should be what speaks against the endpoint: a connection refused or timed out, a failed TLS
//! handshake, a reset or GOAWAY before the 200, no answer, a 5xx answer. It should not be what speaks against the
//! client or its request: 400 and 401, a certificate of the client's own that the endpoint does not accept, a caller
//! that went away. Such an attempt is neither a success nor a failure: drop it.
//!
//! # Whom it speaks against
//!
//! [`HealthKey`] keeps apart what fails apart: when a gateway forwards and a service behind it does not answer, the
//! *pair* fails, and the gateway stays in use for other services.
//!
//! # Examples
//!
//! ```
//! use hbone::balance::health::{OutlierConfig, Outliers, Standing};
//! use tokio::time::Instant;
//!
//! let mut outliers = Outliers::new(OutlierConfig::new().with_consecutive_failures(1));
//! let (keys, now) = (["a", "b"], Instant::now());
//!
//! let attempt = outliers.begin("a", now);
//! outliers.failure(attempt, now);
//! assert_eq!(outliers.admit(&keys, now).indices, [1]);
//!
//! let later = now + std::time::Duration::from_secs(30);
//! assert_eq!(outliers.admit(&keys, later).indices, [0, 1]);
//! let probe = outliers.begin("a", later);
//! assert_eq!(probe.standing(), Standing::HalfOpen);
//! assert_eq!(outliers.admit(&keys, later).indices, [1]);
//! outliers.success(probe, later);
//! assert_eq!(outliers.admit(&keys, later).indices, [0, 1]);
//! ```

mod config;
mod entry;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use self::config::OutlierConfig;
use self::entry::Entry;
use crate::mesh::NamespacedHostname;

/// Forgotten entries are looked for after this many events, or as many as there are entries.
const SWEEP: usize = 64;

/// What can fail by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthKey {
    /// A workload, by its uid.
    Workload(Arc<str>),
    /// A gateway, by the uid of its workload: whether it can be reached, and has its identity.
    Gateway(Arc<str>),
    /// A service as seen through a gateway: whether tunnels through it get to somebody who answers for the service.
    GatewayService {
        /// The uid of the gateway's workload.
        gateway: Arc<str>,
        /// The service.
        service: NamespacedHostname,
    },
}

impl HealthKey {
    /// The two keys of the way to a service through a gateway, given by the uid of its workload.
    pub(crate) fn through(gateway: &Arc<str>, service: &NamespacedHostname) -> [Self; 2] {
        let pair = Self::GatewayService { gateway: gateway.clone(), service: service.clone() };
        [Self::Gateway(gateway.clone()), pair]
    }
}

/// What is known of one endpoint at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Standing {
    /// In use.
    InService,
    /// Its ejection is over, and the next attempt there is the probe.
    HalfOpen,
    /// Left out: its ejection is not over, or a probe is under way.
    Ejected,
}

/// Which endpoints may be used, as [`Outliers::admit`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admitted {
    /// Their places among the keys, in order.
    pub indices: Vec<usize>,
    /// How many of them are ejected, and used all the same so that not too many are left out.
    pub overflow: usize,
    /// Whether all are ejected, and all are used.
    pub panic: bool,
}

/// An attempt to use an endpoint, from when it was chosen until the outcome is known: for a tunnel until the 200, not
/// until its end.
///
/// Dropping it says that there was no outcome. That is the right thing where the caller went away; a probe then leaves
/// its place to the next attempt.
#[derive(Debug)]
#[must_use = "dropping an attempt says that it had no outcome"]
pub struct Attempt<K> {
    key: K,
    began: Instant,
    standing: Standing,
    probe: Option<Arc<()>>,
}

/// Remembers who failed, and says whom to leave out. A pure state machine: time comes in with each call, and may come
/// in out of order; a time before the latest one counts as the latest.
///
/// Wrap it into a lock to share it, and hold the lock from [`admit`](Self::admit) to [`begin`](Self::begin): then two
/// callers never compete for a probe.
///
/// An endpoint without failures costs no memory. What is known of others is forgotten when they are in service again
/// and their ejections don't count any more, or after the [retention](OutlierConfig::with_retention).
#[derive(Debug)]
pub struct Outliers<K> {
    config: OutlierConfig,
    entries: HashMap<K, Entry>,
    latest: Option<Instant>,
    until_sweep: usize,
}

impl<K> Attempt<K> {
    /// The endpoint.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// How the endpoint stood when the attempt began. [`Standing::HalfOpen`]: this is the probe. [`Standing::Ejected`]:
    /// it was used although it was left out, or, when [`Outliers::admit`] said otherwise, another caller became the
    /// probe in between; then better choose again.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

impl<K: Clone + Eq + Hash> Outliers<K> {
    /// Nobody has failed.
    pub fn new(config: OutlierConfig) -> Self {
        Self { config, entries: HashMap::new(), latest: None, until_sweep: SWEEP }
    }

    /// Which of `keys`, each given once, may be used: those in service, and half-open ones, of which the next attempt
    /// is the probe. Never nobody, unless `keys` is empty.
    ///
    /// Of ejected ones at most [`max_ejection_percent`](OutlierConfig::with_max_ejection_percent) of `keys`, and always
    /// one, are left out: those that were ejected first. The others are used all the same, as in Envoy, which does not
    /// eject them in the first place. When nobody would be left, all are used (Envoy's panic mode with a threshold of 0
    /// %).
    pub fn admit(&self, keys: &[K], now: Instant) -> Admitted {
        let ejected: Vec<_> = keys.iter().map(|key| self.ejected_since(key, now)).collect();
        self.config.admit(&ejected)
    }

    /// Since when the endpoint is to be left out. `None` when it is in service or half-open.
    pub fn ejected_since(&self, key: &K, now: Instant) -> Option<Instant> {
        let now = self.at(now);
        let entry = self.get(key, now)?;
        (entry.standing(&self.config, now) == Standing::Ejected).then(|| entry.changed().unwrap_or(now))
    }

    /// The settings.
    pub fn config(&self) -> &OutlierConfig {
        &self.config
    }

    /// How the endpoint stands.
    pub fn standing(&self, key: &K, now: Instant) -> Standing {
        let now = self.at(now);
        self.get(key, now).map_or(Standing::InService, |entry| entry.standing(&self.config, now))
    }

    /// Whether the endpoint is to be left out: its ejection is not over, or a probe is under way.
    pub fn is_ejected(&self, key: &K, now: Instant) -> bool {
        self.standing(key, now) == Standing::Ejected
    }

    /// The endpoints that are ejected, for telemetry. They need not all be left out, see [`admit`](Self::admit).
    pub fn ejected(&self, now: Instant) -> impl Iterator<Item = &K> {
        let now = self.at(now);
        let ejected = move |entry: &Entry| {
            !entry.is_stale(&self.config, now) && entry.standing(&self.config, now) == Standing::Ejected
        };
        self.entries.iter().filter(move |(_, entry)| ejected(entry)).map(|(key, _)| key)
    }

    /// Starts an attempt: the endpoint has been chosen. If it is half-open, this is the probe, and others stay out
    /// until its outcome is known or it is dropped, or for the [probe timeout](OutlierConfig::with_probe_timeout).
    pub fn begin(&mut self, key: K, now: Instant) -> Attempt<K> {
        let now = self.advance(now);
        let standing = self.standing(&key, now);
        let probe = (standing == Standing::HalfOpen).then(|| Arc::new(()));
        if let Some(probe) = &probe {
            self.update(key.clone(), now, |_, entry| entry.map(|entry| entry.probed_by(probe, now)));
        }
        Attempt { key, began: now, standing, probe }
    }

    /// The attempt succeeded: the endpoint is in service, and its failures are forgotten. Its ejections are not
    /// forgotten at once, see [`OutlierConfig::with_interval`].
    ///
    /// That holds for every attempt that began after the ejection, probe or not: where ejected endpoints are used, to
    /// go on leaving out those that work would put all load on the few that were probed first. An attempt that began
    /// before says nothing new and counts for nothing.
    ///
    /// Returns whether this has put an ejected endpoint back into service.
    pub fn success(&mut self, attempt: Attempt<K>, now: Instant) -> bool {
        let now = self.advance(now);
        let Attempt { key, began, .. } = attempt;
        let mut readmitted = false;
        self.update(key, now, |config, entry| {
            let was_out = entry.as_ref().is_some_and(|entry| !entry.is_in_service());
            let entry = entry.map(|entry| entry.succeeded(config, began, now));
            readmitted = was_out && entry.as_ref().is_some_and(Entry::is_in_service);
            entry
        });
        readmitted
    }

    /// The attempt failed. In service, the [last of several](OutlierConfig::with_consecutive_failures) in a row ejects
    /// the endpoint; a probe ejects it again, for the base time × the number of ejections, up to the maximum. Other
    /// attempts at an ejected endpoint, and those that began before the last ejection or before it ended, count for
    /// nothing.
    ///
    /// Returns for how long this has ejected the endpoint, if it has.
    pub fn failure(&mut self, attempt: Attempt<K>, now: Instant) -> Option<Duration> {
        let now = self.advance(now);
        if self.config.consecutive_failures == 0 {
            return None;
        }
        let Attempt { key, began, probe, .. } = attempt;
        let mut ejected = None;
        self.update(key, now, |config, entry| {
            let entry = entry.unwrap_or_else(|| Entry::new(now));
            let was_ejected = entry.ejection().is_some();
            let entry = entry.failed(config, began, probe.as_ref(), now);
            ejected = entry.ejection().filter(|_| !was_ejected);
            Some(entry)
        });
        ejected
    }

    /// Forgets at once what the mesh does not have any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&K) -> bool) {
        self.entries.retain(|key, _| keep(key));
    }

    /// Forgets what is to be forgotten by now. Events do that as they come; this is for when none come.
    pub fn expire(&mut self, now: Instant) {
        let now = self.advance(now);
        let config = &self.config;
        self.entries.retain(|_, entry| !entry.is_stale(config, now));
        self.until_sweep = self.entries.len().max(SWEEP);
        self.check();
    }

    /// How many endpoints are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn at(&self, now: Instant) -> Instant {
        self.latest.map_or(now, |latest| latest.max(now))
    }

    fn advance(&mut self, now: Instant) -> Instant {
        *self.latest.insert(self.at(now))
    }

    fn get(&self, key: &K, now: Instant) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| !entry.is_stale(&self.config, now))
    }

    /// The only way in which an entry changes.
    fn update(&mut self, key: K, now: Instant, change: impl FnOnce(&OutlierConfig, Option<Entry>) -> Option<Entry>) {
        self.check();
        let config = &self.config;
        let entry = self.entries.remove(&key).filter(|entry| !entry.is_stale(config, now));
        let entry = change(config, entry).filter(|entry| !entry.is_stale(config, now));
        if let Some(entry) = entry {
            self.entries.insert(key, entry);
        }
        match self.until_sweep.checked_sub(1) {
            Some(rest) => self.until_sweep = rest,
            None => self.expire(now),
        }
        self.check();
    }

    /// What always holds. Checked around each change in debug builds.
    fn check(&self) {
        if cfg!(debug_assertions) {
            let latest = self.latest;
            self.entries.values().for_each(|entry| entry.assert_invariants(&self.config, latest));
        }
    }
}
