//! What it takes to open something, and to pass bytes on.

#[path = "../../common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Depth, Peers};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hbone::io::{BytesAdapter, relay};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

const DEPTHS: [(&str, Depth); 3] = [("tls", Depth::RawTls), ("hbone", Depth::Hbone(1)), ("nested", Depth::Hbone(2))];

/// A connection with its first tunnel, from nothing: TCP, a TLS handshake for each layer, a CONNECT for each.
fn from_nothing(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("open/from nothing");
    group.measurement_time(Duration::from_secs(3)).sample_size(20);
    let peers = Peers::new();
    for (name, depth) in DEPTHS {
        group.bench_function(name, |b| {
            b.to_async(&runtime).iter(|| async {
                let mut link = peers.link(depth).await;
                link.open().await
            });
        });
    }
    group.finish();
}

/// One more tunnel on a connection that is there.
fn one_more(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("open/one more tunnel");
    for (name, depth) in &DEPTHS[1..] {
        let link = Arc::new(Mutex::new(runtime.block_on(Peers::new().link(*depth))));
        group.bench_function(*name, |b| {
            b.to_async(&runtime).iter(|| async {
                let (mut near, mut far) = link.lock().await.open().await;
                near.shutdown().await.expect("an end");
                far.shutdown().await.expect("an end");
            });
        });
    }
    group.finish();
}

/// From one pipe to another, without HTTP/2 or TLS.
fn relayed(c: &mut Criterion) {
    const TOTAL: usize = 8 << 20;
    let runtime = Runtime::new().expect("a runtime");
    let mut group = c.benchmark_group("relay");
    group.sample_size(20);
    for piece in [1 << 10, 64 << 10] {
        group.throughput(Throughput::Bytes(TOTAL as u64));
        group.bench_function(format!("pieces of {piece} B"), |b| {
            b.to_async(&runtime).iter(|| async move {
                let ((mut near, a), (b, mut far)) = (duplex(256 << 10), duplex(256 << 10));
                let relaying = tokio::spawn(async move { relay(&mut BytesAdapter::new(a), &mut BytesAdapter::new(b)).await });
                let sending = tokio::spawn(async move {
                    let data = vec![0x5a; piece];
                    for _ in 0..TOTAL / piece {
                        near.write_all(&data).await.expect("room");
                    }
                    near.shutdown().await.expect("an end");
                    near
                });
                let mut buffer = vec![0; 128 << 10];
                while far.read(&mut buffer).await.expect("data") > 0 {}
                far.shutdown().await.expect("an end");
                drop(sending.await.expect("the sender"));
                relaying.await.expect("the relay").expect("both ends");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, from_nothing, one_more, relayed);
criterion_main!(benches);
