//! What is in flight: a token for each piece of work, and counts by endpoint.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The token of a piece of work that a [`Balance`](super::Balance) has placed. Dropping it says that the work is over,
/// so it has to travel with the tunnel and be dropped when that ends.
///
/// Clones are the same token: the work is over when the last one is gone.
#[derive(Clone, Default)]
#[must_use = "dropping the token says that the work is over"]
pub struct InFlight(Option<Arc<dyn Any + Send + Sync>>);

impl InFlight {
    /// The token of a policy that does not care when work ends, and of work that nobody placed.
    pub fn none() -> Self {
        Self(None)
    }

    /// A token that holds this until the work is over. What is to happen then belongs into its `Drop`, which may run on
    /// any thread and must not block.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(held)))
    }

    /// One token for both: of work that was placed twice, at an endpoint and at the gateway before it.
    pub fn and(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self::new((a, b)),
            (a, b) => Self(a.or(b)),
        }
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "InFlight" } else { "InFlight(none)" })
    }
}

/// How much is in flight, by endpoint. Clones are the same counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Loads(Arc<Mutex<Counts>>);

/// Only endpoints with something in flight have an entry.
#[derive(Debug, Default)]
pub(super) struct Counts(HashMap<Arc<str>, u64>);

/// One piece of work at one endpoint.
struct Held {
    loads: Loads,
    uid: Arc<str>,
}

impl Loads {
    /// No token may be dropped under the lock: it takes the same lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, until the token is dropped.
    pub(super) fn add(&self, counts: &mut Counts, uid: &Arc<str>) -> InFlight {
        *counts.0.entry(uid.clone()).or_default() += 1;
        InFlight::new(Held { loads: self.clone(), uid: uid.clone() })
    }
}

impl Counts {
    pub(super) fn of(&self, uid: &str) -> u64 {
        self.0.get(uid).copied().unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.loads.lock();
        if let Some(count) = counts.0.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.0.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(loads: &Loads, uid: &Arc<str>) -> InFlight {
        loads.add(&mut loads.lock(), uid)
    }

    #[test]
    fn work_counts_until_the_last_clone_of_its_token_is_gone() {
        let (loads, uid) = (Loads::default(), Arc::from("a"));
        let token = add(&loads, &uid);
        let clone = token.clone();
        let other = add(&loads, &uid);
        assert_eq!(loads.lock().of("a"), 2);
        drop(token);
        assert_eq!(loads.lock().of("a"), 2);
        drop(clone);
        assert_eq!(loads.lock().of("a"), 1);
        drop(other);
        assert_eq!(loads.lock().len(), 0);
    }

    #[test]
    fn a_joint_token_holds_both_until_it_is_dropped() {
        let loads = Loads::default();
        let [a, b] = ["a", "b"].map(Arc::from);
        let joint = InFlight::none().and(add(&loads, &a)).and(InFlight::none()).and(add(&loads, &b));
        assert_eq!(["a", "b"].map(|uid| loads.lock().of(uid)), [1, 1]);
        drop(joint);
        assert_eq!(loads.lock().len(), 0);
    }

    #[test]
    fn a_token_outlives_its_balancer() {
        let loads = Loads::default();
        let token = add(&loads, &Arc::from("a"));
        drop(loads);
        drop(token);
    }

    #[test]
    fn tokens_are_dropped_on_any_thread() {
        let (loads, uid) = (Loads::default(), Arc::from("a"));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| drop(add(&loads, &uid))));
            }
        });
        assert_eq!(loads.lock().len(), 0);
    }
}
