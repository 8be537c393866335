//! Which of several endpoints a connection goes to.
//!
//! | Policy | Chooses | Remembers |
//! |---|---|---|
//! | [`WeightedRandom`] | at random, by weight | nothing |
//! | [`RoundRobin`] | in turn, by weight | whose turn it is |
//! | [`LeastRequests`] | the less busy of two at random | what is in flight |
//! | [`LocalityTiers`] | the nearest tier, and any of the above inside of it | what is in flight, if tiers may be full |
//!
//! [`health`] says which endpoints to leave out because they failed recently.

mod in_flight;
mod least_requests;
mod random;
mod round_robin;
#[cfg(test)]
mod tests;
mod tiers;

pub mod health;

use std::fmt::Debug;
use std::sync::Arc;

pub use self::in_flight::InFlight;
pub use self::least_requests::LeastRequests;
pub use self::random::WeightedRandom;
pub use self::round_robin::RoundRobin;
pub use self::tiers::LocalityTiers;
use crate::mesh::Workload;

/// One of the endpoints to choose from.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Candidate<'a> {
    /// The endpoint. Its uid is what a policy remembers it by.
    pub workload: &'a Workload,
    /// How much of the traffic it should get, relative to the others: its capacity. 0 is none.
    pub weight: u32,
    /// Its tier: 0 is the nearest. See [`Balance::heeds_rank`].
    pub rank: u32,
}

/// What a [`Balance`] has chosen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pick {
    /// The place of the choice among the candidates.
    pub index: usize,
    /// Lives as long as the work that the choice was for.
    pub in_flight: InFlight,
}

/// A way to choose among endpoints. Health has been taken care of by then.
///
/// # Contract
///
/// * [`pick`](Self::pick) returns `None` if and only if nobody has weight. A candidate of weight 0 is never picked.
/// * It may be called from many threads at a time, and under a lock: it does not block on anything but a short lock of
///   its own, and does no I/O.
/// * The index refers to the slice, which may differ from call to call. One balancer serves many services, so the slice
///   is not all that there is.
/// * The token in [`Pick::in_flight`] is dropped when the work *ends*: when a tunnel has been relayed to its end, not
///   when its 200 has arrived. It may be dropped on any thread, also after the endpoint is gone from the mesh or the
///   balancer has been dropped.
/// * Endpoints are known by uid, and those that disappear are forgotten: what a balancer remembers is bounded by what
///   is in flight and what is in the mesh.
///
/// # Examples
///
/// ```
/// use hbone::balance::{Balance, Candidate, InFlight, Pick};
///
/// /// The first one that may be chosen at all.
/// #[derive(Debug)]
/// struct First;
///
/// impl Balance for First {
///     fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
///         let index = candidates.iter().position(|c| c.weight > 0)?;
///         Some(Pick::new(index, InFlight::none()))
///     }
/// }
/// ```
pub trait Balance: Send + Sync + Debug {
    /// Chooses one of the candidates. `None` when nobody has weight.
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick>;

    /// Whether [`Candidate::rank`] matters to this policy. Default: no, and then it is only given candidates that are
    /// as near as each other. If yes, it is given those of all tiers, and is trusted to prefer the near ones.
    fn heeds_rank(&self) -> bool {
        false
    }
}

impl<'a> Candidate<'a> {
    /// A candidate with a weight of its own, in the nearest tier.
    pub fn new(workload: &'a Workload, weight: u32) -> Self {
        Self { workload, weight, rank: 0 }
    }

    /// Puts it into this tier. Default 0, the nearest.
    pub fn with_rank(mut self, rank: u32) -> Self {
        self.rank = rank;
        self
    }
}

impl Pick {
    /// A choice and the token of its work.
    pub fn new(index: usize, in_flight: InFlight) -> Self {
        Self { index, in_flight }
    }
}

impl<B: Balance + ?Sized> Balance for Arc<B> {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        (**self).pick(candidates)
    }

    fn heeds_rank(&self) -> bool {
        (**self).heeds_rank()
    }
}

impl<B: Balance + ?Sized> Balance for Box<B> {
    fn pick(&self, candidates: &[Candidate<'_>]) -> Option<Pick> {
        (**self).pick(candidates)
    }

    fn heeds_rank(&self) -> bool {
        (**self).heeds_rank()
    }
}
