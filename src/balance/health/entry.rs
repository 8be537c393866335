//! One endpoint that has failed recently.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::{OutlierConfig, Standing};

/// What is remembered of an endpoint. One without an entry is in service, and nothing is held against it.
#[derive(Debug)]
pub(super) struct Entry {
    state: State,
    /// Ejections in a row, as of the last change; time in service takes from them.
    ejections: u32,
    /// When it was last ejected or re-admitted, if ever.
    changed: Option<Instant>,
    /// The last event that counted.
    touched: Instant,
}

#[derive(Debug)]
enum State {
    InService { failures: u32 },
    Ejected { lasts: Duration },
    // Dead once the probe was dropped. Then the next attempt is the probe.
    Probed { by: Weak<()> },
}

impl Entry {
    /// In service, about to fail for the first time.
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::InService { failures: 0 }, ejections: 0, changed: None, touched: now }
    }

    pub(super) fn changed(&self) -> Option<Instant> {
        self.changed
    }

    /// For how long it is ejected. `None` when it is not.
    pub(super) fn ejection(&self) -> Option<Duration> {
        if let State::Ejected { lasts } = self.state { Some(lasts) } else { None }
    }

    pub(super) fn is_in_service(&self) -> bool {
        matches!(self.state, State::InService { .. })
    }

    pub(super) fn standing(&self, config: &OutlierConfig, now: Instant) -> Standing {
        let elapsed = now.saturating_duration_since(self.touched);
        match &self.state {
            State::InService { .. } => Standing::InService,
            State::Ejected { lasts } if elapsed < *lasts => Standing::Ejected,
            State::Probed { by } if by.strong_count() > 0 && elapsed < config.probe_timeout => Standing::Ejected,
            State::Ejected { .. } | State::Probed { .. } => Standing::HalfOpen,
        }
    }

    /// Whether there is nothing in it that is still to be remembered.
    pub(super) fn is_stale(&self, config: &OutlierConfig, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.touched);
        match self.state {
            State::InService { .. } => self.failures(config, now) == 0 && self.ejections(config, now) == 0,
            State::Ejected { lasts } => elapsed >= lasts.saturating_add(config.retention),
            State::Probed { .. } => elapsed >= config.probe_timeout.saturating_add(config.retention),
        }
    }

    #[must_use]
    pub(super) fn probed_by(self, probe: &Arc<()>, now: Instant) -> Self {
        Self { state: State::Probed { by: Arc::downgrade(probe) }, touched: now, ..self }
    }

    #[must_use]
    pub(super) fn succeeded(self, config: &OutlierConfig, began: Instant, now: Instant) -> Self {
        if self.is_news_from_before(began) {
            return self;
        }
        match self.state {
            State::InService { .. } => Self { state: State::InService { failures: 0 }, touched: now, ..self },
            State::Ejected { .. } | State::Probed { .. } => Self {
                state: State::InService { failures: 0 },
                ejections: self.ejections(config, now),
                changed: Some(now),
                touched: now,
            },
        }
    }

    #[must_use]
    pub(super) fn failed(self, config: &OutlierConfig, began: Instant, probe: Option<&Arc<()>>, now: Instant) -> Self {
        if self.is_news_from_before(began) {
            return self;
        }
        match &self.state {
            State::InService { .. } => {
                let failures = self.failures(config, now).saturating_add(1);
                if failures >= config.consecutive_failures {
                    return self.eject(config, now);
                }
                Self { state: State::InService { failures }, touched: now, ..self }
            }
            State::Probed { by } if probe.is_some_and(|probe| by.ptr_eq(&Arc::downgrade(probe))) => {
                self.eject(config, now)
            }
            State::Ejected { .. } | State::Probed { .. } => self,
        }
    }

    fn eject(self, config: &OutlierConfig, now: Instant) -> Self {
        let ejections = self.ejections(config, now).saturating_add(1).min(config.longest_ejection());
        let lasts = config.ejection_time(ejections);
        Self { state: State::Ejected { lasts }, ejections, changed: Some(now), touched: now }
    }

    /// What began before the last ejection or re-admission met another state of the endpoint. Before the first one
    /// there is no such moment: attempts that run side by side all count.
    fn is_news_from_before(&self, began: Instant) -> bool {
        self.changed.is_some_and(|changed| began < changed)
    }

    /// Failures in a row. A streak is forgotten when nothing was added to it for long.
    fn failures(&self, config: &OutlierConfig, now: Instant) -> u32 {
        match self.state {
            State::InService { failures } if now.saturating_duration_since(self.touched) < config.retention => failures,
            _ => 0,
        }
    }

    /// Ejections in a row, less one for each interval in service.
    fn ejections(&self, config: &OutlierConfig, now: Instant) -> u32 {
        match (&self.state, self.changed) {
            (State::InService { .. }, Some(readmitted)) => {
                let in_service = now.saturating_duration_since(readmitted).as_nanos();
                let intervals = in_service.checked_div(config.interval.as_nanos()).unwrap_or(u128::MAX);
                self.ejections.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
            }
            _ => self.ejections,
        }
    }

    /// What always holds between events.
    ///
    /// # Panics
    ///
    /// When something does not.
    pub(super) fn assert_invariants(&self, config: &OutlierConfig, latest: Option<Instant>) {
        assert!(latest.is_some_and(|latest| self.touched <= latest), "nothing is from the future: {self:?}");
        assert!(self.changed.is_none_or(|changed| changed <= self.touched), "a change is an event: {self:?}");
        assert_eq!(self.ejections > 0, self.changed.is_some(), "who was ejected was so at some time: {self:?}");
        assert!(self.ejections <= config.longest_ejection(), "more ejections than count: {self:?}");
        match &self.state {
            State::InService { failures } => {
                assert!(*failures < config.consecutive_failures, "in service with too many failures: {self:?}");
                assert!(*failures > 0 || self.ejections > 0, "nothing to remember: {self:?}");
            }
            State::Ejected { lasts } => {
                assert_eq!(*lasts, config.ejection_time(self.ejections), "ejected for a wrong time: {self:?}");
                assert_eq!(self.changed, Some(self.touched), "an ejection runs from its start: {self:?}");
            }
            State::Probed { .. } => assert!(self.ejections > 0, "a probe without an ejection: {self:?}"),
        }
    }
}
