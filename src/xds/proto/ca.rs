//! `istio.v1.auth`: certificates for CSRs.

use super::Struct;

/// Asks for a certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PKCS#10 in PEM, whose URI SAN is the SPIFFE ID that is asked for.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long it should be valid, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `ImpersonatedIdentity`: the SPIFFE ID that a node's proxy asks for on behalf of a workload.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// The certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM: the leaf first; the last element holds the roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
