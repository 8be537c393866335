//! What one workload says of itself, for each of its connections.

use std::sync::{Arc, Mutex, PoisonError};

use super::Workload;
use crate::metadata::Baggage;

/// The baggage of the workload that was asked for last: it is put together anew only when the mesh has changed.
#[derive(Debug, Default)]
pub(crate) struct LastBaggage(Mutex<Option<(Arc<Workload>, Baggage)>>);

impl LastBaggage {
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
        let (before, after, last) = (workload("before"), workload("after"), LastBaggage::default());
        for workload in [&before, &before, &after, &before] {
            assert_eq!(last.of(workload), workload.baggage());
        }
        assert_ne!(before.baggage(), after.baggage());
    }
}
