//! The steps of the demo: each does something real and checks what was promised of it.

use std::collections::BTreeMap;

use hbone::connector::Connected;
use hbone::proxy::Outbound;
use hbone::testing::Ca;
use hbone::{Authority, Error, SpiffeId};

use crate::app::{self, request};
use crate::report::{Report, counter};
use crate::world::{REVIEWS, World};
use crate::{Failure, intruder};

/// How many requests show the spread.
const REQUESTS: usize = 300;
/// The pods of the reviews service, in both clusters.
const PODS: [&str; 4] = ["reviews-e1", "reviews-w1", "reviews-w2", "reviews-w3"];
/// Five standard deviations of the share of one pod of four: chance breaks it once in 400,000 runs.
const TOLERANCE: usize = 38;

fn authority(host: &str) -> Result<Authority, Failure> {
    Ok(Authority::name(host, 80)?)
}

/// A connection to the reviews service that is chosen to go to the other cluster.
async fn across(outbound: &Outbound) -> Result<Connected, Failure> {
    for _ in 0..200 {
        let connected = outbound.connect(&authority(REVIEWS)?, None).await?;
        if connected.route.path.depth() > 1 {
            return Ok(connected);
        }
    }
    Err("none of 200 connections went to the other cluster".into())
}

/// One connection to the other cluster, hop by hop.
pub(crate) async fn path(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("One connection from a pod in east to the service in west");
    let target = authority(REVIEWS)?;
    let connected = across(&world.outbound).await?;
    let route = &connected.route;
    report.say("client pod      spiffe://cluster.local/ns/shop/sa/client, 10.42.0.10 in east");
    report.say(format!("asks for        {target}"));
    let outer = &connected.identities[0];
    report.say(format!("outer tunnel    to {}, where {outer} proved itself", route.path.first().address));
    report.say(format!("                CONNECT {}", route.path.tunnelled()[0].authority));
    let inner = &connected.identities[1];
    report.say(format!("inner tunnel    inside it, where {inner} proved itself"));
    report.say(format!("                CONNECT {}", route.authority));
    let pod = connected.tunnel.metadata().baggage().and_then(|b| b.workload_name().map(str::to_owned));
    let identities = connected.identities.clone();
    let answer = request(connected.tunnel, REVIEWS, "").await?;
    report.say(format!("HTTP answer     {}", answer.trim()));
    let gateway: SpiffeId = "spiffe://cluster.local/ns/istio-gateways/sa/gateway-west".parse()?;
    let reviews: SpiffeId = "spiffe://cluster.local/ns/shop/sa/reviews".parse()?;
    report.promise(identities == [gateway, reviews], "both identities are verified: the gateway's and the pod's");
    report.promise(answer.starts_with("reviews-w"), "a pod in west answered");
    report.promise(pod.as_deref() == Some(answer.trim()), "the pod said its name with the 200 of the inner tunnel");
    let back = request(across(&world.outbound_west).await?.tunnel, REVIEWS, "").await?;
    report.promise(back.trim() == "reviews-e1", "the other way round, through east's gateway, the pod in east answers");
    Ok(())
}

/// Many requests, over all pods of both clusters.
pub(crate) async fn spread(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("300 requests from the client pod, three pods in west and one in east");
    let bar = counter("requests", REQUESTS as u64);
    let mut answers = BTreeMap::<String, usize>::new();
    let mut failed = Vec::new();
    for _ in 0..REQUESTS {
        bar.inc(1);
        let answer = async { request(app::socks5(world.socks5, REVIEWS, 80).await?, REVIEWS, "").await };
        match answer.await {
            Ok(text) => *answers.entry(text.trim().to_owned()).or_default() += 1,
            Err(e) => failed.push(e.to_string()),
        }
    }
    bar.finish_and_clear();
    for (pod, n) in &answers {
        report.say(format!("{pod:<11} {n:>3}  {}", "#".repeat(n / 3)));
    }
    if let Some(first) = failed.first() {
        report.say(format!("the first failure: {first}"));
    }
    report.promise(failed.is_empty(), format!("none failed ({})", failed.len()));
    let fair = REQUESTS / PODS.len();
    let even = PODS.iter().all(|pod| answers.get(*pod).is_some_and(|n| n.abs_diff(fair) <= TOLERANCE));
    report.promise(even, format!("each of the four pods has {fair} of them, give or take {TOLERANCE}"));
    Ok(())
}

/// The same bytes, seen from three places.
pub(crate) async fn observers(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("What an observer between the clusters sees, and what the gateway sees");
    let secret = "the-payload-that-nobody-may-see";
    for tap in [&world.link, &world.in_gateway, &world.plain] {
        tap.clear();
    }
    let answer = request(across(&world.outbound).await?.tunnel, REVIEWS, secret).await?;
    report.promise(answer.contains(secret), "the pod got the payload and gave it back");
    report.promise(
        world.plain.contains(secret) && world.plain.contains(REVIEWS),
        "control: the same search finds payload and name between the pod's proxy and its application",
    );
    report.say(format!("on the link between the clusters: {} bytes", world.link.len()));
    report.promise(world.link.len() > 0 && !world.link.contains(secret), "the payload is not among them");
    report.promise(
        [REVIEWS, "reviews", "shop", "gateway-west"].iter().all(|name| !world.link.contains(name)),
        "nor is any name: not the service's, not a namespace, not the gateway's own",
    );
    report.say(format!("in the gateway, after it has decrypted the outer tunnel: {} bytes", world.in_gateway.len()));
    report.promise(
        world.in_gateway.len() > 0 && !world.in_gateway.contains(secret),
        "the payload is not among them: they are TLS between the client and the pod",
    );
    Ok(())
}

/// Those who must not get in.
pub(crate) async fn intruders(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("Intruders at the gateway's door");
    let client: SpiffeId = "spiffe://cluster.local/ns/shop/sa/client".parse()?;
    let foreign: SpiffeId = "spiffe://evil.example/ns/shop/sa/client".parse()?;
    let other = Ca::new();
    let before = world.touched();
    let attempts = [
        ("without a certificate", intruder::without_certificate(world.gateways[0].address).await),
        ("from another CA", intruder::with_certificate(world.gateways[0].address, &world.ca, &other, &client).await),
        (
            "of another trust domain",
            intruder::with_certificate(world.gateways[0].address, &world.ca, &world.ca, &foreign).await,
        ),
    ];
    for (who, attempt) in &attempts {
        let heard = attempt.as_ref().err().map_or("it got in".to_owned(), ToString::to_string);
        report.promise(attempt.is_err(), format!("an intruder {who} is refused"));
        report.say(format!("it hears: {heard}"));
    }
    let mut reasons = 0;
    while reasons < attempts.len() {
        let Some(reason) = world.refusals.next().await else { break };
        report.say(format!("the gateway says: {reason}"));
        reasons += 1;
    }
    report.promise(reasons == attempts.len(), "the gateway names a reason for each");
    report.promise(world.touched() == before, "no pod was touched");
    Ok(())
}

/// A pod that is not who it should be.
pub(crate) async fn impostor(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("A pod behind the payments service runs under the wrong identity");
    let before = hits(world, "payments");
    let error = refused(world, "payments.shop.svc.cluster.local").await?;
    report.say(error.to_string());
    report.promise(
        error.kind() == &hbone::ErrorKind::IdentityNotAccepted && error.hop() == Some(1),
        "the client refuses it, in the inner tunnel",
    );
    report.promise(hits(world, "payments") == before, "its application got nothing");
    Ok(())
}

/// A service that its own cluster does not share.
pub(crate) async fn local_service(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("The ledger service is not global, whatever east believes");
    let before = hits(world, "ledger");
    let error = refused(world, "ledger.shop.svc.cluster.local").await?;
    report.say(error.to_string());
    let reason = error.refusal().and_then(|refusal| refusal.details()).unwrap_or_default();
    report.promise(error.hop() == Some(0) && reason.contains("local"), "the gateway refuses it with its reason");
    report.promise(hits(world, "ledger") == before, "its pod was not touched");
    Ok(())
}

async fn refused(world: &World, host: &str) -> Result<Error, Failure> {
    match world.outbound.connect(&authority(host)?, None).await {
        Ok(_) => Err(format!("a tunnel to {host} was opened").into()),
        Err(error) => Ok(error),
    }
}

fn hits(world: &World, pod: &str) -> usize {
    world.pods.iter().filter(|p| p.name == pod).map(|p| p.hits.get()).sum()
}
