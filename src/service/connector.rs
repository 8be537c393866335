//! The way out: a connector for HTTP clients.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected as Described, Connection};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::Peer;
use crate::authority::{Authority, AuthorityError};
use crate::connector::{Connected, Connector};
use crate::error::{Error, ErrorKind, Layer, Result, Side};
use crate::tunnel::TunnelStream;

/// Dials what a URI names: its host is the service or workload, its port that of the CONNECT. Without a port, `http`
/// means 80 and `https` 443; no other difference is made between them, since the TLS of HBONE is underneath either.
/// Path, query and user are not looked at.
///
/// Always ready. The future must be polled on a tokio runtime; it is as cancel safe as [`Connector::connect`].
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for a URI without a usable host or port; else those of [`Connector::connect`].
impl Service<Uri> for Connector {
    type Response = ConnectorStream;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<ConnectorStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { Ok(ConnectorStream(connector.connect(&target(&uri)?, None).await?)) })
    }
}

/// A tunnel that an HTTP client has dialed.
///
/// As [`TunnelStream`]: shutting it down finishes this side's direction, dropping it resets it unless it was shut down.
pub struct ConnectorStream(Connected);

impl ConnectorStream {
    /// The tunnel, with the way it took.
    pub fn get_ref(&self) -> &Connected {
        &self.0
    }

    fn io(&mut self) -> TokioIo<&mut TunnelStream> {
        TokioIo::new(&mut self.0.tunnel)
    }
}

impl Connection for ConnectorStream {
    /// With the [`Peer`], which hyper-util's client puts into the extensions of each response.
    fn connected(&self) -> Described {
        let Connected { tunnel, identities, .. } = &self.0;
        let described = Described::new();
        match identities.last() {
            Some(identity) => {
                let (authority, metadata) = (tunnel.authority().clone(), tunnel.metadata().clone());
                described.extra(Peer::new(identity.clone(), authority, metadata, None))
            }
            None => described,
        }
    }
}

impl Read for ConnectorStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io()).poll_read(cx, buf)
    }
}

impl Write for ConnectorStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io()).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io()).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        tokio::io::AsyncWrite::is_write_vectored(&self.0.tunnel)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io()).poll_write_vectored(cx, bufs)
    }
}

impl fmt::Debug for ConnectorStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectorStream").field(&self.0).finish()
    }
}

/// Where a URI leads.
fn target(uri: &Uri) -> Result<Authority> {
    let port = uri.port().map(|port| port.as_str().to_owned());
    let port = port.or_else(|| match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => Some("80".to_owned()),
        Some(scheme) if *scheme == Scheme::HTTPS => Some("443".to_owned()),
        _ => None,
    });
    let parsed = match (uri.host(), port) {
        (None, _) => Err(AuthorityError::Empty),
        (_, None) => Err(AuthorityError::NoPort),
        (Some(host), Some(port)) => format!("{host}:{port}").parse(),
    };
    parsed.map_err(|e| {
        let doing = format!("reading the target of the URI {uri}");
        Error::new(ErrorKind::InvalidInput, Layer::Route, Side::Local, doing).with_source(e)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http://cart.shop/path?query", "cart.shop:80")]
    #[case("https://cart.shop/", "cart.shop:443")]
    #[case("HTTPS://Cart.Shop.", "cart.shop:443")]
    #[case("https://cart.shop:8080/", "cart.shop:8080")]
    #[case("http://user:password@cart.shop/", "cart.shop:80")]
    #[case("http://10.0.0.1/", "10.0.0.1:80")]
    #[case("http://[2001:DB8::1]/", "[2001:db8::1]:80")]
    #[case("http://[2001:db8::1]:8080/", "[2001:db8::1]:8080")]
    #[case("grpc://cart.shop:9000/", "cart.shop:9000")]
    #[case("cart.shop:9000", "cart.shop:9000")]
    fn a_uri_leads_to_its_host_and_port(#[case] uri: Uri, #[case] expected: &str) {
        assert_eq!(target(&uri).unwrap().to_string(), expected);
    }

    #[rstest]
    #[case("/path", "is empty")]
    #[case("cart.shop", "has no port")]
    #[case("grpc://cart.shop/", "has no port")]
    #[case("http://cart.shop:0/", "not a number from 1")]
    #[case("http://cart..shop/", "not a valid DNS name")]
    #[case("http://10.0.0/", "not valid")]
    fn a_uri_that_leads_nowhere_says_why(#[case] uri: Uri, #[case] why: &str) {
        let error = target(&uri).unwrap_err();
        assert_eq!((error.kind(), error.side()), (&ErrorKind::InvalidInput, Side::Local));
        assert!(error.to_string().contains(why) && error.to_string().contains(&uri.to_string()), "{error}");
    }
}
