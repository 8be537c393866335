//! The way to a destination: one direct hop, then hops through tunnels.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::mem::discriminant;
use std::sync::Arc;

use crate::authority::Authority;
use crate::identity::AcceptedIdentities;
use crate::metadata::Metadata;
use crate::target::DialTarget;

/// The hops that a connection takes, from the outside in. Cheap to clone.
///
/// The first hop is dialed; each further one is a tunnel through the hop before it, with its own TLS and HTTP/2 inside.
/// A path with one hop is single HBONE; with two it is nested (double) HBONE.
///
/// Equal paths may share their connections. So the number in [`Reuse::Spread`] does not count for equality: it follows
/// the mesh while the connections stay.
#[derive(Clone)]
pub struct Path(Arc<Hops>);

#[derive(Clone, Debug)]
struct Hops {
    direct: DirectHop,
    tunnelled: Vec<TunnelledHop>,
}

/// The first hop of a [`Path`]: a byte stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DirectHop {
    /// Where the peer accepts HBONE.
    pub address: DialTarget,
    /// Whom to accept there.
    pub accept: AcceptedIdentities,
    /// How its connections may be shared.
    pub reuse: Reuse,
}

/// A further hop of a [`Path`]: a tunnel through the hop before it, and a session with its own identities inside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunnelledHop {
    /// The authority of the CONNECT that opens the tunnel.
    pub authority: Authority,
    /// Whom to accept at its far end.
    pub accept: AcceptedIdentities,
    /// How its connections may be shared.
    pub reuse: Reuse,
    /// What that CONNECT says, to the peer of the hop before. `None` for what the [source](crate::pool::Pool::source)
    /// says.
    pub metadata: Option<Arc<Metadata>>,
}

/// How the connections of a hop may be shared by many tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reuse {
    /// One far end, so any connection will do.
    Shared,
    /// This many far ends stand behind one name: keep connections to as many and spread tunnels over them, since
    /// sharing just one would pin every tunnel to the far end it happens to lead to.
    Spread(u32),
    /// A connection of its own for each tunnel.
    Never,
}

impl DirectHop {
    /// A hop whose connections are [`Reuse::Shared`].
    pub fn new(address: DialTarget, accept: AcceptedIdentities) -> Self {
        Self { address, accept, reuse: Reuse::Shared }
    }

    /// Sets how its connections may be shared.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }
}

impl TunnelledHop {
    /// A hop whose connections are [`Reuse::Shared`].
    pub fn new(authority: Authority, accept: AcceptedIdentities) -> Self {
        Self { authority, accept, reuse: Reuse::Shared, metadata: None }
    }

    /// Sets how its connections may be shared.
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }
}

impl TunnelledHop {
    /// What the CONNECT of this hop says, instead of what the source says for all hops. Hops that say different things
    /// share no connections, so leave out what differs between tunnels, such as a trace.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = Some(Arc::new(metadata));
        self
    }
}

impl Path {
    /// A path of one hop.
    pub fn direct(hop: DirectHop) -> Self {
        Self(Arc::new(Hops { direct: hop, tunnelled: Vec::new() }))
    }

    /// Adds a hop inside the ones so far. Depth is not limited.
    pub fn then(mut self, hop: TunnelledHop) -> Self {
        let tunnelled = &mut Arc::make_mut(&mut self.0).tunnelled;
        // Each tunnel keeps its path, and few have a third hop.
        tunnelled.reserve_exact(1);
        tunnelled.push(hop);
        self
    }

    /// The first hop.
    pub fn first(&self) -> &DirectHop {
        &self.0.direct
    }

    /// The hops after the first, from the outside in.
    pub fn tunnelled(&self) -> &[TunnelledHop] {
        &self.0.tunnelled
    }

    /// How many hops there are: 1 is single HBONE, 2 nested HBONE.
    pub fn depth(&self) -> usize {
        1 + self.0.tunnelled.len()
    }

    /// How the connections of the last hop may be shared.
    pub fn reuse(&self) -> Reuse {
        self.0.tunnelled.last().map_or(self.0.direct.reuse, |hop| hop.reuse)
    }

    /// The path without its last hop, and that hop. `None` for a path of one hop.
    pub fn parent(&self) -> Option<(Self, &TunnelledHop)> {
        let (last, rest) = self.0.tunnelled.split_last()?;
        Some((Self(Arc::new(Hops { direct: self.0.direct.clone(), tunnelled: rest.to_vec() })), last))
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (&*self.0, &*other.0);
        let same = |a: Reuse, b: Reuse| discriminant(&a) == discriminant(&b);
        Arc::ptr_eq(&self.0, &other.0)
            || a.direct.address == b.direct.address
                && a.tunnelled.len() == b.tunnelled.len()
                && same(a.direct.reuse, b.direct.reuse)
                && a.direct.accept == b.direct.accept
                && a.tunnelled.iter().zip(&b.tunnelled).all(|(a, b)| {
                    same(a.reuse, b.reuse)
                        && a.authority == b.authority
                        && a.accept == b.accept
                        && a.metadata == b.metadata
                })
    }
}

impl Eq for Path {}

/// Of addresses and authorities alone: the rest is large, and rarely differs where these do not.
impl Hash for Path {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.direct.address.hash(state);
        self.0.tunnelled.len().hash(state);
        self.0.tunnelled.iter().for_each(|hop| hop.authority.hash(state));
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Path").field("direct", &self.0.direct).field("tunnelled", &self.0.tunnelled).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rstest::rstest;

    use super::*;
    use crate::identity::SpiffeId;

    fn path(address: &str, reuse: Reuse, authority: &str, accepted: &str) -> Path {
        let accept =
            |name: &str| AcceptedIdentities::from(format!("spiffe://td/ns/a/sa/{name}").parse::<SpiffeId>().unwrap());
        Path::direct(DirectHop::new(address.parse().unwrap(), accept("gateway")))
            .then(TunnelledHop::new(authority.parse().unwrap(), accept(accepted)).with_reuse(reuse))
    }

    #[rstest]
    #[case::another_number_of_far_ends("1.1.1.1:1", Reuse::Spread(9), "a:1", "x", true)]
    #[case::address("1.1.1.2:1", Reuse::Spread(3), "a:1", "x", false)]
    #[case::reuse("1.1.1.1:1", Reuse::Shared, "a:1", "x", false)]
    #[case::authority("1.1.1.1:1", Reuse::Spread(3), "b:1", "x", false)]
    #[case::identities("1.1.1.1:1", Reuse::Spread(3), "a:1", "y", false)]
    fn paths_are_equal_when_their_connections_can_be_shared(
        #[case] address: &str,
        #[case] reuse: Reuse,
        #[case] authority: &str,
        #[case] accept: &str,
        #[case] expected: bool,
    ) {
        #[expect(clippy::mutable_key_type, reason = "what metadata caches does not count for equality")]
        let paths = HashSet::from([path("1.1.1.1:1", Reuse::Spread(3), "a:1", "x")]);
        assert_eq!(paths.contains(&path(address, reuse, authority, accept)), expected);
    }

    #[test]
    fn a_parent_is_the_path_without_its_last_hop() {
        let whole = path("1.1.1.1:1", Reuse::Never, "a:1", "x");
        let (parent, last) = whole.parent().unwrap();
        assert_eq!((parent.depth(), last.authority.to_string()), (1, "a:1".to_owned()));
        assert_eq!((parent.reuse(), whole.reuse()), (Reuse::Shared, Reuse::Never));
        assert!(parent.parent().is_none());
    }
}
