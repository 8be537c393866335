//! The machine without tasks, sockets and clocks.

#[cfg(test)]
mod decisions;
mod events;
#[cfg(test)]
mod limits;
#[cfg_attr(not(test), allow(dead_code))]
mod sim;
#[cfg(test)]
mod spread;

pub use self::events::fuzz;
