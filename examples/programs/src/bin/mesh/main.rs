//! Two clusters in one process, rootless, on loopback: real HTTP through nested tunnels, and every promise checked.

mod app;
mod intruder;
mod report;
mod reuse;
mod steps;
mod wire;
mod world;

use std::process::ExitCode;

use clap::Parser;
use report::{Report, spinner};
use world::{REVIEWS, World};

/// What can go wrong in the demo itself.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A demo mesh: two clusters, an east-west gateway, and what it promises
#[derive(Parser)]
#[command(name = "mesh", version)]
struct Args {
    /// Keep the mesh up after the steps, with a SOCKS5 port into the client pod
    #[arg(long)]
    serve: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> Result<bool, Failure> {
    println!("Two clusters on loopback, east and west. Their pods use the same addresses, 10.42.0.10 and on.");
    println!("The reviews service is global: one pod in east, three in west behind two east-west gateways.");
    let bar = spinner("starting both clusters");
    let mut world = World::start().await?;
    bar.finish_and_clear();

    let mut report = Report::default();
    steps::path(&world, &mut report).await?;
    steps::spread(&world, &mut report).await?;
    steps::observers(&world, &mut report).await?;
    steps::intruders(&world, &mut report).await?;
    steps::impostor(&world, &mut report).await?;
    steps::local_service(&world, &mut report).await?;
    reuse::handshakes_saved(&world, &mut report).await?;
    reuse::pod_added(&mut world, &mut report).await?;
    reuse::pod_killed(&world, &mut report).await?;
    reuse::gateway_killed(&world, &mut report).await?;
    let held = report.summary();

    if args.serve {
        println!("\nThe mesh stays up until Ctrl-C. Try, several times:\n");
        println!("    curl --socks5-hostname {} http://{REVIEWS}/", world.socks5);
        tokio::signal::ctrl_c().await?;
    }
    Ok(held)
}
