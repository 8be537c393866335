//! Certificates that come late, are renewed, or run out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::super::PoolConfig;
use super::world::{World, connect, direct, echoes, id};
use crate::ErrorKind;
use crate::metadata::Metadata;
use crate::path::Reuse;
use crate::testing::Issued;
use crate::tls::{CredentialSource, Credentials, ReloadingCredentials};

/// Loads the same certificate anew each time, as from files.
#[derive(Debug)]
struct Loading(Issued, AtomicUsize);

impl CredentialSource for Loading {
    fn credentials(&self) -> io::Result<Credentials> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.credentials().map_err(Into::into)
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_certificate_loaded_anew_keeps_the_connection() {
    let world = World::new();
    let pod = world.echo(1);
    let (pool, _) = world.pool(PoolConfig::new());
    let issued = world.ca.certificate().uri(&id("client").to_string()).issue();
    let credentials = Arc::new(Loading(issued, AtomicUsize::new(0)));
    let source = pool.source(credentials.clone(), Metadata::default()).unwrap();
    let mut tunnels = Vec::new();
    for _ in 0..5 {
        tunnels.push(connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap());
    }
    assert_eq!(pod.handshakes(), 1);
    assert!(credentials.1.load(Ordering::Relaxed) > 5);
}

#[tokio::test(start_paused = true)]
async fn a_source_may_be_there_before_its_certificate() {
    let world = World::new();
    let _pod = world.echo(1);
    let (pool, _) = world.pool(PoolConfig::new());
    let credentials = ReloadingCredentials::new();
    let source = pool.source(Arc::new(credentials.clone()), Metadata::default()).unwrap();
    assert_eq!(source.identity(), None);
    let path = direct(1, Reuse::Shared);
    let issue = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        credentials.update(Ok(world.ca.issue(&id("client")))).unwrap()
    };
    let (tunnel, _) = tokio::join!(connect(&pool, &source, &path), issue);
    echoes(&mut tunnel.unwrap()).await;
    connect(&pool, &source, &path).await.unwrap();
    assert_eq!(source.identity(), Some(id("client")));
    assert_eq!(pool.stats().connections, 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_never_comes_is_named_by_the_error() {
    let world = World::new();
    let _pod = world.echo(1);
    let (pool, _) = world.pool(PoolConfig::new());
    let source = pool.source(Arc::new(ReloadingCredentials::new()), Metadata::default()).unwrap();
    let error = connect(&pool, &source, &direct(1, Reuse::Shared)).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Timeout);
    assert!(error.to_string().contains("waiting for our own certificate"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_own_certificate_has_expired_takes_no_more_tunnels() {
    let world = World::new();
    let pod = world.echo(1);
    let (pool, _) = world.pool(PoolConfig::new());
    let fresh = world.ca.issue(&id("client"));
    let credentials = Arc::new(ReloadingCredentials::from(fresh));
    let source = pool.source(credentials.clone(), Metadata::default()).unwrap();
    let path = direct(1, Reuse::Shared);
    let mut first = connect(&pool, &source, &path).await.unwrap();

    let now = SystemTime::now();
    assert!(!source.shared.has_rotated(now));
    let later = now + Duration::from_secs(2 * 24 * 60 * 60);
    assert!(source.shared.has_rotated(later), "the certificate is valid for a day");

    let issued = world.ca.certificate().uri(&id("client").to_string()).expired().issue();
    let expired = issued.credentials_as_of(now - Duration::from_secs(2 * 60 * 60));
    credentials.update(expired).unwrap();
    let error = connect(&pool, &source, &path).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::InvalidCredentials);
    assert!(error.to_string().contains("our own certificate, of spiffe://"), "{error}");
    assert!(error.to_string().contains("expired at 20"), "{error}");
    echoes(&mut first).await;

    credentials.update(Ok(world.ca.issue(&id("client")))).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    echoes(&mut connect(&pool, &source, &path).await.unwrap()).await;
    assert_eq!(pod.handshakes(), 2);
}
