//! The cryptography in use: aws-lc-rs, or ring where only that is built in.

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;

/// The provider with TLS 1.3's suites only.
///
/// AES-128-GCM comes first: it is what Envoy picks too, and costs a fifth less than AES-256-GCM. The key exchange offered
/// first is X25519MLKEM768, safe against recorded traffic being read by a quantum computer later; ring does not have it.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(build())).clone()
}

#[cfg(feature = "aws-lc-rs")]
fn build() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::{cipher_suite as cs, default_provider, kx_group as kx};
    CryptoProvider {
        cipher_suites: vec![
            cs::TLS13_AES_128_GCM_SHA256,
            cs::TLS13_AES_256_GCM_SHA384,
            cs::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx::X25519MLKEM768, kx::X25519, kx::SECP256R1, kx::SECP384R1],
        ..default_provider()
    }
}

#[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
fn build() -> CryptoProvider {
    use rustls::crypto::ring::{cipher_suite as cs, default_provider, kx_group as kx};
    CryptoProvider {
        cipher_suites: vec![
            cs::TLS13_AES_128_GCM_SHA256,
            cs::TLS13_AES_256_GCM_SHA384,
            cs::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx::X25519, kx::SECP256R1, kx::SECP384R1],
        ..default_provider()
    }
}

#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
compile_error!("hbone needs a TLS provider: enable the feature `aws-lc-rs` (default) or `ring`");
#[cfg(not(any(feature = "aws-lc-rs", feature = "ring")))]
fn build() -> CryptoProvider {
    unreachable!("the build stops above")
}
