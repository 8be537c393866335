//! The control plane: from the manifests of each cluster to what its proxies are told.
//!
//! ```text
//!  a source per cluster      Objects, by kind,      convert: what each       hbone::xds::view:
//!  (directory, Kubernetes) ─▶ namespace and name ──▶ object means by itself ─▶ what each cluster is told ──▶ xDS
//! ```

pub mod convert;
pub mod kinds;
pub mod manifest;
pub mod objects;
pub mod source;
