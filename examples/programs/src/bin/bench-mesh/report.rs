//! What the runs gave: tables, targets, JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;

use crate::load::{Figures, Load, Metric};
use crate::stats::{median, ratio};

/// The values of all rounds, by load, path and metric.
#[derive(Default)]
pub(crate) struct Results {
    values: BTreeMap<(Load, &'static str, Metric), Vec<f64>>,
    /// Of each path's proxies.
    pub(crate) memory: Vec<Memory>,
    /// Microseconds of CPU for a request, in all rounds.
    open: BTreeMap<Open, Vec<f64>>,
    pub(crate) failed: u64,
    /// The share of the CPU that the host had for others, in each run that counts.
    pub(crate) stolen: Vec<f64>,
}

pub(crate) struct Memory {
    pub(crate) path: &'static str,
    pub(crate) proxy: &'static str,
    pub(crate) connections: usize,
    /// KiB.
    pub(crate) start: f64,
    pub(crate) open: f64,
    /// For each connection more.
    pub(crate) each: f64,
    /// A minute after they were closed.
    pub(crate) after: Option<f64>,
}

/// A load beside connections that are open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Open {
    pub(crate) path: &'static str,
    pub(crate) load: Load,
    pub(crate) connections: usize,
}

struct Target {
    what: String,
    limit: f64,
    at_most: bool,
    value: Option<f64>,
}

impl Results {
    pub(crate) fn add(&mut self, load: Load, path: &'static str, figures: Figures) {
        for (metric, value) in figures {
            self.values.entry((load, path, metric)).or_default().push(value);
        }
    }

    pub(crate) fn add_open(&mut self, open: Open, figures: Figures) {
        let cpu = figures.into_iter().filter(|(metric, _)| *metric == Metric::Cpu).map(|(_, cpu)| cpu);
        self.open.entry(open).or_default().extend(cpu);
    }

    pub(crate) fn fail(&mut self, what: &str, failed: u64, why: Option<&str>) {
        if failed > 0 {
            self.failed += failed;
            eprintln!("{what}: {failed} failed: {}", why.unwrap_or("unknown"));
        }
    }

    fn rounds(&self, load: Load, path: &'static str, metric: Metric) -> Option<&[f64]> {
        self.values.get(&(load, path, metric)).map(Vec::as_slice)
    }

    fn median(&self, load: Load, path: &'static str, metric: Metric) -> Option<f64> {
        median(self.rounds(load, path, metric)?)
    }

    fn ratio(&self, load: Load, path: &'static str, floor: &'static str, metric: Metric) -> Option<f64> {
        ratio(self.rounds(load, path, metric)?, self.rounds(load, floor, metric)?)
    }

    /// One table for each load: medians, and the ratios to what the path is compared to.
    pub(crate) fn tables(&self, paths: &[(&'static str, &'static [&'static str])]) -> String {
        let mut text = String::new();
        for &load in Load::value_variants() {
            if !self.values.keys().any(|(of, ..)| *of == load) {
                continue;
            }
            let (unit, cpu) = if load.is_bulk() { ("Gb/s", "CPU-s/GB") } else { ("req/s", "CPU-us/req") };
            let _ = writeln!(
                text,
                "\n{:<10} {unit:>9} {cpu:>11} {:>8} {:>8} {:>8}  ratios: {unit}, CPU",
                name(load),
                "p50 us",
                "p99 us",
                "p99.9 us"
            );
            for &(path, floors) in paths {
                let cell = |metric, digits: usize| match self.median(load, path, metric) {
                    Some(value) => format!("{value:.digits$}"),
                    None => "-".into(),
                };
                let rate = cell(Metric::Throughput, if load.is_bulk() { 2 } else { 0 });
                let cpu = cell(Metric::Cpu, if load.is_bulk() { 2 } else { 1 });
                let (p50, p99, p999) = (cell(Metric::P50, 0), cell(Metric::P99, 0), cell(Metric::P999, 0));
                let _ = write!(text, "  {path:<8} {rate:>9} {cpu:>11} {p50:>8} {p99:>8} {p999:>8} ");
                for floor in floors {
                    let (rate, cpu) = (Metric::Throughput, Metric::Cpu);
                    if let Some((rate, cpu)) =
                        self.ratio(load, path, floor, rate).zip(self.ratio(load, path, floor, cpu))
                    {
                        let _ = write!(text, " {rate:.2}, {cpu:.2} of {floor};");
                    }
                }
                text.truncate(text.trim_end_matches([';', ' ']).len());
                text.push('\n');
            }
        }
        text + &self.memory_table() + &self.open_table()
    }

    fn memory_table(&self) -> String {
        let mut text = String::new();
        if !self.memory.is_empty() {
            let _ = writeln!(
                text,
                "\nmemory     {:<8} {:>11} {:>12} {:>9} {:>15} {:>17}",
                "proxy", "connections", "KiB at start", "KiB open", "KiB/connection", "KiB 1 min after"
            );
        }
        for memory in &self.memory {
            let after = memory.after.map_or("-".into(), |kib| format!("{kib:.0}"));
            let _ = writeln!(
                text,
                "  {:<8} {:<8} {:>11} {:>12.0} {:>9.0} {:>15.2} {after:>17}",
                memory.path, memory.proxy, memory.connections, memory.start, memory.open, memory.each
            );
        }
        text
    }

    fn open_table(&self) -> String {
        let mut text = String::new();
        if !self.open.is_empty() {
            let _ = writeln!(text, "\nopen       {:<8} {:>11} {:>11}", "load", "connections", "CPU-us/req");
        }
        for (Open { path, load, connections }, rounds) in &self.open {
            let cpu = median(rounds).unwrap_or_default();
            let _ = writeln!(text, "  {path:<8} {:<8} {connections:>11} {cpu:>11.1}", name(*load));
        }
        text
    }

    /// What is aimed at, as far as it was measured.
    pub(crate) fn targets(&self) -> String {
        let mut text = String::from("\ntargets\n");
        for target in self.all_targets() {
            let Some(value) = target.value else { continue };
            let met = if target.at_most { value <= target.limit } else { value >= target.limit };
            let (bound, met) =
                (if target.at_most { "at most" } else { "at least" }, if met { "met" } else { "NOT MET" });
            let _ = writeln!(text, "  {:<52} {value:>7.2}  {bound:<8} {:>5.2}  {met}", target.what, target.limit);
        }
        text
    }

    /// How much the figures can be trusted.
    pub(crate) fn noise(&self) -> String {
        let worst = self.stolen.iter().copied().fold(0.0, f64::max);
        let median = median(&self.stolen).unwrap_or_default();
        format!("stolen by the host: {:.1} % of the CPU (median), {:.1} % at worst", median * 100.0, worst * 100.0)
    }

    fn all_targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for (path, floor, cpu, bulk, new, keep) in
            [("hbone", "tcp2", 1.45, 0.8, 0.95, 0.8), ("nested", "tcp3", 1.6, 0.65, 0.8, 0.65)]
        {
            let mut of = |load, metric, at_most, limit| {
                let unit = if metric == Metric::Cpu { "CPU" } else { "throughput" };
                let value = self.ratio(load, path, floor, metric);
                targets.push(Target {
                    what: format!("{path} / {floor}: {}, {unit}", name(load)),
                    limit,
                    at_most,
                    value,
                });
            };
            for load in [Load::BulkDown, Load::BulkUp] {
                of(load, Metric::Cpu, true, cpu);
                of(load, Metric::Throughput, false, bulk);
            }
            of(Load::New, Metric::Throughput, false, new);
            of(Load::Keep, Metric::Throughput, false, keep);
            let p99 = |load| self.rounds(load, path, Metric::P99);
            let value = p99(Load::RateBusy).zip(p99(Load::Rate)).and_then(|(busy, alone)| ratio(busy, alone));
            targets.push(Target {
                what: format!("{path}: p99 at a fixed rate, beside bulk / alone"),
                limit: 3.0,
                at_most: true,
                value,
            });
        }
        for memory in self.memory.iter().filter(|memory| ["hbone", "nested"].contains(&memory.path)) {
            let (path, proxy) = (memory.path, memory.proxy);
            let mut of = |what: &str, limit, value| {
                targets.push(Target { what: format!("{path}, {proxy}: {what}"), limit, at_most: true, value });
            };
            of("KiB of an idle tunnel", 4.0, Some(memory.each));
            of("MiB at start", 12.0, Some(memory.start / 1024.0));
            of("a minute after the connections / start", 1.3, memory.after.map(|after| after / memory.start));
        }
        for (many, rounds) in &self.open {
            // In order of their number, so that the first has the fewest.
            let of_same = |open: &&Open| open.path == many.path && open.load == many.load;
            let Some(few) = self.open.keys().find(of_same).filter(|few| *few != many) else { continue };
            let (path, load) = (many.path, name(many.load));
            let what = format!("{path}: CPU, {load}, {} open / {} open", many.connections, few.connections);
            targets.push(Target { what, limit: 1.2, at_most: true, value: ratio(rounds, &self.open[few]) });
        }
        targets
    }

    /// All values of all rounds, one object for each series.
    pub(crate) fn json(&self) -> String {
        let mut rows = Vec::new();
        for ((load, path, metric), values) in &self.values {
            let values = listed(values);
            let metric = format!("{metric:?}").to_lowercase();
            let load = name(*load);
            rows.push(format!(r#"{{"load":"{load}","path":"{path}","metric":"{metric}","rounds":[{values}]}}"#));
        }
        for Memory { path, proxy, connections, start, open, each, after } in &self.memory {
            let after = after.map_or("null".into(), |kib| format!("{kib}"));
            rows.push(format!(r#"{{"path":"{path}","proxy":"{proxy}","connections":{connections},"kib_start":{start},"kib_open":{open},"kib_each":{each:.3},"kib_after":{after}}}"#));
        }
        for (Open { path, load, connections }, values) in &self.open {
            let (load, values) = (name(*load), listed(values));
            rows.push(format!(
                r#"{{"load":"{load}","path":"{path}","open":{connections},"metric":"cpu","rounds":[{values}]}}"#
            ));
        }
        format!("{{\"failed\":{},\"results\":[\n{}\n]}}", self.failed, rows.join(",\n"))
    }
}

fn listed(values: &[f64]) -> String {
    values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(",")
}

/// As on the command line.
pub(crate) fn name(load: Load) -> String {
    load.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
