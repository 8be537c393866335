//! Messages in one direction: how deep, through how many tunnels at a time, of which size. Bytes and messages per
//! second.

#[path = "../../common/mod.rs"]
mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Depth, Ends, Link, Peers};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use hbone::io::{read_bytes, write_bytes};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;
use tokio::time::Instant;

const STREAMS: [usize; 3] = [1, 16, 64];
const SIZES: [usize; 4] = [64, 1 << 10, 16 << 10, 128 << 10];
/// What one iteration moves, over all tunnels.
const BYTES: usize = 1 << 20;
const MOST_MESSAGES: usize = 1 << 10;

/// Sends `messages` through one tunnel; returns its ends when all have arrived.
async fn send((mut near, mut far): Ends, message: Bytes, messages: usize) -> Ends {
    let total = message.len() * messages;
    let sending = tokio::spawn(async move {
        for _ in 0..messages {
            write_bytes(&mut *near, message.clone()).await.expect("room");
        }
        near.flush().await.expect("a flush");
        near
    });
    let mut received = 0;
    while received < total {
        received += read_bytes(&mut *far).await.expect("data").len();
    }
    (sending.await.expect("the sender"), far)
}

async fn open(depth: Depth, streams: usize) -> (Link, Vec<Ends>) {
    let mut link = Peers::new().link(depth).await;
    let mut ends = Vec::new();
    for _ in 0..streams {
        ends.push(link.open().await);
    }
    (link, ends)
}

/// The time that `iterations` take.
async fn time(ends: &mut Vec<Ends>, size: usize, messages: usize, iterations: u64) -> Duration {
    let message = Bytes::from(vec![0x5a; size]);
    let start = Instant::now();
    let tasks: Vec<_> = std::mem::take(ends)
        .into_iter()
        .map(|pair| tokio::spawn(send(pair, message.clone(), messages * iterations as usize)))
        .collect();
    for task in tasks {
        ends.push(task.await.expect("a tunnel"));
    }
    start.elapsed()
}

fn matrix(c: &mut Criterion) {
    for (name, depth) in [("tls", Depth::RawTls), ("hbone", Depth::Hbone(1)), ("nested", Depth::Hbone(2))] {
        let mut group = c.benchmark_group(format!("messages/{name}"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for streams in STREAMS {
            for size in SIZES {
                let messages = (BYTES / streams / size).clamp(1, MOST_MESSAGES);
                let all = (messages * streams) as u64;
                group.throughput(Throughput::ElementsAndBytes { elements: all, bytes: all * size as u64 });
                let runtime = Runtime::new().expect("a runtime");
                let (link, mut ends) = runtime.block_on(open(depth, streams));
                let id = BenchmarkId::new(format!("{streams} tunnels"), format!("{size} B"));
                group.bench_function(id, |b| {
                    b.iter_custom(|n| {
                        let mut moved = std::mem::take(&mut ends);
                        // Spawned, since the thread that blocks is none of the runtime's.
                        let timed = runtime.spawn(async move { (time(&mut moved, size, messages, n).await, moved) });
                        let (took, back) = runtime.block_on(timed).expect("a time");
                        ends = back;
                        took
                    });
                });
                drop((ends, link));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, matrix);
criterion_main!(benches);
