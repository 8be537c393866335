//! Where a byte stream leads.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::authority::{Authority, AuthorityError, HostPort};

/// Where a byte stream leads: what a [`Dial`](crate::io::Dial) is asked to connect to.
///
/// ```
/// use hbone::DialTarget;
///
/// let parse = |text: &str| text.parse::<DialTarget>();
/// assert_eq!(parse("10.0.0.1:15008")?, DialTarget::from(([10, 0, 0, 1], 15008)));
/// assert_eq!(parse("gateway.example:15008")?.to_string(), "gateway.example:15008");
/// assert_eq!(parse("unix:/run/hbone.sock")?, DialTarget::unix("/run/hbone.sock"));
/// # Ok::<(), hbone::AuthorityError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum DialTarget {
    /// An address.
    Socket(SocketAddr),
    /// A host name, which the dialer resolves.
    Name(HostPort),
    /// A Unix socket.
    Unix(Arc<Path>),
}

const UNIX: &str = "unix:";

impl DialTarget {
    /// A Unix socket.
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::Unix(path.as_ref().into())
    }

    /// The address. `None` where there is none, or none yet.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Name(_) | Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for DialTarget {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for DialTarget {
    fn from(address: (I, u16)) -> Self {
        Self::Socket(address.into())
    }
}

impl From<HostPort> for DialTarget {
    fn from(name: HostPort) -> Self {
        Self::Name(name)
    }
}

impl From<Authority> for DialTarget {
    fn from(authority: Authority) -> Self {
        match authority {
            Authority::Ip(address) => Self::Socket(address),
            Authority::Name(name) => Self::Name(name),
        }
    }
}

/// `10.0.0.1:15008`, `[2001:db8::1]:15008`, `gateway.example:15008` or `unix:/run/hbone.sock`.
impl FromStr for DialTarget {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, AuthorityError> {
        match text.strip_prefix(UNIX) {
            Some("") => Err(AuthorityError::Empty),
            Some(path) => Ok(Self::unix(path)),
            None => text.parse::<Authority>().map(Self::from),
        }
    }
}

/// The text that [`FromStr`] takes.
impl fmt::Display for DialTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::v4("10.0.0.1:15008", Some("10.0.0.1:15008"))]
    #[case::v6("[2001:db8::1]:15008", Some("[2001:db8::1]:15008"))]
    #[case::name("gateway.example:15008", None)]
    #[case::unix("unix:/run/a b.sock", None)]
    fn a_target_is_displayed_as_it_is_parsed(#[case] text: &str, #[case] address: Option<&str>) {
        let target: DialTarget = text.parse().unwrap();
        assert_eq!(target.to_string(), text);
        assert_eq!(target.socket_addr(), address.map(|address| address.parse().unwrap()));
    }

    #[rstest]
    #[case("unix:", AuthorityError::Empty)]
    #[case("", AuthorityError::Empty)]
    #[case("gateway.example", AuthorityError::NoPort)]
    fn a_target_that_leads_nowhere_is_refused(#[case] text: &str, #[case] expected: AuthorityError) {
        assert_eq!(text.parse::<DialTarget>(), Err(expected));
    }
}
