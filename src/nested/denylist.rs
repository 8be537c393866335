//! Peers that reject early data, remembered beyond their connections.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::path::Path;

/// The paths to them, each for a while. Pure: the time is an argument.
#[derive(Debug, Default)]
pub(crate) struct EarlyDataDenylist(HashMap<Path, Instant>);

/// A peer may be replaced by one that accepts early data, or may have been blamed wrongly. Trying again costs little.
const TTL: Duration = Duration::from_secs(600);

/// More are not remembered: each costs a round trip to find out again.
const CAPACITY: usize = 1024;

impl EarlyDataDenylist {
    pub(crate) fn insert(&mut self, peer: Path, now: Instant) {
        self.0.retain(|_, until| *until > now);
        if self.0.len() < CAPACITY {
            self.0.insert(peer, now + TTL);
        }
    }

    pub(crate) fn contains(&self, peer: &Path, now: Instant) -> bool {
        self.0.get(peer).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::DirectHop;

    fn path(n: u16) -> Path {
        Path::direct(DirectHop::new(([10, 0, 0, 1], n).into(), [].into_iter().collect()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_remembered_for_a_while_and_only_so_many_are() {
        let (mut denylist, now) = (EarlyDataDenylist::default(), Instant::now());
        (0..2000).for_each(|n| denylist.insert(path(n), now));
        assert!(denylist.contains(&path(0), now) && !denylist.contains(&path(1999), now));
        assert_eq!(denylist.0.len(), CAPACITY);
        let later = now + TTL;
        assert!(!denylist.contains(&path(0), later));
        denylist.insert(path(1999), later);
        assert!(denylist.contains(&path(1999), later));
        assert_eq!(denylist.0.len(), 1);
    }
}
