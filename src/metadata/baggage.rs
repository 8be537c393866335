//! The `baggage` header.

use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};
use std::str;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;

use super::quoted;
use crate::error::{Error, Result};

/// The most that is read and written, in bytes over all lines. W3C Baggage ("Limits") asks for no more.
const MAX_BYTES: usize = 8192;
/// The most list members that are read, unknown ones included. W3C Baggage ("Limits") asks for no more.
const MAX_MEMBERS: usize = 64;

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const SERVICE_NAME: &str = "service.name";
const SERVICE_VERSION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

/// What a workload says of itself: the `baggage` header (W3C Baggage) with the keys that ambient meshes use.
///
/// **It is telemetry and never authorisation.** Every workload with a valid certificate can put anything there, also
/// the name of another one. The peer's certificate says who it is: take the namespace and the trust domain from its
/// [`SpiffeId`](crate::SpiffeId), and show baggage next to it, as a label.
///
/// On a request it describes the source; on a 200 the workload that the tunnel ended at, which a client that went
/// through a gateway does not know otherwise. A value is never empty: setting an empty one leaves the field absent.
///
/// Reading stops after 8192 bytes or 64 members, counted over all lines. Members with other keys are kept as they came,
/// and [`member`](Self::member) reads them. Of two members with the same meaning the last one counts; members without a
/// value, and the properties (what follows a `;`) of known ones, are ignored. Values are percent-decoded; what is not
/// UTF-8 and control characters become U+FFFD, so that a value can't break a line of a log. Writing leaves out a member
/// that would not fit in 8192 bytes.
///
/// ```
/// use hbone::metadata::{Baggage, WorkloadType};
///
/// let baggage = Baggage::default().with_namespace("shop").with_workload(WorkloadType::Pod, "cart-7d9f").with_zone("");
/// assert_eq!(baggage.workload_name(), Some("cart-7d9f"));
/// assert_eq!(baggage.zone(), None);
/// ```
///
/// Cheap to clone, and the header is put together once for all clones.
#[derive(Clone, Default)]
pub struct Baggage(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    fields: Fields,
    /// The fields as a header.
    line: OnceLock<Option<HeaderValue>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Fields {
    cluster: Option<String>,
    namespace: Option<String>,
    workload: Option<(WorkloadType, String)>,
    service_name: Option<String>,
    service_version: Option<String>,
    region: Option<String>,
    zone: Option<String>,
    /// Members with other keys, as they came.
    others: Vec<String>,
}

/// The kind of Kubernetes object that a workload's name belongs to; a part of its key, as in `k8s.pod.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum WorkloadType {
    /// `k8s.deployment.name`
    Deployment,
    /// `k8s.cronjob.name`
    CronJob,
    /// `k8s.pod.name`, the only one that istiod still hands out.
    Pod,
    /// `k8s.job.name`
    Job,
}

impl WorkloadType {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }
}

impl Baggage {
    fn fields(&self) -> &Fields {
        &self.0.fields
    }

    fn fields_mut(&mut self) -> &mut Fields {
        let inner = Arc::make_mut(&mut self.0);
        inner.line = OnceLock::new();
        &mut inner.fields
    }

    /// Sets the cluster, `k8s.cluster.name`.
    pub fn with_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.fields_mut().cluster = present(cluster.into());
        self
    }

    /// Sets the namespace, `k8s.namespace.name`.
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.fields_mut().namespace = present(namespace.into());
        self
    }

    /// Sets the name of the workload under the key of its type.
    pub fn with_workload(mut self, workload_type: WorkloadType, name: impl Into<String>) -> Self {
        self.fields_mut().workload = present(name.into()).map(|name| (workload_type, name));
        self
    }

    /// Sets the application's name, `service.name` (OpenTelemetry's word; a Kubernetes service is something else).
    pub fn with_service_name(mut self, name: impl Into<String>) -> Self {
        self.fields_mut().service_name = present(name.into());
        self
    }

    /// Sets the application's version, `service.version`.
    pub fn with_service_version(mut self, version: impl Into<String>) -> Self {
        self.fields_mut().service_version = present(version.into());
        self
    }

    /// Sets the region, `cloud.region`.
    pub fn with_region(mut self, region: impl Into<String>) -> Self {
        self.fields_mut().region = present(region.into());
        self
    }

    /// Sets the zone, `cloud.availability_zone`.
    pub fn with_zone(mut self, zone: impl Into<String>) -> Self {
        self.fields_mut().zone = present(zone.into());
        self
    }

    /// The cluster.
    pub fn cluster(&self) -> Option<&str> {
        self.fields().cluster.as_deref()
    }

    /// The namespace that the peer claims; the proven one is in its certificate.
    pub fn namespace(&self) -> Option<&str> {
        self.fields().namespace.as_deref()
    }

    /// The kind of object that [`Baggage::workload_name`] belongs to; there exactly when the name is.
    pub fn workload_type(&self) -> Option<WorkloadType> {
        self.fields().workload.as_ref().map(|(workload_type, _)| *workload_type)
    }

    /// The name of the workload.
    pub fn workload_name(&self) -> Option<&str> {
        self.fields().workload.as_ref().map(|(_, name)| name.as_str())
    }

    /// The application's name.
    pub fn service_name(&self) -> Option<&str> {
        self.fields().service_name.as_deref()
    }

    /// The application's version.
    pub fn service_version(&self) -> Option<&str> {
        self.fields().service_version.as_deref()
    }

    /// The region.
    pub fn region(&self) -> Option<&str> {
        self.fields().region.as_deref()
    }

    /// The zone.
    pub fn zone(&self) -> Option<&str> {
        self.fields().zone.as_deref()
    }

    /// Sets a member with a key of your own, in place of one that has the key already. An empty value takes it away.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) when the key is not a token (RFC 9110, section
    /// 5.6.2), or has a setter of its own.
    pub fn with_member(mut self, key: &str, value: impl AsRef<str>) -> Result<Self> {
        let refused = |cause| Err(Error::invalid(format!("setting the baggage member {key:?}")).with_source(cause));
        if key.is_empty() || !key.bytes().all(quoted::is_token_byte) {
            return refused("its key is not a token");
        }
        if is_known(key) {
            return refused("it has a setter of its own");
        }
        let others = &mut self.fields_mut().others;
        others.retain(|member| split_member(member).is_none_or(|(other, _)| other != key));
        if !value.as_ref().is_empty() {
            let mut member = format!("{key}=");
            encode(value.as_ref(), &mut member);
            others.push(member);
        }
        Ok(self)
    }

    /// The decoded value of a member with another key than those above, without its properties.
    pub fn member(&self, key: &str) -> Option<String> {
        let mut values = self.fields().others.iter().filter_map(|member| split_member(member));
        present(decode(values.rfind(|(other, _)| *other == key)?.1.as_bytes()))
    }

    /// Whether there is nothing in it; such a header is not sent.
    pub fn is_empty(&self) -> bool {
        *self.fields() == Fields::default()
    }

    /// `None` when nothing in the lines has one of the known keys.
    pub(super) fn read<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let mut baggage = Self::default();
        let (mut bytes, mut members) = (0, 0);
        for member in lines.into_iter().flat_map(|line| line.as_bytes().split(|b| *b == b',')) {
            bytes += member.len();
            members += usize::from(!member.trim_ascii().is_empty());
            if bytes > MAX_BYTES || members > MAX_MEMBERS {
                break;
            }
            bytes += ",".len();
            baggage.read_member(member);
        }
        let knows_none = Fields { others: baggage.fields().others.clone(), ..Fields::default() } == *baggage.fields();
        (!knows_none).then_some(baggage)
    }

    fn read_member(&mut self, text: &[u8]) {
        let member = text.split(|b| *b == b';').next().unwrap_or_default();
        let Some(equals) = member.iter().position(|b| *b == b'=') else { return };
        let Ok(key) = str::from_utf8(member[..equals].trim_ascii()) else { return };
        let fields = self.fields_mut();
        if !is_known(key) {
            fields.others.extend(str::from_utf8(text.trim_ascii()).ok().map(str::to_owned));
            return;
        }
        let workload_type = WorkloadType::ALL.into_iter().find(|t| t.key() == key);
        let Some(value) = present(decode(member[equals + 1..].trim_ascii())) else { return };
        match (key, workload_type) {
            (_, Some(workload_type)) => fields.workload = Some((workload_type, value)),
            (CLUSTER, _) => fields.cluster = Some(value),
            (NAMESPACE, _) => fields.namespace = Some(value),
            (SERVICE_NAME, _) => fields.service_name = Some(value),
            (SERVICE_VERSION, _) => fields.service_version = Some(value),
            (REGION, _) => fields.region = Some(value),
            (ZONE, _) => fields.zone = Some(value),
            _ => {}
        }
    }

    /// `None` when there is nothing to send.
    pub(super) fn write(&self) -> Option<HeaderValue> {
        self.0.line.get_or_init(|| self.line()).clone()
    }

    fn line(&self) -> Option<HeaderValue> {
        let members = [
            (CLUSTER, self.cluster()),
            (NAMESPACE, self.namespace()),
            (self.workload_type().map_or("", WorkloadType::key), self.workload_name()),
            (SERVICE_NAME, self.service_name()),
            (SERVICE_VERSION, self.service_version()),
            (REGION, self.region()),
            (ZONE, self.zone()),
        ];
        let mut line = String::with_capacity(128);
        let mut push = |write: &dyn Fn(&mut String)| {
            let before = line.len();
            if !line.is_empty() {
                line.push(',');
            }
            write(&mut line);
            if line.len() > MAX_BYTES {
                line.truncate(before);
            }
        };
        for (key, value) in members {
            let Some(value) = value else { continue };
            push(&|line| {
                line.push_str(key);
                line.push('=');
                encode(value, line);
            });
        }
        for member in &self.fields().others {
            push(&|line| line.push_str(member));
        }
        if line.is_empty() { None } else { HeaderValue::try_from(line).ok() }
    }
}

impl PartialEq for Baggage {
    fn eq(&self, other: &Self) -> bool {
        self.fields() == other.fields()
    }
}

impl Eq for Baggage {}

impl Hash for Baggage {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fields().hash(state);
    }
}

impl fmt::Debug for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Baggage").field(self.fields()).finish()
    }
}

fn is_known(key: &str) -> bool {
    [CLUSTER, NAMESPACE, SERVICE_NAME, SERVICE_VERSION, REGION, ZONE].contains(&key)
        || WorkloadType::ALL.into_iter().any(|workload_type| workload_type.key() == key)
}

/// Key and value of a member, without its properties.
fn split_member(member: &str) -> Option<(&str, &str)> {
    let (key, value) = member.split(';').next()?.split_once('=')?;
    Some((key.trim(), value.trim()))
}

fn present(value: String) -> Option<String> {
    Some(value).filter(|v| !v.is_empty())
}

/// Percent-encodes what is not a `baggage-octet` (W3C Baggage, "Definition").
fn encode(value: &str, encoded: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_graphic() && !b"\",;\\%".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a `String` does not fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
}

/// A `%` that no two hexadecimal digits follow stands for itself.
fn decode(value: &[u8]) -> String {
    let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut decoded = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        decoded.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { after };
    }
    String::from_utf8_lossy(&decoded).replace(char::is_control, "\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn read(lines: &[&str]) -> Baggage {
        let lines: Vec<_> = lines.iter().map(|l| HeaderValue::from_bytes(l.as_bytes()).unwrap()).collect();
        Baggage::read(&lines).unwrap_or_default()
    }

    #[test]
    fn every_field_has_the_key_that_ztunnel_uses() {
        let baggage = Baggage::default()
            .with_cluster("c1")
            .with_namespace("shop")
            .with_workload(WorkloadType::Deployment, "cart")
            .with_service_name("cart")
            .with_service_version("v2")
            .with_region("r1")
            .with_zone("z1");
        let line = "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,\
                    service.version=v2,cloud.region=r1,cloud.availability_zone=z1";
        assert_eq!(baggage.write().unwrap(), line);
        assert_eq!(read(&[line]), baggage);
    }

    #[rstest]
    #[case("k8s.deployment.name", WorkloadType::Deployment)]
    #[case("k8s.cronjob.name", WorkloadType::CronJob)]
    #[case("k8s.pod.name", WorkloadType::Pod)]
    #[case("k8s.job.name", WorkloadType::Job)]
    fn the_workload_key_names_its_type(#[case] key: &str, #[case] workload_type: WorkloadType) {
        let baggage = Baggage::default().with_workload(workload_type, "w");
        assert_eq!(baggage.write().unwrap(), format!("{key}=w"));
        assert_eq!(read(&[&format!("{key}=w")]), baggage);
    }

    #[rstest]
    #[case(&["k8s.cluster.name=c"], Some("c"))]
    #[case(&["other=x", "k8s.cluster.name=c"], Some("c"))]
    #[case(&[" k8s.cluster.name\t= c , x=y"], Some("c"))]
    #[case(&["k8s.cluster.name=c;ttl=3;k8s.cluster.name=d"], Some("c"))]
    #[case(&["k8s.cluster.name=c ;secret"], Some("c"))]
    #[case(&["k8s.cluster.name=a=b"], Some("a=b"))]
    #[case(&["k8s.cluster.name=a", "k8s.cluster.name=b"], Some("b"))]
    #[case(&["k8s.cluster.name=a,k8s.cluster.name="], Some("a"))]
    #[case(&["k8s.cluster.name=a%20b%2Cc"], Some("a b,c"))]
    #[case(&["k8s.cluster.name=a%zz%4"], Some("a%zz%4"))]
    #[case(&["k8s.cluster.name=%c3%BC"], Some("ü"))]
    #[case(&["k8s.cluster.name=ü"], Some("ü"))]
    #[case(&["k8s.cluster.name=%ff"], Some("\u{FFFD}"))]
    #[case(&["k8s.cluster.name=a%0Ab%00"], Some("a\u{FFFD}b\u{FFFD}"))]
    #[case(&["k8s.cluster.name="], None)]
    #[case(&["k8s.cluster.name= "], None)]
    #[case(&["k8s.cluster.name=;p=v"], None)]
    #[case(&["k8s.cluster.name"], None)]
    #[case(&["K8S.cluster.name=c"], None)]
    #[case(&[",;=,=;,;,=="], None)]
    #[case(&[""], None)]
    #[case(&[], None)]
    fn reading_takes_what_it_knows(#[case] lines: &[&str], #[case] cluster: Option<&str>) {
        let baggage = read(lines);
        assert_eq!(baggage.cluster(), cluster);
        assert_eq!(baggage.is_empty(), cluster.is_none());
    }

    #[test]
    fn unknown_members_are_kept_and_can_be_read_and_set() {
        let baggage = read(&["tenant=acme%20inc;prop=1,k8s.cluster.name=c", "x=1, x = 2"]);
        assert_eq!(baggage.member("tenant").as_deref(), Some("acme inc"));
        assert_eq!((baggage.member("x").as_deref(), baggage.member("y")), (Some("2"), None));
        let changed = baggage.with_zone("z").with_member("x", "a,b").unwrap().with_member("y", "").unwrap();
        let line = "k8s.cluster.name=c,cloud.availability_zone=z,tenant=acme%20inc;prop=1,x=a%2Cb";
        assert_eq!(changed.write().unwrap(), line);
        assert_eq!(read(&[line]), changed);
        let none =
            changed.with_member("tenant", "").unwrap().with_member("x", "").unwrap().with_cluster("").with_zone("");
        assert!(none.is_empty());
    }

    #[rstest]
    #[case("")]
    #[case("two words")]
    #[case("a=b")]
    #[case("a;b")]
    #[case("ü")]
    #[case("k8s.cluster.name")]
    #[case("k8s.pod.name")]
    fn a_key_that_can_not_be_set_is_refused(#[case] key: &str) {
        assert!(Baggage::default().with_member(key, "v").is_err());
    }

    #[test]
    fn members_after_the_bounds_are_not_read() {
        let within = format!("{}k8s.cluster.name=c", "a=b,".repeat(MAX_MEMBERS - 1));
        assert_eq!(read(&[&within]).cluster(), Some("c"));
        assert!(read(&["a=b", &within]).is_empty());

        let last = "k8s.cluster.name=c";
        let within = "a".repeat(MAX_BYTES - last.len() - 1);
        assert_eq!(read(&[&within, last]).cluster(), Some("c"));
        assert!(read(&[&format!("{within}a"), last]).is_empty());
    }

    #[test]
    fn a_member_that_is_cut_by_the_bound_is_not_read_in_part() {
        let long = format!("k8s.cluster.name={}", "c".repeat(MAX_BYTES));
        assert_eq!(read(&["k8s.namespace.name=n", &long]), Baggage::default().with_namespace("n"));
    }

    #[test]
    fn a_member_that_does_not_fit_is_not_written() {
        let baggage = Baggage::default().with_cluster("c".repeat(MAX_BYTES)).with_zone("z");
        assert_eq!(baggage.write().unwrap(), "cloud.availability_zone=z");
    }

    #[test]
    fn empty_values_are_absent_and_not_written() {
        let baggage = Baggage::default().with_cluster("c").with_cluster("").with_workload(WorkloadType::Pod, "");
        assert!(baggage.is_empty());
        assert_eq!((baggage.workload_type(), baggage.write()), (None, None));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in proptest::array::uniform7("\\PC{0,40}")) {
            let [cluster, namespace, workload, name, version, region, zone] = values;
            let baggage = Baggage::default()
                .with_cluster(cluster)
                .with_namespace(namespace)
                .with_workload(WorkloadType::Job, workload)
                .with_service_name(name)
                .with_service_version(version)
                .with_region(region)
                .with_zone(zone);
            prop_assert_eq!(Baggage::read(&baggage.write()).unwrap_or_default(), baggage);
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_without_control_characters(value: Vec<u8>) {
            let line = [b"k8s.cluster.name=", &*value].concat();
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                let baggage = Baggage::read([&line]).unwrap_or_default();
                prop_assert!(!baggage.cluster().unwrap_or_default().contains(char::is_control));
            }
        }
    }
}
