//! Headers of a CONNECT and its response. Each line of the input is one value of the header.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::metadata::{
    BAGGAGE, FORWARDED, Metadata, PROXY_STATUS, TRACEPARENT, X_HBONE_BACKEND, X_HBONE_BACKENDS, proxy_status as status,
};

fn lines<'a>(name: &'a HeaderName, data: &'a [u8]) -> impl Iterator<Item = (HeaderName, HeaderValue)> + 'a {
    // HTTP/2's limit on header lists allows fewer.
    let lines = data.split(|byte| *byte == b'\n').take(100);
    lines.filter_map(|line| Some((name.clone(), HeaderValue::from_bytes(line).ok()?)))
}

fn written(metadata: &Metadata) -> HeaderMap {
    let mut headers = HeaderMap::new();
    metadata.write_to(&mut headers);
    headers
}

/// Parses a header. Writing it and parsing it again changes nothing.
fn read(name: &HeaderName, data: &[u8]) -> Metadata {
    let metadata = Metadata::from_headers(&lines(name, data).collect());
    let headers = written(&metadata);
    let again = Metadata::from_headers(&headers);
    assert_eq!(again, metadata);
    assert_eq!(written(&again), headers);
    metadata
}

/// `baggage`.
pub fn baggage(data: &[u8]) {
    // One byte may be written as nine, and what does not fit in 8192 is left out.
    if data.len() > 8192 / 9 {
        return;
    }
    let metadata = read(&BAGGAGE, data);
    let Some(baggage) = metadata.baggage() else { return };
    assert_eq!(baggage.workload_type().is_some(), baggage.workload_name().is_some());
    let values = [
        baggage.cluster(),
        baggage.namespace(),
        baggage.workload_name(),
        baggage.service_name(),
        baggage.service_version(),
        baggage.region(),
        baggage.zone(),
    ];
    for value in values.into_iter().flatten() {
        assert!(!value.is_empty() && !value.contains(char::is_control), "{value:?}");
    }
}

/// `forwarded`.
pub fn forwarded(data: &[u8]) {
    let metadata = read(&FORWARDED, data);
    let Some(forwarded) = metadata.forwarded() else { return };
    assert!(forwarded.for_addr().is_some() || forwarded.host().is_some());
    assert!(forwarded.host().is_none_or(|host| host.bytes().all(|b| b.is_ascii_graphic())));
}

/// `traceparent`.
pub fn traceparent(data: &[u8]) {
    let metadata = read(&TRACEPARENT, data);
    let Some(parent) = metadata.traceparent() else { return };
    assert_eq!(parent.to_string().parse().ok(), Some(*parent));
    assert!(parent.trace_id() != [0; 16] && parent.parent_id() != [0; 8]);
}

/// `x-hbone-backend` and `x-hbone-backends`.
pub fn backend_tokens(data: &[u8]) {
    let one = read(&X_HBONE_BACKEND, data);
    let many = read(&X_HBONE_BACKENDS, data);
    assert!(many.known_backends().len() <= 128);
    for token in one.backend().into_iter().chain(many.known_backends()) {
        assert_eq!(token.as_str().parse().as_ref(), Ok(token));
        assert!((1..=64).contains(&token.as_str().len()));
    }
}

/// `proxy-status`: a parsed refusal, appended to the header that it was parsed from, parses to the same refusal.
pub fn proxy_status(data: &[u8]) {
    let mut headers: HeaderMap = lines(&PROXY_STATUS, data).collect();
    let refusal = status::decode(StatusCode::BAD_GATEWAY, &headers);
    let printable = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    assert!(printable(&refusal.reason().token()) && refusal.reason().token().len() <= 64);
    assert!(refusal.details().is_none_or(|details| printable(details) && (1..=512).contains(&details.len())));
    headers.append(PROXY_STATUS, status::encode(&refusal));
    assert_eq!(status::decode(StatusCode::BAD_GATEWAY, &headers), refusal);
}
