//! SPIFFE identities, and which of them a hop accepts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest SPIFFE ID in bytes (SPIFFE-ID, section 2.4).
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Parsing takes exactly this form, nothing before, between or after it. Identities of another form, as SPIRE issues
/// them, are made by [`SpiffeId::with_path`] and [`SpiffeId::from_any_path`]; certificates with them are accepted only
/// where that was chosen. Identities are compared as a whole and never by prefix.
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
    path: IdPath,
}

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
enum IdPath {
    Workload {
        namespace: String,
        service_account: String,
    },
    /// Any other form, with its leading slash.
    Other(String),
}

/// The name of a trust domain, such as `cluster.local` (SPIFFE-ID, section 2.1): lower-case letters, digits, `.`, `-`,
/// `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The trust domains whose workloads a server accepts: its own and its aliases, or any.
///
/// The check is on the certificate's SPIFFE ID, after its chain has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    /// The server's own comes first. `None` for any.
    only: Option<Arc<[TrustDomain]>>,
    any_path: bool,
}

/// The identities that a client accepts at the far end of one hop. An empty set, which is the default, accepts nobody.
///
/// Collected from [`SpiffeId`]s, it accepts these only. [`trust_domain`](Self::trust_domain) and [`any`](Self::any)
/// accept peers that are not known by name: whoever can get a certificate from one of the roots may then answer in
/// place of the peer that is meant.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct AcceptedIdentities(Accepted);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Accepted {
    /// In order, each once.
    Only(Arc<[SpiffeId]>),
    TrustDomain(TrustDomain),
    Any,
}

impl Default for Accepted {
    fn default() -> Self {
        Self::Only(Arc::default())
    }
}

/// Why a text is not a [`SpiffeId`] or [`TrustDomain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpiffeIdError {
    /// Longer than 2048 bytes.
    TooLong,
    /// Does not start with `spiffe://`.
    NotSpiffe,
    /// Empty, over 255 bytes, or a character outside of `a-z 0-9 . - _`.
    BadTrustDomain,
    /// Not of the form `/ns/<namespace>/sa/<service account>`, or without a path at all.
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
        let (namespace, service_account) = (namespace.to_owned(), service_account.to_owned());
        Self::checked(trust_domain, IdPath::Workload { namespace, service_account })
    }

    /// Builds an identity whose path may have any form, such as `/agent/web/1`.
    ///
    /// # Errors
    ///
    /// [`SpiffeIdError::NotWorkload`] when it does not start with `/`, [`SpiffeIdError::BadSegment`] or
    /// [`SpiffeIdError::TooLong`].
    pub fn with_path(trust_domain: TrustDomain, path: &str) -> Result<Self, SpiffeIdError> {
        let segments = path.strip_prefix('/').ok_or(SpiffeIdError::NotWorkload)?;
        match segments.split('/').collect::<Vec<_>>()[..] {
            ["ns", namespace, "sa", service_account] => Self::new(trust_domain, namespace, service_account),
            ref segments if segments.iter().all(|segment| valid_segment(segment)) => {
                Self::checked(trust_domain, IdPath::Other(path.to_owned()))
            }
            _ => Err(SpiffeIdError::BadSegment),
        }
    }

    /// Parses an identity whose path may have any form.
    ///
    /// # Errors
    ///
    /// As [`SpiffeId::with_path`]; [`SpiffeIdError::NotSpiffe`] or [`SpiffeIdError::BadTrustDomain`].
    pub fn from_any_path(text: &str) -> Result<Self, SpiffeIdError> {
        let (trust_domain, path) = split(text)?;
        Self::with_path(trust_domain.parse()?, path)
    }

    fn checked(trust_domain: TrustDomain, path: IdPath) -> Result<Self, SpiffeIdError> {
        let id = Self(Arc::new(Parts { trust_domain, path }));
        if id.to_string().len() > MAX_ID { Err(SpiffeIdError::TooLong) } else { Ok(id) }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// Whether it has the form of a Kubernetes workload's.
    pub fn is_workload(&self) -> bool {
        matches!(self.0.path, IdPath::Workload { .. })
    }

    /// The namespace; empty, which no namespace is, where the identity has another form than a Kubernetes workload's.
    pub fn namespace(&self) -> &str {
        match &self.0.path {
            IdPath::Workload { namespace, .. } => namespace,
            IdPath::Other(_) => "",
        }
    }

    /// The service account; empty, which no service account is, where the identity has another form than a Kubernetes
    /// workload's.
    pub fn service_account(&self) -> &str {
        match &self.0.path {
            IdPath::Workload { service_account, .. } => service_account,
            IdPath::Other(_) => "",
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (trust_domain, path) = split(text)?;
        let trust_domain = trust_domain.parse()?;
        let path = path.strip_prefix('/').ok_or(SpiffeIdError::NotWorkload)?;
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
        let trust_domain = self.trust_domain();
        match &self.0.path {
            IdPath::Workload { namespace, service_account } => {
                write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
            }
            IdPath::Other(path) => write!(f, "spiffe://{trust_domain}{path}"),
        }
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
        Self { only: Some([own].into()), any_path: false }
    }

    /// Any trust domain: every workload with a certificate from one of the roots is accepted.
    pub fn any() -> Self {
        Self { only: None, any_path: false }
    }

    /// Adds trust domains that count as the server's own.
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = TrustDomain>) -> Self {
        if let Some(only) = &mut self.only {
            let mut others: Vec<_> = only[1..].iter().cloned().chain(aliases).collect();
            others.sort_unstable();
            others.dedup();
            *only = only[..1].iter().cloned().chain(others).collect();
        }
        self
    }

    /// Accepts identities of any form, as SPIRE issues them, rather than only those of Kubernetes workloads. Policies
    /// that name namespaces or service accounts do not match them.
    pub fn with_any_path(mut self) -> Self {
        self.any_path = true;
        self
    }

    /// Whether a workload with this identity is accepted.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        self.allows_form_of(id) && self.only.as_ref().is_none_or(|only| only.contains(id.trust_domain()))
    }

    pub(crate) fn allows_form_of(&self, id: &SpiffeId) -> bool {
        self.any_path || id.is_workload()
    }
}

impl fmt::Display for TrustDomains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.only {
            Some(only) => write_list(f, only.iter()),
            None => f.write_str("any"),
        }
    }
}

impl AcceptedIdentities {
    /// Every identity of this trust domain, whatever its form.
    pub fn trust_domain(trust_domain: TrustDomain) -> Self {
        Self(Accepted::TrustDomain(trust_domain))
    }

    /// Every identity, of any trust domain and form, whose certificate is from one of the roots.
    pub fn any() -> Self {
        Self(Accepted::Any)
    }

    /// Whether the far end may have this identity.
    pub fn contains(&self, id: &SpiffeId) -> bool {
        match &self.0 {
            Accepted::Only(ids) => ids.binary_search(id).is_ok(),
            Accepted::TrustDomain(trust_domain) => trust_domain == id.trust_domain(),
            Accepted::Any => true,
        }
    }

    /// Whether nobody is accepted.
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, Accepted::Only(ids) if ids.is_empty())
    }

    /// The identities that are accepted by name, in order.
    pub fn iter(&self) -> impl Iterator<Item = &SpiffeId> {
        match &self.0 {
            Accepted::Only(ids) => ids.iter(),
            Accepted::TrustDomain(_) | Accepted::Any => [].iter(),
        }
    }
}

impl FromIterator<SpiffeId> for AcceptedIdentities {
    fn from_iter<I: IntoIterator<Item = SpiffeId>>(ids: I) -> Self {
        // Mostly one or two, and kept with each path: a tree would take more room.
        let mut ids: Vec<SpiffeId> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        Self(Accepted::Only(ids.into()))
    }
}

impl From<SpiffeId> for AcceptedIdentities {
    fn from(id: SpiffeId) -> Self {
        Self::from_iter([id])
    }
}

impl fmt::Display for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Accepted::Only(ids) if ids.is_empty() => f.write_str("nobody"),
            Accepted::Only(ids) => write_list(f, ids.iter()),
            Accepted::TrustDomain(trust_domain) => write!(f, "any identity of {trust_domain}"),
            Accepted::Any => f.write_str("any identity"),
        }
    }
}

impl fmt::Debug for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Accepted::Only(ids) => f.debug_set().entries(ids.iter()).finish(),
            Accepted::TrustDomain(_) | Accepted::Any => fmt::Display::fmt(self, f),
        }
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

/// Splits an identity into trust domain and path, neither of them checked.
fn split(text: &str) -> Result<(&str, &str), SpiffeIdError> {
    if text.len() > MAX_ID {
        return Err(SpiffeIdError::TooLong);
    }
    let rest = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::NotSpiffe)?;
    let slash = rest.find('/').ok_or(SpiffeIdError::NotWorkload)?;
    Ok(rest.split_at(slash))
}

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
    fn aliases_count_as_the_servers_own() {
        let domains = TrustDomains::new("east.example".parse().unwrap()).with_aliases(["old.example".parse().unwrap()]);
        for (td, expected) in [("east.example", true), ("old.example", true), ("old.example.org", false)] {
            let id = SpiffeId::new(td.parse().unwrap(), "a", "b").unwrap();
            assert_eq!(domains.contains(&id), expected, "{td}");
        }
    }

    #[rstest]
    #[case("spiffe://example.org/agent/web/1", false)]
    #[case("spiffe://example.org/web", false)]
    #[case("spiffe://example.org/ns/a/sa", false)]
    #[case("spiffe://example.org/ns/a/sa/b/c", false)]
    #[case("spiffe://example.org/ns/a/sa/b", true)]
    fn any_path_may_be_chosen(#[case] text: &str, #[case] is_workload: bool) {
        let id = SpiffeId::from_any_path(text).unwrap();
        assert_eq!((id.to_string().as_str(), id.is_workload()), (text, is_workload));
        assert_eq!(text.parse::<SpiffeId>().ok(), is_workload.then(|| id.clone()));
        assert_eq!((id.namespace().is_empty(), id.service_account().is_empty()), (!is_workload, !is_workload));

        let own = TrustDomains::new("example.org".parse().unwrap());
        assert_eq!(own.contains(&id), is_workload);
        assert!(own.with_any_path().contains(&id));
    }

    #[rstest]
    #[case("spiffe://example.org", SpiffeIdError::NotWorkload)]
    #[case("spiffe://example.org/", SpiffeIdError::BadSegment)]
    #[case("spiffe://example.org/a/", SpiffeIdError::BadSegment)]
    #[case("spiffe://example.org/a//b", SpiffeIdError::BadSegment)]
    #[case("spiffe://example.org/a/../b", SpiffeIdError::BadSegment)]
    #[case("spiffe://example.org/a b", SpiffeIdError::BadSegment)]
    #[case("spiffe://example.org/a?b", SpiffeIdError::BadSegment)]
    #[case("spiffe://Example.org/a", SpiffeIdError::BadTrustDomain)]
    #[case("https://example.org/a", SpiffeIdError::NotSpiffe)]
    fn not_everything_is_a_path(#[case] text: &str, #[case] error: SpiffeIdError) {
        assert_eq!(SpiffeId::from_any_path(text), Err(error));
    }

    #[test]
    fn whoever_the_roots_vouch_for_may_be_chosen() {
        let ids =
            ["spiffe://a.example/ns/a/sa/b", "spiffe://b.example/x"].map(|id| SpiffeId::from_any_path(id).unwrap());
        assert!(ids.iter().all(|id| AcceptedIdentities::any().contains(id)));
        assert!(!AcceptedIdentities::any().is_empty());
        let of_a = AcceptedIdentities::trust_domain("a.example".parse().unwrap());
        assert_eq!(ids.each_ref().map(|id| of_a.contains(id)), [true, false]);
        assert_eq!(ids.each_ref().map(|id| TrustDomains::any().contains(id)), [true, false]);
        assert!(TrustDomains::any().with_any_path().contains(&ids[1]));
        assert_eq!(of_a.to_string(), "any identity of a.example");
    }

    proptest! {
        #[test]
        fn what_parses_with_any_path_prints_itself(text in "(spiffe://)?[a-zA-Z0-9./:_-]{0,40}") {
            if let Ok(id) = SpiffeId::from_any_path(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn what_parses_prints_itself(text in "(spiffe://)?[a-zA-Z0-9./:_-]{0,40}(/ns/[a-z.]{0,5}/sa/[a-z.]{0,5})?") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
