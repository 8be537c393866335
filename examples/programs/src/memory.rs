//! Memory that a burst of connections has needed goes back to the system, which the C library's allocator would keep.
//! How: the settings in `.cargo/config.toml`, and what [`keep_little`] does.

use std::time::Duration;

use hbone::proxy::WorkerSet;
use tikv_jemalloc_ctl::{Access, AsName};
use tokio::runtime::Handle;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long a thread without much to do may keep pieces of freed memory for itself.
const KEEP: Duration = Duration::from_secs(10);

/// Has each worker, and the current runtime's thread, give back what it keeps for itself, from time to time. A busy
/// thread soon has it again, and one that has no more to do would keep it for good: pieces of pages that nobody else
/// can use.
pub(crate) fn keep_little(workers: &WorkerSet) {
    for runtime in workers.handles().chain([&Handle::current()]) {
        runtime.spawn(async {
            loop {
                tokio::time::sleep(KEEP).await;
                if let Err(error) = give_back() {
                    tracing::warn!(%error, "jemalloc: giving a thread's memory back");
                    return;
                }
            }
        });
    }
}

/// Gives back what this thread keeps.
fn give_back() -> tikv_jemalloc_ctl::Result<()> {
    let caches = "thread.tcache.enabled\0".name();
    caches.write(false)?;
    caches.write(true)
}
