//! Protobuf's JSON mapping, where serde's derive needs help.

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Bytes as base64.
pub(super) mod base64 {
    use ::base64::Engine as _;
    use ::base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(de::Error::custom)
    }
}

/// A list of them.
pub(super) mod base64_list {
    use ::base64::Engine as _;
    use ::base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(list: &[Bytes], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(list.iter().map(|bytes| STANDARD.encode(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Bytes>, D::Error> {
        let list = Vec::<String>::deserialize(deserializer)?;
        list.into_iter().map(|text| STANDARD.decode(text).map(Bytes::from).map_err(de::Error::custom)).collect()
    }
}

/// An enum by name; a number where it has none.
macro_rules! enum_by_name {
    ($($module:ident: $type:ty),* $(,)?) => {$(
        pub(super) mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de};

            pub(crate) fn serialize<S: Serializer>(value: &i32, serializer: S) -> Result<S::Ok, S::Error> {
                match <$type>::try_from(*value) {
                    Ok(value) => serializer.serialize_str(value.as_str_name()),
                    Err(_) => serializer.serialize_i32(*value),
                }
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
                let name = String::deserialize(deserializer)?;
                <$type>::from_str_name(&name)
                    .map(|value| value as i32)
                    .ok_or_else(|| de::Error::custom(format_args!("{name} is no {}", stringify!($module))))
            }
        }
    )*};
}

enum_by_name! {
    action: super::super::Action,
    app_protocol: super::super::AppProtocol,
    application_protocol: super::super::application_tunnel::Protocol,
    health_policy: super::super::load_balancing::HealthPolicy,
    ip_families: super::super::IpFamilies,
    mode: super::super::load_balancing::Mode,
    network_mode: super::super::NetworkMode,
    scope: super::super::Scope,
    tunnel_protocol: super::super::TunnelProtocol,
    visibility: super::super::Visibility,
    workload_status: super::super::WorkloadStatus,
    workload_type: super::super::WorkloadType,
}

/// A list of enums by name.
pub(super) mod routing_scopes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::super::load_balancing::Scope;

    pub(crate) fn serialize<S: Serializer>(list: &[i32], serializer: S) -> Result<S::Ok, S::Error> {
        let name = |value: &i32| {
            Scope::try_from(*value).map_or_else(|_| value.to_string(), |scope| scope.as_str_name().into())
        };
        serializer.collect_seq(list.iter().map(name))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i32>, D::Error> {
        let scope = |name: String| {
            Scope::from_str_name(&name)
                .map(|scope| scope as i32)
                .ok_or_else(|| de::Error::custom(format_args!("{name} is no scope")))
        };
        Vec::<String>::deserialize(deserializer)?.into_iter().map(scope).collect()
    }
}
