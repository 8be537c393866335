//! The baggage of the workload that a proxy stands for.

use std::sync::{Arc, Mutex, PoisonError};

use super::Workload;
use crate::metadata::Baggage;

/// Keeps the baggage that was asked for last, so that it is put together again only after the workload has changed.
#[derive(Debug, Default)]
pub(crate) struct BaggageCache(Mutex<Option<(Arc<Workload>, Baggage)>>);

impl BaggageCache {
    pub(crate) fn of(&self, workload: &Arc<Workload>) -> Baggage {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((known, baggage)) if Arc::ptr_eq(known, workload) => baggage.clone(),
            _ => last.insert((workload.clone(), workload.baggage())).1.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_the_workload() {
        let workload = |name: &str| Arc::new(Workload::new("uid", name, "spiffe://td/ns/a/sa/b".parse().unwrap()));
        let (before, after, last) = (workload("before"), workload("after"), BaggageCache::default());
        for workload in [&before, &before, &after, &before] {
            assert_eq!(last.of(workload), workload.baggage());
        }
        assert_ne!(before.baggage(), after.baggage());
    }
}
