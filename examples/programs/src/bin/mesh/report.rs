//! What happened, step by step, and whether it is what was promised.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The steps so far, and how each of their promises turned out.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
}

struct Step {
    title: String,
    kept: usize,
    broken: usize,
}

impl Report {
    pub(crate) fn step(&mut self, title: &str) {
        println!("\n{}. {title}", self.steps.len() + 1);
        self.steps.push(Step { title: title.to_owned(), kept: 0, broken: 0 });
    }

    /// What happened.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        println!("     {}", text.as_ref());
    }

    /// A promise of the current step.
    pub(crate) fn promise(&mut self, kept: bool, text: impl AsRef<str>) {
        println!("  {}  {}", if kept { "ok" } else { "NO" }, text.as_ref());
        if let Some(step) = self.steps.last_mut() {
            if kept { step.kept += 1 } else { step.broken += 1 }
        }
    }

    /// Prints the summary, and says whether everything held.
    pub(crate) fn summary(&self) -> bool {
        println!("\nSummary");
        for (i, step) in self.steps.iter().enumerate() {
            // A step without promises has not shown anything.
            let held = step.broken == 0 && step.kept > 0;
            println!(
                "  {}  {}. {} ({}/{})",
                if held { "ok" } else { "NO" },
                i + 1,
                step.title,
                step.kept,
                step.kept + step.broken
            );
        }
        let held = self.steps.iter().filter(|step| step.broken == 0 && step.kept > 0).count();
        println!("\n{held} of {} steps held.", self.steps.len());
        held == self.steps.len()
    }
}

/// A line that moves while something takes its time.
pub(crate) fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A line that counts.
pub(crate) fn counter(text: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(text.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {pos}/{len}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
