//! [`Config`] as h2 understands it.

use crate::config::Config;

/// How many streams that this side has reset are remembered, so that frames still on their way to them are ignored.
const REMEMBERED_RESETS: usize = 1024;

/// How many requests a server bears that were cancelled before it looked at them. h2's default is 20: a client that
/// gave up as many connects while the server was busy would lose all its other tunnels. Peers are authenticated, and
/// each costs a few hundred bytes until the server comes to look.
const GIVEN_UP_UNSEEN: usize = 1024;

// The two builders have the same setters and no trait in common.
macro_rules! apply {
    ($builder:expr, $config:expr) => {
        $builder
            .initial_window_size($config.windows().stream)
            .initial_connection_window_size($config.windows().connection)
            .max_frame_size($config.max_frame_size)
            .max_header_list_size($config.max_header_list_size)
            .max_send_buffer_size($config.tunnel_send_buffer())
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            // Always explicit: h2's default would follow the window.
            .data_frame_budget($config.small_frame_budget)
    };
}

pub(crate) fn client_builder(config: &Config) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    apply!(builder, config)
        .enable_push(false)
        .max_concurrent_streams(0)
        .initial_max_send_streams(config.initial_tunnels as usize);
    builder
}

pub(crate) fn server_builder(config: &Config) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    apply!(builder, config)
        .max_concurrent_streams(config.max_tunnels)
        .max_pending_accept_reset_streams(GIVEN_UP_UNSEEN);
    builder
}
