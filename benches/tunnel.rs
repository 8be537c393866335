//! What a tunnel costs in throughput, over loopback TCP.
//!
//! 1. Bulk through a plain mutual-TLS session of tokio-rustls (depth 0), HBONE (depth 1) and nested HBONE (depth 2),
//!    side by side.
//! 2. One busy tunnel alone, and beside eight tunnels of the same connection whose readers have stopped.
//!
//! The rounds are interleaved, so that a noisy machine hits all alike; compare the ratios of the medians. Each
//! measurement has a runtime of its own with two threads. `cargo bench --bench tunnel -- [--mib N] [--rounds N] [--only
//! DEPTH]`; with `--test` it only shows that it runs.

#[path = "common/mod.rs"]
mod common;

use bytes::Bytes;
use common::{BoxStream, Depth, Peers};
use hbone::io::{read_bytes, write_bytes};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What one write hands over, as a relay does once a connection is busy.
const CHUNK: usize = 128 << 10;
/// The default window of a tunnel: a reader that has stopped lets this much through.
const WINDOW: usize = 4 << 20;
const STALLED: usize = 8;

/// MiB/s of one bulk transfer at `depth`, beside `stalled` tunnels of the same connection whose readers have stopped.
async fn bulk(depth: Depth, stalled: usize, mib: usize) -> f64 {
    let mut link = Peers::new().link(depth).await;
    let mut held = Vec::new();
    for _ in 0..stalled {
        let (mut near, far) = link.open().await;
        let (filled, full) = oneshot::channel();
        let writer = tokio::spawn(async move {
            let chunk = Bytes::from(vec![0x5a; CHUNK]);
            for _ in 0..WINDOW / CHUNK {
                write_bytes(&mut *near, chunk.clone()).await.expect("room");
            }
            let _ = filled.send(());
            // Waits until the end for room.
            let _ = write_bytes(&mut *near, chunk).await;
        });
        full.await.expect("a full window");
        held.push((far, writer));
    }
    let (near, far) = link.open().await;
    let rate = transfer(near, far, mib << 20).await;
    held.iter().for_each(|(_, writer)| writer.abort());
    rate
}

/// MiB/s; the time runs from the first write to the last read.
async fn transfer(mut near: BoxStream, mut far: BoxStream, total: usize) -> f64 {
    let chunk = Bytes::from(vec![0x5a; CHUNK]);
    let start = Instant::now();
    let sending = tokio::spawn(async move {
        for _ in 0..total / CHUNK {
            write_bytes(&mut *near, chunk.clone()).await.expect("room");
        }
        near.shutdown().await.expect("an end");
        near
    });
    let mut received = 0;
    loop {
        match read_bytes(&mut *far).await.expect("data").len() {
            0 => break,
            n => received += n,
        }
    }
    let took = start.elapsed().as_secs_f64();
    assert_eq!(received, total / CHUNK * CHUNK);
    drop(sending.await.expect("the sender"));
    received as f64 / f64::from(1 << 20) / took
}

struct Case {
    name: &'static str,
    depth: Depth,
    stalled: usize,
    /// The case of the same table that the ratio is to.
    to: usize,
}

fn table(title: &str, cases: &[Case], mib: usize, rounds: usize) {
    let mut rates = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (case, rates) in cases.iter().zip(&mut rates) {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
            // Spawned, since the thread that blocks is not one of the two.
            let rate = runtime.spawn(bulk(case.depth, case.stalled, mib));
            rates.push(runtime.block_on(rate).expect("a rate"));
        }
    }
    rates.iter_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
    let median = |case: usize| rates[case][rounds / 2];
    println!("\n{title}: {mib} MiB one way, median of {rounds} interleaved rounds");
    println!("{:<44} {:>7} {:>7} {:>15}", "", "MiB/s", "ratio", "range");
    for (i, case) in cases.iter().enumerate() {
        let range = format!("{:.0} - {:.0}", rates[i][0], rates[i][rounds - 1]);
        println!("{:<44} {:>7.0} {:>7.2} {range:>15}", case.name, median(i), median(i) / median(case.to));
    }
}

fn argument(name: &str) -> Option<usize> {
    std::env::args().skip_while(|a| a != name).nth(1).and_then(|v| v.parse().ok())
}

fn main() {
    let smoke = std::env::args().any(|a| a == "--test");
    let mib = argument("--mib").unwrap_or(if smoke { 1 } else { 512 });
    let rounds = argument("--rounds").unwrap_or(if smoke { 1 } else { 7 }).max(1);
    let case = |name, depth, stalled, to| Case { name, depth, stalled, to };
    let depths = [
        case("depth 0: tokio-rustls, mutual TLS", Depth::RawTls, 0, 0),
        case("depth 1: HBONE", Depth::Hbone(1), 0, 0),
        case("depth 2: nested HBONE", Depth::Hbone(2), 0, 0),
    ];
    if let Some(case) = argument("--only").and_then(|depth| depths.get(depth)) {
        return table("one depth", &[Case { to: 0, ..*case }], mib, rounds);
    }
    table("depth", &depths, mib, rounds);
    let stalled = [
        case("depth 1, alone", Depth::Hbone(1), 0, 0),
        case("depth 1, beside 8 stalled readers", Depth::Hbone(1), STALLED, 0),
        case("depth 2, alone", Depth::Hbone(2), 0, 2),
        case("depth 2, beside 8 stalled readers", Depth::Hbone(2), STALLED, 2),
    ];
    table("stalled readers", &stalled, mib, rounds);
}
