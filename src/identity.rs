//! SPIFFE identities of the mesh, and whom a hop accepts.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest SPIFFE ID in bytes (SPIFFE-ID, section 2.4).
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Exactly this form, nothing before, between or after it. Identities are compared as a whole and never by prefix.
///
/// ```
/// use hbone::SpiffeId;
///
/// let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/cart".parse()?;
/// assert_eq!((id.namespace(), id.service_account()), ("shop", "cart"));
/// assert_eq!(id, SpiffeId::new("cluster.local".parse()?, "shop", "cart")?);
/// # Ok::<(), hbone::SpiffeIdError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: TrustDomain,
    namespace: String,
    service_account: String,
}

/// The name of a trust domain, such as `cluster.local` (SPIFFE-ID, section 2.1): lower-case letters, digits, `.`, `-`, `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The trust domains whose workloads a server lets in: its own and the aliases that the mesh has for it.
///
/// The check is on the certificate's SPIFFE ID, after its chain has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    own: TrustDomain,
    aliases: BTreeSet<TrustDomain>,
}

/// The identities that a client accepts at the far end of one hop. An empty set accepts nobody.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct AcceptedIdentities(
    /// In order, each once.
    Arc<[SpiffeId]>,
);

/// Why a text is no [`SpiffeId`] or [`TrustDomain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// Longer than 2048 bytes.
    TooLong,
    /// Does not start with `spiffe://`.
    NotSpiffe,
    /// Empty, over 255 bytes, or a character outside of `a-z 0-9 . - _`.
    BadTrustDomain,
    /// Not of the form `/ns/<namespace>/sa/<service account>`.
    NotWorkload,
    /// A path segment is empty, `.`, `..`, or has a character outside of `a-z A-Z 0-9 . - _`.
    BadSegment,
}

impl SpiffeId {
    /// Builds an identity from its parts.
    ///
    /// # Errors
    ///
    /// [`SpiffeIdError::BadSegment`] or [`SpiffeIdError::TooLong`].
    pub fn new(trust_domain: TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeIdError> {
        if !valid_segment(namespace) || !valid_segment(service_account) {
            return Err(SpiffeIdError::BadSegment);
        }
        let parts =
            Parts { trust_domain, namespace: namespace.to_owned(), service_account: service_account.to_owned() };
        let id = Self(Arc::new(parts));
        if id.to_string().len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        Ok(id)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// The service account.
    pub fn service_account(&self) -> &str {
        &self.0.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::NotSpiffe)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(SpiffeIdError::NotWorkload)?;
        let trust_domain = trust_domain.parse()?;
        let mut segments = path.split('/');
        match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) => {
                Self::new(trust_domain, namespace, service_account)
            }
            _ => Err(SpiffeIdError::NotWorkload),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { trust_domain, namespace, service_account } = &*self.0;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TrustDomain {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(valid) {
            return Err(SpiffeIdError::BadTrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TrustDomains {
    /// Only `own`.
    pub fn new(own: TrustDomain) -> Self {
        Self { own, aliases: BTreeSet::new() }
    }

    /// Adds trust domains that count as the own one.
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        self.aliases.extend(aliases);
        self
    }

    /// Whether a workload of this identity is let in.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.own == *id.trust_domain() || self.aliases.contains(id.trust_domain())
    }
}

impl fmt::Display for TrustDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, std::iter::once(&self.own).chain(&self.aliases))
    }
}

impl AcceptedIdentities {
    /// Whether the far end may have this identity.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.0.binary_search(id).is_ok()
    }

    /// Whether nobody is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The identities, in order.
    pub fn iter(&self) -> impl Iterator<Item = &SpiffeId> {
        self.0.iter()
    }
}

impl FromIterator<SpiffeId> for AcceptedIdentities {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(ids: I) -> Self {
        // Mostly one or two, and kept with each path: a tree would take more room.
        let mut ids: Vec<SpiffeId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(ids.into())
    }
}

impl From<SpiffeId> for AcceptedIdentities {
    fn from(id: SpiffeId) -> Self {
        Self::from_iter([id])
    }
}

impl fmt::Display for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        write_list(f, self.0.iter())
    }
}

impl fmt::Debug for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter()).finish()
    }
}

impl fmt::Display for SpiffeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the SPIFFE ID is longer than 2048 bytes",
            Self::NotSpiffe => "the identity does not start with spiffe://",
            Self::BadTrustDomain => "the trust domain is empty, too long or has a character outside of a-z 0-9 . - _",
            Self::NotWorkload => {
                "the SPIFFE ID is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
            }
            Self::BadSegment => {
                "a path segment of the SPIFFE ID is empty or has a character outside of a-z A-Z 0-9 . - _"
            }
        })
    }
}

impl std::error::Error for SpiffeIdError {}

fn valid_segment(segment: &str) -> bool {
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(valid)
}

fn write_list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    for (i, item) in items.enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("https://cluster.local/ns/a/sa/b", SpiffeIdError::NotSpiffe)]
    #[case("SPIFFE://cluster.local/ns/a/sa/b", SpiffeIdError::NotSpiffe)]
    #[case("spiffe://cluster.local", SpiffeIdError::NotWorkload)]
    #[case("spiffe://cluster.local/", SpiffeIdError::NotWorkload)]
    #[case("spiffe://cluster.local/ns/a/sa", SpiffeIdError::NotWorkload)]
    #[case("spiffe://cluster.local/ns/a/sa/b/c", SpiffeIdError::NotWorkload)]
    #[case("spiffe://cluster.local/ns/a/sa/b/", SpiffeIdError::NotWorkload)]
    #[case("spiffe://cluster.local/sa/a/ns/b", SpiffeIdError::NotWorkload)]
    #[case("spiffe:///ns/a/sa/b", SpiffeIdError::BadTrustDomain)]
    #[case("spiffe://Cluster.Local/ns/a/sa/b", SpiffeIdError::BadTrustDomain)]
    #[case("spiffe://user@cluster.local/ns/a/sa/b", SpiffeIdError::BadTrustDomain)]
    #[case("spiffe://cluster.local:80/ns/a/sa/b", SpiffeIdError::BadTrustDomain)]
    #[case("spiffe://cluster.local/ns//sa/b", SpiffeIdError::BadSegment)]
    #[case("spiffe://cluster.local/ns/../sa/b", SpiffeIdError::BadSegment)]
    #[case("spiffe://cluster.local/ns/a/sa/b?x", SpiffeIdError::BadSegment)]
    #[case("spiffe://cluster.local/ns/a/sa/b%20", SpiffeIdError::BadSegment)]
    fn anything_but_the_exact_form_is_refused(#[case] text: &str, #[case] error: SpiffeIdError) {
        assert_eq!(text.parse::<SpiffeId>(), Err(error));
    }

    #[test]
    fn an_empty_set_accepts_nobody() {
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        assert!(!AcceptedIdentities::default().contains(&id));
        assert!(AcceptedIdentities::from(id.clone()).contains(&id));
        assert_eq!(AcceptedIdentities::default().to_string(), "nobody");
    }

    #[test]
    fn aliases_count_as_the_own_trust_domain() {
        let domains = TrustDomains::new("east.example".parse().unwrap()).with_aliases(["old.example".parse().unwrap()]);
        for (td, expected) in [("east.example", true), ("old.example", true), ("old.example.org", false)] {
            let id = SpiffeId::new(td.parse().unwrap(), "a", "b").unwrap();
            assert_eq!(domains.contains(&id), expected, "{td}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_itself(text in "(spiffe://)?[a-zA-Z0-9./:_-]{0,40}(/ns/[a-z.]{0,5}/sa/[a-z.]{0,5})?") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
