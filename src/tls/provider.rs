//! Cryptography for TLS 1.3, as rustls wants it: a [`CryptoProvider`].
//!
//! Each provider that is built in is here by its name, whichever others there are. Any other one, such as a FIPS build
//! of aws-lc-rs, can be handed to [`CredentialsBuilder::with_provider`](super::CredentialsBuilder::with_provider).

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

/// The provider that [`Credentials`](super::Credentials) use when none is given: aws-lc-rs, else ring, else what the
/// process has installed as rustls' default ([`CryptoProvider::install_default`]). `None` without any.
pub fn installed() -> Option<Arc<CryptoProvider>> {
    #[cfg(feature = "aws-lc-rs")]
    return Some(aws_lc_rs());
    #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
    return Some(ring());
    #[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
    CryptoProvider::get_default().cloned()
}

/// aws-lc-rs.
///
/// AES-128-GCM comes first: it is what Envoy picks too, and costs a fifth less than AES-256-GCM. The key exchange
/// offered first is X25519MLKEM768, safe against recorded traffic being read by a quantum computer later.
#[cfg(feature = "aws-lc-rs")]
pub fn aws_lc_rs() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::{cipher_suite as cs, default_provider, kx_group as kx};
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || CryptoProvider {
        cipher_suites: vec![
            cs::TLS13_AES_128_GCM_SHA256,
            cs::TLS13_AES_256_GCM_SHA384,
            cs::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx::X25519MLKEM768, kx::X25519, kx::SECP256R1, kx::SECP384R1],
        ..default_provider()
    };
    PROVIDER.get_or_init(|| Arc::new(build())).clone()
}

/// ring, which has no post-quantum key exchange. AES-128-GCM comes first, as it costs the least.
#[cfg(feature = "ring")]
pub fn ring() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::{cipher_suite as cs, default_provider, kx_group as kx};
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let build = || CryptoProvider {
        cipher_suites: vec![
            cs::TLS13_AES_128_GCM_SHA256,
            cs::TLS13_AES_256_GCM_SHA384,
            cs::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx::X25519, kx::SECP256R1, kx::SECP384R1],
        ..default_provider()
    };
    PROVIDER.get_or_init(|| Arc::new(build())).clone()
}
