//! What a mesh file has and a mesh does not take.

use std::fmt;
use std::sync::Arc;

use super::node::Fault;
use crate::error::Error;
use crate::mesh::ResourceName;

/// Something in a mesh file that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    file: Arc<str>,
    fault: Fault,
    what: What,
    resource: Option<ResourceName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Workload,
    Service,
    Policy,
    /// One of a service's subject alternative names.
    Name,
}

impl LeftOut {
    pub(super) fn new(file: &Arc<str>, fault: Fault, what: What, resource: Option<ResourceName>) -> Self {
        Self { file: file.clone(), fault, what, resource }
    }

    /// The name of the file, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The line, from 1 on.
    pub fn line(&self) -> u64 {
        self.fault.line
    }

    /// The field at fault, such as `services[1].hostname`.
    pub fn field(&self) -> &str {
        &self.fault.field
    }

    /// What is wrong with it.
    pub fn reason(&self) -> &str {
        &self.fault.reason
    }

    /// The resource that was left out. `None` where even its name can't be read, and where it is not all of a resource.
    pub fn resource(&self) -> Option<&ResourceName> {
        self.resource.as_ref()
    }

    pub(super) fn error(&self) -> Error {
        self.fault.in_file(&self.file)
    }
}

/// One line: file, line, field, reason, and what follows from it.
impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let consequence = match self.what {
            What::Workload => "the workload is left out",
            What::Service => "the service is left out",
            What::Policy => "what it is about stays as it was, or is denied",
            What::Name => "the name is left out",
        };
        write!(f, "{}:{}; {consequence}", self.file, self.fault)
    }
}
