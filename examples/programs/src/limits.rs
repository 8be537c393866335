//! The limits that the system sets for the process.

/// Each connection takes descriptors, and many systems start processes with 1,024, for the sake of programs that use
/// select(2).
#[cfg(unix)]
pub(crate) fn raise() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "raising the limit of file descriptors (RLIMIT_NOFILE)"),
    }
}

#[cfg(not(unix))]
pub(crate) fn raise() {}
