//! Figures: percentiles, medians, ratios, and what /proc tells of a process.

use std::collections::BTreeSet;

use crate::Failure;

/// The median; of an even number, the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The median of the ratios, round by round.
pub(crate) fn ratio(values: &[f64], floor: &[f64]) -> Option<f64> {
    let ratios: Vec<f64> = values.iter().zip(floor).filter(|(_, floor)| **floor > 0.0).map(|(v, f)| v / f).collect();
    median(&ratios)
}

/// The nearest-rank percentile of sorted values.
pub(crate) fn percentile(sorted: &[u32], percent: f64) -> Option<u32> {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// What /proc/PID/stat says.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: u32,
    /// Of all threads, in ticks of 10 ms: user and system.
    ticks: u64,
}

/// The name in parentheses may have spaces and parentheses itself, so that the fields are counted from the last one on.
fn stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

fn read_stat(pid: u32) -> Result<Stat, Failure> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}: has the proxy ended?"))?;
    Ok(stat(&text).ok_or_else(|| format!("{path}: not as expected: {text}"))?)
}

/// CPU seconds that processes have used so far.
pub(crate) fn cpu(pids: &[u32]) -> Result<f64, Failure> {
    let mut ticks = 0;
    for &pid in pids {
        ticks += read_stat(pid)?.ticks;
    }
    Ok(ticks as f64 / 100.0)
}

/// The memory of a process that is resident, in KiB.
pub(crate) fn rss(pid: u32) -> Result<f64, Failure> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}: has the proxy ended?"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse().ok());
    Ok(kib.ok_or_else(|| format!("{path} has no VmRSS"))?)
}

/// What the CPUs of this machine have done so far, in ticks.
#[derive(Debug, PartialEq)]
pub(crate) struct Host {
    /// When they had something to do, and the machine below ran something else.
    stolen: u64,
    all: u64,
}

impl Host {
    pub(crate) fn now() -> Result<Self, Failure> {
        let text = std::fs::read_to_string("/proc/stat").map_err(|e| format!("/proc/stat: {e}"))?;
        Ok(Self::parse(&text).ok_or_else(|| format!("/proc/stat: not as expected: {text}"))?)
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal; the guests' time after that is in user
    /// already.
    fn parse(text: &str) -> Option<Self> {
        let ticks = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8);
        let ticks = ticks.map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
        Some(Self { stolen: *ticks.get(7)?, all: ticks.iter().sum() })
    }

    /// The share of the CPUs' time since then that was stolen, 0 to 1.
    pub(crate) fn stolen_since(&self, before: &Self) -> f64 {
        let (stolen, all) = (self.stolen.saturating_sub(before.stolen), self.all.saturating_sub(before.all));
        stolen as f64 / all.max(1) as f64
    }
}

/// What new sockets use, such as `cubic`: BBR paces each segment by a timer, which costs all paths as much as TLS does.
pub(crate) fn congestion_control() -> String {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    text.map_or_else(|e| e.to_string(), |name| name.trim().to_owned())
}

/// A process and all that it has started, as of now.
pub(crate) fn tree(root: u32) -> Result<Vec<u32>, Failure> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").map_err(|e| format!("/proc: {e}"))? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Those that end in the meantime are not of interest.
        if let Ok(stat) = read_stat(pid) {
            all.push((pid, stat.parent));
        }
    }
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        let children: Vec<u32> = all.iter().filter(|(_, parent)| found.contains(parent)).map(|(pid, _)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            return Ok(found.into_iter().collect());
        }
    }
}
