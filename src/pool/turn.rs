//! Long turns at moving bytes, and other threads.

use std::thread;

/// After so many bytes in one turn.
const MUCH: u64 = 128 << 10;

/// To be called at the end of a task's turn, with how many bytes it has moved: after many, the thread gives way to others.
///
/// A thread that moves bulk always has something to do, and where there are fewer cores than such threads, the system lets
/// each go on for some milliseconds. Small messages pass through several threads, and would wait as long at each.
pub(crate) fn give_way(moved: u64) {
    if moved >= MUCH {
        thread::yield_now();
    }
}
