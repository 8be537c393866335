//! What is spoken at a port, by Istio's rules.

use hbone::xds::proto::AppProtocol;

/// Ports where a server may speak first, so that they are TCP unless something else is said: SMTP, DNS, MySQL, MongoDB.
const WELL_KNOWN: [u16; 4] = [25, 53, 3306, 27017];

/// What is spoken at a Kubernetes Service's port: by the field `appProtocol`, else by the beginning of its name.
pub(super) fn of_service(port: u16, name: &str, protocol: &str, app_protocol: Option<&str>) -> AppProtocol {
    if protocol == "UDP" {
        return AppProtocol::Unknown;
    }
    let known = match app_protocol {
        Some("kubernetes.io/h2c") => Some(AppProtocol::Http2),
        Some("kubernetes.io/ws") => Some(AppProtocol::Http11),
        Some("kubernetes.io/wss") => Some(AppProtocol::Tls),
        Some(name) => by_prefix(name),
        None => by_prefix(name),
    };
    known.unwrap_or(if WELL_KNOWN.contains(&port) { AppProtocol::Tcp } else { AppProtocol::Unknown })
}

/// What is spoken at a ServiceEntry's port.
pub(super) fn of_entry(port: u16, name: &str, protocol: &str) -> AppProtocol {
    by_prefix(protocol).unwrap_or_else(|| of_service(port, name, "", None))
}

fn by_prefix(name: &str) -> Option<AppProtocol> {
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("grpc-web") {
        return Some(AppProtocol::Unknown);
    }
    Some(match lower.split('-').next().unwrap_or_default() {
        "http" | "http_proxy" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        "udp" | "hbone" => AppProtocol::Unknown,
        _ => return None,
    })
}
