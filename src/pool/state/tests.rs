//! The machine without tasks, sockets and clocks.

mod decisions;
mod events;
mod limits;
mod sim;
mod spread;
