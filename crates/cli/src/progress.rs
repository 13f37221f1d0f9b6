//! A progress bar on a terminal's standard error; nothing where there is no terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Shows which step of how many is under way.
///
/// It draws when a step begins or ends and never on its own, so that it costs nothing inside a timed part.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `steps` steps; hidden with `--json` into a terminal, too, since the records then show the progress.
    pub(crate) fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} {msg}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Begins a step.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
        self.bar.tick();
    }

    /// Ends a step.
    pub(crate) fn end(&self) {
        self.bar.inc(1);
    }

    /// Runs `print` with the bar out of the way.
    pub(crate) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }
}

/// How far a swapoff is.
#[derive(Debug)]
pub(crate) struct Drain {
    bar: ProgressBar,
}

impl Drain {
    /// For swapoff number `number`.
    pub(crate) fn new(number: u32) -> Self {
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(format!("swapoff {number}"));
        Self { bar }
    }

    /// `left` of `total` bytes are still in the device.
    pub(crate) fn show(&self, left: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(total.saturating_sub(left));
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
