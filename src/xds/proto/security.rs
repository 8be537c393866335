//! `istio.security`: authorization policies.

use serde::{Deserialize, Serialize};

use super::json;

/// A policy.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Authorization {
    /// Its name.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespace: String,
    /// What it applies to.
    #[prost(enumeration = "Scope", tag = "3")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::scope")]
    pub scope: i32,
    /// What it does.
    #[prost(enumeration = "Action", tag = "4")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::action")]
    pub action: i32,
    /// Any of them. Istio's sources call them groups.
    #[prost(message, repeated, tag = "5")]
    #[serde(rename = "groups", skip_serializing_if = "json::is_default")]
    pub rules: Vec<Rule>,
    /// Whether it is only logged.
    #[prost(bool, tag = "6")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub dry_run: bool,
}

proto_enum! {
    /// Whose connections a policy is about.
    Scope {
        /// All.
        Global = 0 "GLOBAL",
        /// Those to workloads of its namespace.
        Namespace = 1 "NAMESPACE",
        /// Those to workloads that name it.
        WorkloadSelector = 2 "WORKLOAD_SELECTOR",
    }
}

proto_enum! {
    /// What a policy does with a connection that it matches.
    Action {
        /// Lets it in.
        Allow = 0 "ALLOW",
        /// Keeps it out.
        Deny = 1 "DENY",
    }
}

/// Holds when all of its clauses do.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// All of them. Istio's sources call them rules.
    #[prost(message, repeated, tag = "1")]
    #[serde(rename = "rules", skip_serializing_if = "json::is_default")]
    pub clauses: Vec<Clause>,
}

/// Holds when one of its matches does.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Clause {
    /// Any of them.
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub matches: Vec<Match>,
}

/// Holds when each attribute that is given does; of the values of one attribute, any.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Match {
    /// The namespace of the peer.
    #[prost(message, repeated, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_namespaces: Vec<StringMatch>,
    /// The identity of the peer, without `spiffe://`.
    #[prost(message, repeated, tag = "3")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub principals: Vec<StringMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "4")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_principals: Vec<StringMatch>,
    /// The peer's address.
    #[prost(message, repeated, tag = "5")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub source_ips: Vec<Cidr>,
    /// None of these.
    #[prost(message, repeated, tag = "6")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_source_ips: Vec<Cidr>,
    /// The workload's address.
    #[prost(message, repeated, tag = "7")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub destination_ips: Vec<Cidr>,
    /// None of these.
    #[prost(message, repeated, tag = "8")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_destination_ips: Vec<Cidr>,
    /// The target port.
    #[prost(uint32, repeated, tag = "9")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub destination_ports: Vec<u32>,
    /// None of these.
    #[prost(uint32, repeated, tag = "10")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_destination_ports: Vec<u32>,
    /// The service account of the peer.
    #[prost(message, repeated, tag = "11")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// None of these.
    #[prost(message, repeated, tag = "12")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

/// An address range.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cidr {
    /// Four or sixteen bytes.
    #[prost(bytes = "bytes", tag = "1")]
    #[serde(skip_serializing_if = "json::is_default", with = "json::base64")]
    pub address: bytes::Bytes,
    /// How many bits count.
    #[prost(uint32, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub length: u32,
}

/// A service account.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAccountMatch {
    /// Its namespace.
    #[prost(string, tag = "1")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub namespace: String,
    /// Its name.
    #[prost(string, tag = "2")]
    #[serde(skip_serializing_if = "json::is_default")]
    pub service_account: String,
}

/// A pattern.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default)]
pub struct StringMatch {
    /// Which.
    #[prost(oneof = "string_match::Kind", tags = "1, 2, 3, 4")]
    #[serde(flatten)]
    pub kind: Option<string_match::Kind>,
}

/// The kinds of [`StringMatch`].
pub mod string_match {
    use serde::{Deserialize, Serialize};

    /// A pattern.
    #[derive(Clone, PartialEq, prost::Oneof, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    pub enum Kind {
        /// This text.
        #[prost(string, tag = "1")]
        Exact(String),
        /// What begins so.
        #[prost(string, tag = "2")]
        Prefix(String),
        /// What ends so.
        #[prost(string, tag = "3")]
        Suffix(String),
        /// Anything but nothing.
        #[prost(message, tag = "4")]
        Presence(super::Empty),
    }
}

/// `google.protobuf.Empty`.
#[derive(Clone, Copy, PartialEq, prost::Message, Serialize, Deserialize)]
pub struct Empty {}
