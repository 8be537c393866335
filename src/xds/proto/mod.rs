//! The messages of the control-plane protocols, as derives: no protoc is needed.
//!
//! Field numbers are those of Envoy's `envoy.service.discovery.v3` and of Istio's `workload.proto`,
//! `authorization.proto` and `ca.proto`. With serde they read and write protobuf's JSON mapping: names in camelCase,
//! default values left out, enums by name, bytes in base64.

use std::net::IpAddr;

use bytes::Bytes;

/// An enum with protobuf's names.
macro_rules! proto_enum {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $number:literal $text:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
        #[repr(i32)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $number,)*
        }

        impl $name {
            /// Its name in protobuf.
            pub fn as_str_name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            /// The value of this name in protobuf.
            pub fn from_str_name(name: &str) -> Option<Self> {
                match name {
                    $($text => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

mod ca;
mod discovery;
mod json;
mod security;
mod workload;

pub use ca::*;
pub use discovery::*;
pub use security::*;
pub use workload::*;

/// The type of workload and service resources.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";

/// The type of policy resources.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// An address as messages have it: four or sixteen bytes.
pub fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// The address that these bytes are. `None` unless there are four or sixteen.
pub fn ip(octets: &Bytes) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(&octets[..]).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(&octets[..]).map(IpAddr::from)).ok()
}
