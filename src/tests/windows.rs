//! What connections hold unread is bounded, and readers that have stopped leave room to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::harness::{Carrier, World, authority, idle, metadata, tunnel};
use crate::Config;
use crate::client::Client;
use crate::server::Incoming;
use crate::tunnel::TunnelStream;

const MIB: usize = 1 << 20;
const SEND_BUFFER: usize = 16 << 10;
const TUNNELS: usize = 40;

/// A third of what all windows come to.
const CONNECTION: usize = 12 * MIB;

fn config() -> Config {
    let config = Config::new().with_stream_window(MIB as u32).with_max_stream_window(0);
    config.with_max_tunnels(TUNNELS as u32).with_max_connection_window(CONNECTION as u32).with_send_buffer(SEND_BUFFER)
}

/// A tunnel whose reader has stopped: writes all it can, and counts it.
struct Stalled {
    to: TunnelStream,
    written: Arc<AtomicUsize>,
    writing: JoinHandle<()>,
}

impl Stalled {
    fn new(mut from: TunnelStream, to: TunnelStream) -> Self {
        let written = Arc::new(AtomicUsize::new(0));
        let counter = written.clone();
        let writing = tokio::spawn(async move {
            while let Ok(n) = from.write(&[7; 10_000]).await {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        });
        Self { to, written, writing }
    }

    fn written(&self) -> usize {
        self.written.load(Ordering::Relaxed)
    }
}

/// What all of them have written: what is unread, and what waits to be sent.
fn written(stalled: &[Stalled]) -> usize {
    stalled.iter().map(Stalled::written).sum()
}

async fn carry(mut from: TunnelStream, mut to: TunnelStream, total: usize) {
    let sending = tokio::spawn(async move {
        from.write_all(&vec![9; total]).await.unwrap();
        from.shutdown().await.unwrap();
        from
    });
    let mut got = Vec::new();
    to.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), total);
    to.shutdown().await.unwrap();
    drop(sending.await.unwrap());
}

async fn pair(
    client: &Client,
    incoming: &mut mpsc::UnboundedReceiver<Incoming>,
    upwards: bool,
) -> (TunnelStream, TunnelStream) {
    let (near, far) = tunnel(client, incoming).await;
    if upwards { (near, far) } else { (far, near) }
}

#[rstest]
#[case::one_after_the_other(true)]
#[case::all_at_once(false)]
#[tokio::test(start_paused = true)]
async fn stalled_readers_hold_no_more_than_the_connection_may_and_stop_nobody(
    #[case] one_by_one: bool,
    #[values(1, 2)] depth: usize,
    #[values(true, false)] upwards: bool,
) {
    let (client, mut incoming) = World::new(config()).connect(Carrier::Pipe, depth).await;
    let mut stalled = Vec::new();
    for _ in 1..TUNNELS {
        let (from, to) = pair(&client, &mut incoming, upwards).await;
        stalled.push(Stalled::new(from, to));
        if one_by_one {
            idle().await;
        }
    }
    let (from, to) = pair(&client, &mut incoming, upwards).await;
    carry(from, to, 8 * MIB).await;
    idle().await;
    let all = written(&stalled);
    assert!(all <= CONNECTION + TUNNELS * SEND_BUFFER, "{all}");
    assert!(all >= CONNECTION / 2, "{all}");
    // Each of them goes on where it is read again.
    for Stalled { to, .. } in &mut stalled {
        to.read_exact(&mut vec![0; 2 * MIB]).await.unwrap();
    }
    assert!(stalled.iter().all(|stalled| !stalled.writing.is_finished()));
}

#[rstest]
#[case::they_read(true)]
#[case::they_are_gone(false)]
#[tokio::test(start_paused = true)]
async fn windows_are_large_again_once_nothing_is_unread(#[case] read: bool, #[values(true, false)] upwards: bool) {
    let (client, mut incoming) = World::new(config()).connect(Carrier::Pipe, 1).await;
    let mut stalled = Vec::new();
    for _ in 1..TUNNELS {
        let (from, to) = pair(&client, &mut incoming, upwards).await;
        stalled.push(Stalled::new(from, to));
    }
    idle().await;
    for Stalled { mut to, writing, .. } in stalled {
        if read {
            writing.abort();
            let _ = to.read_to_end(&mut Vec::new()).await;
        }
    }
    // Something has to come for the peer to hear of it.
    sleep(Duration::from_secs(2)).await;
    let (from, to) = pair(&client, &mut incoming, upwards).await;
    carry(from, to, MIB).await;
    let (from, to) = pair(&client, &mut incoming, upwards).await;
    let one = Stalled::new(from, to);
    idle().await;
    assert!((MIB..=MIB + SEND_BUFFER).contains(&one.written()), "{}", one.written());
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_answer_counts() {
    let (client, mut incoming) = World::new(config()).connect(Carrier::Pipe, 1).await;
    let mut waiting = Vec::new();
    for _ in 1..TUNNELS {
        let mut tunnel = client.connect_early(&authority(), &metadata()).await.unwrap();
        let incoming = incoming.recv().await.unwrap();
        let writing = tokio::spawn(async move { while tunnel.write(&[7; 10_000]).await.is_ok() {} });
        waiting.push((incoming, writing));
    }
    idle().await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    carry(near, far, 8 * MIB).await;
}

#[tokio::test(start_paused = true)]
async fn connections_of_one_config_share_what_they_hold_in_all() {
    const CONNECTIONS: usize = 12;
    let config = config().with_max_total_window(8 * MIB as u64);
    let world = World::new(config.clone());
    let (mut stalled, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (client, mut incoming) = world.connect(Carrier::Pipe, 1).await;
        for _ in 1..TUNNELS {
            let (from, to) = pair(&client, &mut incoming, true).await;
            stalled.push(Stalled::new(from, to));
            idle().await;
        }
        clients.push((client, incoming));
    }
    // Each by itself may hold 10 MiB. What is little comes on top.
    let waiting = stalled.len() * SEND_BUFFER;
    let all = written(&stalled) - waiting.min(written(&stalled));
    assert!(all <= 10 * MIB, "{all}");
    // None of them is stopped, and neither is one that comes new.
    clients.push(world.connect(Carrier::Pipe, 1).await);
    for (client, incoming) in &mut clients {
        let (from, to) = pair(client, incoming, true).await;
        carry(from, to, 4 * MIB).await;
    }
    drop((clients, stalled));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(config.total.left(), config.total.limit(), "all is given back");
}
