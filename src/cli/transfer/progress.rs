//! The progress of a transfer, on stderr: a bar on a terminal, otherwise a line every few seconds.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressFinish, ProgressStyle};

/// The interval between two lines, without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// The interval at which the bar redraws itself, to show that the program is alive.
const TICK: Duration = Duration::from_millis(200);

/// Shows rows, rate and, if the size of the input is known, the time left.
pub struct Progress {
    bar: Option<ProgressBar>,
    total_bytes: Option<u64>,
    bytes: u64,
    rows: u64,
    started: Instant,
    printed: Instant,
}

impl Progress {
    /// Starts the clock. `total_bytes` is the size of the input, if it is known.
    pub fn start(total_bytes: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            bar: io::stderr().is_terminal().then(|| bar(total_bytes)),
            total_bytes,
            bytes: 0,
            rows: 0,
            started: now,
            printed: now,
        }
    }

    /// Adds to the rows and bytes that are done.
    pub fn advance(&mut self, rows: u64, bytes: u64) {
        self.rows += rows;
        self.bytes += bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(self.bytes);
            bar.set_message(describe_rate(self.rows, self.elapsed()));
        } else if self.printed.elapsed() >= LINE_EVERY {
            self.printed = Instant::now();
            note(&self.line());
        }
    }

    /// Prints a line without disturbing the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => note(text),
        }
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Removes the bar. Returns the time since the start.
    pub fn finish(self) -> Duration {
        self.elapsed()
    }

    fn line(&self) -> String {
        let elapsed = self.elapsed();
        let mut line = describe_rate(self.rows, elapsed);
        if let Some(total) = self.total_bytes.filter(|_| self.bytes > 0) {
            let left = total.saturating_sub(self.bytes);
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            let left_to_done = left as f64 / self.bytes as f64;
            line = format!(
                "{line}, {}% done, about {} left",
                (u128::from(self.bytes.min(total)) * 100) / u128::from(total.max(1)),
                HumanDuration(elapsed.mul_f64(left_to_done)),
            );
        }
        line
    }
}

fn bar(total_bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (
            ProgressBar::new(total),
            "{wide_bar} {percent}%  {msg}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} in {elapsed}"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = bar.with_style(style).with_finish(ProgressFinish::AndClear);
    bar.enable_steady_tick(TICK);
    bar
}

/// Prints a line to stderr. Unlike `eprintln!`, it doesn't panic if stderr is broken: the transfer goes
/// on.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// `1,234 rows, 617/s`.
pub fn describe_rate(rows: u64, elapsed: Duration) -> String {
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(rows) * 1000 / millis).unwrap_or(u64::MAX);
    let noun = if rows == 1 { "row" } else { "rows" };
    format!("{} {noun}, {}/s", HumanCount(rows), HumanCount(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_no_time_is_no_division_by_zero() {
        assert_eq!(describe_rate(0, Duration::ZERO), "0 rows, 0/s");
        assert_eq!(describe_rate(1, Duration::from_secs(1)), "1 row, 1/s");
        assert_eq!(
            describe_rate(1234, Duration::from_secs(2)),
            "1,234 rows, 617/s"
        );
    }

    #[test]
    fn the_time_left_is_shown_only_if_the_size_is_known() {
        let progress = |total_bytes| Progress {
            bar: None,
            total_bytes,
            bytes: 25,
            rows: 1000,
            started: Instant::now().checked_sub(Duration::from_secs(10)).unwrap(),
            printed: Instant::now(),
        };
        let known = progress(Some(100)).line();
        assert!(known.contains("25% done, about 30 seconds left"), "{known}");
        assert!(!progress(None).line().contains("left"));
    }
}
