//! What the mesh costs: real proxies on loopback under load, beside plain relays under the same load.

mod link;
mod load;
#[path = "../../../../../benches/common/raw_tls.rs"]
mod raw_tls;
mod relay;
mod report;
mod roles;
mod stats;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use load::{Figures, Load, hold};
use report::{Memory, Open, Results, name};
use roles::Role;
use stats::Host;
use world::{Route, World};

/// What can go wrong in the measurement itself.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures the proxies: throughput, latency, CPU and memory, beside plain TCP relays and relays with mutual TLS
#[derive(Parser)]
#[command(name = "bench-mesh", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How often everything is measured; what is printed are medians
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each load runs
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// These loads alone
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Load>,
    /// These paths alone: direct, tcp2, tcp3, large2, large3, splice2, splice3, mtls2, hbone, nested, slow, against
    #[arg(long, value_delimiter = ',')]
    paths: Vec<String>,
    /// Another proxy, as a path of its own: a shell command that makes $LISTEN lead to $UPSTREAM
    #[arg(long, value_name = "COMMAND")]
    against: Option<String>,
    /// How many idle connections the proxies' memory is measured with; 0 for none
    #[arg(long, default_value_t = 2000)]
    idle: usize,
    /// Measures the memory a minute after so many connections, instead of with idle ones
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "10000")]
    burst: Option<usize>,
    /// Measures the CPU of requests beside so many open connections, such as 10,10000
    #[arg(long, value_name = "N", value_delimiter = ',')]
    open: Vec<usize>,
    /// A load during which the host had more than this share of the CPU for others is run again
    #[arg(long, value_name = "PERCENT", default_value_t = 3.0)]
    steal: f64,
    /// How often it is run at most; what counts is the run with the least stolen
    #[arg(long, value_name = "N", default_value_t = 3)]
    tries: usize,
    /// Prints all values as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// As short as possible: shows that everything works
    #[arg(long)]
    quick: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.role {
        Some(role) => role.run().map(|()| true),
        None => measure(args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut args: Args) -> Result<bool, Failure> {
    raise_limit()?;
    if args.quick {
        (args.rounds, args.seconds, args.idle, args.tries) = (1, 0.3, 100, 1);
    }
    let time = Duration::try_from_secs_f64(args.seconds).map_err(|e| format!("--seconds: {e}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args, time))
}

/// Starts this program again with as many file descriptors as the system lets it have: the proxies inherit them.
fn raise_limit() -> Result<(), Failure> {
    const RAISED: &str = "BENCH_MESH_RAISED";
    #[cfg(unix)]
    if std::env::var_os(RAISED).is_none() {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -n $(ulimit -H -n) 2>/dev/null; exec \"$0\" \"$@\""]);
        let error = command.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(RAISED, "1").exec();
        return Err(format!("starting again with more file descriptors: {error}").into());
    }
    let _ = RAISED;
    Ok(())
}

async fn run(args: &Args, time: Duration) -> Result<bool, Failure> {
    let world = World::start(&args.paths, args.against.as_deref()).await?;
    for route in &world.routes {
        eprintln!("{}: at {}, processes {:?}", route.name, route.address, route.pids()?);
    }
    let mut results = Results::default();
    // First, as long as nothing else has used memory.
    match args.burst {
        Some(connections) => memory(&world, connections, true, &mut results).await?,
        None if args.idle > 0 && args.only.is_empty() => memory(&world, args.idle, false, &mut results).await?,
        None => {}
    }
    eprintln!("TCP congestion control: {}", stats::congestion_control());
    let loads = if args.only.is_empty() { Load::value_variants() } else { &args.only };
    for round in 0..args.rounds {
        for &load in loads {
            eprintln!("round {} of {}: {}", round + 1, args.rounds, name(load));
            // Each time another path is first.
            for i in 0..world.routes.len() {
                let route = &world.routes[(i + round) % world.routes.len()];
                if !load.is_for(route) {
                    continue;
                }
                let figures = quietest(args, load, route, time, &mut results).await?;
                results.add(load, route.name, figures);
            }
        }
    }
    open(&world, args, time, &mut results).await?;
    if args.json {
        println!("{}", results.json());
    } else {
        let paths: Vec<_> = world.routes.iter().map(|route| (route.name, route.floors)).collect();
        println!("{}{}", results.tables(&paths), results.targets());
        println!("{} failed", results.failed);
        println!("{}", results.noise());
    }
    Ok(results.failed == 0)
}

/// Runs a load, and again if the machine was not quiet. The figures are those of the quietest run; failures of all of
/// them count.
async fn quietest(
    args: &Args,
    load: Load,
    route: &Route,
    time: Duration,
    results: &mut Results,
) -> Result<Figures, Failure> {
    let mut best: Option<(f64, Figures)> = None;
    for _ in 0..args.tries {
        let before = Host::now()?;
        let outcome = load.run(route, time).await?;
        let stolen = Host::now()?.stolen_since(&before);
        results.fail(&format!("{}, {}", route.name, name(load)), outcome.failed, outcome.why.as_deref());
        if best.as_ref().is_none_or(|(least, _)| stolen < *least) {
            best = Some((stolen, outcome.figures));
        }
        if stolen * 100.0 <= args.steal {
            break;
        }
    }
    let (stolen, figures) = best.ok_or("--tries: at least 1")?;
    results.stolen.push(stolen);
    Ok(figures)
}

const FEW: usize = 100;

/// The memory of the proxies: at their start, with connections open, and a minute after those were closed.
async fn memory(world: &World, connections: usize, burst: bool, results: &mut Results) -> Result<(), Failure> {
    let first = results.memory.len();
    for route in &world.routes {
        let before = route.memory()?;
        if before.is_empty() || route.is_for_bulk() {
            continue;
        }
        eprintln!("{}: {connections} connections", route.name);
        // What is needed for the first ones, such as the tunnels' own connection, is not what one more costs.
        let few = hold(route.address, FEW.min(connections / 2)).await;
        let some = route.memory()?;
        let held = hold(route.address, connections - few.connections.len()).await;
        results.fail(&format!("{}, {connections} connections", route.name), held.failed, held.why.as_deref());
        // Until what they needed to open is returned.
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (((proxy, start), (_, few)), (_, open)) in before.into_iter().zip(some).zip(route.memory()?) {
            let (path, each) = (route.name, (open - few) / held.connections.len().max(1) as f64);
            results.memory.push(Memory { path, proxy, connections, start, open, each, after: None });
        }
    }
    if burst {
        eprintln!("a minute without connections");
        tokio::time::sleep(Duration::from_secs(60)).await;
        let measured = world.routes.iter().filter(|route| !route.is_for_bulk());
        let after = measured.map(|route| route.memory()).collect::<Result<Vec<_>, _>>()?;
        for (memory, (_, after)) in results.memory[first..].iter_mut().zip(after.into_iter().flatten()) {
            memory.after = Some(after);
        }
    }
    Ok(())
}

/// What requests cost beside connections that are open and idle.
async fn open(world: &World, args: &Args, time: Duration, results: &mut Results) -> Result<(), Failure> {
    let measured = |route: &&Route| !args.open.is_empty() && route.has_proxies() && !route.is_for_bulk();
    for route in world.routes.iter().filter(measured) {
        for round in 0..args.rounds {
            for &connections in &args.open {
                eprintln!("round {} of {}: {} beside {connections} connections", round + 1, args.rounds, route.name);
                let held = hold(route.address, connections).await;
                results.fail(&format!("{}, {connections} connections", route.name), held.failed, held.why.as_deref());
                for load in [Load::New, Load::Keep] {
                    let figures = quietest(args, load, route, time, results).await?;
                    results.add_open(Open { path: route.name, load, connections }, figures);
                }
            }
        }
    }
    Ok(())
}
