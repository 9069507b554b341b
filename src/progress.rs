//! Progress on stderr: a bar on a terminal, a few quiet lines elsewhere.

use crate::output::note;
use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Where there is no terminal, at most one line in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Work of a known size.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    total: u64,
    done: u64,
    last_line: Instant,
}

impl Progress {
    /// Progress over `total` steps. `template` shows the bar's numbers, as indicatif writes them.
    pub(crate) fn new(what: &'static str, template: &str, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let template = format!("{what} [{{bar:30}}] {template}");
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style.progress_chars("=> "))
        });
        Self { bar, what, total, done: 0, last_line: Instant::now() }
    }

    /// `steps` more are done, `detail` is under way.
    pub(crate) fn advance(&mut self, steps: u64, detail: &str) {
        self.done += steps;
        if let Some(bar) = &self.bar {
            bar.set_message(detail.to_owned());
            bar.set_position(self.done);
        } else if self.last_line.elapsed() >= QUIET {
            self.last_line = Instant::now();
            let percent = (self.done * 100).checked_div(self.total).unwrap_or(100);
            note(format_args!("{}: {percent} %", self.what));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The progress of a conversion.
#[derive(Debug, Default)]
pub(crate) struct Conversion {
    progress: Option<Progress>,
}

impl tidbit_convert::Progress for Conversion {
    fn measured(&mut self, done: usize, all: usize) {
        let template = "{pos}/{len} matrices, {eta}";
        let progress = self.progress.get_or_insert_with(|| Progress::new("measuring", template, all as u64));
        progress.advance((done as u64).saturating_sub(progress.done), "");
    }

    fn begin(&mut self, total_bytes: u64, tensors: usize) {
        let progress = Progress::new("converting", "{decimal_bytes}/{decimal_total_bytes} {msg}", total_bytes);
        if progress.bar.is_none() {
            note(format_args!("converting {tensors} tensors, {}", DecimalBytes(total_bytes)));
        }
        self.progress = Some(progress);
    }

    fn tensor(&mut self, name: &str, source_bytes: u64) {
        if let Some(progress) = &mut self.progress {
            progress.advance(source_bytes, name);
        }
    }

    fn end(&mut self) {
        self.progress = None;
    }
}
