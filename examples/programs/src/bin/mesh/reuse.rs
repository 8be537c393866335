//! The steps that show what becomes of many connections: how few handshakes they cost, and what they lose when
//! something dies under them, which is nothing that was not already running there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hbone::Authority;
use hbone::proxy::Outbound;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::Failure;
use crate::app::request;
use crate::report::{Report, counter};
use crate::world::{RATINGS, World};

const CONNECTIONS: usize = 1_000;
/// How many of them come while the sessions that all share are being opened.
const FIRST: usize = 100;
const AT_A_TIME: usize = 16;
/// How many are over when something happens to the others.
const BEFORE: usize = 300;

/// What became of many short connections.
#[derive(Default)]
struct Outcome {
    /// Requests by the pod that answered.
    answers: BTreeMap<String, usize>,
    /// Connections that were not opened, with the reason.
    failed: Vec<String>,
    /// Connections that broke after they had been opened.
    cut: usize,
}

/// Connections from the client pod to the ratings service, which is in the other cluster only.
struct Load {
    outbound: Outbound,
    target: Authority,
    connections: usize,
    begun: AtomicUsize,
    over: AtomicUsize,
    progress: Notify,
}

impl Load {
    /// Opens connections, a request on each, and does something meanwhile.
    async fn run(world: &World, connections: usize, meanwhile: impl FnOnce()) -> Result<Outcome, Failure> {
        let load = Arc::new(Self {
            outbound: world.outbound.clone(),
            target: Authority::name(RATINGS, 80)?,
            connections,
            begun: AtomicUsize::new(0),
            over: AtomicUsize::new(0),
            progress: Notify::new(),
        });
        let bar = counter("connections", connections as u64);
        let mut tasks = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let load = load.clone();
            tasks.spawn(async move { load.work().await });
        }
        loop {
            let progress = load.progress.notified();
            if load.over.load(Ordering::SeqCst) >= BEFORE.min(connections) {
                break;
            }
            progress.await;
        }
        meanwhile();
        let mut outcome = Outcome::default();
        while let Some(done) = tasks.join_next().await {
            let done = done?;
            for (pod, n) in done.answers {
                *outcome.answers.entry(pod).or_default() += n;
            }
            outcome.failed.extend(done.failed);
            outcome.cut += done.cut;
            bar.set_position(load.over.load(Ordering::SeqCst) as u64);
        }
        bar.finish_and_clear();
        Ok(outcome)
    }

    async fn work(&self) -> Outcome {
        let mut outcome = Outcome::default();
        while self.begun.fetch_add(1, Ordering::SeqCst) < self.connections {
            match self.outbound.connect(&self.target, None).await {
                Ok(connected) => match request(connected.tunnel, RATINGS, "").await {
                    Ok(pod) => *outcome.answers.entry(pod.trim().to_owned()).or_default() += 1,
                    Err(_) => outcome.cut += 1,
                },
                Err(e) => outcome.failed.push(e.to_string()),
            }
            self.over.fetch_add(1, Ordering::SeqCst);
            self.progress.notify_one();
        }
        outcome
    }
}

impl Outcome {
    fn and(&self, other: &Self) -> Self {
        let mut both = Self { answers: self.answers.clone(), failed: self.failed.clone(), cut: self.cut + other.cut };
        for (pod, n) in &other.answers {
            *both.answers.entry(pod.clone()).or_default() += n;
        }
        both.failed.extend(other.failed.iter().cloned());
        both
    }

    fn of(&self, pod: &str) -> usize {
        self.answers.get(pod).copied().unwrap_or(0)
    }

    fn show(&self, report: &mut Report) {
        for (pod, n) in &self.answers {
            report.say(format!("{pod:<11} {n:>3}  {}", "#".repeat(n / 8)));
        }
        if let Some(first) = self.failed.first() {
            report.say(format!("the first failure: {first}"));
        }
        let opened = self.answers.values().sum::<usize>() + self.cut;
        let all = opened + self.failed.len();
        report.promise(self.failed.is_empty(), format!("{opened} of {all} connections were opened"));
    }
}

/// Sessions between the client and pods of the service, so far.
fn handshakes(world: &World) -> usize {
    world.pods.iter().filter(|pod| pod.name.starts_with("ratings")).map(|pod| pod.connections.get()).sum()
}

/// Many connections over few.
pub(crate) async fn handshakes_saved(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("1,000 short connections to three pods in the other cluster");
    let at_gateways = || world.gateways.iter().map(|gateway| gateway.connections.get()).sum::<usize>();
    let before = at_gateways();
    let first = Load::run(world, FIRST, || ()).await?;
    let rest = Load::run(world, CONNECTIONS - FIRST, || ()).await?;
    let outcome = first.and(&rest);
    outcome.show(report);
    let (inner, outer) = (handshakes(world), at_gateways() - before);
    report.say(format!("they cost {inner} sessions with the pods, and {outer} more with the gateways before them"));
    report.promise(inner <= 6, "at most one session with each pod through each of the two gateways");
    let fair = (CONNECTIONS - FIRST) / 3;
    let even = ["ratings-w1", "ratings-w2", "ratings-w3"].iter().all(|p| rest.of(p).abs_diff(fair) <= fair / 4);
    report.promise(
        even,
        format!("each of the three pods has {fair} of the last {}, give or take a quarter", CONNECTIONS - FIRST),
    );
    Ok(())
}

/// One more pod.
pub(crate) async fn pod_added(world: &mut World, report: &mut Report) -> Result<(), Failure> {
    report.step("A fourth pod is added, and the mesh says so");
    world.add_ratings_pod()?;
    let (first, rest) = (Load::run(world, FIRST, || ()).await?, Load::run(world, CONNECTIONS - FIRST, || ()).await?);
    let outcome = first.and(&rest);
    outcome.show(report);
    let (fair, new) = ((CONNECTIONS - FIRST) / 4, rest.of("ratings-w4"));
    report.promise(
        new.abs_diff(fair) <= fair / 4,
        format!("the new one has {fair} of the last {}, give or take a quarter", CONNECTIONS - FIRST),
    );
    Ok(())
}

/// One pod less, and nobody says so.
pub(crate) async fn pod_killed(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("A pod is killed under load, and nobody is told");
    let victim = world.pod("ratings-w2")?;
    let outcome = Load::run(world, CONNECTIONS, || victim.kill()).await?;
    outcome.show(report);
    report.say(format!("{} requests were running on the pod and ended with it", outcome.cut));
    report.promise(outcome.cut <= AT_A_TIME, "nothing else was lost");
    Ok(())
}

/// One gateway less.
pub(crate) async fn gateway_killed(world: &World, report: &mut Report) -> Result<(), Failure> {
    report.step("One of the two gateways is killed under load");
    let outcome = Load::run(world, CONNECTIONS, || world.gateways[1].kill()).await?;
    outcome.show(report);
    report.say(format!("{} requests were running through the gateway and ended with it", outcome.cut));
    report.promise(outcome.cut <= AT_A_TIME, "nothing else was lost");
    Ok(())
}
