//! Delta xDS as two pure machines: what a [client](Subscriptions) asks for and holds, and what a [server](Subscriber)
//! owes one client. Neither does I/O nor knows the time.

mod client;
mod server;

pub use client::{Interest, Subscriptions, Update};
pub use server::{Entry, Resources, Subscriber};
