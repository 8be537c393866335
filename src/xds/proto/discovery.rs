//! `envoy.service.discovery.v3`: the delta form of xDS.

use std::collections::{BTreeMap, HashMap};

/// Who asks: a proxy, with what it says of itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// `ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN` for a ztunnel.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The service that the proxy belongs to.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// `NAME`, `NAMESPACE`, `INSTANCE_IPS`, `NODE_NAME`, `NETWORK`, `CLUSTER_ID`.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<Struct>,
    /// The build of the proxy.
    #[prost(string, tag = "5")]
    pub build_version: String,
}

/// `google.protobuf.Struct`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Struct {
    /// By name.
    #[prost(btree_map = "string, message", tag = "1")]
    pub fields: BTreeMap<String, Value>,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// What it is.
    #[prost(oneof = "value::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<value::Kind>,
}

/// The kinds of [`Value`].
pub mod value {
    /// What a value is.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Kind {
        /// Null.
        #[prost(int32, tag = "1")]
        Null(i32),
        /// A number.
        #[prost(double, tag = "2")]
        Number(f64),
        /// A text.
        #[prost(string, tag = "3")]
        String(String),
        /// True or false.
        #[prost(bool, tag = "4")]
        Bool(bool),
        /// Values by name.
        #[prost(message, tag = "5")]
        Struct(super::Struct),
        /// Values in order.
        #[prost(message, tag = "6")]
        List(super::ListValue),
    }
}

/// `google.protobuf.ListValue`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListValue {
    /// In order.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// What `value` is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: bytes::Bytes,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Duration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// The rest.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    /// A code of gRPC.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// For programs.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<Any>,
}

/// A client's subscription, ACK or NACK.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryRequest {
    /// Who asks; needed in the first request of a stream only.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Which resources this is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names that are wanted from here on; `*` is everything.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names that are wanted no longer.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// What the client holds from an earlier stream, with versions; in the first request of a type only.
    #[prost(map = "string, string", tag = "5")]
    pub initial_resource_versions: HashMap<String, String>,
    /// The response that is answered.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// What was wrong with it.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<RpcStatus>,
}

/// What has changed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    /// For debugging.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New and changed resources.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Their type.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// To be repeated in the answer.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names of resources that are gone, or do not exist.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

/// One resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Changes when the resource does.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names by which it was asked for.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
    /// How long it holds.
    #[prost(message, optional, tag = "6")]
    pub ttl: Option<Duration>,
    /// Whether it may be cached.
    #[prost(message, optional, tag = "7")]
    pub cache_control: Option<CacheControl>,
}

/// Of a [`Resource`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct CacheControl {
    /// It may not be cached.
    #[prost(bool, tag = "1")]
    pub do_not_cache: bool,
}

impl Node {
    /// A text of the metadata.
    pub fn metadata_text(&self, name: &str) -> Option<&str> {
        match self.metadata.as_ref()?.fields.get(name)?.kind.as_ref()? {
            value::Kind::String(text) => Some(text),
            _ => None,
        }
    }

    /// Adds a text to the metadata.
    pub fn with_metadata_text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        let value = Value { kind: Some(value::Kind::String(text.into())) };
        self.metadata.get_or_insert_default().fields.insert(name.into(), value);
        self
    }
}

impl Any {
    /// Packs a message as this type.
    pub fn pack(type_url: &str, message: &impl prost::Message) -> Self {
        Self { type_url: type_url.into(), value: message.encode_to_vec().into() }
    }
}
