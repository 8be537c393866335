//! One tunnel fills a long path, and what nobody reads does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rstest::rstest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::harness::{World, tunnel};
use crate::Config;
use crate::io::{read_bytes, write_bytes};
use crate::testing::Link;
use crate::tunnel::TunnelStream;

const GIGABIT: u64 = 1_000_000_000;

/// Sends for ever, and counts what arrives.
fn stream(mut from: TunnelStream, mut to: TunnelStream) -> Arc<AtomicU64> {
    tokio::spawn(async move {
        let piece = Bytes::from(vec![7; 64 << 10]);
        while write_bytes(&mut from, piece.clone()).await.is_ok() {}
    });
    let count = Arc::new(AtomicU64::new(0));
    let arrived = count.clone();
    tokio::spawn(async move {
        while let Ok(data) = read_bytes(&mut to).await {
            arrived.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    });
    count
}

/// The share of the path that one tunnel's bytes get, measured for half a second once `after` is over.
async fn share(config: Config, round_trip: u64, depth: usize, upload: bool, after: Duration) -> f64 {
    const TIME: Duration = Duration::from_millis(500);
    let (near, far) = Link::new(Duration::from_millis(round_trip)).with_rate(GIGABIT).connection();
    let (client, mut incoming) = World::new(config).connect_over(Box::new(near), Box::new(far), depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let arrived = if upload { stream(near, far) } else { stream(far, near) };
    sleep(after).await;
    let before = arrived.load(Ordering::Relaxed);
    sleep(TIME).await;
    let bytes = arrived.load(Ordering::Relaxed) - before;
    bytes as f64 * 8.0 / (GIGABIT as f64 * TIME.as_secs_f64())
}

#[rstest]
#[case::single_100(100, 1, 1500)]
#[case::nested_100(100, 2, 1500)]
#[case::single_200(200, 1, 3000)]
#[case::nested_200(200, 2, 3000)]
#[tokio::test(start_paused = true)]
async fn one_tunnel_fills_a_long_path(
    #[case] round_trip: u64,
    #[case] depth: usize,
    #[case] after: u64,
    #[values(true, false)] upload: bool,
) {
    let share = share(Config::new(), round_trip, depth, upload, Duration::from_millis(after)).await;
    eprintln!("{round_trip} ms, depth {depth}, upload {upload}: {share:.3}");
    assert!(share >= 0.8, "{share}");
}

/// What it is for: with windows that stay as they are, the same path is mostly empty.
#[tokio::test(start_paused = true)]
async fn windows_that_do_not_grow_leave_it_empty() {
    let config = Config::new().with_max_stream_window(1);
    let share = share(config, 100, 1, true, Duration::from_millis(500)).await;
    assert!((0.2..0.4).contains(&share), "{share}");
}

/// Writes until nothing more is taken, and says how much was.
async fn fill(tunnel: &mut TunnelStream) -> usize {
    let mut taken = 0;
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_secs(2), tunnel.write(&[0; 60_000])).await {
        taken += n;
    }
    taken
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn readers_that_stop_hold_little_and_do_not_stop_the_others(#[values(1, 2)] depth: usize) {
    const MIB: usize = 1 << 20;
    let config = Config::new().with_max_tunnels(50);
    let (near, far) = Link::new(Duration::from_millis(100)).with_rate(GIGABIT).connection();
    let (client, mut incoming) = World::new(config).connect_over(Box::new(near), Box::new(far), depth).await;
    let (near, far) = tunnel(&client, &mut incoming).await;
    let arrived = stream(near, far);
    sleep(Duration::from_millis(1500)).await;
    assert!(arrived.load(Ordering::Relaxed) > 60 << 20, "the windows have grown");
    let mut stopped = Vec::new();
    let mut filling = Vec::new();
    for _ in 0..20 {
        let (mut near, far) = tunnel(&client, &mut incoming).await;
        stopped.push(far);
        filling.push(tokio::spawn(async move { (fill(&mut near).await, near) }));
    }
    let mut held = Vec::new();
    for filling in filling {
        let (taken, near) = filling.await.unwrap();
        held.push((taken, near));
    }
    // With what waits at the sender.
    let total: usize = held.iter().map(|(taken, _)| *taken - (512 << 10).min(*taken)).sum();
    eprintln!("depth {depth}: {} MiB unread", total / MIB);
    assert!(total <= 128 * MIB, "{} MiB", total / MIB);
    let before = arrived.load(Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    let arrived = arrived.load(Ordering::Relaxed) - before;
    assert!(arrived > 20 << 20, "the first tunnel goes on, with {arrived} bytes");
    let (mut near, mut far) = tunnel(&client, &mut incoming).await;
    near.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_and_goes_on_finds_all_of_it_and_gets_the_whole_path_again(#[values(1, 2)] depth: usize) {
    let (near, far) = Link::new(Duration::from_millis(100)).with_rate(GIGABIT).connection();
    let (client, mut incoming) = World::new(Config::new()).connect_over(Box::new(near), Box::new(far), depth).await;
    let (mut from, mut to) = tunnel(&client, &mut incoming).await;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = sent.clone();
    tokio::spawn(async move {
        let piece: Bytes = (0..=250).cycle().take(251 * 256).collect();
        while write_bytes(&mut from, piece.clone()).await.is_ok() {
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    let mut read = 0;
    for _ in 0..3 {
        let begin = Instant::now();
        let mut measured = 0;
        while begin.elapsed() < Duration::from_millis(2000) {
            let data = read_bytes(&mut to).await.unwrap();
            assert_eq!(
                (u64::from(data[0]), u64::from(data[data.len() - 1])),
                (read % 251, (read + data.len() as u64 - 1) % 251)
            );
            read += data.len() as u64;
            if begin.elapsed() >= Duration::from_millis(1500) {
                measured += data.len() as u64;
            }
        }
        assert!(measured * 8 > GIGABIT * 8 / 20, "{measured}");
        sleep(Duration::from_secs(15)).await;
        let held = sent.load(Ordering::Relaxed) - read;
        eprintln!("depth {depth}: {} MiB held for a reader that has stopped", held >> 20);
        assert!(held <= 33 << 20, "{held}");
    }
}

/// The windows have become small meanwhile, below what had been read and not been told of.
#[rstest]
#[tokio::test(start_paused = true)]
async fn a_sender_that_pauses_goes_on(#[values(1, 2)] depth: usize, #[values(13, 77, 100)] pieces: usize) {
    let (near, far) = Link::new(Duration::from_millis(100)).with_rate(GIGABIT).connection();
    let (client, mut incoming) = World::new(Config::new()).connect_over(Box::new(near), Box::new(far), depth).await;
    let (mut from, mut to) = tunnel(&client, &mut incoming).await;
    let count = Arc::new(AtomicU64::new(0));
    let arrived = count.clone();
    tokio::spawn(async move {
        while let Ok(data) = read_bytes(&mut to).await {
            arrived.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    });
    let mut sent = 0;
    // To grow, then bursts of about a third of the window.
    for pieces in [1000, pieces, pieces, 3 * pieces] {
        for _ in 0..pieces {
            let piece = vec![0; 100_000];
            sent += piece.len() as u64;
            write_bytes(&mut from, piece.into()).await.unwrap();
        }
        sleep(Duration::from_secs(15)).await;
        assert_eq!(count.load(Ordering::Relaxed), sent);
    }
}
