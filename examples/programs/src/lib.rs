//! What the proxies share: flags, files, log, admin port, and how they start and stop.

pub mod admin;
mod args;
pub mod controlplane;
mod files;
mod limits;
mod logging;
#[cfg(feature = "jemalloc")]
mod memory;
mod run;
mod signals;
pub mod watch;

pub use args::{Common, Health, seconds, set};
pub use files::Loaded;
pub use logging::Log;
pub use run::{main, ready_until_stopped};
