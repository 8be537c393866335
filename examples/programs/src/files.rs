//! The files that a proxy works with, read and checked.

use std::error::Error;
use std::sync::Arc;

use hbone::TrustDomains;
use hbone::connector::MeshWatch;
use hbone::mesh::Snapshot;
use hbone::tls::{CredentialSource, Credentials, ReloadingCredentials};

use crate::Common;
use crate::watch::{Files, Follower, Reload};

/// What is in the files.
#[derive(Debug)]
pub struct Loaded {
    /// The mesh at the start.
    pub snapshot: Snapshot,
    /// The mesh as it changes.
    pub mesh: MeshWatch,
    /// Certificate, key and roots at the start.
    pub credentials: Credentials,
    /// Certificate, key and roots as they change.
    pub source: Arc<ReloadingCredentials>,
    /// Whose certificates are accepted.
    pub trusted: TrustDomains,
    /// To have the files read again, which also happens when they change.
    pub reload: Reload,
}

impl Common {
    /// Reads and checks the files, and follows them from then on. Must be called on a tokio runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with which file.
    pub fn load(&self) -> Result<Loaded, Box<dyn Error>> {
        let (mesh, cert, key, ca) = (self.mesh.clone(), self.cert.clone(), self.key.clone(), self.ca.clone());
        let follower = Follower::open(Files { mesh, cert, key, ca })?;
        let (mesh, source, reload) = (follower.mesh(), follower.credentials().clone(), follower.reload());
        tokio::spawn(follower.run());
        let snapshot = mesh.borrow().clone();
        let credentials = source.credentials()?;
        let trust_domain = credentials.identity().trust_domain().clone();
        let trusted = TrustDomains::new(trust_domain).with_aliases(self.aliases.iter().cloned());
        Ok(Loaded { snapshot, mesh, credentials, source: Arc::new(source), trusted, reload })
    }
}
