//! Peers that take no bytes before their 200, remembered beyond their connections.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::path::Path;

/// The paths to them, each for a while. Pure: the time is an argument.
#[derive(Debug, Default)]
pub(super) struct Waiters(HashMap<Path, Instant>);

/// A peer may be replaced by one that takes them, or may have been blamed wrongly. Trying again costs little.
const REMEMBERED: Duration = Duration::from_secs(600);

/// More are not remembered: each costs a round trip to find out again.
const MOST: usize = 1024;

impl Waiters {
    pub(super) fn note(&mut self, peer: Path, now: Instant) {
        self.0.retain(|_, until| *until > now);
        if self.0.len() < MOST {
            self.0.insert(peer, now + REMEMBERED);
        }
    }

    pub(super) fn contains(&self, peer: &Path, now: Instant) -> bool {
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
    async fn a_peer_is_remembered_for_a_while_and_not_too_many_are() {
        let (mut waiters, now) = (Waiters::default(), Instant::now());
        (0..2000).for_each(|n| waiters.note(path(n), now));
        assert!(waiters.contains(&path(0), now) && !waiters.contains(&path(1999), now));
        assert_eq!(waiters.0.len(), MOST);
        let later = now + REMEMBERED;
        assert!(!waiters.contains(&path(0), later));
        waiters.note(path(1999), later);
        assert!(waiters.contains(&path(1999), later));
        assert_eq!(waiters.0.len(), 1);
    }
}
