//! The refusal for a destination that is not there.

use crate::error::{Error, ErrorKind};
use crate::refusal::{Refusal, RefusalReason};

/// The refusal for a destination that could not be reached. Its address and the whole story stay on this side: the peer
/// may be in another network.
pub(super) fn unreachable(error: &Error, what: &str) -> Refusal {
    use std::io::ErrorKind as Io;
    let cause = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    let reason = match (error.kind(), cause.map(std::io::Error::kind)) {
        (ErrorKind::Timeout, _) => RefusalReason::ConnectionTimeout,
        (_, Some(Io::ConnectionRefused)) => RefusalReason::ConnectionRefused,
        (_, Some(Io::ConnectionReset | Io::ConnectionAborted)) => RefusalReason::ConnectionTerminated,
        _ => RefusalReason::DestinationUnavailable,
    };
    Refusal::new(reason).with_details(format!("the {what} could not be reached"))
}
