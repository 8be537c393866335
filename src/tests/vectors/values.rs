//! Values: what a text means, and how that is written.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::hpack::{Decoder, Fields};
use super::{load, player, unhex};
use crate::authority::{Authority, AuthorityError};
use crate::identity::{SpiffeId, SpiffeIdError, TrustDomain, TrustDomains};
use crate::metadata::{BAGGAGE, FORWARDED, Metadata, PROXY_STATUS, TRACEPARENT, X_FORWARDED_NETWORK, proxy_status};
use crate::refusal::{Refusal, RefusalReason};
use crate::testing::Ca;
use crate::tests::harness::{client_id, server_id};
use crate::tests::peers::{Peer, connector, pipe};
use crate::tls::Acceptor;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<T> {
    #[serde(rename = "about")]
    _about: String,
    #[serde(rename = "section")]
    _section: String,
    cases: Vec<T>,
}

fn cases<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let file: File<T> = load(name);
    assert!(!file.cases.is_empty());
    file.cases
}

#[test]
fn authorities() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        text: String,
        canonical: Option<String>,
        kind: Option<String>,
        error: Option<String>,
    }
    for Case { text, canonical, kind, error } in cases("authorities.json") {
        match text.parse::<Authority>() {
            Ok(authority) => {
                assert_eq!(Some(authority.to_string()), canonical, "{text}");
                assert_eq!(authority.to_string().parse(), Ok(authority.clone()), "{text}");
                let is = if matches!(authority, Authority::Ip(_)) { "ip" } else { "name" };
                assert_eq!(kind.as_deref(), Some(is), "{text}");
            }
            Err(e) => {
                let name = match e {
                    AuthorityError::Empty => "empty",
                    AuthorityError::TooLong => "too_long",
                    AuthorityError::UserInfo => "user_info",
                    AuthorityError::NoPort => "no_port",
                    AuthorityError::BadPort => "bad_port",
                    AuthorityError::Zone => "zone",
                    AuthorityError::BadIpv6 => "bad_ipv6",
                    AuthorityError::UnbracketedIpv6 => "unbracketed_ipv6",
                    AuthorityError::BadIpv4 => "bad_ipv4",
                    AuthorityError::BadName => "bad_name",
                };
                assert_eq!(error.as_deref(), Some(name), "{text}");
            }
        }
    }
}

#[test]
fn spiffe_ids() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        text: String,
        trust_domain: Option<String>,
        namespace: Option<String>,
        service_account: Option<String>,
        error: Option<String>,
    }
    for case in cases::<Case>("spiffe-ids.json") {
        let text = &case.text;
        match text.parse::<SpiffeId>() {
            Ok(id) => {
                assert_eq!(Some(id.trust_domain().as_str()), case.trust_domain.as_deref(), "{text}");
                assert_eq!(Some(id.namespace()), case.namespace.as_deref(), "{text}");
                assert_eq!(Some(id.service_account()), case.service_account.as_deref(), "{text}");
                assert_eq!(&id.to_string(), text);
            }
            Err(e) => {
                let name = match e {
                    SpiffeIdError::TooLong => "too_long",
                    SpiffeIdError::NotSpiffe => "not_spiffe",
                    SpiffeIdError::BadTrustDomain => "bad_trust_domain",
                    SpiffeIdError::NotWorkload => "not_workload",
                    SpiffeIdError::BadSegment => "bad_segment",
                };
                assert_eq!(case.error.as_deref(), Some(name), "{text}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn certificates() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        verifier: String,
        uris: Vec<String>,
        #[serde(default)]
        accept: Vec<String>,
        #[serde(default)]
        trust_domains: Vec<TrustDomainText>,
        #[serde(default)]
        expired: bool,
        ok: bool,
    }
    #[derive(Deserialize)]
    struct TrustDomainText(String);
    let ca = Ca::new();
    for (n, case) in cases::<Case>("certificates.json").into_iter().enumerate() {
        let at = format!("case {}: {:?}", n + 1, case.uris);
        let mut certificate = case.uris.iter().fold(ca.certificate(), |certificate, uri| certificate.uri(uri));
        if case.expired {
            certificate = certificate.expired();
        }
        let (peer, (near, far)) = (Peer::with(&certificate.issue()), pipe());
        let verified = match &*case.verifier {
            "client" => {
                let accept = case.accept.iter().map(|id| id.parse().unwrap()).collect();
                let serving = tokio::spawn(async move {
                    if let Ok(mut session) = peer.accept(far).await {
                        let _ = session.read(&mut [0]).await;
                    }
                });
                let verified = connector(&ca, &client_id()).connect(near, &accept).await.map(drop);
                serving.abort();
                verified
            }
            "server" => {
                let mut domains = case.trust_domains.iter().map(|domain| domain.0.parse::<TrustDomain>().unwrap());
                let trusted = TrustDomains::new(domains.next().unwrap()).with_aliases(domains);
                let connecting = tokio::spawn(async move {
                    if let Ok(mut session) = peer.connect(far).await {
                        let _ = session.read(&mut [0]).await;
                    }
                });
                let acceptor = Acceptor::new(std::sync::Arc::new(ca.issue(&server_id())), trusted, Default::default());
                let verified = acceptor.accept(near).await.map(drop);
                connecting.abort();
                verified
            }
            other => panic!("{at}: {other}"),
        };
        assert_eq!(verified.is_ok(), case.ok, "{at}: {verified:?}");
    }
}

fn lines(name: &HeaderName, lines: &[String]) -> HeaderMap {
    lines.iter().map(|line| (name.clone(), HeaderValue::from_bytes(line.as_bytes()).unwrap())).collect()
}

/// What the type of a field is written as.
fn written(name: &HeaderName, metadata: &Metadata) -> Option<String> {
    let mut headers = HeaderMap::new();
    metadata.write_to(&mut headers);
    Some(headers.get(name)?.to_str().unwrap().to_owned())
}

#[test]
fn baggage() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        lines: Vec<String>,
        fields: Named,
        written: Option<String>,
    }
    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Named {
        cluster: Option<String>,
        namespace: Option<String>,
        workload: Option<(String, String)>,
        service_name: Option<String>,
        service_version: Option<String>,
        region: Option<String>,
        zone: Option<String>,
    }
    for case in cases::<Case>("baggage.json") {
        let metadata = Metadata::from_headers(&lines(&BAGGAGE, &case.lines));
        let baggage = metadata.baggage().cloned().unwrap_or_default();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let kind = baggage.workload_type().map(|kind| format!("{kind:?}").to_lowercase());
        let read = Named {
            cluster: owned(baggage.cluster()),
            namespace: owned(baggage.namespace()),
            workload: kind.zip(owned(baggage.workload_name())),
            service_name: owned(baggage.service_name()),
            service_version: owned(baggage.service_version()),
            region: owned(baggage.region()),
            zone: owned(baggage.zone()),
        };
        assert_eq!(read, case.fields, "{:?}", case.lines);
        if let Some(line) = case.written {
            assert_eq!(written(&BAGGAGE, &Metadata::default().with_baggage(baggage)), Some(line));
        }
    }
}

#[test]
fn forwarded() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        lines: Vec<String>,
        #[serde(rename = "for")]
        client: Option<String>,
        host: Option<String>,
        written: Option<String>,
    }
    for case in cases::<Case>("forwarded.json") {
        let metadata = Metadata::from_headers(&lines(&FORWARDED, &case.lines));
        let forwarded = metadata.forwarded().cloned().unwrap_or_default();
        assert_eq!(forwarded.for_addr().map(|addr| addr.to_string()), case.client, "{:?}", case.lines);
        assert_eq!(forwarded.host(), case.host.as_deref(), "{:?}", case.lines);
        if let Some(line) = case.written {
            assert_eq!(written(&FORWARDED, &Metadata::default().with_forwarded(forwarded)), Some(line));
        }
    }
}

#[test]
fn traceparents() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        lines: Vec<String>,
        written: Option<String>,
        sampled: Option<bool>,
    }
    for case in cases::<Case>("traceparent.json") {
        let metadata = Metadata::from_headers(&lines(&TRACEPARENT, &case.lines));
        let read = metadata.traceparent();
        assert_eq!(read.map(ToString::to_string), case.written, "{:?}", case.lines);
        assert_eq!(read.map(|read| read.is_sampled()), case.sampled, "{:?}", case.lines);
        if let Some(read) = read {
            assert_eq!(written(&TRACEPARENT, &Metadata::default().with_traceparent(*read)), case.written);
        }
    }
}

#[test]
fn networks() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        lines: Vec<String>,
        network: Option<String>,
    }
    for case in cases::<Case>("networks.json") {
        let metadata = Metadata::from_headers(&lines(&X_FORWARDED_NETWORK, &case.lines));
        assert_eq!(metadata.forwarded_network(), case.network.as_deref(), "{:?}", case.lines);
        if let Some(network) = case.network {
            let metadata = Metadata::default().with_forwarded_network(network.clone()).unwrap();
            assert_eq!(written(&X_FORWARDED_NETWORK, &metadata), Some(network));
        }
    }
}

#[test]
fn backend_ids() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        field: String,
        lines: Vec<String>,
        ids: Vec<String>,
        written: Option<String>,
    }
    for case in cases::<Case>("backend-ids.json") {
        let name: HeaderName = case.field.parse().unwrap();
        let metadata = Metadata::from_headers(&lines(&name, &case.lines));
        let is_one = case.field == "x-hbone-backend";
        let (ids, again) = if is_one {
            let id = metadata.backend().cloned();
            (Vec::from_iter(id.clone()), id.map(|id| Metadata::default().with_backend(id)).unwrap_or_default())
        } else {
            let ids = metadata.known_backends().to_vec();
            (ids.clone(), Metadata::default().with_known_backends(ids))
        };
        assert_eq!(ids.iter().map(ToString::to_string).collect::<Vec<_>>(), case.ids, "{:?}", case.lines);
        assert_eq!(written(&name, &again), case.written, "{:?}", case.lines);
    }
}

#[test]
fn proxy_statuses() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        lines: Vec<String>,
        error: Option<String>,
        details: Option<String>,
        status: Option<u16>,
        written: Option<String>,
    }
    for case in cases::<Case>("proxy-status.json") {
        let read = proxy_status::decode(StatusCode::BAD_GATEWAY, &lines(&PROXY_STATUS, &case.lines));
        let reason = match &case.error {
            Some(error) => RefusalReason::from_token(error),
            None => RefusalReason::Unspecified,
        };
        assert_eq!((read.reason(), read.details()), (&reason, case.details.as_deref()), "{:?}", case.lines);
        let mut refusal = Refusal::new(reason);
        if let Some(details) = case.details {
            refusal = refusal.with_details(details);
        }
        if let Some(line) = case.written {
            assert_eq!(proxy_status::encode(&refusal), line);
        }
        if let Some(status) = case.status {
            assert_eq!(refusal.status().as_u16(), status);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn connect_blocks() {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        title: String,
        blocks: Vec<Block>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Block {
        hex: String,
        fields: Fields,
    }
    for case in cases::<Case>("connect-blocks.json") {
        let blocks: Vec<_> = case.blocks.into_iter().map(|block| (unhex(&block.hex), block.fields)).collect();
        let mut decoder = Decoder::default();
        for (block, fields) in &blocks {
            assert_eq!(&decoder.decode(block), fields, "{}", case.title);
        }
        player::blocks(&case.title, &blocks).await;
    }
}
