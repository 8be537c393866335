//! What decides where several endpoints would do.

use std::fmt;

use tokio::time::Instant;

use super::candidates::{Gateway, Ranked};
use crate::balance::health::{HealthKey, Outliers};
use crate::balance::{Balance, Candidate, InFlight, Pick};
use crate::mesh::{Service, Workload};

/// What decides where several endpoints would do: who has failed recently, and a balancer.
///
/// Endpoints, and of an endpoint in another network the gateways before it, are left out in this order, each time only
/// as long as others are left:
///
/// 1. those that [have failed this caller](Self::with_tried);
/// 2. those that are [ejected](Self::with_health);
/// 3. those to [pass over](Self::with_passed_over).
///
/// So a caller who tries again comes to every endpoint before it comes to one for the second time, to the healthy ones
/// first. Among those that are left the preferences of the service and the balancer choose.
///
/// ```
/// use hbone::balance::WeightedRandom;
/// use hbone::balance::health::{OutlierConfig, Outliers};
/// use hbone::route::Choice;
/// use tokio::time::Instant;
///
/// let (balance, outliers) = (WeightedRandom::new(), Outliers::new(OutlierConfig::new()));
/// let choice = Choice::new(&balance).with_health(&outliers, Instant::now());
/// ```
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    balance: &'a dyn Balance,
    health: Option<(&'a Outliers<HealthKey>, Instant)>,
    tried: &'a [HealthKey],
    passed_over: Option<&'a dyn Fn(&Workload) -> bool>,
}

/// What is held against one thing to choose.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Record {
    ejected_since: Option<Instant>,
    tried: bool,
}

impl<'a> Choice<'a> {
    /// The balancer alone: everybody is healthy, and nothing has been tried.
    pub fn new(balance: &'a dyn Balance) -> Self {
        Self { balance, health: None, tried: &[], passed_over: None }
    }

    /// Leaves out who is ejected at this time, as [`Outliers::admit`] does: not more of them than
    /// [`max_ejection_percent`](crate::balance::health::OutlierConfig::with_max_ejection_percent), and nobody when all
    /// are. That is decided twice, among the endpoints of a service in all networks and tiers, and among the gateways
    /// of the endpoint that was chosen.
    ///
    /// An endpoint in the source's own network has the key [`HealthKey::Workload`]. A way through a gateway is ejected
    /// when the [`Gateway`](HealthKey::Gateway) or the [`GatewayService`](HealthKey::GatewayService) is; an endpoint in
    /// another network when all of the ways to it are that have not been tried. Default: nobody is left out.
    ///
    /// To have one caller only be the probe of a half-open endpoint, hold the lock of the outliers until the attempt at
    /// [`Route::health_keys`](super::Route::health_keys) has [begun](Outliers::begin).
    pub fn with_health(mut self, outliers: &'a Outliers<HealthKey>, now: Instant) -> Self {
        self.health = Some((outliers, now));
        self
    }

    /// Endpoints and gateways that have just failed this caller: not chosen again while there is any other, ejected or
    /// not. A way through a gateway counts as tried when either of its keys is there. Default: none.
    pub fn with_tried(mut self, tried: &'a [HealthKey]) -> Self {
        self.tried = tried;
        self
    }

    /// Workloads, endpoints and gateways alike, that are not chosen while there is another one that is as healthy.
    /// Default: none.
    pub fn with_passed_over(mut self, pass: &'a dyn Fn(&Workload) -> bool) -> Self {
        self.passed_over = Some(pass);
        self
    }

    pub(super) fn heeds_rank(&self) -> bool {
        self.balance.heeds_rank()
    }

    /// Of an endpoint in the source's own network.
    pub(super) fn endpoint(&self, workload: &Workload) -> Record {
        if self.has_no_records() { Record::default() } else { self.key(&HealthKey::Workload(workload.uid.clone())) }
    }

    /// Of the way to a service through one gateway.
    pub(super) fn way(&self, gateway: &Gateway, service: &Service) -> Record {
        if self.has_no_records() {
            return Record::default();
        }
        let [a, b] = HealthKey::through(&gateway.workload.uid, &service.key).map(|key| self.key(&key));
        let first = a.ejected_since.into_iter().chain(b.ejected_since).min();
        Record { ejected_since: first, tried: a.tried || b.tried }
    }

    /// Of an endpoint in another network: of the ways to it that this caller has left.
    pub(super) fn ways(&self, gateways: &[Gateway], service: &Service) -> Record {
        let ways: Vec<_> = gateways.iter().map(|gateway| self.way(gateway, service)).collect();
        let tried = ways.iter().all(|way| way.tried);
        let left = || ways.iter().filter(|way| way.tried == tried).map(|way| way.ejected_since);
        let ejected_since = if left().all(|since| since.is_some()) { left().flatten().max() } else { None };
        Record { ejected_since, tried }
    }

    fn key(&self, key: &HealthKey) -> Record {
        let ejected_since = self.health.and_then(|(outliers, now)| outliers.ejected_since(key, now));
        Record { ejected_since, tried: self.tried.contains(key) }
    }

    fn has_no_records(&self) -> bool {
        self.tried.is_empty() && self.health.is_none_or(|(outliers, _)| outliers.is_empty())
    }

    /// Leaves out what is not to be chosen while others are left.
    pub(super) fn narrow<T>(
        &self,
        items: Vec<T>,
        record: impl Fn(&T) -> Record,
        workload: impl Fn(&T) -> &Workload,
    ) -> Vec<T> {
        let items = if self.has_no_records() { items } else { self.best(items, record) };
        let Some(passed_over) = self.passed_over else {
            return items;
        };
        least(items, |item, _| passed_over(workload(item)))
    }

    fn best<T>(&self, items: Vec<T>, record: impl Fn(&T) -> Record) -> Vec<T> {
        let records: Vec<_> = items.iter().map(record).collect();
        let mut admitted = vec![self.health.is_none(); items.len()];
        if let Some((outliers, _)) = self.health {
            // Of all, tried or not: how many may be left out is a share of them.
            let ejected: Vec<_> = records.iter().map(|record| record.ejected_since).collect();
            outliers.config().admit(&ejected).indices.iter().for_each(|index| admitted[*index] = true);
        }
        least(items, |_, index| (records[index].tried, !admitted[index]))
    }

    /// Chooses one by capacity. The token is that of the work that it is chosen for.
    pub(super) fn pick<T>(
        &self,
        candidates: Vec<Ranked<T>>,
        workload: impl Fn(&T) -> &Workload,
    ) -> Option<(T, InFlight)> {
        let list: Vec<_> = candidates
            .iter()
            .map(|c| Candidate::new(workload(&c.item), workload(&c.item).capacity).with_rank(c.rank))
            .collect();
        let Pick { index, in_flight, .. } = self.balance.pick(&list)?;
        Some((candidates.into_iter().nth(index)?.item, in_flight))
    }
}

impl Record {
    pub(super) fn is_tried(&self) -> bool {
        self.tried
    }
}

impl fmt::Debug for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Choice")
            .field("balance", &self.balance)
            .field("health", &self.health.is_some())
            .field("tried", &self.tried)
            .field("passed_over", &self.passed_over.is_some())
            .finish()
    }
}

/// Those of which `fault` is the least.
fn least<T, F: Ord + Copy>(items: Vec<T>, fault: impl Fn(&T, usize) -> F) -> Vec<T> {
    let faults: Vec<F> = items.iter().enumerate().map(|(index, item)| fault(item, index)).collect();
    let Some(least) = faults.iter().copied().min() else {
        return items;
    };
    items.into_iter().zip(faults).filter_map(|(item, fault)| (fault == least).then_some(item)).collect()
}
